"""The raw event stream: every event of a change, to those who asked for its type and service.

A stream resumes after exactly the event that its client saw last: from memory, or from the store's
stream when that is longer ago. Where neither reaches back it gets the present state, and goes on.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from registryd.errors import Malformed
from registryd.events.cloudevent import Event, cloud_event, events_of
from registryd.events.recent import Recent
from registryd.events.types import WHOLE, Position, ping, snapshot, sse
from registryd.events.webhook_types import matches
from registryd.feed.broadcast import Broadcast, Topic
from registryd.feed.revision import Revision
from registryd.feed.stream import Change, ChangeStream
from registryd.kit.clock import Clock, rfc3339
from registryd.registry.query import Filters
from registryd.registry.types import split_identity
from registryd.registry.view import Instance, Move, Point, View
from registryd.web.reply import frame

PAGE = 200
"""How many changes are read from the store, or composed, before others get their turn."""

_GLOB = re.compile(r"[a-z*][a-z0-9:*_-]{0,63}")


@dataclass(frozen=True)
class Wanted:
    """Which events a stream carries: types as globs, services by name; empty means all. `prefixes` are
    the caller's, in the words of `shortest`."""

    types: tuple[str, ...] = ()
    services: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def takes_type(self, kind: str) -> bool:
        return not self.types or any(matches(glob, kind) for glob in self.types)

    def takes(self, event: Event, services: frozenset[str]) -> bool:
        """Whether an event is wanted that is of `services`."""
        if self.services and not self.services & services:
            return False
        return self.takes_type(event.type)


def parse_types(text: str) -> tuple[str, ...]:
    """Reads a comma list of globs such as `service:*`. Raises Malformed."""
    globs = sorted({part.strip() for part in text.split(",")} - {""})
    for glob in globs:
        if not _GLOB.fullmatch(glob):
            position = text.find(glob) + 1
            raise Malformed(f"types: position {position}: {glob[:60]!r} can match no type of event")
    if len(globs) > 64:
        raise Malformed("types: at most 64 of them")
    return tuple(globs)


def services_of(change: Change) -> frozenset[str]:
    """The services whose instances a change is about."""
    identity = change.fields[b"id"].decode()
    names = [identity] if identity else json.loads(change.fields[b"ids"] or b"[]")
    return frozenset(split_identity(name)[0] for name in names)


def within(change: Change, prefixes: tuple[str, ...]) -> Change | None:
    """The change as far as it is about services within these prefixes: whole, with fewer of the many
    instances it is about, or None."""
    if not prefixes:
        return change
    if identity := change.fields[b"id"].decode():
        return change if split_identity(identity)[0].startswith(prefixes) else None
    many = json.loads(change.fields[b"ids"] or b"[]")
    covered = [name for name in many if split_identity(name)[0].startswith(prefixes)]
    if not covered:
        return None
    ids = json.dumps(covered, separators=(",", ":")).encode()
    return replace(change, fields={**change.fields, b"ids": ids})


@dataclass(slots=True)
class Rendered:
    """A change as server-sent events, each made once, joined once for each choice among them."""

    events: list[Event]
    services: frozenset[str]
    _chosen: dict[tuple[int, ...], bytes] = field(default_factory=dict)

    def chosen(self, wanted: Wanted, *, after: int = -1) -> bytes:
        """Those that are wanted, but for the ones up to number `after`; b"" for none."""
        numbers = tuple(
            number
            for number, event in enumerate(self.events)
            if number > after and wanted.takes(event, self.services)
        )
        found = self._chosen.get(numbers)
        if found is None:
            chosen = [self.events[number] for number in numbers]
            found = b"".join([sse(event.type, event.id, event.body) for event in chosen])
            self._chosen[numbers] = found
        return found


class EventTopic(Topic):
    """Everybody who wants the same events."""

    def __init__(self, streams: "EventStreams", broadcast: Broadcast, wanted: Wanted) -> None:
        super().__init__(broadcast, "events")
        self.wanted = wanted
        self._streams = streams
        self._state: tuple[Point, bytes] | None = None

    async def state(self) -> bytes:
        """A `reset` event with the instances there are."""
        view = self._streams.view
        if self._state is not None and self._state[0] == view.at():
            return self._state[1]
        services = self.wanted.services
        found: Sequence[Instance]
        if services:
            found = [one for name in services for one in view.of_service(name)]
        else:
            found = Filters(prefixes=self.wanted.prefixes).select(view)
        at = str(Position(view.revision, WHOLE))
        framed = frame(sse("reset", at, snapshot(view.revision, found)))
        self._state = (view.at(), framed)
        return framed

    def ping(self) -> bytes:
        self._state = None
        return frame(ping(str(self._streams.position)))

    def over(self) -> None:
        self._streams.forget(self)


