"""The HTTP face of event streams and watches: server-sent events that outlive their request."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import urlencode

from registryd.errors import Malformed
from registryd.events.stream import EventStreams, Wanted, parse_types
from registryd.events.types import WHOLE, Position, opening, parse_position
from registryd.events.watch import Watches, WatchQuery
from registryd.feed.broadcast import Broadcast
from registryd.feed.follower import Follower
from registryd.feed.revision import NOWHERE, Revision
from registryd.registry.query import FILTERS, parse_filters, shortest, spelled
from registryd.registry.reads import FRESHNESS, Reads, known_parameters
from registryd.registry.routes import FILTER_PARAMS, FRESH_PARAMS
from registryd.registry.types import NAME_RE
from registryd.registry.view import View
from registryd.web.caller import Caller, Permission, Scope
from registryd.web.reply import Header, Outlet, Reply, Stream, frame
from registryd.web.request import Request
from registryd.web.routing import Answer, Param, Route

RETRY_MS: Final = 1000
"""How soon a client comes back when its stream breaks."""
MAX_SERVICES: Final = 1000
AHEAD: Final = timedelta(seconds=2)
"""How long a position that this node has not reached is waited for: another node was quicker."""

BYE: Final = frame(b'event: bye\nretry: %d\ndata: {"reason":"shutting down"}\n\n' % RETRY_MS)
"""The last event of a stream that this node ends."""

_HEADERS: Final[tuple[Header, ...]] = (
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx would keep events back
)

UNKNOWN: Final = Position(Revision(0, 0), WHOLE)
"""A position that no stream can resume from."""


class EventRoutes:
    def __init__(
        self,
        view: View,
        reads: Reads,
        follower: Follower,
        broadcast: Broadcast,
        watches: Watches,
        streams: EventStreams,
    ) -> None:
        self._view = view
        self._reads = reads
        self._follower = follower
        self._broadcast = broadcast
        self._watches = watches
        self._streams = streams
        self.describe: Callable[[], bytes] = lambda: b"{}"
        """The AsyncAPI document."""

    async def watch(self, request: Request) -> Stream:
        parameters = known_parameters(request, *FILTERS, "service")
        query = _query(parameters, request.caller)
        position = await self._start(request)
        self._broadcast.admit()

        async def produce(outlet: Outlet) -> None:
            topic = self._watches.topic(query)
            member = self._broadcast.join(topic, outlet)
            outlet.keeper = member
            try:
                at = str(self._view.revision)
                missed = None if position is None else self._watches.since(query, position)
                if missed is None:
                    await outlet.pour(frame(opening(at, RETRY_MS)) + await topic.state())
                else:
                    await outlet.pour(frame(opening(at, RETRY_MS) + missed))
                self._broadcast.live(member)
            except BaseException:
                member.lost()
                raise

        return Stream(produce, headers=list(_HEADERS), standing=True)

    async def events(self, request: Request) -> Stream:
        parameters = known_parameters(request, "types", "service")
        wanted = Wanted(
            parse_types(parameters.get("types", "")),
            _services(parameters.get("service", ""), request.caller),
            shortest(request.caller.prefixes),
        )
        position = await self._start(request)
        self._broadcast.admit()

        async def produce(outlet: Outlet) -> None:
            topic = self._streams.topic(wanted)
            member = self._broadcast.join(topic, outlet)
            try:
                until = self._view.revision
                if position is None:
                    await outlet.pour(frame(opening(str(self._streams.position), RETRY_MS)))
                else:
                    await outlet.pour(frame(opening(str(position), RETRY_MS)))
                    async for missed in self._streams.replay(wanted, position, until):
                        if missed is None:
                            member.lost()
                            topic = self._streams.topic(wanted)
                            member = self._broadcast.join(topic, outlet)
                            await outlet.pour(await topic.state())
                        elif missed:
                            await outlet.pour(frame(missed))
                outlet.keeper = member
                self._broadcast.live(member)
            except BaseException:
                member.lost()
                raise

        return Stream(produce, headers=list(_HEADERS), standing=True)

    async def _start(self, request: Request) -> Position | None:
        """Where to go on from; None for a fresh start. What a browser sends by itself, on coming back,
        counts before what stood in the address from the beginning."""
        await self._reads.fresh(request)
        text = request.headers.get("Last-Event-ID", "").strip()
        if text:
            try:
                position = parse_position(text, what="Last-Event-ID")
            except Malformed:
                return UNKNOWN
        elif since := request.one("since"):
            position = parse_position(since, what="since")
        else:
            return None
        now = self._view.revision
        if position.at > now and (position.at.epoch == now.epoch or now == NOWHERE):
            try:
                async with asyncio.timeout(AHEAD.total_seconds()):
                    await self._follower.reached(position.at)
            except TimeoutError:
                pass  # then it is of a history that this store does not have
        return position

    async def asyncapi(self, request: Request) -> Reply:
        known_parameters(request)
        return Reply(200, self.describe())

    def table(self) -> list[Route]:
        stream = Answer("Server-sent events, without an end", content_type="text/event-stream")
        service = Param("service", "Only these services, by their exact names", example="chat,tts")
        resume = Param(
            "since", "Go on after this event or revision; `Last-Event-ID` counts before it"
        )
        return [
            Route(
                method="GET",
                path="/watch",
                handler=self.watch,
                permission=Permission.READER,
                scope=Scope.NARROWED,
                operation_id="watch",
                summary="The result of a query, and every change to it",
                description=(
                    "First `snapshot {revision, instances}`, then `change {revision, added, changed, removed}` "
                    "whenever this very result changes. With `Last-Event-ID` only what has changed since, or a "
                    "new `snapshot` when that is not known any more."
                ),
                tag="events",
                query=(service, *FILTER_PARAMS, resume, *FRESH_PARAMS),
                answers={200: stream},
                problems=(412,),
            ),
            Route(
                method="GET",
                path="/events",
                handler=self.events,
                permission=Permission.READER,
                scope=Scope.NARROWED,
                operation_id="events",
                summary="The event stream",
                description=(
                    "CloudEvents, each under its id. Resumes after exactly the event in `Last-Event-ID`; when "
                    "that is too long ago `reset {revision, instances}` comes first."
                ),
                tag="events",
                query=(
                    Param("types", "Only these, `*` stands for anything", example="service:*"),
                    service,
                    resume,
                    *FRESH_PARAMS,
                ),
                answers={200: stream},
                problems=(412,),
            ),
            Route(
                method="GET",
                path="/asyncapi.json",
                handler=self.asyncapi,
                permission=Permission.READER,
                scope=Scope.NONE,
                operation_id="asyncapi",
                summary="The events described",
                tag="node",
                answers={200: Answer("AsyncAPI 3.0")},
            ),
        ]


def _query(parameters: Mapping[str, str], caller: Caller) -> WatchQuery:
    meant = {name: value for name, value in parameters.items() if name not in FRESHNESS and value}
    services = _services(meant.pop("service", ""), caller)
    key = urlencode([*sorted(meant.items()), *(("service", name) for name in sorted(services))])
    if caller.prefixes:
        key = f"{spelled(caller.prefixes)} {key}"
    return WatchQuery(key, parse_filters(meant).within(caller.prefixes), services)


def _services(text: str, caller: Caller) -> frozenset[str]:
    names = frozenset(part.strip() for part in text.split(",")) - {""}
    for name in sorted(names):
        if not NAME_RE.fullmatch(name):
            position = text.find(name) + 1
            raise Malformed(
                f"service: position {position}: {name[:60]!r} cannot be the name of any"
            )
        caller.demand(name)
    if len(names) > MAX_SERVICES:
        raise Malformed(f"service: at most {MAX_SERVICES} of them")
    return names
