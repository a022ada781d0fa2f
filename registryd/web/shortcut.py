"""The fast lane: which requests can be answered straight from the bytes that arrived.

An ordinary request, one that is whole in one piece, has no body and says nothing unusual, needs no
parser's objects and no task. What is not surely ordinary takes the long way, where the same route
answers the same; a test sends both ways and compares.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from registryd.web.reply import Reply

if TYPE_CHECKING:
    from registryd.web.routing import Route

Headers = Mapping[str, str]
"""The header fields of an ordinary request by their names in lower case."""


class Exchange:
    """An ordinary request on its way to its one answer, given by `reply` or `fail`, now or later.

    `path` and `query` are raw; `params` are the path's parameters in their order, checked against the
    route's patterns.
    """

    __slots__ = (
        "_finish",
        "began",
        "headers",
        "params",
        "path",
        "query",
        "request_id",
        "route",
        "send",
    )

    def __init__(
        self,
        route: "Route",
        path: str,
        query: str,
        params: tuple[str, ...],
        headers: Headers,
        request_id: str,
        began: float,
        send: Callable[[bytes, bytes], None],
        finish: "Callable[[Exchange, Reply | Exception], None]",
    ) -> None:
        self.route = route
        self.path = path
        self.query = query
        self.params = params
        self.headers = headers
        self.request_id = request_id
        self.began = began
        self.send = send
        self._finish = finish

    def reply(self, reply: Reply) -> None:
        self._finish(self, reply)

    def fail(self, error: Exception) -> None:
        self._finish(self, error)


Shortcut = Callable[[Exchange], bool]
"""Takes an exchange on, or leaves it untouched and says False: then it takes the long way. Does not
wait, raises nothing."""

LONGEST: Final = 4096
"""Bytes of an ordinary head."""
_BLOCKS_KEPT: Final = 1024
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e][ \t\x21-\x7e]*)")
_UNUSUAL: Final = re.compile(
    rb"\r\n(?:x-request-id|transfer-encoding|content-encoding|expect|upgrade|trailer|te|prefer|if-match"
    rb"|content-length:[ \t]*[1-9]|connection:[ \t]*(?!keep-alive\r))",
    re.IGNORECASE,
)
"""Fields that change what an answer is or how it is framed. Beginnings of names will do: one too many
only takes the long way."""
_REQUEST_ID: Final = re.compile(rb"\r\nx-request-id:[ \t]*([!-~]+)[ \t]*(?=\r\n)", re.IGNORECASE)


class HeaderBlocks:
    """Header blocks as clients send them: the same bytes again and again, so each is read once."""

    def __init__(self, ordinary: Callable[[Headers], bool] = lambda headers: True) -> None:
        """`ordinary` refuses fields that are read well but ask for the long way."""
        self._judge = ordinary
        self._known: dict[bytes, Headers | None] = {}
        self._bodies: dict[bytes, int] = {}

    def read(self, block: bytes) -> tuple[Headers | None, str]:
        """The fields of what follows a request line, its line end included, and the request id apart,
        "" for none. The fields are None where this is no ordinary head, or more than one."""
        try:
            return self._known[block], ""
        except KeyError:
            pass
        request_id = ""
        # It differs in every request; a second one stays, and is not ordinary.
        if (found := _REQUEST_ID.search(block)) is not None:
            request_id = found[1].decode()
            block = block[: found.start()] + block[found.end() :]
            if block in self._known:
                return self._known[block], request_id
        headers = _ordinary(block)
        if headers is not None and not self._judge(headers):
            headers = None
        if len(self._known) >= _BLOCKS_KEPT:
            self._known.clear()
        self._known[block] = headers
        return headers, request_id

    def body_length(self, block: bytes) -> int:
        """How long the body behind a header block is; -1 where its end is told in another way."""
        length = self._bodies.get(block)
        if length is None:
            length = _body_length(block)
            if len(self._bodies) >= _BLOCKS_KEPT:
                self._bodies.clear()
            self._bodies[block] = length
        return length


def _ordinary(block: bytes) -> Headers | None:
    if block.find(b"\r\n\r\n") != len(block) - 4 or _UNUSUAL.search(block):
        return None
    headers: dict[str, str] = {}
    for line in block[2:-4].split(b"\r\n"):
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name = field[1].decode().lower()
        if name in headers:
            return None
        headers[name] = field[2].decode().rstrip(" \t")
    if headers.get("content-length", "0") != "0":
        return None
    return headers if "host" in headers else None


_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_FRAMED_OTHERWISE: Final = re.compile(rb"\r\n(?:transfer-encoding|upgrade|expect):", re.IGNORECASE)


def _body_length(block: bytes) -> int:
    if _FRAMED_OTHERWISE.search(block):
        return -1
    length = _LENGTH.search(block)
    return int(length[1]) if length else 0


class Framing:
    """Whether the next byte of a connection begins a request, known without the parser.

    Follows heads and bodies of a stated length; where bytes do not fit that simple picture (pieces of
    heads, chunked bodies, pipelining) it gives up for the rest of the connection.
    """

    __slots__ = ("_blocks", "_owed")

    LOST: Final = -1

    def __init__(self, blocks: HeaderBlocks) -> None:
        self._blocks = blocks
        self._owed = 0

    @property
    def clean(self) -> bool:
        return self._owed == 0

    def follow(self, data: bytes) -> None:
        """Takes note of bytes that go to the parser."""
        if not data:
            return
        if self._owed > 0:
            self._owed = self._owed - len(data) if len(data) <= self._owed else self.LOST
        elif self._owed == 0:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._owed = self.LOST
                return
            length = self._blocks.body_length(data[data.find(b"\r\n") : end])
            owed = length - (len(data) - end)
            self._owed = owed if length >= 0 and owed >= 0 else self.LOST
