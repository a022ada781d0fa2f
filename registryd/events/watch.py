"""Watches: the result of a query, and from then on every change to just that result.

`differences` decides what a change does to a result; `QueryIndex` finds the queries that a change may
concern without asking the others; `Watches` keeps one topic for all who watch the same query, evaluates
each query once per change, and lets the same bytes go to all.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from registryd.events.recent import Recent
from registryd.events.types import Position, ping, snapshot, sse
from registryd.feed.broadcast import Broadcast, Topic
from registryd.feed.revision import Revision
from registryd.feed.stream import Change
from registryd.registry.query import Filters
from registryd.registry.reads import LOOK_AT_ONCE
from registryd.registry.versions import ANY_VERSION, CapabilityTerm
from registryd.registry.view import PREFIX, Instance, Move, View
from registryd.web.reply import frame

NO_LONGER: Final = "no longer matches"

_NARROW: Final = (
    "service", "dependsOn", "model", "capability", "prefix", "tag", "zone", "environment",
)  # fmt: skip
"""Kinds of terms, the rarer first: a query is looked for under its narrowest group."""


@dataclass(frozen=True)
class WatchQuery:
    """What is watched: the filters of a list, and optionally some services by their exact names. `key` is
    the same for the same query."""

    key: str
    filters: Filters
    services: frozenset[str] = frozenset()

    @property
    def groups(self) -> list[tuple[str, ...]]:
        groups = list(self.filters.groups)
        if self.services:
            groups.append(tuple(f"service:{name}" for name in sorted(self.services)))
        return groups

    def holds(self, instance: Instance) -> bool:
        """Whether an instance belongs to the result; the same that `candidates` finds by the indexes."""
        if self.services and instance.service not in self.services:
            return False
        return matches(self.filters, instance)

    def candidates(self, view: View) -> list[Instance]:
        """The result but for the expression."""
        if self.services:
            members = (one for name in self.services for one in view.of_service(name))
            return [one for one in members if indexed_match(self.filters, one)]
        return self.filters.candidates(view)


def matches(filters: Filters, instance: Instance) -> bool:
    """What `Filters.select` asks of the indexes, asked of one instance."""
    return indexed_match(filters, instance) and filters.expresses(instance)


def indexed_match(filters: Filters, instance: Instance) -> bool:
    if filters.prefixes and not instance.service.startswith(filters.prefixes):
        return False
    terms = instance.terms
    for group in filters.indexed:
        if not any(term in terms for term in group):
            return False
    if filters.capability and not any(_claims(terms, term) for term in filters.capability):
        return False
    if not all(_claims(terms, term) for term in filters.capabilities_all):
        return False
    if filters.version is not None:
        version = instance.version
        if not version or not filters.version.contains(version):
            return False
    return filters.name is None or bool(filters.name.search(instance.service))


def _claims(terms: Sequence[str], wanted: CapabilityTerm) -> bool:
    name = f"capability:{wanted.name}"
    if wanted.range == ANY_VERSION:
        return name in terms
    prefix = f"{name}@"
    return any(
        term.startswith(prefix) and wanted.range.contains(term[len(prefix) :]) for term in terms
    )


@dataclass(slots=True)
class Difference:
    """What has come to a result, changed in it, and left it, with the reason."""

    added: list[Instance] = field(default_factory=list)
    changed: list[Instance] = field(default_factory=list)
    removed: list[tuple[Instance, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def encode(self, revision: Revision) -> bytes:
        left = [_left(instance, reason) for instance, reason in self.removed]
        return b'{"revision":"%b","added":[%b],"changed":[%b],"removed":[%b]}' % (
            str(revision).encode(),
            b",".join([instance.fragment for instance in self.added]),
            b",".join([instance.fragment for instance in self.changed]),
            b",".join(left),
        )


def differences(holds: Callable[[Instance], bool], moves: Iterable[tuple[Move, str]]) -> Difference:
    """What these moves, each with why the instance went if it did, do to a result."""
    found = Difference()
    for (before, after), reason in moves:
        was = before is not None and holds(before)
        if after is not None and holds(after):
            (found.changed if was else found.added).append(after)
        elif was and before is not None:
            found.removed.append((before, NO_LONGER if after is not None else reason))
    return found


def _left(instance: Instance, reason: str) -> bytes:
    return b'{"name":"%b","instanceId":"%b","reason":%b}' % (
        instance.service.encode(),
        instance.instance_id.encode(),
        json_text(reason),
    )


def json_text(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")


def reason_of(change: Change) -> str:
    """Why an instance went: what was told, or the kind of the event."""
    return (change.fields[b"reason"] or change.fields[b"type"]).decode("utf-8", "replace")


class QueryIndex:
    """Finds the topics that a change may concern by the terms of the instance before and after."""

    def __init__(self) -> None:
        self._by_term: dict[str, set[WatchTopic]] = {}
        self._lengths: set[int] = set()
        """How long the prefixes among the terms are: no instance has those, its service's name tells."""
        self._others: set[WatchTopic] = set()
        """Those of queries without a term: each change may concern them."""

    def add(self, topic: "WatchTopic") -> None:
        for members in self._places(topic):
            members.add(topic)
        for term in _narrowest(topic.query.groups):
            if term.startswith(PREFIX):
                self._lengths.add(len(term) - len(PREFIX))

    def drop(self, topic: "WatchTopic") -> None:
        for members in self._places(topic):
            members.discard(topic)
        for term in _narrowest(topic.query.groups):
            if not self._by_term.get(term, True):
                del self._by_term[term]

    def concerned(self, moves: Iterable[Move]) -> set["WatchTopic"]:
        if not self._by_term:
            return self._others
        found = set(self._others)
        for before, after in moves:
            for instance in (before, after):
                if instance is None or (
                    instance is after and before is not None and before.terms is instance.terms
                ):
                    continue
                terms = instance.terms
                if self._lengths:
                    terms += tuple(PREFIX + instance.service[:length] for length in self._lengths)
                for term in terms:
                    members = self._by_term.get(term)
                    if members is not None:
                        found |= members
        return found

    def _places(self, topic: "WatchTopic") -> Iterator[set["WatchTopic"]]:
        terms = _narrowest(topic.query.groups)
        if not terms:
            yield self._others
        for term in terms:
            yield self._by_term.setdefault(term, set())


