"""A crowd of watchers on plain sockets: how long until the last of them has heard of one event.

The crowd reads the same way whoever it listens to, so that what its reading takes stands on both sides of
a ratio. It looks for a mark in what arrives: pings are no events.
"""

import base64
import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.data import request

_PATIENCE: Final = 30.0
_READ: Final = 256 * 1024


class Crowd:
    """Connections to one server. `opening` is what each sends, `greeting` what each hears at first."""

    def __init__(self, port: int, opening: bytes, greeting: bytes) -> None:
        self._port = port
        self._opening = opening
        self._greeting = greeting
        self._sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()

    def grow(self, count: int) -> None:
        """Opens `count` more, and waits until each has been greeted."""
        for start in range(0, count, 100):
            fresh = set()
            for _ in range(start, min(count, start + 100)):
                one = socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.sendall(self._opening)
                one.setblocking(False)
                self._sockets[one.fileno()] = one
                self._epoll.register(one.fileno(), select.EPOLLIN)
                fresh.add(one.fileno())
            self._hear(fresh, self._greeting)

    def hear(self, mark: bytes) -> None:
        """Returns when every one has heard `mark`."""
        self._hear(set(self._sockets), mark)

    def _hear(self, missing: set[int], mark: bytes) -> None:
        deadline = time.monotonic() + _PATIENCE
        heard: dict[int, bytes] = {}
        while missing:
            ready = self._epoll.poll(1.0, 2048)
            for number, _ in ready:
                data = self._sockets[number].recv(_READ)
                if not data:
                    raise RuntimeError("a watcher was cut off")
                if number in missing:
                    if mark not in data:
                        data = heard[number] = heard.get(number, b"") + data
                    if mark in data:
                        missing.discard(number)
            if missing and time.monotonic() > deadline:
                raise RuntimeError(f"{len(missing)} watchers did not hear {mark!r}")

    def close(self) -> None:
        self._epoll.close()
        for one in self._sockets.values():
            one.close()


@dataclass(frozen=True, slots=True)
class Told:
    """A crowd and how to tell it something: `event(number)` is the request that makes event `number`, and
    its mark."""

    name: str
    crowd: Crowd
    teller: socket.socket
    event: Callable[[int], tuple[bytes, bytes]]

    def seconds(self, number: int) -> float:
        """From the sending of an event to the last who hears of it. The answer is read afterwards."""
        request, mark = self.event(number)
        began = time.perf_counter()
        self.teller.sendall(request)
        self.crowd.hear(mark)
        took = time.perf_counter() - began
        answer = self.teller.recv(_READ)
        if not answer.startswith((b"HTTP/1.1 2", b":")):
            raise RuntimeError(f"{self.name} answered {answer[:200]!r}")
        return took

    def close(self) -> None:
        self.teller.close()
        self.crowd.close()


def _teller(port: int) -> socket.socket:
    teller = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
    teller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return teller


def filler(number: int, size: int) -> str:
    """Text with a mark in front: `size` characters."""
    return f"mark{number:08d}".ljust(size, "x")


def mark_of(number: int) -> bytes:
    return f"mark{number:08d}".encode()


def registryd(port: int, size: int) -> Told:
    def event(number: int) -> tuple[bytes, bytes]:
        fields = {
            "endpoint": "http://10.0.0.1:80",
            "healthCheck": None,  # else each event would have a probe beside it
            "metadata": {"text": filler(number, size)},
        }
        target = "/services/watched/instances/a"
        return request("PUT", target, json.dumps(fields)).encode(), mark_of(number)

    crowd = Crowd(port, watch_request("watched"), b"event: snapshot")
    return Told("registryd", crowd, _teller(port), event)


def watch_request(service: str) -> bytes:
    return f"GET /watch?service={service} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def pubsub(port: int, size: int) -> Told:
    def event(number: int) -> tuple[bytes, bytes]:
        message = filler(number, size).encode()
        command = b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n$%d\r\n%b\r\n" % (size, message)
        return command, mark_of(number)

    crowd = Crowd(port, b"SUBSCRIBE news\r\n", b"subscribe")
    return Told("pub/sub", crowd, _teller(port), event)


def etcd(port: int, size: int) -> Told:
    key = base64.b64encode(b"watched").decode()
    opening = request("POST", "/v3/watch", json.dumps({"create_request": {"key": key}})).encode()

    def event(number: int) -> tuple[bytes, bytes]:
        value = base64.b64encode(filler(number, size).encode()).decode()
        body = json.dumps({"key": key, "value": value})
        # The mark is twelve bytes, so its base64 stands in front as it does alone.
        return request("POST", "/v3/kv/put", body).encode(), base64.b64encode(mark_of(number))

    return Told("etcd watch", Crowd(port, opening, b'"created":true'), _teller(port), event)
