"""Servers that nobody should reach, and servers that answer with what hurts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Serve = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Is given the head of a request (b"" where none came within a second) and answers it."""


@dataclass
class Trap:
    """A server on 127.0.0.1 and, at the same port, ::1, and what came to it."""

    port: int
    reached: int = 0
    heads: list[bytes] = field(default_factory=list)


async def fine(_head: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def redirecting(target: str, status: int = 302) -> Serve:
    async def redirect(_head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 {status} Go\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    return redirect


@asynccontextmanager
async def trap(serve: Serve = fine) -> AsyncIterator[Trap]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caught.reached += 1
        try:
            async with asyncio.timeout(1):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            head = b""
        caught.heads.append(head)
        try:
            await serve(head, writer)
            await writer.drain()
        except OSError:
            pass  # the daemon has had enough
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    caught = Trap(server.sockets[0].getsockname()[1])
    servers = [server]
    if socket.has_ipv6:
        try:
            servers.append(await asyncio.start_server(connected, "::1", caught.port))
        except OSError:
            pass  # this machine has no ::1
    try:
        yield caught
    finally:
        for one in servers:
            one.close()
        await asyncio.sleep(0)
