"""What a handler answers with: a whole reply in memory, or a stream written piece by piece.

Deliberately plain data: how either becomes bytes on a connection is `web/wire.py`.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"

Header = tuple[str, str]


@dataclass(slots=True)
class Reply:
    """A finished answer. `headers` are those beyond the ones every answer carries.

    Every answer carries Date, Server, Content-Length, Content-Type (when there is a body) and
    X-Request-ID; they are added when the reply is written.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: list[Header] = field(default_factory=list)

    def with_headers(self, headers: Iterable[Header]) -> "Reply":
        self.headers.extend(headers)
        return self


def frame(data: bytes) -> bytes:
    """`data` (not empty) as one HTTP/1.1 chunk: framed once, the same bytes fit every client."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END_OF_CHUNKS: Final = b"0\r\n\r\n"


class Keeper(Protocol):
    """Who writes to a standing stream."""

    def lost(self) -> None:
        """The client has gone. Called once."""


class Outlet(asyncio.Protocol):
    """The open end of a stream, handed to its producer.

    HTTP/1.1 clients get chunks; HTTP/1.0 clients get the bare data until the connection closes.
    A standing stream's outlet is all that stays of its request: it is then the connection's protocol
    itself, and what the client still sends is ignored.
    """

    __slots__ = ("_chunked", "_drain", "_file", "_transport", "keeper", "release")

    def __init__(
        self, transport: asyncio.Transport, drain: Callable[[], Awaitable[None]], *, chunked: bool
    ) -> None:
        self._transport = transport
        self._drain: Callable[[], Awaitable[None]] | None = drain
        self._chunked = chunked
        self._file = -1
        self.keeper: Keeper | None = None
        self.release: Callable[[], None] | None = None
        """Called once, when the connection of a standing stream is lost."""

    @property
    def buffered(self) -> int:
        """Bytes that the client has not taken yet; grows when it reads too slowly."""
        return self._transport.get_write_buffer_size()

    def write(self, framed: bytes) -> None:
        """Queues a chunk made by `frame`, without waiting: watch `buffered`."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if not self._chunked:
            framed = unframed(framed)
        self._transport.write(framed)

    def offer(self, framed: bytes, limit: int) -> bool:
        """Writes a chunk made by `frame` on a standing stream, unless more than `limit` bytes wait for the
        client already: then False. Raises ConnectionError when the client has gone.

        What the kernel takes at once goes there directly: the transport's own way takes half as long
        again, which counts where the same chunk goes to thousands.
        """
        transport = self._transport
        if transport.is_closing():
            raise ConnectionResetError("the client has gone")
        waiting = transport.get_write_buffer_size()
        if waiting > limit:
            return False
        if not self._chunked:
            framed = unframed(framed)
        if not waiting and self._file >= 0:
            try:
                sent = os.write(self._file, framed)
            except BlockingIOError:
                sent = 0
            except TimeoutError as error:  # ETIMEDOUT: the kernel has given the client up
                raise ConnectionResetError("the client has gone") from error
            if sent == len(framed):
                return True
            framed = framed[sent:]
        transport.write(framed)
        return True

    async def send(self, data: bytes) -> None:
        """Queues `data` and waits until the client has taken most of what is queued. Only the producer
        may wait: a standing stream's outlet has nobody who could."""
        await self.pour(frame(data))

    async def pour(self, framed: bytes) -> None:
        """`send` for a chunk made by `frame`, which many may share."""
        self.write(framed)
        if self._drain is not None:
            await self._drain()

    def abort(self) -> None:
        """Cuts the client off at once; what is queued is lost."""
        self._transport.abort()

    def end(self) -> None:
        """Ends a standing stream well: what is queued still goes out."""
        if not self._transport.is_closing():
            if self._chunked:
                self._transport.write(END_OF_CHUNKS)
            self._transport.close()

    def stand(self) -> None:
        """Lets go of the request. From here on only the keeper writes."""
        self._drain = None
        bare = self._transport.get_extra_info("sslcontext") is None
        sock = self._transport.get_extra_info("socket")
        if bare and sock is not None and not self._transport.is_closing():
            self._file = sock.fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        release, self.release = self.release, None
        if release is not None:
            release()
        keeper, self.keeper = self.keeper, None
        if keeper is not None:
            keeper.lost()


def unframed(framed: bytes) -> bytes:
    """The data of one or more chunks."""
    data, position = [], 0
    while position < len(framed):
        line = framed.index(b"\r\n", position)
        start = line + 2
        end = start + int(framed[position:line], 16)
        data.append(framed[start:end])
        position = end + 2
    return b"".join(data)


@dataclass(slots=True)
class Stream:
    """An answer without a known end: the head goes out first, then `produce` writes the body.

    The stream ends well when `produce` returns; when it raises, the connection is cut, so that
    the client sees that the answer is not whole. A client that leaves cancels `produce`.
    """

    produce: Callable[[Outlet], Awaitable[None]]
    status: int = 200
    content_type: str = "text/event-stream"
    headers: list[Header] = field(default_factory=list)
    standing: bool = False
