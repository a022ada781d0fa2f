"""The SDK for programs without an event loop: the same calls, waiting for their answers.

A thread of its own runs a loop with one `RegistryClient` in it, so that heartbeats go on while the
program computes or blocks. Not to be used across `fork`: make it after.
"""

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar, Unpack

from registryd.client.client import RegistryClient
from registryd.client.listeners import Called
from registryd.client.registration import Registration
from registryd.client.types import Event, Filters, Found, Matching, Strategy, Target, Watched
from registryd.health.types import InstanceHealthShown, ServiceHealthShown
from registryd.registry.types import (
    CapabilityShown,
    Chosen,
    HeartbeatItem,
    InstanceShown,
    Lease,
    RegistryHealth,
    ServiceList,
    ServiceShown,
    Stats,
)

T = TypeVar("T")

STOPPING: Final = 10.0
"""Seconds that the thread may take to end."""


class SyncRegistryClient:
    """As `RegistryClient`, whose arguments it takes; safe to be used by several threads."""

    def __init__(self, urls: str | Sequence[str] = (), **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="registryd client", daemon=True
        )
        self._client = RegistryClient(urls, **options)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._wait(self._client.close())
        self._wait(self._loop.shutdown_asyncgens())
        self._wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOPPING)
        self._loop.close()

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def _each(self, make: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        """What an asynchronous iteration yields, one at a time."""
        items = make()

        async def one() -> tuple[T] | None:
            async for item in items:
                return (item,)
            return None

        try:
            while (held := self._wait(one())) is not None:
                yield held[0]
        finally:
            if not self._loop.is_closed():
                self._wait(items.aclose())

    # --- writing

    def register(self, name: str, endpoint: str, **fields: Any) -> InstanceShown:
        return self._wait(self._client.register(name, endpoint, **fields))

    def renew(self, name: str, instance_id: str, **more: Any) -> Lease:
        return self._wait(self._client.renew(name, instance_id, **more))

    def renew_many(self, items: Iterable[HeartbeatItem]) -> Sequence[str]:
        return self._wait(self._client.renew_many(items))

    def deregister(self, name: str, instance_id: str | None = None, **more: Any) -> bool:
        return self._wait(self._client.deregister(name, instance_id, **more))

    def update(self, name: str, instance_id: str, **changes: Any) -> InstanceShown:
        return self._wait(self._client.update(name, instance_id, **changes))

    def maintenance(
        self,
        name: str,
        instance_id: str | None = None,
        *,
        enabled: bool = True,
        reason: str | None = None,
        until: datetime | None = None,
    ) -> InstanceShown:
        return self._wait(
            self._client.maintenance(name, instance_id, enabled=enabled, reason=reason, until=until)
        )

    def drain(self, name: str, instance_id: str, *, seconds: int = 30) -> InstanceShown:
        return self._wait(self._client.drain(name, instance_id, seconds=seconds))

    def cleanup(self, *, force: bool = False) -> int:
        return self._wait(self._client.cleanup(force=force))

    def export_to(self, path: str | Path, **options: Any) -> int:
        return self._wait(self._client.export_to(path, **options))

    def import_file(self, file: bytes, **options: Any) -> Mapping[str, Any]:
        return self._wait(self._client.import_file(file, **options))

    # --- reading

    def get(self, name: str) -> ServiceShown:
        return self._wait(self._client.get(name))

    def get_instance(self, name: str, instance_id: str) -> InstanceShown:
        return self._wait(self._client.get_instance(name, instance_id))

    def services(self, **filters: Unpack[Filters]) -> Iterator[ServiceShown]:
        return self._each(lambda: self._client.services(**filters))

    def instances(self, **filters: Unpack[Filters]) -> Found:
        return self._wait(self._client.instances(**filters))

    def discover(self, name: str) -> Found:
        return self._wait(self._client.discover(name))

    def url(
        self,
        name: str,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        key: str | None = None,
        zone: str | None = None,
        exclude: Sequence[str] = (),
        **filters: Unpack[Matching],
    ) -> Chosen:
        return self._wait(
            self._client.url(
                name, strategy=strategy, key=key, zone=zone, exclude=exclude, **filters
            )
        )

    def wait_for_change(
        self, since: str, *, wait: float = 30.0, **filters: Unpack[Filters]
    ) -> ServiceList:
        return self._wait(self._client.wait_for_change(since, wait=wait, **filters))

    def watch(self, *services: str, **filters: Unpack[Filters]) -> Iterator[Watched]:
        return self._each(lambda: self._client.watch(*services, **filters))

    def events(
        self, *types: str, service: str | Sequence[str] = (), since: str = ""
    ) -> Iterator[Event]:
        return self._each(lambda: self._client.events(*types, service=service, since=since))

    @contextmanager
    def listening(
        self, *, service: str | Sequence[str] = (), since: str = "", **listeners: Called
    ) -> Iterator[None]:
        """Calls functions when things happen, within `with`, in the client's thread."""
        listening = self._client.listening(service=service, since=since, **listeners)
        self._wait(listening.__aenter__())
        try:
            yield
        finally:
            self._wait(listening.__aexit__(None, None, None))

    def health(self, name: str) -> ServiceHealthShown:
        return self._wait(self._client.health(name))

    def instance_health(self, name: str, instance_id: str) -> InstanceHealthShown:
        return self._wait(self._client.instance_health(name, instance_id))

    def check(self, name: str) -> ServiceHealthShown:
        return self._wait(self._client.check(name))

    def check_instance(self, name: str, instance_id: str) -> InstanceHealthShown:
        return self._wait(self._client.check_instance(name, instance_id))

    def stats(self) -> Stats:
        return self._wait(self._client.stats())

    def capabilities(self) -> list[CapabilityShown]:
        return self._wait(self._client.capabilities())

    def history(
        self, service: str | None = None, instance: str | None = None
    ) -> Iterator[Mapping[str, Any]]:
        return self._each(lambda: self._client.history(service, instance))

    def explain(self, service: str, instance: str | None = None) -> Mapping[str, Any]:
        return self._wait(self._client.explain(service, instance))

    def registry_health(self) -> RegistryHealth:
        return self._wait(self._client.registry_health())

    # --- staying registered, and choosing

    @contextmanager
    def registration(self, name: str, endpoint: str, **options: Any) -> Iterator[Registration]:
        """Keeps an instance registered within `with`. `on_sigterm` needs an event loop in the main
        thread, which is not here."""

        async def make() -> Registration:
            return await self._client.registration(name, endpoint, **options).__aenter__()

        registration = self._wait(make())
        try:
            yield registration
        finally:
            self._wait(registration.__aexit__(None, None, None))

    def pick(
        self,
        service: str,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        key: str = "",
        zone: str | None = None,
        **filters: Unpack[Matching],
    ) -> Target:
        return self._wait(
            self._client.pick(service, strategy=strategy, key=key, zone=zone, **filters)
        )
