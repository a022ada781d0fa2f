"""What happens to every request, in one compiled wrapper instead of a chain of middlewares.

Request id → route → access → route's function → bytes on the connection, with metrics around it and
the outermost guard of all requests. Knows no resource and reads no body.
"""

import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from multidict import istr
from structlog.contextvars import STRUCTLOG_KEY_PREFIX

from registryd import errors
from registryd.kit.actor import act_as
from registryd.metrics import Metrics, RouteTally
from registryd.web import problem, wire
from registryd.web.access import DONE, REFUSALS, Access, Attempt, refuse_in_query
from registryd.web.caller import Caller, Peer, Permission, Scope, permit
from registryd.web.codec import DEFAULT_LIMITS, BodyLimits
from registryd.web.forwarded import Proxies
from registryd.web.origin import ANYWHERE, SAFE, Origins
from registryd.web.reply import END_OF_CHUNKS, Header, Outlet, Reply, Stream
from registryd.web.request import UNKNOWN, Request
from registryd.web.router import Router, template
from registryd.web.routing import Route
from registryd.web.shortcut import LONGEST, Exchange, HeaderBlocks, Headers
from registryd.web.throttle import Throttle

log = structlog.get_logger(__name__)

UNMATCHED: Final = "unmatched"

# Named as structlog names its own, so that merge_contextvars finds it; set directly because
# bind_contextvars costs twenty times as much. Each request runs in a context of its own.
_REQUEST_ID: Final[ContextVar[str]] = ContextVar(f"{STRUCTLOG_KEY_PREFIX}request_id")
_X_REQUEST_ID: Final = istr("X-Request-ID")
_ACCEPTABLE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NO_LEASE: Final = (errors.InstanceUnknown, errors.Superseded)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Written:
    """Tells aiohttp that the answer is on its way already, and whether the connection stays."""

    __slots__ = ("keep_alive",)

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self) -> None:
        """Nothing is left to do."""


_KEEP: Final = Written(keep_alive=True)
_CLOSE: Final = Written(keep_alive=False)


