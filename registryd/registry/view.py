"""The registry in memory: instances as ready JSON, inverted indexes, and when each term last changed.

Filled by `sync.py` from a snapshot and the change stream; thrown away and built again at any time.
Nothing here awaits, so no reader ever sees half a change.
"""

import json
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, cast

from pyroaring import BitMap

from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change
from registryd.registry.document import Admin, Offer, Row, compose, effective_health
from registryd.registry.order import Order
from registryd.registry.types import PREFERENCE, AdminState, HealthStatus, split_identity

EVERYTHING: Final = "*"
"""The term that every change stamps."""
PREFIX: Final = "prefix:"
"""What terms begin with that stand for all services whose names begin alike. No instance has them: they
are stamped for those who ask."""
_AFTER_ANY: Final = "\x7f"
"""Comes after every character of a name."""

_LIVE: Final = b'"state":"live"},"revision":"'
_SUSPECT: Final = b'"state":"suspect"},"revision":"'

FORGOTTEN_TERMS: Final = 50_000
"""How many stamps of terms that no instance has any more are kept before the older are let go."""


class Instance:
    """One instance as the view holds it: its JSON, and what choosing and renewing need. Never changed.

    There may be hundreds of thousands: what is seldom asked for is read out of the JSON.
    """

    __slots__ = (
        "admin",
        "document_length",
        "epoch",
        "fragment",
        "health",
        "id",
        "rev",
        "service",
        "slot",
        "suspect",
        "terms",
        "ttl_ms",
        "weight",
        "zone",
    )

    def __init__(
        self, identity: str, row: Row, document: bytes, admin: Admin, *, suspect: bool
    ) -> None:
        fields: dict[str, Any] = json.loads(document)
        service, _ = split_identity(identity)
        zone = fields.get("zone")
        self.id = identity
        self.slot = -1
        self.service = sys.intern(service)
        self.fragment = compose(document, row, admin, suspect=suspect)
        self.document_length = len(document)
        self.epoch, self.rev = row.revision
        self.health = effective_health(row, admin)
        self.admin = admin.state
        self.suspect = suspect
        self.ttl_ms = row.ttl_ms
        self.weight: int = fields.get("weight", 1)
        self.zone: str | None = None if zone is None else sys.intern(zone)
        self.terms = tuple(map(sys.intern, _terms(service, row, self.health, fields)))

    @property
    def instance_id(self) -> str:
        return self.id[len(self.service) + 1 :]

    @property
    def revision(self) -> Revision:
        return Revision(self.epoch, self.rev)

    @property
    def document(self) -> bytes:
        """The client's part, as it is stored."""
        return self.fragment[: self.document_length - 1] + b"}"

    @property
    def endpoint(self) -> str:
        # Third in every document; neither name nor id before it, nor a URL, can hold a quote.
        return _quoted_after(self.fragment, b'"endpoint":"', self.fragment.find(b'"endpoint":"'))

    @property
    def incarnation(self) -> str:
        return self._ours(b'"incarnation":"')

    @property
    def registered_at(self) -> str:
        return self._ours(b'"registeredAt":"')

    @property
    def updated_at(self) -> str:
        return self._ours(b'"updatedAt":"')

    @property
    def version(self) -> str:
        """The version it registered, or "" for none."""
        for term in self.terms:
            if term.startswith("version:"):
                return term.removeprefix("version:")
        return ""

    def _ours(self, key: bytes) -> str:
        # The last one is ours: what follows it in the JSON has no such key, and in texts quotes are
        # escaped.
        return _quoted_after(self.fragment, key, self.fragment.rfind(key))

    @property
    def capability_names(self) -> Iterator[str]:
        for term in self.terms:
            if term.startswith("capability:") and "@" not in term:
                yield term.removeprefix("capability:")

    @property
    def draining(self) -> bool:
        return self.admin is AdminState.DRAINING

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Less is better: not draining, healthier, not suspect among equals."""
        return (self.draining, PREFERENCE[self.health], self.suspect)

    def held(self, at: Revision) -> "Instance":
        """The same instance, marked at `at` as held by the expiry guard."""
        other = object.__new__(Instance)
        for name in Instance.__slots__:
            setattr(other, name, getattr(self, name))
        head, _, tail = self.fragment.rpartition(_LIVE)
        rest = tail[tail.index(b'"') :]
        other.fragment = b"%b%b%b%b" % (head, _SUSPECT, str(at).encode(), rest)
        other.epoch, other.rev = at
        other.suspect = True
        return other


def _quoted_after(fragment: bytes, key: bytes, position: int) -> str:
    start = position + len(key)
    return fragment[start : fragment.index(b'"', start)].decode()


def _terms(service: str, row: Row, health: HealthStatus, fields: dict[str, Any]) -> Iterator[str]:
    """The store's terms, and those that only the view answers by."""
    yield f"service:{service}"
    yield f"health:{health}"
    yield from row.terms
    for capability in fields.get("capabilities", ()):
        yield f"capability:{capability['name']}@{capability['version']}"
    found = Offer.decode(row.discovered)
    for name, version in found.capabilities:
        if f"capability:{name}" not in row.terms:
            yield f"capability:{name}"
            yield f"capability:{name}@{version}"
    if "zone" in fields:
        yield f"zone:{fields['zone']}"
    for model in dict.fromkeys((*fields.get("models", ()), *found.models)):
        yield f"model:{model}"
    for name in dict.fromkeys(fields.get("dependsOn", ())):
        yield f"dependsOn:{name}"


