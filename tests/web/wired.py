"""A server on a free port and raw sockets to talk to it: what the tests of this folder share."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from registryd.metrics import Metrics
from registryd.web.access import Access, OpenAccess
from registryd.web.caller import Permission, Scope
from registryd.web.codec import BodyLimits
from registryd.web.forwarded import Proxies
from registryd.web.origin import ANYWHERE, Origins
from registryd.web.pipeline import Pipeline
from registryd.web.reply import Reply, Stream
from registryd.web.request import Request
from registryd.web.router import Router
from registryd.web.routing import Handler, Mount, Route
from registryd.web.server import HttpServer
from registryd.web.throttle import Limits, Throttle
from registryd.web.tls import Certificates


async def nothing(request: Request) -> Reply:
    return Reply(204)


def route(method: str, path: str, handler: Handler = nothing, **more: Any) -> Route:
    fields: dict[str, Any] = {
        "permission": Permission.OPEN,
        "scope": Scope.NONE,
        "summary": path,
        "tag": "test",
        "mount": Mount.ROOT,
        "operation_id": f"{method} {path} {more.get('mount', '')}",
    }
    return Route(method=method, path=path, handler=handler, **(fields | more))


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Line:
    """One connection to the server, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Answer:
        """The next answer without its body."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:-2])
        return Answer(int(lines[0].split()[1]), headers, b"")

    async def answer(self) -> Answer:
        answer = await self.head()
        answer.body = await self.reader.readexactly(int(answer.headers.get("Content-Length", 0)))
        return answer

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Everything until the server closes the connection."""
        return await self.reader.read()


@dataclass
class Served:
    server: HttpServer
    pipeline: Pipeline
    metrics: Metrics
    address: tuple[str, int]
    client_tls: ssl.SSLContext | None = None

    def limited(self, limit: str) -> float:
        """How often that limit has refused."""
        found = self.metrics.registry.get_sample_value("registryd_limited_total", {"limit": limit})
        return found or 0

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"

    @asynccontextmanager
    async def line(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Line]:
        tls = tls or self.client_tls
        reader, writer = await asyncio.open_connection(
            *self.address, ssl=tls, server_hostname="localhost" if tls else None
        )
        try:
            yield Line(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except (ConnectionError, ssl.SSLError):
                pass  # the server may have cut the connection


@asynccontextmanager
async def serving(
    routes: Sequence[Route],
    *,
    access: Access | None = None,
    limits: BodyLimits | None = None,
    origins: Origins = ANYWHERE,
    proxies: Proxies | None = None,
    throttle: Limits | None = None,
    tls: Certificates | None = None,
    client_tls: ssl.SSLContext | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    metrics = Metrics()
    limiter = None
    if throttle is not None:
        limiter = Throttle(throttle, metrics, spared=None if proxies is None else proxies.trusts)
    pipeline = Pipeline(
        Router(routes),
        metrics,
        access or OpenAccess(),
        origins=origins,
        proxies=proxies,
        throttle=limiter,
        tls=tls is not None,
        limits=limits or BodyLimits(),
    )
    server = HttpServer(pipeline, tls=tls, throttle=limiter, **settings)
    [address] = await server.start([("127.0.0.1", 0)])
    try:
        yield Served(server, pipeline, metrics, address, client_tls)
    finally:
        await server.stop(0)


def get(path: str, *headers: str) -> bytes:
    return request("GET", path, *headers)


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: registry.test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def put(path: str, body: bytes, *headers: str) -> bytes:
    return request("PUT", path, "Content-Type: application/json", *headers, body=body)


async def echo(request: Request) -> Reply:
    """Answers the JSON it was sent."""
    return Reply(body=json.dumps(await request.json()).encode())


async def numbers(request: Request) -> Stream:
    """A stream of three pieces."""

    async def produce(outlet: Any) -> None:
        for piece in (b"one", b"two", b"three"):
            await outlet.send(piece)

    return Stream(produce, content_type="text/plain")
