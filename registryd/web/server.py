"""Listening sockets, connections and their deadlines; every request goes to the pipeline.

Stands on the lowest level of aiohttp's server: its parser and connection loop, without Application,
access log, Server header or error pages. What aiohttp would log or echo of a broken request (header
values, at times secrets) is neither logged nor echoed here.
"""

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.http_exceptions import (
    BadHttpMethod,
    ContentEncodingError,
    HttpProcessingError,
    InvalidHeader,
    LineTooLong,
)

from registryd import errors
from registryd.web import wire
from registryd.web.caller import Peer
from registryd.web.pipeline import Pipeline, Written
from registryd.web.shortcut import Framing
from registryd.web.throttle import Throttle
from registryd.web.tls import Certificates

log = structlog.get_logger(__name__)

_READ_BUFFER: Final = 64 * 1024
_LONGEST_EXCHANGE: Final = 60.0
"""Seconds within which every answer of the fast lane is given."""
_UNACKED_MS: Final = 30_000
"""After this time without an acknowledgement the kernel gives a connection up (Linux)."""
_TLS_GOODBYE: Final = 1.0
"""Seconds for the last bytes of a TLS connection to go out, and for the client's goodbye, which it may never
say: with the longest deadline before it, nobody holds a connection for more than ten."""
_GONE_ALREADY: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM})
_PAUSE: Final = 1.0
"""Seconds without accepting, when there are no files or memory left for it."""
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class HttpServer:
    """Serves a pipeline on any number of addresses.

    An idle connection is closed after `keepalive_timeout` seconds, one that does not complete
    the head of a request, or before that TLS's handshake, after `head_timeout`; bodies have the deadline
    of the pipeline's limits. Each connection gets the certificates of its moment.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        tls: Certificates | None = None,
        throttle: Throttle | None = None,
        keepalive_timeout: float = 30.0,
        head_timeout: float = 9.0,
        lingering_time: float = 1.0,
        backlog: int = 1024,
    ) -> None:
        self._pipeline = pipeline
        self._tls = tls
        self._throttle = throttle
        self._keepalive_timeout = keepalive_timeout
        self._head_timeout = head_timeout
        self._lingering_time = lingering_time
        self._backlog = backlog
        self._listeners: dict[socket.socket, asyncio.Task[None]] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._web: web.Server | None = None

    async def start(
        self, listen: Sequence[tuple[str, int]], reuse_port: bool = False
    ) -> list[tuple[str, int]]:
        """Binds and serves; the actual addresses. Raises StartupRefused, having bound nothing."""
        bound: list[socket.socket] = []
        try:
            for host, port in listen:
                bound += await _bind(host, port, reuse_port, self._backlog)
        except BaseException:
            for sock in bound:
                sock.close()
            raise
        addresses = [sock.getsockname()[:2] for sock in bound]
        # aiohttp's Server makes the requests and keeps the connections; the connections are ours.
        self._web = web.Server(cast("Any", self._pipeline), handler_cancellation=True)
        for sock in bound:
            self._listeners[sock] = asyncio.create_task(self._listen(sock), name="listener")
        return addresses

    async def stop(self, grace: float) -> None:
        """Stops accepting, closes idle connections, gives requests under way `grace` seconds."""
        self._pipeline.draining = True
        await _cancelled(*self._listeners.values())
        for sock in self._listeners:
            sock.close()
        self._listeners.clear()
        if self._opening:  # without TLS they are open at the loop's next turn
            await asyncio.wait(self._opening, timeout=min(grace, 0.1))
        await _cancelled(*self._opening)
        deadline = time.monotonic() + grace
        # A connection may fall idle, or take the last of its answer, just after it was looked at.
        while (open_ones := self._connections()) and (left := deadline - time.monotonic()) > 0:
            for connection in open_ones:
                if connection.idle:
                    connection.force_close()
            await asyncio.sleep(min(left, 0.01))
        late = {task for one in self._connections() if (task := one.task) is not None}
        for connection in self._connections():
            connection.abort()
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _connections(self) -> "list[_Connection]":
        return cast("list[_Connection]", self._web.connections) if self._web is not None else []

    async def _listen(self, sock: socket.socket) -> None:
        """Accepts until it is cancelled. Own code rather than the loop's server, which would not let a
        connection be refused, nor counted, before its TLS handshake, and keeps one TLS context for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(sock)
            except OSError as error:
                if error.errno not in _GONE_ALREADY:
                    log.warning("no connection can be accepted", error=error.strerror)
                    await asyncio.sleep(_PAUSE)
                continue
            release = None
            if self._throttle is not None:
                release = self._throttle.connect(str(address[0]))
                if release is None:
                    client.close()
                    continue
            opening = asyncio.create_task(self._open(client, release), name="opening")
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, client: socket.socket, release: Callable[[], None] | None) -> None:
        assert self._web is not None  # noqa: S101  a listener exists, so start has run
        connection = _Connection(
            self._web,
            self._pipeline,
            self._head_timeout,
            release,
            keepalive_timeout=self._keepalive_timeout,
            lingering_time=self._lingering_time,
        )
        loop = asyncio.get_running_loop()
        try:
            if self._tls is None:
                await loop.connect_accepted_socket(lambda: connection, client)
            else:
                await loop.connect_accepted_socket(
                    lambda: connection,
                    client,
                    ssl=self._tls.context,
                    ssl_handshake_timeout=self._head_timeout,
                    ssl_shutdown_timeout=_TLS_GOODBYE,
                )
        except OSError as error:  # a handshake that failed, took too long, or was given up
            log.debug("connection not opened", error=str(error))
        finally:
            if connection.transport is None:
                connection.give_back()