BY_ID: Final = attrgetter("id")


class Contents:
    """Instances by id, and indexes that hold their slots: small numbers that are kept while an instance
    changes, so that a change touches only the terms it changes, and that compressed bitmaps can hold."""

    def __init__(self) -> None:
        self.by_id: dict[str, Instance] = {}
        self.slots: list[Instance | None] = []
        self.fragments: list[bytes] = []
        """The JSON of the instance in each slot, "" where there is none: long lists need nothing else."""
        self.index: dict[str, BitMap] = {}
        """The slots of the instances that have a term."""
        self.services: dict[str, list[Instance]] = {}
        """The instances of a service, in the order of their ids."""
        self.names: list[str] = []
        """The services' names, in order."""
        self.capability_versions: dict[str, set[str]] = {}
        """Which versions of `capability:<name>` there are, for ranges."""
        self.versions: set[str] = set()
        """Which versions instances have."""
        self._free: list[int] = []
        self._order: Order | None = None

    @property
    def order(self) -> Order:
        if self._order is None:
            taken = cast("list[Instance]", self.slots)
            self._order = Order(taken, [one.slot for one in self.by_id.values()])
        return self._order

    def put(self, instance: Instance) -> Instance | None:
        """Adds or replaces; answers with what stood there."""
        before = self.by_id.get(instance.id)
        if before is None:
            self._enter(instance)
            self._link(instance.slot, instance.terms)
        else:
            instance.id, instance.slot = before.id, before.slot
            self.slots[instance.slot] = instance
            self.fragments[instance.slot] = instance.fragment
            siblings = self.services[instance.service]
            siblings[bisect_left(siblings, instance.id, key=BY_ID)] = instance
            if before.terms == instance.terms:
                instance.terms = before.terms
            else:
                self._unlink(before.slot, set(before.terms).difference(instance.terms))
                self._link(before.slot, set(instance.terms).difference(before.terms))
        self.by_id[instance.id] = instance
        return before

    def drop(self, identity: str) -> Instance | None:
        before = self.by_id.pop(identity, None)
        if before is not None:
            self._unlink(before.slot, before.terms)
            if self._order is not None:
                self._order.leave(before.slot)
            self.slots[before.slot] = None
            self.fragments[before.slot] = b""
            self._free.append(before.slot)
            siblings = self.services[before.service]
            del siblings[bisect_left(siblings, identity, key=BY_ID)]
            if not siblings:
                del self.services[before.service]
                del self.names[bisect_left(self.names, before.service)]
        return before

    def names_within(self, prefixes: Sequence[str]) -> list[str]:
        """The names, in order, that begin with one of these, which are in order and none of which begins
        with another; no prefixes are no limit."""
        if not prefixes:
            return self.names
        found: list[str] = []
        for prefix in prefixes:
            start = bisect_left(self.names, prefix)
            found += self.names[start : bisect_left(self.names, prefix + _AFTER_ANY, start)]
        return found

    def at(self, slots: BitMap) -> list[Instance]:
        """The instances in these slots, in no order that means anything."""
        taken = cast("list[Instance]", self.slots)  # as all slots are that an index knows
        return list(map(taken.__getitem__, slots))

    def _enter(self, instance: Instance) -> None:
        if self._free:
            instance.slot = self._free.pop()
            self.slots[instance.slot] = instance
            self.fragments[instance.slot] = instance.fragment
        else:
            instance.slot = len(self.slots)
            self.slots.append(instance)
            self.fragments.append(instance.fragment)
        if self._order is not None:
            self._order.enter(instance.slot)
        siblings = self.services.get(instance.service)
        if siblings is None:
            self.services[instance.service] = [instance]
            insort(self.names, instance.service)
            return
        # Replicas are alike: most share the terms of the one before them.
        if (near := siblings[-1].terms) == instance.terms:
            instance.terms = near
        insort(siblings, instance, key=BY_ID)

    def _link(self, slot: int, terms: Iterable[str]) -> None:
        for term in terms:
            members = self.index.get(term)
            if members is None:
                members = self.index[term] = BitMap()
                self._note_version(term)
            members.add(slot)

    def _unlink(self, slot: int, terms: Iterable[str]) -> None:
        for term in terms:
            members = self.index[term]
            members.discard(slot)
            if not members:
                del self.index[term]
                self._forget_version(term)

    def _note_version(self, term: str) -> None:
        kind, _, value = term.partition(":")
        if kind == "version":
            self.versions.add(value)
        elif kind == "capability" and "@" in value:
            name, _, version = term.partition("@")
            self.capability_versions.setdefault(name, set()).add(version)

    def _forget_version(self, term: str) -> None:
        kind, _, value = term.partition(":")
        if kind == "version":
            self.versions.discard(value)
        elif kind == "capability" and "@" in value:
            name, _, version = term.partition("@")
            versions = self.capability_versions[name]
            versions.discard(version)
            if not versions:
                del self.capability_versions[name]


