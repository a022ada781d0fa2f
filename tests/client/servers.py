"""Small servers that misbehave in one way each: for faults that a daemon does not produce on demand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Faulty:
    """Answers each request with the next of `answers`, raw, the last one again and again. An empty answer
    is a connection closed without one."""

    answers: list[bytes]
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """The heads as they came."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
            writer.write(answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def http(
    status: int, body: bytes = b"", *, kind: str = "application/json", **headers: str
) -> bytes:
    """A whole answer, after which the connection is closed."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def stream(text: str) -> bytes:
    """Server-sent events that break off without an end."""
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        + text.encode()
    )


def problem(status: int, code: str, **headers: str) -> bytes:
    body = f'{{"status":{status},"code":"{code}","detail":"it is so"}}'.encode()
    return http(status, body, kind="application/problem+json", **headers)


@asynccontextmanager
async def faulty(*answers: bytes) -> AsyncIterator[Faulty]:
    one = Faulty(list(answers))
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
        await server.wait_closed()


class Clock:
    """Time that the test moves; sleeping moves it, and is written down."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
