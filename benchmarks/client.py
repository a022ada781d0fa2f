"""HTTP clients of the harness itself: one that asks and looks, one that loads.

The loading one is for filling servers with data, and stands in for wrk where that is not installed;
it takes more CPU than wrk, so the servers look slower than they are.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection
from typing import Any, Final

from benchmarks.data import Requests

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BODYLESS: Final = frozenset({204, 304})


class Asker:
    """One keep-alive connection, one request after the other."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(
        self, method: str, target: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with names in lower case, body."""
        raw = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if raw is not None else {}
        self._connection.request(method, target, raw, sent | (headers or {}))
        response = self._connection.getresponse()
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )

    def json(self, method: str, target: str, body: object = None) -> Any:
        status, _, raw = self.ask(method, target, body)
        if not 200 <= status < 300:
            raise RuntimeError(f"{method} {target} answered {status}: {raw[:300]!r}")
        return json.loads(raw)


class _Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last is complete, until there is no next."""

    def __init__(self, requests: Iterator[bytes], tally: "Tally") -> None:
        self._requests = requests
        self._tally = tally
        self._buffer = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._tally.bytes += len(data)
        if (status := self._complete()) is not None:
            self._tally.answers += 1
            if status >= 400:
                self._tally.refused += 1
                self._tally.example = self._tally.example or bytes(self._buffer[-500:])
            self._buffer.clear()
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._tally.broken += 1
            self.done.set_result(None)

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            if not self.done.done():
                self.done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(request)

    def _complete(self) -> int | None:
        """The status, once the whole answer has come. No request is pipelined, so it is all there is."""
        end = self._buffer.find(_HEAD_END)
        if end < 0:
            return None
        status = int(self._buffer[9:12])
        if status in _BODYLESS:
            return status
        length = _LENGTH.search(self._buffer, 0, end)
        if length is not None:
            return status if len(self._buffer) >= end + 4 + int(length[1]) else None
        return status if self._buffer.endswith(b"0\r\n\r\n") else None


class Tally:
    """What came of a load."""

    def __init__(self) -> None:
        self.answers = self.refused = self.broken = self.bytes = 0
        self.seconds = 0.0
        self.example = b""


async def drive(port: int, requests: Iterator[bytes], connections: int) -> Tally:
    tally = Tally()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    protocols = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: _Connection(requests, tally), "127.0.0.1", port
        )
        protocols.append(protocol)
    await asyncio.gather(*(protocol.done for protocol in protocols))
    tally.seconds = time.perf_counter() - began
    return tally


def send_all(port: int, requests: Iterable[bytes], connections: int = 64) -> None:
    """Sends every request once. Raises RuntimeError if one is refused."""
    tally = asyncio.run(drive(port, iter(requests), connections))
    if tally.refused or tally.broken:
        raise RuntimeError(
            f"filling port {port}: {tally.refused} refused, {tally.broken} connections broken "
            f"{tally.example!r}"
        )


def for_seconds(requests: Requests, start: int, seconds: float) -> Iterator[bytes]:
    end = time.perf_counter() + seconds
    number = start
    while time.perf_counter() < end:
        yield requests.render(number)
        number += 1