def _narrowest(groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    def width(group: tuple[str, ...]) -> tuple[int, int]:
        kind = group[0].partition(":")[0]
        return (_NARROW.index(kind) if kind in _NARROW else len(_NARROW), len(group))

    return min(groups, key=width, default=())


class WatchTopic(Topic):
    """Everybody who watches one query."""

    def __init__(self, watches: "Watches", broadcast: Broadcast, query: WatchQuery) -> None:
        super().__init__(broadcast, "watch")
        self.query = query
        self._watches = watches
        self._snapshot: tuple[int, bytes] | None = None

    async def state(self) -> bytes:
        """A `snapshot` event. The same bytes serve all who come before the result changes."""
        view = self._watches.view
        if self._snapshot is not None and self._snapshot[0] == self.end:
            return self._snapshot[1]
        number, revision = self.end, view.revision
        candidates = self.query.candidates(view)
        found: list[Instance] = []
        if self.query.filters.expression is None:
            found = candidates
        else:
            # Instances never change: what was a candidate is looked at as it was.
            for start in range(0, len(candidates), LOOK_AT_ONCE):
                if start:
                    await asyncio.sleep(0)
                some = candidates[start : start + LOOK_AT_ONCE]
                found += filter(self.query.filters.expresses, some)
        framed = frame(sse("snapshot", str(revision), snapshot(revision, found)))
        if self.end == number:
            self._snapshot = (number, framed)
        return framed

    def ping(self) -> bytes:
        self._snapshot = None  # whoever comes later has it made again; many come at once
        return frame(ping(str(self._watches.view.revision)))

    def over(self) -> None:
        self._watches.forget(self)


class Watches:
    """All watches of this node. A listener of the view."""

    def __init__(self, view: View, recent: Recent, broadcast: Broadcast) -> None:
        self.view = view
        self._recent = recent
        self._broadcast = broadcast
        self._topics: dict[str, WatchTopic] = {}
        self._index = QueryIndex()

    def topic(self, query: WatchQuery) -> WatchTopic:
        """The topic of a query, to be joined before anything else is awaited."""
        topic = self._topics.get(query.key)
        if topic is None:
            topic = self._topics[query.key] = WatchTopic(self, self._broadcast, query)
            self._index.add(topic)
        return topic

    def forget(self, topic: WatchTopic) -> None:
        if self._topics.get(topic.query.key) is topic:
            del self._topics[topic.query.key]
            self._index.drop(topic)

    def changed(self, change: Change, moves: Sequence[Move]) -> None:
        concerned = self._index.concerned(moves)
        if not concerned or not moves:
            return
        told = [(move, reason_of(change)) for move in moves]
        for topic in concerned:
            if difference := differences(topic.query.holds, told):
                topic.tell(frame(sse("change", str(change.at), difference.encode(change.at))))

    def reloaded(self) -> None:
        for topic in self._topics.values():
            topic.outdate()

    def since(self, query: WatchQuery, position: Position) -> bytes | None:
        """What leads from the result at `position` to the present one, as one event or b"" for no
        difference; None when that is not known any more."""
        if not self._recent.covers(position.at):
            return None
        first: dict[str, Instance | None] = {}
        reasons: dict[str, str] = {}
        for change, moves in self._recent.after(position.at):
            for move in moves:
                before, after = move
                name = move.id
                first.setdefault(name, before)
                if after is None:
                    reasons[name] = reason_of(change)
        difference = differences(
            query.holds,
            [
                (Move(before, self.view.get(name)), reasons.get(name, NO_LONGER))
                for name, before in first.items()
            ],
        )
        now = self.view.revision
        return sse("change", str(now), difference.encode(now)) if difference else b""