class Pipeline:
    """Answers requests; `draining` makes every further answer close its connection."""

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        access: Access,
        server_header: str = "registryd",
        *,
        origins: Origins = ANYWHERE,
        proxies: Proxies | None = None,
        throttle: Throttle | None = None,
        tls: bool = False,
        limits: BodyLimits = DEFAULT_LIMITS,
        write_patience: float = 30.0,
    ) -> None:
        self.draining = False
        self.in_flight = 0
        self._router = router
        self._ordinary = router.ordinary()
        self._metrics = metrics
        self._access = access
        self._limits = limits
        self._patience = write_patience
        self._origins = origins
        self._proxies = proxies
        self._throttle = throttle
        # Where answers differ by origin, caches have to know, whoever asked first.
        vary = [("Vary", "Origin")] if origins.pages else []
        self._wire = wire.Wire(server_header, tls=tls, always=vary)
        self.blocks = HeaderBlocks(origins.unremarkable)
        self._id_prefix = secrets.token_hex(5)
        self._ids = itertools.count(1)
        self._tallies: dict[str, RouteTally] = {}
        """By operation."""
        metrics.http_in_flight.set_function(lambda: self.in_flight)

    async def __call__(self, raw: web.BaseRequest) -> Written:
        began = time.perf_counter()
        request_id = raw.headers.get(_X_REQUEST_ID)
        if request_id is None or _ACCEPTABLE_ID.fullmatch(request_id) is None:
            request_id = self._fresh_id()
        _REQUEST_ID.set(request_id)
        route: Route | None = None
        request: Request | None = None
        answer: Reply | Stream
        cors: list[Header] = []
        begun = False
        self.in_flight += 1
        try:
            try:
                peer: Peer = getattr(raw.protocol, "peer", UNKNOWN)
                if self._proxies is not None:
                    peer = self._proxies.client(peer, raw.headers)
                cors = self._origins.cors(raw.headers)
                route, params = self._router.match(raw.method, _target(raw))
                public = route.permission is Permission.OPEN
                limits = self._limits
                if route.body_bytes is not None:
                    limits = replace(limits, size=route.body_bytes)
                if route.body_seconds is not None:
                    limits = replace(limits, seconds=route.body_seconds)
                request = Request(
                    raw, params, request_id, limits, peer=peer, throttle=self._throttle
                )
                act_as(request.signature)
                self._origins.check(raw.headers, raw.method, public=public)
                refuse_in_query(raw.raw_path)
                if not public:
                    request.caller = await self._identify(raw.headers, peer)
                    if self._throttle is not None and not route.renewal:
                        write = raw.method not in SAFE
                        self._throttle.charge(request.caller, peer, write=write)
                    permit(request.caller, route.permission, route.scope, params)
                answer = await route.handler(request)
                if cors:
                    cors += self._origins.preflight(raw.headers, raw.method, answer.headers)
                if route.permission is Permission.ADMIN:
                    self._note(request, route, DONE)
                connection = self._connection(raw, answer)
                head = self._head(raw, answer, cors, request_id, connection)
                if isinstance(answer, Stream):
                    release = None
                    if answer.standing and self._throttle is not None:
                        release = self._throttle.hold(request.caller, peer)
                    self._record(route, raw.method, answer.status, time.perf_counter() - began)
                    begun = True
                    return await self._stream(raw, answer, head, connection, release)
            except Exception as error:  # noqa: BLE001  the guard of every request
                if request is not None and route is not None and route.renewal:
                    error = self._count_miss(error, request.caller, request.peer)
                self._report(error, raw.method, route)
                if begun:
                    return _cut(raw)
                told = _public(error)
                if told.code in REFUSALS:
                    self._note(request, route, told.code, told.detail)
                elif request is not None and _administers(request, route):
                    # Without the detail, which may quote the body.
                    self._note(request, route, told.code)
                answer = problem.reply(told, request_id)
                connection = self._connection(raw, answer)
                head = self._head(raw, answer, cors, request_id, connection)
            self._record(route, raw.method, answer.status, time.perf_counter() - began)
            transport = raw.transport
            if transport is None or transport.is_closing():
                return _CLOSE
            wire.write(transport, head, b"" if raw.method == "HEAD" else answer.body)
            if raw.protocol.writing_paused:
                await wire.drain(raw, self._patience)
        except ConnectionError:
            return _CLOSE
        finally:
            self.in_flight -= 1
        return _CLOSE if connection == "close" else _KEEP

    async def _identify(self, headers: Headers, peer: Peer) -> Caller:
        """Raises Unauthenticated; RateLimited where an address has tried too many credentials. Those that
        have been verified before go on to hold, so that nobody can shut out a neighbour."""
        caller = self._access.known(headers, peer)
        if caller is not None:
            return caller
        if self._throttle is None:
            return await self._access.identify(headers, peer)
        self._throttle.check_denied(peer)
        try:
            return await self._access.identify(headers, peer)
        except errors.Unauthenticated:
            self._throttle.deny(peer)
            raise

    def _count_miss(self, error: Exception, caller: Caller, peer: Peer) -> Exception:
        """What a failed renewal is answered with: a miss is a write, once it is known to be one."""
        if self._throttle is None or not isinstance(error, _NO_LEASE):
            return error
        try:
            self._throttle.charge(caller, peer, write=True)
        except errors.RateLimited as limited:
            return limited
        return error

    def shortcut(self, data: bytes, send: Callable[[bytes, bytes], None], peer: Peer) -> bool:
        """Takes the request that `data` is into the fast lane: `send` gets the answer, now or later.
        False, with nothing done, when it has to go the long way."""
        if self.draining or len(data) > LONGEST or data[-4:] != b"\r\n\r\n":
            return False
        began = time.perf_counter()
        end = data.find(b"\r\n")
        headers, request_id = self.blocks.read(data[end:])
        if headers is None:
            return False
        if self._proxies is not None:
            try:
                peer = self._proxies.client(peer, headers)
            except errors.Malformed:
                return False
        line = data[:end].decode("latin-1")
        for pattern, route in self._ordinary:
            parts = pattern.fullmatch(line)
            if parts is not None:
                caller = self._access.known(headers, peer)
                if route.shortcut is None or caller is None or caller.role < route.permission:
                    return False
                path, *params, query = parts.groups("")
                # What has to be narrowed, or refused, is so on the long way.
                if caller.prefixes and not (
                    route.scope is Scope.NAMED and caller.covers(params[0])
                ):
                    return False
                if _ACCEPTABLE_ID.fullmatch(request_id) is None:
                    request_id = self._fresh_id()
                finish = self._finish_short
                throttle = self._throttle
                write = route.method not in SAFE
                if throttle is None:
                    pass
                elif route.renewal:
                    finish = partial(self._finish_renewal, caller, peer)
                elif throttle.take(caller, peer, write) is not None:
                    return False
                exchange = Exchange(
                    route, path, query, tuple(params), headers, request_id, began, send, finish
                )
                self.in_flight += 1
                taken = route.shortcut(exchange)
                if not taken:
                    self.in_flight -= 1
                    if throttle is not None and not route.renewal:
                        throttle.give_back(caller, peer, write=write)
                return taken
        return False

    def _finish_renewal(
        self, caller: Caller, peer: Peer, exchange: Exchange, answer: Reply | Exception
    ) -> None:
        if isinstance(answer, Exception):
            answer = self._count_miss(answer, caller, peer)
        self._finish_short(exchange, answer)

    def _finish_short(self, exchange: Exchange, answer: Reply | Exception) -> None:
        self.in_flight -= 1
        route, request_id = exchange.route, exchange.request_id
        if isinstance(answer, Exception):
            _REQUEST_ID.set(request_id)
            self._report(answer, route.method, route)
            answer = problem.reply(_public(answer), request_id)
        self._record(route, route.method, answer.status, time.perf_counter() - exchange.began)
        body = answer.body
        head = self._wire.head(
            answer.status, answer.content_type, len(body), answer.headers, request_id, ""
        )
        exchange.send(head, body)

    def refuse(self, raw: web.BaseRequest, error: errors.RegistrydError) -> Written:
        """Answers what never became a request, such as broken HTTP, and ends the connection."""
        request_id = self._fresh_id()
        answer = problem.reply(error, request_id)
        self._record(None, raw.method, answer.status, 0.0)
        if raw.transport is not None:
            head = self._head(raw, answer, [], request_id, "close")
            wire.write(raw.transport, head, answer.body)
        return _CLOSE

    def _fresh_id(self) -> str:
        return f"{self._id_prefix}-{next(self._ids):x}"

    def _connection(self, raw: web.BaseRequest, answer: Reply | Stream) -> str:
        """The value of the Connection header, "" where HTTP's default is meant."""
        # A body that has not arrived in full by now stands in the way of the next request; and
        # after Expect the client may well never send it.
        if not raw.keep_alive or self.draining or not raw.content.is_eof():
            return "close"
        if isinstance(answer, Stream) and (answer.standing or raw.version is not HttpVersion11):
            return "close"
        return "" if raw.version is HttpVersion11 else "keep-alive"

    def _head(
        self,
        raw: web.BaseRequest,
        answer: Reply | Stream,
        cors: list[Header],
        request_id: str,
        connection: str,
    ) -> bytes:
        headers = [*answer.headers, *cors] if cors else answer.headers
        length: int | None = None
        if isinstance(answer, Reply):
            length = len(answer.body)
            if length and answer.status in wire.BODYLESS:
                raise ValueError(f"a {answer.status} answer cannot have a body")
        elif raw.version is HttpVersion11:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        return self._wire.head(
            answer.status, answer.content_type, length, headers, request_id, connection
        )

    async def _stream(
        self,
        raw: web.BaseRequest,
        answer: Stream,
        head: bytes,
        connection: str,
        release: Callable[[], None] | None,
    ) -> Written:
        """`release` is called when the stream has ended, which may be long after this."""
        try:
            transport = raw.transport
            if transport is None:
                return _CLOSE
            transport.write(head)
            chunked = raw.version is HttpVersion11
            if raw.method != "HEAD":
                outlet = Outlet(transport, self._drain(raw), chunked=chunked)
                try:
                    await answer.produce(outlet)
                except ConnectionError:
                    if not transport.is_closing():
                        raise  # not the client has gone, but something the producer needs
                    return _CLOSE
                if answer.standing:
                    outlet.release, release = release, None
                    let_go(raw, outlet)
                    return _CLOSE
                if chunked:
                    transport.write(END_OF_CHUNKS)
            return _KEEP if chunked and connection != "close" and not self.draining else _CLOSE
        finally:
            if release is not None:
                release()

    def _drain(self, raw: web.BaseRequest) -> Callable[[], Awaitable[None]]:
        async def drain() -> None:
            if raw.protocol.writing_paused:
                await wire.drain(raw, self._patience)

        return drain

    def _report(self, error: Exception, method: str, route: Route | None) -> None:
        """One line for a fault of ours; none for what the client got wrong, nor for each request while
        the store is away: that is told once, where it is noticed."""
        path = template(route) if route is not None else UNMATCHED
        if not isinstance(error, errors.RegistrydError):
            log.error("request failed", method=method, route=path, exc_info=error)
        elif problem.status(error) >= 500:
            log.debug(
                "request refused", method=method, route=path, code=error.code, detail=error.detail
            )

    def _note(
        self, request: Request | None, route: Route | None, outcome: str, detail: str = ""
    ) -> None:
        if request is None or route is None:
            return
        attempt = Attempt(
            request.signature(), request.id, request.method, template(route), outcome, detail
        )
        self._access.note(attempt)

    def _record(self, route: Route | None, method: str, status: int, seconds: float) -> None:
        if method not in _METHODS:
            method = "other"  # else a client could fill the memory with invented methods
        operation = route.operation_id if route is not None else UNMATCHED
        tally = self._tallies.get(operation)
        if tally is None:
            path = template(route) if route is not None else UNMATCHED
            tally = self._tallies[operation] = self._metrics.http.of(path)
        tally.add(method, status, seconds)


