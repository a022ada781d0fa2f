"""Daemons in this process, on free ports, and a client to talk to them: what the HTTP tests share."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from registryd.app import Daemon
from registryd.config import Settings
from registryd.feed.revision import Revision
from registryd.probing.types import Probe
from registryd.web.access import Access


@dataclass(frozen=True)
class Answer:
    method: str
    path: str
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> Any:
        """The problem document, after checking what all of them have in common."""
        document = self.json
        assert self.headers["Content-Type"] == "application/problem+json"
        assert {
            "type",
            "title",
            "status",
            "detail",
            "code",
            "requestId",
            "error",
        } <= document.keys()
        assert document["status"] == self.status
        assert document["error"] == document["detail"]
        assert document["requestId"] == self.headers["X-Request-ID"]
        return document

    @property
    def revision(self) -> str:
        return self.headers["X-Registry-Revision"]

    @property
    def etag(self) -> str:
        return self.headers["ETag"]

    @property
    def pointers(self) -> list[str]:
        return [one["pointer"] for one in self.problem["errors"]]


class Api:
    """One daemon and a client of it. `prefix` is where the daemon keeps its keys."""

    def __init__(self, daemon: Daemon, session: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self.prefix = daemon.settings.redis.key_prefix
        self._session = session
        host, port = daemon.addresses[0]
        self.base = f"http://{host}:{port}"

    async def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One call. `path` goes out as it is written here; `body` as JSON, `raw` untouched."""
        sent = dict(headers or {})
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self._session.request(
            method, URL(self.base + path, encoded=True), data=data, headers=sent
        ) as answer:
            return Answer(method, path, answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self("GET", path, headers=_named(headers))

    async def post(self, path: str, body: object = None, **headers: str) -> Answer:
        return await self("POST", path, body, headers=_named(headers))

    async def put(self, path: str, body: object = None, **headers: str) -> Answer:
        return await self("PUT", path, body, headers=_named(headers))

    async def patch(self, path: str, body: object, **headers: str) -> Answer:
        return await self("PATCH", path, body, headers=_named(headers))

    async def delete(self, path: str, **headers: str) -> Answer:
        return await self("DELETE", path, headers=_named(headers))

    async def register(
        self, name: str = "chat", instance_id: str | None = "a", /, **fields: Any
    ) -> Any:
        """Registers an instance, which has to succeed, and answers with it."""
        body = {"name": name, "endpoint": "http://10.0.0.1:8080", **fields}
        if instance_id is not None:
            body["instanceId"] = instance_id
        answer = await self.post("/services", body)
        assert answer.status in {200, 201}, answer.body
        return answer.json

    async def instance(self, name: str = "chat", instance_id: str = "a") -> Any:
        answer = await self.get(f"/services/{name}/instances/{instance_id}")
        assert answer.status == 200, answer.body
        return answer.json

    async def listed(self, query: str) -> list[str]:
        """The names of services, or `service/instance` of instances, that a query finds."""
        answer = await self.get(f"/services?{query}")
        assert answer.status == 200, answer.body
        if "instances" in answer.json:
            return [f"{one['name']}/{one['instanceId']}" for one in answer.json["instances"]]
        return [one["name"] for one in answer.json["services"]]

    async def offered(self, query: str = "", *, name: str = "chat") -> str:
        """The id of the instance that `/url` gives."""
        answer = await self.get(f"/services/{name}/url{query}")
        assert answer.status == 200, answer.body
        return str(answer.json["instanceId"])

    @property
    def seen(self) -> Revision:
        """The revision that this node's view holds."""
        return self.daemon.view.revision

    async def head(self) -> Revision:
        """The revision that the store is at."""
        page = await self.daemon.store.snapshot(0, 1)
        return page.revision


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


async def eventually(
    true: Callable[[], Awaitable[object]] | Callable[[], object], *, within: float = 3.0
) -> None:
    """Waits until `true` answers with something true; fails after `within` seconds."""
    async with asyncio.timeout(within):
        while True:
            found = true()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    url: str,
    prefix: str,
    data_dir: Path,
    *,
    probes: Mapping[str, Probe] | None = None,
    access: Access | None = None,
    **sections: Any,
) -> AsyncIterator[Api]:
    settings = Settings.model_validate(
        {
            "data_dir": data_dir,
            "health": {"enabled": probes is not None},  # most tests name hosts that nobody has
            **sections,
            "server": {"listen": "127.0.0.1:0", "shutdownGrace": 0, **sections.get("server", {})},
            "redis": {"url": url, "keyPrefix": prefix, **sections.get("redis", {})},
        }
    )
    dials = settings.health.enabled or probes is not None
    daemon = Daemon(settings, probes=probes if dials else {}, access=access)
    await daemon.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            yield Api(daemon, session)
    finally:
        await daemon.stop()


@contextmanager
def running_beside(url: str, prefix: str, data_dir: Path, **sections: Any) -> Iterator[str]:
    """A daemon in a thread of its own, for tests whose calls are synchronous: where it listens."""
    ready, done = threading.Event(), asyncio.Event()
    found: list[tuple[str, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        async with running(url, prefix, data_dir, **sections) as api:
            found.append((api.base, asyncio.get_running_loop()))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    [(base, loop)] = found
    try:
        yield base
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