class EventStreams:
    """All event streams of this node. A listener of the view."""

    def __init__(
        self,
        view: View,
        recent: Recent,
        stream: ChangeStream,
        broadcast: Broadcast,
        clock: Clock,
        source: Callable[[], str],
    ) -> None:
        self.view = view
        self._recent = recent
        self._stream = stream
        self._broadcast = broadcast
        self._clock = clock
        self._source = source
        self._topics: dict[Wanted, EventTopic] = {}
        self._errors = 0

    @property
    def position(self) -> Position:
        """After everything that the view holds."""
        return Position(self.view.revision, WHOLE)

    def topic(self, wanted: Wanted) -> EventTopic:
        """The topic of a choice of events, to be joined before anything else is awaited."""
        topic = self._topics.get(wanted)
        if topic is None:
            topic = self._topics[wanted] = EventTopic(self, self._broadcast, wanted)
        return topic

    def forget(self, topic: EventTopic) -> None:
        if self._topics.get(topic.wanted) is topic:
            del self._topics[topic.wanted]

    def changed(self, change: Change, moves: Sequence[Move]) -> None:
        if not self._topics:
            return
        services = services_of(change)
        rendered: Rendered | None = None
        for wanted, topic in self._topics.items():
            if wanted.services and not wanted.services & services:
                continue
            part = within(change, wanted.prefixes)
            if part is None:
                continue
            if part is not change:
                chosen = self._render(part).chosen(wanted)
            else:
                rendered = rendered or self._render(change)
                chosen = rendered.chosen(wanted)
            if chosen:
                topic.tell(frame(chosen))

    def reloaded(self) -> None:
        for topic in self._topics.values():
            topic.outdate()

    def trouble(self, code: str, detail: str) -> None:
        """Tells of a fault of this node, which is nobody else's: `registry:error`. It names no service, and
        concerns every caller."""
        self._errors += 1
        kind, source = "registry:error", self._source()
        time = rfc3339(self._clock.now())
        data = json.dumps({"code": code, "detail": detail}).encode()
        event_id = f"{self.view.revision}.error-{self._errors}"
        body = cloud_event(event_id, kind, "", source, time, data)
        event = Event(event_id, kind, "", "", body)
        # It is not in the stream: who resumes does so after what was there before it.
        framed = frame(sse(kind, str(self.position), body))
        for wanted, topic in self._topics.items():
            if wanted.takes_type(event.type):
                topic.tell(framed)

    def _render(self, change: Change) -> Rendered:
        return Rendered(events_of(change, self._source()), services_of(change))

    async def replay(
        self, wanted: Wanted, position: Position, until: Revision
    ) -> AsyncIterator[bytes | None]:
        """The wanted events after `position` up to the change at `until`, some at a time. None, as the
        last, when that is not known any more: a gap."""
        if position.at.epoch != until.epoch or position.at > until:
            yield None
            return
        if self._recent.covers(position.at) and (
            position.whole or position.at.rev == 0 or self._recent.holds(position.at)
        ):
            before = Revision(position.at.epoch, position.at.rev - (not position.whole))
            changes = [change for change, _ in self._recent.after(before) if change.at <= until]
            for start in range(0, len(changes), PAGE):
                yield self._events(wanted, position, changes[start : start + PAGE])
                await asyncio.sleep(0)
            return
        first = position.at.rev + (position.whole or position.at.rev == 0)
        while first <= until.rev:
            start_at = Revision(until.epoch, first)
            changes = await self._stream.between(start_at, until, limit=PAGE)
            if not changes or any(
                change.at.rev != first + number for number, change in enumerate(changes)
            ):
                yield None
                return
            yield self._events(wanted, position, changes)
            first = changes[-1].at.rev + 1

    def _events(self, wanted: Wanted, position: Position, changes: Sequence[Change]) -> bytes:
        return b"".join(
            self._render(part).chosen(
                wanted, after=position.number if part.at == position.at else -1
            )
            for change in changes
            if (part := within(change, wanted.prefixes)) is not None
        )