def let_go(raw: web.BaseRequest, outlet: Outlet) -> None:
    """Gives a request's connection to the outlet of a standing stream, and frees everything else:
    parser, task and request take ten times as much memory as the open connection."""
    protocol, transport = raw.protocol, raw.transport
    outlet.stand()
    if transport is None:  # lost, and its task not yet told
        outlet.connection_lost(None)
        return
    transport.set_protocol(outlet)
    # To aiohttp's connection it is as if the client had gone, but that neither the transport is to be
    # closed nor this very task to be cancelled.
    protocol.transport = None
    protocol._task_handler = None
    protocol.connection_lost(None)


def _target(raw: web.BaseRequest) -> str:
    """The path as it came over the wire, without the query."""
    if raw.version < HttpVersion10:  # the parser lets HTTP/0.9 pass, which knows no status line
        raise errors.Malformed("HTTP before 1.0 is not spoken here")
    path = raw.raw_path
    if path[:1] != "/" and path != "*":  # a proxy's absolute form, or CONNECT's host and port
        path = raw.rel_url.raw_path
    end = path.find("?")
    return path if end < 0 else path[:end]


def _public(error: Exception) -> errors.RegistrydError:
    if isinstance(error, errors.RegistrydError):
        return error
    return errors.RegistrydError("something went wrong inside; the log of this node says what")


def _administers(request: Request, route: Route | None) -> bool:
    """Whether an admin was let in to a route for admins: it may have done something, though it failed."""
    return (
        route is not None
        and route.permission is Permission.ADMIN
        and request.caller.role is Permission.ADMIN
    )


def _cut(raw: web.BaseRequest) -> Written:
    """Ends an answer that cannot be completed in a way that the client notices."""
    if raw.transport is not None:
        raw.transport.abort()
    return _CLOSE