class _Connection(web.RequestHandler):
    """aiohttp's connection with a fast lane, our error answers, silence in the log, and a deadline for
    heads.

    While an answer of the fast lane is outstanding, what arrives waits, so that answers keep the order
    of their requests.
    """

    __slots__ = ("_early", "_framing", "_head_timeout", "_pipeline", "_release", "_short", "peer")

    def __init__(
        self,
        server: web.Server,
        pipeline: Pipeline,
        head_timeout: float,
        release: Callable[[], None] | None,
        *,
        keepalive_timeout: float,
        lingering_time: float,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=keepalive_timeout,
            lingering_time=lingering_time,
            access_log=cast("Any", None),
            read_bufsize=_READ_BUFFER,
        )
        self._pipeline = pipeline
        self._head_timeout = head_timeout
        self._release = release
        self._framing = Framing(pipeline.blocks)
        self._short = False
        """Whether an answer of the fast lane is outstanding."""
        self._early = b""
        """What arrived before that answer."""
        self.peer = Peer("unknown")

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The task that answers this connection's requests, while it runs."""
        task = self._task_handler
        return task if task is not None and not task.done() else None

    @property
    def idle(self) -> bool:
        """Waiting for a request, or so new that not even the waiting has begun."""
        if self._short:
            return False
        if self._waiter is not None:
            return not self._waiter.done()
        return self._request_count == 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        if name:  # a pair for IPv4, four values for IPv6
            self.peer = Peer(str(name[0]), transport.get_extra_info("peercert"))
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.give_back()

    def give_back(self) -> None:
        """The connection does not count any more: it is closed, or stands as a stream, of which there is a
        limit of its own."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def data_received(self, data: bytes) -> None:
        if self._short:
            self._early += data
            if self.transport is not None:
                self.transport.pause_reading()
            return
        if self._framing.clean and self._take_shortcut(data):
            return
        self._framing.follow(data)
        super().data_received(data)
        if self.idle:
            # Bytes came, but not a whole head. Later ones do not move the deadline.
            self._expect_head()
        elif self._request_in_progress and self._messages:
            self._pass_on_broken_body()

    def _take_shortcut(self, data: bytes) -> bool:
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages or self.writing_paused:
            return False
        if self._close or self._force_close:
            return False
        self._short = True
        if not self._pipeline.shortcut(data, self._send_short, self.peer):
            self._short = False
            return False
        if self._short:
            # To aiohttp the connection is idle, and might be closed before the answer.
            self._next_keepalive_close_time = self._loop.time() + _LONGEST_EXCHANGE
        return True

    def _send_short(self, head: bytes, body: bytes) -> None:
        self._short = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        wire.write(transport, head, body)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._early:
            early, self._early = self._early, b""
            transport.resume_reading()
            self.data_received(early)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _expect_head(self) -> None:
        deadline = self._loop.time() + self._head_timeout
        if deadline < self._next_keepalive_close_time:
            self._next_keepalive_close_time = deadline
            if self._keepalive_handle is not None:
                self._keepalive_handle.cancel()
            self._keepalive_handle = self._loop.call_at(deadline, self._process_keepalive)

    def _pass_on_broken_body(self) -> None:
        """Tells the request under way that its body ends in an error, rather than never.

        aiohttp queues the error as the next message and leaves the reader of the body waiting.
        """
        broken = getattr(self._messages[-1][0], "exc", None)
        request = self._current_request
        if broken is not None and request is not None and not request.content.is_eof():
            request._cancel(broken)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        written: Written = self._pipeline.refuse(request, errors.Malformed(_what_is_broken(exc)))
        return cast("web.StreamResponse", written)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        error = kw.get("exc_info")
        if not isinstance(error, (HttpProcessingError, web.RequestPayloadError)):
            log.warning("connection failed", error=type(error).__name__)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _what_is_broken(exc: BaseException | None) -> str:
    match exc:
        case LineTooLong():
            return "the request line or a header is longer than 8190 bytes"
        case BadHttpMethod():
            return "not HTTP: the request line cannot be read"
        case InvalidHeader():
            return "a header is not valid"
        case ContentEncodingError():
            return "the content encoding of the body is not supported"
        case _:
            return "the request is not valid HTTP/1.1"


async def _bind(host: str, port: int, reuse_port: bool, backlog: int) -> list[socket.socket]:
    """Sockets on every address that `host` stands for, all with the same port."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise errors.StartupRefused(
            f"{where}: the host name cannot be resolved ({error.strerror}); "
            "use an IP address such as 127.0.0.1"
        ) from None
    bound: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        ip = address[0]
        try:
            bound.append(_listening(family, str(ip), port, reuse_port, backlog))
        except OSError as error:
            if error.errno in _NOT_HERE:
                absent = error  # a name such as localhost may stand for more than exists here
                continue
            for sock in bound:
                sock.close()
            raise errors.StartupRefused(_why_not(where, error)) from None
        if not port:
            port = bound[0].getsockname()[1]
    if not bound and absent is not None:
        raise errors.StartupRefused(_why_not(where, absent))
    return bound


def _listening(family: int, ip: str, port: int, reuse_port: bool, backlog: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKED_MS)
        sock.bind((ip, port))
        sock.setblocking(False)
        sock.listen(backlog)  # here, because an address may turn out to be in use only now
    except BaseException:
        sock.close()
        raise
    return sock


def _why_not(where: str, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"{where} is already in use by another process: stop it "
                "or choose another port with --port"
            )
        case errno.EACCES | errno.EPERM:
            return (
                f"{where} may not be used: ports below 1024 need privileges; choose one with --port"
            )
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return f"{where}: this machine has no such address"
        case _:
            return f"{where} cannot be listened on: {error.strerror}"