class Move(NamedTuple):
    """What a change did to one instance: None is before it came, or after it went."""

    before: Instance | None
    after: Instance | None

    @property
    def id(self) -> str:
        held = self.after or self.before
        assert held is not None  # noqa: S101  one of them is there, or nothing has moved
        return held.id


class Point(NamedTuple):
    """When something was read from a view."""

    revision: Revision
    generation: int


class Stamps(dict[str, int]):
    """The rev at which each term last changed. Of a term without a stamp no more is known than that
    nothing has changed it after `floor`; a prefix is stamped from when it is first asked for."""

    def __init__(self, floor: int = 0) -> None:
        super().__init__()
        self.floor = floor
        self._lengths: set[int] = set()
        """How long the prefixes are that were asked for: each is then found by one look-up."""

    def __missing__(self, term: str) -> int:
        if not term.startswith(PREFIX):
            return self.floor
        self._lengths.add(len(term) - len(PREFIX))
        rev = self[term] = self[EVERYTHING]
        return rev

    def stamp(self, instance: Instance, rev: int) -> None:
        for term in instance.terms:
            self[term] = rev
        self[EVERYTHING] = rev
        for length in self._lengths:
            term = PREFIX + instance.service[:length]
            if term in self:
                self[term] = rev


class View:
    """What this node answers from. `revision` is the last change it holds."""

    def __init__(self) -> None:
        self.contents = Contents()
        self.revision = NOWHERE
        self.generation = 0
        """Counts what `replace` put in place: answers of another generation hold no more."""
        self._stamps = Stamps()
        self._settled = 0

    def __len__(self) -> int:
        return len(self.contents.by_id)

    def at(self) -> Point:
        return Point(self.revision, self.generation)

    def get(self, identity: str) -> Instance | None:
        return self.contents.by_id.get(identity)

    def of_service(self, service: str) -> list[Instance]:
        """The instances of a service, by id."""
        return list(self.contents.services.get(service, ()))

    def replace(self, contents: Contents, revision: Revision, end: Revision) -> None:
        """Takes what a snapshot held somewhere between `revision` and `end`. All queries count as
        changed, up to `end`: of a change that the snapshot already held `apply` sees nothing to stamp."""
        self.contents = contents
        self.revision = revision
        self.generation += 1
        self._settled = max(revision.rev, end.rev)
        self._stamps = Stamps(self._settled)

    @property
    def settled(self) -> Revision:
        """From here on every change was seen by itself; what a snapshot held came without."""
        return Revision(self.revision.epoch, self._settled)

    def pass_over(self, at: Revision) -> None:
        """Goes on without a change: it will come with the next `replace`."""
        self.revision = at

    def apply(self, change: Change) -> list[Move]:
        """Takes a change in, and tells what it did: nothing where a snapshot already held it."""
        fields = change.fields
        identity = fields[b"id"].decode()
        held = self.contents.by_id.get(identity)
        self.revision = change.at
        # A snapshot may already hold this change, or a later one of the same instance.
        if held is not None and held.revision >= change.at:
            return []
        if fields[b"type"] == b"registry:preserving":
            moves = []
            for name in json.loads(fields[b"ids"]):
                instance = self.contents.by_id.get(name)
                if instance is not None and instance.revision < change.at and not instance.suspect:
                    moves.append(self._put(instance.held(change.at), change.at))
            return moves
        if fields[b"row"]:
            instance = Instance(
                identity,
                Row.decode(fields[b"row"]),
                fields[b"doc"],
                Admin.decode(fields[b"admin"]),
                suspect=fields[b"suspect"] == b"1",
            )
            return [self._put(instance, change.at)]
        gone = self.contents.drop(identity) if identity else None
        if gone is None:
            return []
        self._stamp(gone, change.at)
        return [Move(gone, None)]

    def _put(self, instance: Instance, at: Revision) -> Move:
        before = self.contents.put(instance)
        if before is not None:
            self._stamp(before, at)
        self._stamp(instance, at)
        return Move(before, instance)

    def _stamp(self, instance: Instance, at: Revision) -> None:
        stamps = self._stamps
        stamps.stamp(instance, at.rev)
        if len(stamps) > 2 * len(self.contents.index) + FORGOTTEN_TERMS:
            self._forget()

    def _forget(self) -> None:
        """Lets go of the older stamps of terms without instances; what asks for them counts as changed."""
        dead = sorted(
            (rev, term)
            for term, rev in self._stamps.items()
            if term not in self.contents.index and term != EVERYTHING
        )
        for rev, term in dead[: len(dead) // 2]:
            del self._stamps[term]
            self._stamps.floor = max(self._stamps.floor, rev)

    def changed_at(self, groups: Iterable[tuple[str, ...]]) -> int:
        """The rev, in this epoch, up to which no change can have altered an answer.

        `groups` are the terms a query asks for: any of each, all of them together. A change can alter
        the answer only if the instance matched before or after, and then it stamped a term of every
        group: so an answer computed at R holds while the least of the groups' latest stamps is <= R
        (the min rule).
        """
        stamps = self._stamps
        floor, changed = stamps.floor, stamps[EVERYTHING]
        for terms in groups:
            latest = max((stamps[term] for term in terms), default=floor)
            if latest < changed:
                changed = latest
        return max(changed, floor)
