"""A gRPC client that only loads: HTTP/2 frames by hand, everything that repeats rendered once.

The client libraries for Python take more CPU a call than etcd does, and would measure themselves.
Reads a JSON object from stdin (see `load.GrpcLoad`), writes one to stdout:
`{"answers": n, "seconds": s, "bytes": b}`.
"""

import json
import selectors
import socket
import struct
import sys
import time
from typing import Any, Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_LARGEST_WINDOW: Final = (1 << 31) - 1
_DEFAULT_WINDOW: Final = (1 << 16) - 1
_REPLENISH: Final = 1 << 24


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def header_block(path: str, authority: str) -> bytes:
    """HPACK without indexing, so that the same bytes serve for every stream."""

    def text(value: str) -> bytes:
        assert len(value) < 127
        return bytes([len(value)]) + value.encode()

    return (
        b"\x83\x86"  # :method POST, :scheme http
        b"\x04" + text(path) + b"\x01" + text(authority)
        + b"\x0f\x10" + text("application/grpc")
        + b"\x00" + text("te") + text("trailers")
    )  # fmt: skip


class Connection:
    """One connection with its streams. `answers` and `bytes` count while `counting`."""

    def __init__(self, wish: dict[str, Any], streams: int, first: int) -> None:
        self._unary: bool = wish["unary"]
        self._streams = streams
        self._outstanding: int = wish["outstanding"]
        self._messages = [
            struct.pack(">BI", 0, len(raw)) + raw for raw in map(bytes.fromhex, wish["messages"])
        ]
        self._head = header_block(wish["path"], "bench")
        self._turn = first
        self._next_stream = 1
        self._buffer = b""
        self._taken = 0
        self._part: dict[int, tuple[int, bytes]] = {}
        self._message_of: dict[int, bytes] = {}
        self.answers = self.bytes = 0
        self.socket = socket.create_connection(("127.0.0.1", wish["port"]))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        settings = struct.pack(">HI", 4, _LARGEST_WINDOW)  # INITIAL_WINDOW_SIZE
        window = struct.pack(">I", _LARGEST_WINDOW - _DEFAULT_WINDOW)
        out = [_PREFACE, frame(_SETTINGS, 0, 0, settings), frame(_WINDOW, 0, 0, window)]
        out += [self._open() for _ in range(self._streams)]
        self.socket.sendall(b"".join(out))

    def _open(self) -> bytes:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        message = self._messages[self._turn % len(self._messages)]
        self._turn += 1
        head = frame(_HEADERS, _END_HEADERS, stream, self._head)
        if self._unary:
            return head + frame(_DATA, _END_STREAM, stream, message)
        self._message_of[stream] = frame(_DATA, 0, stream, message)
        return head + self._message_of[stream] * self._outstanding

    def receive(self) -> None:
        """Takes what has come, and sends what follows from it."""
        received = self.socket.recv(1 << 19)
        if not received:
            raise ConnectionError("the server closed the connection")
        data = self._buffer + received if self._buffer else received
        out: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= 9:
            length = int.from_bytes(data[at : at + 3])
            body = at + 9
            if end - body < length:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == _DATA:
                stream = int.from_bytes(data[at + 5 : body])
                self.bytes += length
                self._taken += length
                if not self._unary:
                    self._streamed(stream, data[body : body + length], out)
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    if not self._unary:
                        raise ConnectionError("the server ended a stream that should stay open")
                    self.answers += 1
                    out.append(self._open())
            elif kind == _PING and not flags & _ACK:
                out.append(frame(_PING, _ACK, 0, data[body : body + length]))
            elif kind == _SETTINGS and not flags & _ACK:
                out.append(frame(_SETTINGS, _ACK, 0, b""))
            elif kind in {_RST, _GOAWAY}:
                raise ConnectionError(f"frame of kind {kind}: {data[body : body + length]!r}")
            at = body + length
        self._buffer = data[at:]
        if self._taken > _REPLENISH:
            out.append(frame(_WINDOW, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        if out:
            self.socket.sendall(b"".join(out))

    def _streamed(self, stream: int, data: bytes, out: list[bytes]) -> None:
        """Counts whole messages, each the permission to send the next."""
        missing, head = self._part.pop(stream, (0, b""))
        if head:
            data = head + data
        at = missing
        if at > len(data):
            self._part[stream] = (at - len(data), b"")
            return
        count = 1 if missing else 0
        while at < len(data):
            if len(data) - at < 5:
                self._part[stream] = (0, data[at:])
                break
            at += 5 + int.from_bytes(data[at + 1 : at + 5])
            if at > len(data):
                self._part[stream] = (at - len(data), b"")
                break
            count += 1
        if count:
            self.answers += count
            out.append(self._message_of[stream] * count)


def run(wish: dict[str, Any]) -> dict[str, float]:
    number = wish["connections"]
    streams, step = wish["streams"] // number, len(wish["messages"]) // number
    connections = [Connection(wish, streams, n * step) for n in range(number)]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.start()
        began = time.perf_counter()
        end = began + wish["seconds"]
        while time.perf_counter() < end:
            for key, _ in selector.select(1.0):
                key.data.receive()
        seconds = time.perf_counter() - began
    return {
        "answers": sum(connection.answers for connection in connections),
        "bytes": sum(connection.bytes for connection in connections),
        "seconds": seconds,
    }


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
