"""The registry's API as methods: the same types, typed errors, and an answer also while it is away."""

import asyncio
import logging
import os
import random
import ssl
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self, Unpack
from urllib.parse import quote

from pydantic.alias_generators import to_camel

from registryd.client.answers import shaped, stale_for, step, valid
from registryd.client.heartbeats import Heartbeats
from registryd.client.identity import base_urls, default_id
from registryd.client.known import DOUBT_FOR, Known, key_of
from registryd.client.listeners import Called, Listeners
from registryd.client.picker import Picker
from registryd.client.registration import Registration
from registryd.client.shelf import Shelf
from registryd.client.stream import PASSING, Interrupted, Message, follow
from registryd.client.transfer import export_to, import_file
from registryd.client.transport import Query, Reply, Transport
from registryd.client.types import (
    Event,
    Filters,
    Found,
    Matching,
    Strategy,
    Target,
    UnexpectedAnswer,
    Watched,
)
from registryd.errors import NotFound
from registryd.health.types import InstanceHealthShown, ServiceHealthShown
from registryd.registry.types import (
    CapabilityList,
    CapabilityShown,
    Chosen,
    CleanupResult,
    HeartbeatItem,
    HeartbeatResults,
    InstanceArray,
    InstanceShown,
    Lease,
    RegistryHealth,
    ServiceList,
    ServiceShown,
    Stats,
)

log = logging.getLogger(__name__)

PAGE: Final = "1000"
KEPT_RESULTS: Final = 1024
"""Different queries whose last result is remembered."""
CHECK_TIMEOUT: Final = 310.0
"""Seconds: a probe may take five minutes."""


