"""HTTP/1.1 as bytes: the head of an answer, and writing with back-pressure.

Own code rather than aiohttp's response classes: building their header maps costs a third of a
small request. Reading requests stays with aiohttp's parser.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from aiohttp import web

from registryd.web.reply import Header

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

BODYLESS: Final = frozenset({204, 304})
_SEPARATE_FROM: Final = 64 * 1024
"""Bodies from this size on are not copied behind their head."""
_PREFIXES_KEPT: Final = 256

_POLICY_NAME: Final = "Content-Security-Policy"
_POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
"""For answers that are no pages; a page's own header stands in its place."""
_TLS_ONLY: Final = ("Strict-Transport-Security", "max-age=31536000")


class Wire:
    """Renders heads. What repeats (status line, `always`, the date) is rendered once."""

    def __init__(
        self,
        server: str,
        *,
        tls: bool = False,
        always: Sequence[Header] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._policy = _lines([(_POLICY_NAME, _POLICY)])
        self._fixed = self._policy + _lines(
            [
                ("Server", server),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                *([_TLS_ONLY] if tls else []),
                *always,
            ]
        )
        self._now = now
        self._prefixes: dict[tuple[int, str], str] = {}
        self._second = -1
        self._date = ""

    def head(
        self,
        status: int,
        content_type: str,
        length: int | None,
        headers: Sequence[Header],
        request_id: str,
        connection: str,
    ) -> bytes:
        """The head up to and with its empty line; `length` None means a body in chunks or to the end.

        `connection` is a value of the Connection header, or "" for none. Raises ValueError for a
        header that would break the message.
        """
        if status in BODYLESS:
            content_type, size = "", ""
        elif length is None:
            size = ""
        else:
            size = f"Content-Length: {length}\r\n"
            if not length:
                content_type = ""
        prefix = self._prefixes.get((status, content_type)) or self._prefix(status, content_type)
        second = int(self._now())
        if second != self._second:
            self._second = second
            self._date = f"Date: {formatdate(second, usegmt=True)}\r\n"
        more = _lines(headers) if headers else ""
        if _POLICY_NAME in more:
            prefix = prefix.replace(self._policy, "", 1)
        if connection:
            more += f"Connection: {connection}\r\n"
        text = f"{prefix}{self._date}X-Request-ID: {request_id}\r\n{size}{more}\r\n"
        return text.encode("latin-1")

    def _prefix(self, status: int, content_type: str) -> str:
        if len(self._prefixes) >= _PREFIXES_KEPT:
            self._prefixes.clear()
        kind = _lines([("Content-Type", content_type)]) if content_type else ""
        prefix = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{self._fixed}{kind}"
        self._prefixes[status, content_type] = prefix
        return prefix


def _lines(headers: Sequence[Header]) -> str:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    # Counting is enough: a CR or LF inside a name or value makes one too many.
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a response header holds a line break or NUL")
    return lines


def write(transport: asyncio.Transport, head: bytes, body: bytes) -> None:
    if len(body) < _SEPARATE_FROM:
        transport.write(head + body)
    else:
        transport.writelines((head, body))


async def drain(raw: web.BaseRequest, patience: float) -> None:
    """Waits until the client has taken most of what is queued for it.

    A client that takes nothing for `patience` seconds is cut off; one that is merely slow is not.
    Raises ConnectionError when the client has gone.
    """
    protocol = raw.protocol
    while protocol.writing_paused:
        transport = raw.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        queued = transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(patience):
                await raw.writer.drain()
        except TimeoutError:
            if transport.get_write_buffer_size() >= queued:
                transport.abort()
                raise ConnectionResetError("the client takes nothing") from None
