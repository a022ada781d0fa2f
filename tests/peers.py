"""Other servers for our connections to meet, on free ports of this machine: well-behaved and odd ones."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

import trustme

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Peer:
    """A running server. `heads` has the head of every HTTP request, `open` the connections not closed."""

    port: int
    heads: list[str] = field(default_factory=list)
    open: int = 0
    accepted: int = 0
    most: int = 0
    """Connections open at once, at most so far."""
    busy: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a connection is open."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while none is."""

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def listening(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """A server that gives each connection to `serve`, and closes it when that returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer.open += 1
        peer.accepted += 1
        peer.most = max(peer.most, peer.open)
        peer.idle.clear()
        peer.busy.set()
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test has ended
        finally:
            peer.open -= 1
            if not peer.open:
                peer.busy.clear()
                peer.idle.set()
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    peer = Peer(server.sockets[0].getsockname()[1])
    peer.idle.set()
    try:
        yield peer
    finally:
        server.close()
        await asyncio.sleep(0)  # what was accepted at the last moment gets its task
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)


@asynccontextmanager
async def answering(
    *parts: bytes, pause: float = 0.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    """An HTTP server that reads one request and writes `parts`, `pause` seconds before each."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers[0].heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        for part in parts:
            if pause:
                await asyncio.sleep(pause)
            writer.write(part)
            await writer.drain()

    peers: list[Peer] = []
    async with listening(serve, tls=tls) as peer:
        peers.append(peer)
        yield peer


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Accepts, reads, never answers; ends when the client leaves."""
    while await reader.read(65536):
        pass


def answer(body: bytes = b"", *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@cache
def authority() -> trustme.CA:
    return trustme.CA()


def certified(*names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    """A server's TLS, with a certificate of `authority` for `names`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


def trusting() -> ssl.SSLContext:
    """A client's TLS, which trusts `authority` alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    return context