class RegistryClient:
    """A client of one registry, which may be several daemons: any of `urls` will do, and one that does
    not answer is passed over. To be used in one event loop, and closed (`async with`).

    `urls` default to `REGISTRYD_URL` (several with commas), `CONFIG_SERVICE_URL`, this machine;
    `api_key` to `REGISTRYD_API_KEY`. `timeout` bounds an attempt, `patience` a call with its retries
    (seconds). `tls` is for private authorities and client certificates. With `cache_dir` (or
    `REGISTRYD_CACHE_DIR`) the last known instances survive the process. `doubt_for`: how long a sudden
    shrink after an interruption is not believed (seconds).
    """

    def __init__(
        self,
        urls: str | Sequence[str] = (),
        *,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 5.0,
        patience: float = 15.0,
        cache_dir: str | Path | None = None,
        doubt_for: float = DOUBT_FOR,
        environ: Mapping[str, str] | None = None,
        dice: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        environ = os.environ if environ is None else environ
        bases = [urls] if isinstance(urls, str) else list(urls)
        api_key = api_key or environ.get("REGISTRYD_API_KEY") or None
        self._dice = dice or random.Random()  # noqa: S311  spreads load, guards nothing
        self._clock = clock
        self._doubt_for = doubt_for
        self.transport = Transport(
            bases or base_urls(environ),
            api_key=api_key,
            tls=tls,
            timeout=timeout,
            patience=patience,
            dice=self._dice,
            clock=clock,
        )
        directory = cache_dir or environ.get("REGISTRYD_CACHE_DIR") or None
        self._shelf = (
            Shelf(Path(directory), [*sorted(self.transport.urls), api_key or ""])
            if directory
            else None
        )
        self._known: dict[str, tuple[Known, int]] = {}
        """By query: what is known, and how many attempts had failed by then."""
        self._pickers: dict[tuple[object, ...], Picker] = {}
        self._heartbeats = Heartbeats(self, self._dice, clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends pickers and connections. Registrations end themselves, before."""
        for picker in self._pickers.values():
            await picker.close()
        self._pickers.clear()
        await self._heartbeats.close()
        await self.transport.close()

    # --- writing

    async def register(
        self,
        name: str,
        endpoint: str,
        *,
        instance_id: str | None = None,
        patience: float | None = None,
        **fields: Any,
    ) -> InstanceShown:
        """Registers an instance, or renews it when nothing about it changed. `fields` are those of the
        API, in either style; `health_check=None` switches probing off. `registration` keeps it so."""
        body = {"name": name, "endpoint": endpoint, **fields}
        if instance_id is None:
            call = self.transport.call(
                "POST", "/services", body=body, idempotent=True, patience=patience
            )
        else:
            call = self.transport.call(
                "PUT", _instance(name, instance_id), body=body, patience=patience
            )
        return shaped(InstanceShown, await call)

    async def renew(
        self,
        name: str,
        instance_id: str,
        *,
        incarnation: str | None = None,
        status: str | None = None,
    ) -> Lease:
        """Raises InstanceUnknown when it has to register again, Superseded when another has."""
        body = _given(incarnation=incarnation, status=status)
        path = f"{_instance(name, instance_id)}/heartbeat"
        return shaped(Lease, await self.transport.call("PUT", path, body=body or None))

    async def renew_many(
        self, items: Iterable[HeartbeatItem], *, patience: float | None = None
    ) -> Sequence[str]:
        """`renewed`, `unknown` or `superseded` for each, in order; 10 000 at most."""
        beats = [one.model_dump(by_alias=True, exclude_none=True) for one in items]
        reply = await self.transport.call(
            "PUT", "/heartbeats", body={"heartbeats": beats}, patience=patience
        )
        results = shaped(HeartbeatResults, reply).results
        if len(results) != len(beats):
            raise UnexpectedAnswer(
                f"{reply.base} answered {len(beats)} heartbeats with {len(results)} results. "
                "Update whichever of client and daemon is older."
            )
        return results

    async def deregister(
        self,
        name: str,
        instance_id: str | None = None,
        *,
        drain_seconds: int | None = None,
        incarnation: str | None = None,
        patience: float | None = None,
    ) -> bool:
        """Takes an instance away, or without its id all of the service; False when there was none.
        With `drain_seconds` it is out of every choice at once, and gone after that time. With
        `incarnation` a successor stays (Superseded)."""
        path = f"/services/{quote(name)}" if instance_id is None else _instance(name, instance_id)
        query = _pairs({"drain_seconds": drain_seconds, "incarnation": incarnation})
        try:
            await self.transport.call("DELETE", path, query=query, patience=patience)
        except NotFound:
            return False
        return True

    async def update(self, name: str, instance_id: str, **changes: Any) -> InstanceShown:
        """Merges into an instance (RFC 7386): None takes a field away."""
        body = {to_camel(field): value for field, value in changes.items()}
        reply = await self.transport.call("PATCH", _instance(name, instance_id), body=body)
        return shaped(InstanceShown, reply)

    async def maintenance(
        self,
        name: str,
        instance_id: str | None = None,
        *,
        enabled: bool = True,
        reason: str | None = None,
        until: datetime | None = None,
    ) -> InstanceShown:
        """Hides an instance, or all of a service, from choices until it is taken back or `until`
        (aware). Of a service it answers with its best instance."""
        path = f"/services/{quote(name)}" if instance_id is None else _instance(name, instance_id)
        body = _given(enabled=enabled, reason=reason, until=until.isoformat() if until else None)
        return shaped(
            InstanceShown, await self.transport.call("PUT", f"{path}/maintenance", body=body)
        )

    async def drain(self, name: str, instance_id: str, *, seconds: int = 30) -> InstanceShown:
        """Out of every choice at once, and gone after that time, whatever it renews."""
        reply = await self.transport.call(
            # Sent twice it would end later.
            *("PUT", f"{_instance(name, instance_id)}/drain"),
            body={"seconds": seconds},
            idempotent=False,
        )
        return shaped(InstanceShown, reply)

    async def cleanup(self, *, force: bool = False) -> int:
        """Expires what is due, with `force` also what the expiry guard holds; how many."""
        query = [("force", "true")] if force else []
        reply = await self.transport.call("POST", "/cleanup", query=query)
        return shaped(CleanupResult, reply).removed

    async def export_to(
        self, path: str | Path, *, progress: Callable[[int], None] = lambda _: None
    ) -> int:
        """Saves all that is registered to a file, whole or not at all; how many bytes."""
        return await export_to(self.transport, Path(path), progress)

    async def import_file(
        self, file: bytes, *, replace: bool = False, dry_run: bool = False, confirm: str = ""
    ) -> Mapping[str, Any]:
        """Makes the registry what a file says, all or nothing, as `POST /import` tells it. `replace` also
        removes what is not in the file, and then wants the `confirm` that `dry_run` gives."""
        return await import_file(
            self.transport, file, replace=replace, dry_run=dry_run, confirm=confirm
        )

    # --- reading

    async def get(self, name: str) -> ServiceShown:
        return shaped(ServiceShown, await self.transport.call("GET", f"/services/{quote(name)}"))

    async def get_instance(
        self, name: str, instance_id: str, *, patience: float | None = None
    ) -> InstanceShown:
        path = _instance(name, instance_id)
        return shaped(InstanceShown, await self.transport.call("GET", path, patience=patience))

    async def services(self, **filters: Unpack[Filters]) -> AsyncGenerator[ServiceShown, None]:
        """The services that match, page by page; `instances` of each holds those that do."""
        async for page, _ in self._pages("services", filters):
            for one in page.services or ():
                yield valid(ServiceShown, one)

    async def instances(self, **filters: Unpack[Filters]) -> Found:
        """All instances that match: from the registry, or the last known while it gives no answer."""

        return await self._current_or_last(
            f"instances?{sorted(_pairs(filters))}", self.list_instances(filters)
        )

    async def list_instances(
        self, filters: Filters, *, patience: float | None = None
    ) -> tuple[list[InstanceShown], str, float]:
        """All instances that match, the revision, and how old the answer is (seconds)."""
        found: list[InstanceShown] = []
        revision, stale = "", 0.0
        async for page, reply in self._pages("instances", filters, patience):
            found += [valid(InstanceShown, one) for one in page.instances or ()]
            revision, stale = page.revision, max(stale, stale_for(reply))
        return found, revision, stale

    async def discover(self, name: str, *, patience: float | None = None) -> Found:
        """The instances of a service, healthy first: from the registry, or the last known while it
        gives no answer."""

        async def listed() -> tuple[list[InstanceShown], str, float]:
            reply = await self.transport.call("GET", f"/discover/{quote(name)}", patience=patience)
            revision = reply.headers.get("X-Registry-Revision", "")
            return shaped(InstanceArray, reply).root, revision, stale_for(reply)

        return await self._current_or_last(f"discover/{name}", listed())

    async def _current_or_last(
        self, query: str, listed: Coroutine[Any, Any, tuple[list[InstanceShown], str, float]]
    ) -> Found:
        known, failures = self._known.pop(query, (None, 0))
        if known is None:
            known = Known(clock=self._clock, doubt_for=self._doubt_for)
            await self.recall(query, known)
        self._known[query] = known, failures
        if len(self._known) > KEPT_RESULTS:
            del self._known[next(iter(self._known))]
        try:
            instances, revision, stale = await listed
        except PASSING as error:
            if known.agreed is None:
                raise
            log.warning("using the last known instances: %s", error.detail)
            return known.found("last-known-good")
        interrupted = self.transport.failures != failures
        known.take(instances, revision, interrupted=interrupted, stale_for=stale)
        if query in self._known:
            self._known[query] = known, self.transport.failures
        found = known.found()
        await self.keep(query, known)
        # What passed since the answer came is no staleness.
        return replace(found, stale_for=stale)

    async def recall(self, query: str, known: Known) -> None:
        """Tells `known` what earlier lives of this program knew of a query, which may be nothing."""
        if self._shelf is not None:
            kept = await asyncio.to_thread(self._shelf.recall, query)
            if kept is not None:
                known.recall(kept.instances, kept.revision, age=kept.age)

    async def keep(self, query: str, known: Known) -> None:
        """For later lives. What is doubted is not kept, nor what it would replace."""
        if self._shelf is not None and not known.doubted:
            await asyncio.to_thread(self._shelf.keep, query, known.found())

    async def _pages(
        self, view: str, filters: Filters, patience: float | None = None
    ) -> AsyncGenerator[tuple[ServiceList, Reply], None]:
        cursor = ""
        while True:
            query = [*_pairs(filters), ("view", view), ("limit", PAGE)]
            if cursor:
                query.append(("cursor", cursor))
            reply = await self.transport.call("GET", "/services", query=query, patience=patience)
            page = shaped(ServiceList, reply)
            yield page, reply
            if page.next is None:
                return
            cursor = page.next

    async def url(
        self,
        name: str,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        key: str | None = None,
        zone: str | None = None,
        exclude: Sequence[str] = (),
        **filters: Unpack[Matching],
    ) -> Chosen:
        """One instance, chosen by the registry; NoneOffered, counting why, when there is none. `zone` is
        preferred here, not demanded. `pick` chooses here, without asking each time."""
        query = _pairs(
            {**filters, "strategy": strategy, "key": key, "zone": zone, "exclude": exclude}
        )
        return shaped(
            Chosen, await self.transport.call("GET", f"/services/{quote(name)}/url", query=query)
        )

    async def wait_for_change(
        self, since: str, *, wait: float = 30.0, **filters: Unpack[Filters]
    ) -> ServiceList:
        """Long poll: the first 1000 services that match, once that may have changed after the revision
        `since`, or after `wait` seconds; `revision` of the answer is the next `since`."""
        query = [*_pairs(filters), ("since", since), ("wait", f"{wait:g}s"), ("limit", PAGE)]
        return shaped(
            ServiceList,
            await self.transport.call(
                "GET", "/services", query=query, timeout=wait + self.transport.timeout
            ),
        )

    async def watch(
        self, *services: str, **filters: Unpack[Filters]
    ) -> AsyncGenerator[Watched, None]:
        """The result of a query, and each change to just that result, for ever: a connection that breaks
        off is opened again where it was. `services` are exact names. Close it with `aclosing`, or by
        leaving the loop that is its only user."""
        known: dict[tuple[str, str], InstanceShown] = {}
        async with aclosing(self.follow_watch(services, filters)) as messages:
            async for message in messages:
                if isinstance(message, Interrupted) or not message.event:
                    continue
                told = step(message)
                if told is None:
                    continue
                present = told.whole
                if present is not None:
                    known.clear()
                known.update((key_of(one), one) for one in present or (*told.added, *told.changed))
                for gone in told.removed:
                    known.pop((gone.name, gone.instance_id), None)
                yield Watched(
                    *("change" if present is None else "snapshot", told.revision, dict(known)),
                    *(told.added, told.changed, told.removed),
                )

    def follow_watch(
        self, services: Sequence[str], filters: Filters | Matching
    ) -> AsyncGenerator[Message | Interrupted, None]:
        """The messages of a watch as they come, with pings and interruptions."""
        query = [*_pairs(filters), *([("service", ",".join(services))] if services else ())]
        return follow(self.transport, "/watch", query, dice=self._dice)

    async def events(
        self, *types: str, service: str | Sequence[str] = (), since: str = ""
    ) -> AsyncGenerator[Event, None]:
        """CloudEvents of these types (`*` is a glob; none is all), for ever, each once; from now on or
        after the event or revision `since`. `reset` comes first when that is too long ago."""
        query = _pairs({"types": types, "service": service})
        async with aclosing(
            follow(self.transport, "/events", query, since=since, dice=self._dice)
        ) as messages:
            async for message in messages:
                if isinstance(message, Interrupted) or message.event in {"", "bye"}:
                    continue
                body = message.json
                if message.event == "reset":
                    yield Event(message.id, "reset", "", "", body)
                else:
                    yield Event(
                        str(body.get("id", "")),
                        str(body.get("type", "")),
                        str(body.get("subject", "")),
                        str(body.get("time", "")),
                        body.get("data") or {},
                    )

    @asynccontextmanager
    async def listening(
        self, *, service: str | Sequence[str] = (), since: str = "", **listeners: Called
    ) -> AsyncGenerator[None, None]:
        """Calls functions when things happen, within `async with client.listening(
        on_service_registered=f, …)`; see `registryd.client.listeners`. Raises at the end what the registry
        has refused with."""
        told = Listeners(**listeners)
        following = asyncio.create_task(
            told.follow(self.events(*told.types, service=service, since=since)),
            name="registryd listeners",
        )
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])
            if not following.cancelled():
                following.result()

    async def health(self, name: str) -> ServiceHealthShown:
        """What is known now of a service's health, and the latest transitions."""
        path = f"/services/{quote(name)}/health"
        return shaped(ServiceHealthShown, await self.transport.call("GET", path))

    async def instance_health(self, name: str, instance_id: str) -> InstanceHealthShown:
        path = f"{_instance(name, instance_id)}/health"
        return shaped(InstanceHealthShown, await self.transport.call("GET", path))

    async def check(self, name: str) -> ServiceHealthShown:
        """Probes all instances of a service now. Takes as long as their probes may."""
        path = f"/services/{quote(name)}/check"
        reply = await self.transport.call("POST", path, timeout=CHECK_TIMEOUT)
        return shaped(ServiceHealthShown, reply)

    async def check_instance(self, name: str, instance_id: str) -> InstanceHealthShown:
        path = f"{_instance(name, instance_id)}/check"
        reply = await self.transport.call("POST", path, timeout=CHECK_TIMEOUT)
        return shaped(InstanceHealthShown, reply)

    async def stats(self) -> Stats:
        return shaped(Stats, await self.transport.call("GET", "/stats"))

    async def capabilities(self) -> list[CapabilityShown]:
        """What anybody claims to be able to do, by name."""
        found: list[CapabilityShown] = []
        cursor = ""
        while True:
            query = _pairs({"limit": PAGE, "cursor": cursor or None})
            reply = await self.transport.call("GET", "/capabilities", query=query)
            page = shaped(CapabilityList, reply)
            found += page.capabilities
            if page.next is None:
                return found
            cursor = page.next

    async def history(
        self, service: str | None = None, instance: str | None = None
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Who changed what and why, as `GET /history` tells it, page by page."""
        cursor = None
        while True:
            query = _pairs({"service": service, "instance": instance, "cursor": cursor})
            page = (await self.transport.call("GET", "/history", query=query)).json
            for entry in page["history"]:
                yield entry
            cursor = page.get("next")
            if cursor is None:
                return

    async def explain(self, service: str, instance: str | None = None) -> Mapping[str, Any]:
        """Why instances are or are not offered, in words, as `GET /explain` tells it."""
        query = _pairs({"service": service, "instance": instance})
        answer: Mapping[str, Any] = (await self.transport.call("GET", "/explain", query=query)).json
        return answer

    async def registry_health(self) -> RegistryHealth:
        return shaped(RegistryHealth, await self.transport.call("GET", "/health"))

    # --- staying registered, and choosing

    def registration(
        self,
        name: str,
        endpoint: str,
        *,
        instance_id: str | None = None,
        ttl_seconds: int = 30,
        drain_seconds: int = 5,
        on_sigterm: bool = False,
        forgiving: bool = False,
        **fields: Any,
    ) -> Registration:
        """Keeps an instance registered within `async with`, through outages, restarts and losses of the
        registry, and deregisters it at the end. See `Registration`."""
        instance_id = instance_id or default_id(name, endpoint, self._dice)
        return Registration(
            self,
            self._heartbeats,
            name,
            instance_id,
            {"endpoint": endpoint, "ttlSeconds": ttl_seconds, **fields},
            drain_seconds=drain_seconds,
            on_sigterm=on_sigterm,
            forgiving=forgiving,
            dice=self._dice,
        )

    def picker(
        self,
        service: str,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        zone: str | None = None,
        **filters: Unpack[Matching],
    ) -> Picker:
        """Chooses among the instances of a service that match. The same arguments give the same picker,
        so that measurements and rejections are shared. `zone` is preferred, not demanded."""
        strategy = Strategy(strategy)
        key = (service, strategy, zone, *sorted(_pairs(filters)))
        if key not in self._pickers:
            self._pickers[key] = Picker(
                self,
                service,
                filters,
                strategy=strategy,
                zone=zone,
                dice=self._dice,
                clock=self._clock,
                doubt_for=self._doubt_for,
            )
        return self._pickers[key]

    async def pick(
        self,
        service: str,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        key: str = "",
        zone: str | None = None,
        **filters: Unpack[Matching],
    ) -> Target:
        """One instance, from what a watch has told: without asking the registry, but for the first time.
        Raises NoneOffered. `picker(…).use()` also learns how the call went."""
        return await self.picker(service, strategy=strategy, zone=zone, **filters).pick(key=key)


def _instance(name: str, instance_id: str) -> str:
    return f"/services/{quote(name, safe='')}/instances/{quote(instance_id, safe='')}"


def _given(**fields: object) -> dict[str, object]:
    return {to_camel(name): value for name, value in fields.items() if value is not None}


def _pairs(fields: Mapping[str, object]) -> Query:
    """Query parameters in the API's style; None is left out, sequences become comma lists."""
    pairs = []
    for name, value in fields.items():
        if isinstance(value, Collection) and not isinstance(value, str):
            value = ",".join(map(str, value)) or None
        if value is not None:
            pairs.append((to_camel(name), str(value)))
    return pairs
