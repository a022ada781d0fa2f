"""Lists as bytes: sorting, paging, field masks, and the cache of finished answers.

Pure but for the cache, which belongs to one view. Instances are copied as the JSON they are kept in;
only `fields` and sorting by a field look inside.
"""

import base64
import binascii
import itertools
import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pyroaring import BitMap

from registryd.errors import Malformed
from registryd.feed.revision import Revision
from registryd.registry.query import FIELDS, Filters
from registryd.registry.types import PREFERENCE
from registryd.registry.types import identity as identity_of
from registryd.registry.versions import sort_key
from registryd.registry.view import BY_ID, Contents, Instance, Point, View

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

Shape = Literal["services", "instances"]

MAX_LIMIT: Final = 10_000
DEFAULT_LIMIT: Final = 100

SORTS: Final = ("name", "registeredAt", "updatedAt", "health", "version")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list, in which order, with which fields. `fields` empty means all."""

    shape: Shape = "services"
    limit: int | None = DEFAULT_LIMIT
    after: tuple[str, str, str] | None = None
    """The sort value, service and instance id of the last one seen."""
    sort: str = "name"
    descending: bool = False
    fields: tuple[str, ...] = ()


@dataclass(slots=True)
class Listing:
    """A finished answer and until when it holds. `encoded` keeps its compressed forms."""

    body: bytes
    revision: Revision
    generation: int
    total: int
    next: str | None
    encoded: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.body) + sum(map(len, self.encoded.values())) + 512


def holds(listing: Listing, view: View, groups: Iterable[tuple[str, ...]]) -> bool:
    """Whether nothing has changed since that could change the answer."""
    return (
        listing.generation == view.generation
        and listing.revision.epoch == view.revision.epoch
        and view.changed_at(groups) <= listing.revision.rev
    )


def render(view: View, filters: Filters, page: Page) -> Listing:
    """The answer to a query, made from the view as it is."""
    if filters.expression is not None:
        return render_matched(view.at(), filters.select(view), page)
    contents = view.contents
    slots = filters.slots(contents)
    if page.shape == "instances" and page.sort == "name":
        return _by_name(view, slots, page)
    if slots is None:
        found = _Found(contents.names, contents.services.__getitem__, len(contents.by_id))
    elif _many(contents, slots):
        found = _walked_groups(contents, slots)
    else:
        found = _grouped(contents.at(slots))
    return _rendered(view.at(), found, page)


def _many(contents: Contents, slots: BitMap) -> bool:
    """Whether to walk all in order is cheaper than to sort those that matched: from a quarter of all on."""
    return len(slots) * 4 > len(contents.by_id)


def render_matched(at: Point, matched: Iterable[Instance], page: Page) -> Listing:
    """The same from instances that were matched earlier, when the view was `at` that point."""
    return _rendered(at, _grouped(matched), page)


@dataclass(frozen=True, slots=True)
class _Found:
    """What matched: the names of services in order, and how to get their instances, in order."""

    names: Sequence[str]
    instances: Callable[[str], list[Instance]]
    total: int


def _walked_groups(contents: Contents, slots: BitMap) -> _Found:
    groups: dict[str, list[Instance]] = {}
    for name in contents.names:
        members = contents.services[name]
        if not contents.index[f"service:{name}"].issubset(slots):
            members = [instance for instance in members if instance.slot in slots]
        if members:
            groups[name] = members
    return _Found(list(groups), groups.__getitem__, len(slots))


def _grouped(matched: Iterable[Instance]) -> _Found:
    ordered = sorted(matched, key=BY_ID)
    groups: dict[str, list[Instance]] = {}
    for instance in ordered:
        members = groups.get(instance.service)
        if members is None:
            groups[instance.service] = [instance]
        else:
            members.append(instance)
    return _Found(sorted(groups), groups.__getitem__, len(ordered))


def _rendered(at: Point, found: _Found, page: Page) -> Listing:
    last: Instance | None = None
    if page.shape == "services":
        total = len(found.names)
        names, more = _services(found, page)
        rows = [service_object(found.instances(name)) for name in names]
        if names:
            last = min(found.instances(names[-1]), key=betterness)
    else:
        total = found.total
        instances, more = _instances(found, page)
        rows = [instance.fragment for instance in instances]
        if instances:
            last = instances[-1]
    return _finished(at, rows, total, last if more else None, page)


def _by_name(view: View, slots: BitMap | None, page: Page) -> Listing:
    """A list of instances in the order of lists, read off their slots."""
    contents = view.contents
    order = contents.order
    total = len(contents.by_id) if slots is None else len(slots)
    sorts = slots is not None and not _many(contents, slots)
    ordered: Sequence[int] = order.sorted(slots or (), total) if sorts else order.sequence
    if page.after is not None:
        _, service, instance_id = page.after
        identity = identity_of(service, instance_id)
        place = order.place(ordered, service, identity)
        if page.descending:
            ordered = ordered[:place]
        elif place < len(ordered) and contents.slots[ordered[place]] is contents.by_id.get(
            identity
        ):
            ordered = ordered[place + 1 :]
        else:
            ordered = ordered[place:]
    found: Iterable[int] = reversed(ordered) if page.descending else ordered
    limit = total if page.limit is None else page.limit
    if slots is not None and not sorts:
        found = (slot for slot in found if slot in slots)
    chosen = list(itertools.islice(found, limit + 1))
    more = len(chosen) > limit
    del chosen[limit:]
    rows = list(map(contents.fragments.__getitem__, chosen))
    last = contents.slots[chosen[-1]] if more else None
    return _finished(view.at(), rows, total, last, page)


def _finished(
    at: Point, rows: list[bytes], total: int, last: Instance | None, page: Page
) -> Listing:
    """`last` is the last on the page where more follow."""
    if page.fields:
        rows = [_masked(row, page.fields) for row in rows]
    # Where nothing was ever written there is no revision to speak of; 0-0 stands for it.
    cursor = None if last is None else _cursor(last, page)
    head = b'{"%b":[' % page.shape.encode()
    tail = b'],"total":%d,"revision":"%b","next":%b}' % (
        total,
        str(at.revision).encode(),
        b"null" if cursor is None else b'"%b"' % cursor.encode(),
    )
    # Joined once: a list of ten thousand is copied no more often than it must be.
    if rows:
        rows[0] = head + rows[0]
        rows[-1] += tail
    body = b",".join(rows) if rows else head + tail
    return Listing(body, at.revision, at.generation, total, cursor)


def array(instances: Sequence[Instance]) -> bytes:
    """A bare JSON array of instances, in the order given."""
    return b"[%b]" % b",".join([instance.fragment for instance in instances])


def service_object(members: Sequence[Instance]) -> bytes:
    """A service: the fields of its best instance, its `url`, and its `instances` (not none)."""
    best = members[0] if len(members) == 1 else min(members, key=betterness)
    return b'%b,"url":"%b","instances":[%b]}' % (
        best.fragment[:-1],
        best.endpoint.encode(),
        b",".join([instance.fragment for instance in members]),
    )


def betterness(instance: Instance) -> tuple[tuple[bool, int, bool], str]:
    """Less is better; the same order everywhere."""
    return instance.rank, instance.id


def _services(found: _Found, page: Page) -> tuple[Sequence[str], bool]:
    """The names on the page, and whether more follow."""
    if page.sort == "name":
        return _cut(found.names, page, None if page.after is None else page.after[1])
    value, key = _VALUES[page.sort], _KEYS[page.sort]
    keyed = sorted(
        (key(value(min(found.instances(name), key=betterness))), name) for name in found.names
    )
    after = None if page.after is None else (key(page.after[0]), page.after[1])
    chosen, more = _cut(keyed, page, after)
    return [name for _, name in chosen], more


def _instances(found: _Found, page: Page) -> tuple[list[Instance], bool]:
    """The instances on the page, and whether more follow."""
    if page.sort == "name":
        limit = found.total if page.limit is None else page.limit
        if limit >= found.total and page.after is None and not page.descending:
            everything = itertools.chain.from_iterable(map(found.instances, found.names))
            return list(everything), False
        instances = list(itertools.islice(_in_order(found, page), limit + 1))
        return instances[:limit], len(instances) > limit
    value, key = _VALUES[page.sort], _KEYS[page.sort]
    by_id = {one.id: one for name in found.names for one in found.instances(name)}
    keyed = sorted((key(value(one)), one.service, one.id) for one in by_id.values())
    after = None
    if page.after is not None:
        shown, service, instance_id = page.after
        after = (key(shown), service, identity_of(service, instance_id))
    chosen, more = _cut(keyed, page, after)
    return [by_id[identity] for _, _, identity in chosen], more


def _in_order(found: _Found, page: Page) -> Iterator[Instance]:
    """The instances by service and id, from where the page begins."""
    names: Sequence[str] = found.names
    last = ""
    if page.after is not None:
        _, service, instance_id = page.after
        last = identity_of(service, instance_id)
        # With the service that the last page ended in: it may go on.
        if page.descending:
            names = names[: bisect_right(names, service)]
        else:
            names = names[bisect_left(names, service) :]
    for name in reversed(names) if page.descending else names:
        members = found.instances(name)
        if page.after is not None and name == page.after[1]:
            if page.descending:
                members = members[: bisect_left(members, last, key=BY_ID)]
            else:
                members = members[bisect_right(members, last, key=BY_ID) :]
        yield from reversed(members) if page.descending else members


Key = TypeVar("Key", bound="SupportsRichComparison")


def _cut(rows: Sequence[Key], page: Page, after: Key | None) -> tuple[list[Key], bool]:
    """The part of ascending `rows` that the page shows, in its direction, and whether more follow."""
    limit = len(rows) if page.limit is None else page.limit
    if page.descending:
        end = len(rows) if after is None else bisect_left(rows, after)
        start = max(0, end - limit)
        return list(reversed(rows[start:end])), start > 0
    start = 0 if after is None else bisect_right(rows, after)
    return list(rows[start : start + limit]), start + limit < len(rows)


_VALUES: Final[Mapping[str, Callable[[Instance], str]]] = {
    "registeredAt": lambda instance: instance.registered_at,
    "updatedAt": lambda instance: instance.updated_at,
    "health": lambda instance: instance.health.value,
    "version": lambda instance: instance.version,
}
"""What instances are sorted by, as the text that a cursor holds."""


def _text(value: str) -> str:
    return value


def _health_order(value: str) -> int:
    return next((rank for status, rank in PREFERENCE.items() if status == value), len(PREFERENCE))


_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "registeredAt": _text,
    "updatedAt": _text,
    "health": _health_order,
    "version": lru_cache(maxsize=4096)(sort_key),
}


def _masked(fragment: bytes, fields: Iterable[str]) -> bytes:
    whole = json.loads(fragment)
    shown = {name: whole[name] for name in fields if name in whole}
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def _cursor(last: Instance, page: Page) -> str:
    """`last` is the last instance on the page, or the best of its last service."""
    shown = "" if page.sort == "name" else _VALUES[page.sort](last)
    order = ("-" if page.descending else "") + page.sort
    instance_id = "" if page.shape == "services" else last.instance_id
    text = json.dumps([page.shape, order, shown, last.service, instance_id])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def parse_page(parameters: Mapping[str, str]) -> Page:
    """Reads `view`, `limit`, `cursor`, `sort` and `fields`. Raises Malformed, naming the parameter."""
    shape = parameters.get("view") or "services"
    if shape not in {"services", "instances"}:
        raise Malformed(f"view: expected services or instances, found {shape[:40]!r}")
    sort = parameters.get("sort") or "name"
    descending = sort.startswith("-")
    if sort.removeprefix("-") not in SORTS:
        raise Malformed(
            f"sort: expected one of {', '.join(SORTS)}, with - in front to turn it round"
        )
    after = None
    if text := parameters.get("cursor"):
        after = _parse_cursor(text, shape, sort)
    return Page(
        shape="services" if shape == "services" else "instances",
        limit=_parse_limit(parameters.get("limit")),
        after=after,
        sort=sort.removeprefix("-"),
        descending=descending,
        fields=_parse_fields(parameters.get("fields"), shape),
    )


def _parse_limit(text: str | None) -> int:
    if not text:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= MAX_LIMIT):
        raise Malformed(f"limit: expected a number from 1 to {MAX_LIMIT}, found {text[:40]!r}")
    return int(text)


def _parse_cursor(text: str, shape: str, sort: str) -> tuple[str, str, str]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        parts = json.loads(raw)
    except (binascii.Error, ValueError, RecursionError):
        parts = None
    if (
        not isinstance(parts, list)
        or len(parts) != 5
        or not all(isinstance(part, str) for part in parts)
    ):
        raise Malformed("cursor: not one that this registry gave; start again without it")
    if parts[:2] != [shape, sort]:
        raise Malformed(
            "cursor: it belongs to a list with another view or sort; start again without it"
        )
    return parts[2], parts[3], parts[4]


def _parse_fields(text: str | None, shape: str) -> tuple[str, ...]:
    if not text:
        return ()
    known = FIELDS | ({"url", "instances"} if shape == "services" else frozenset())
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise Malformed(f"fields: {name[:60]!r} is none of {', '.join(sorted(known))}")
    return names


class ListingCache:
    """Finished answers by query text, the least recently asked going first at `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._size = 0
        self._kept: OrderedDict[str, Listing] = OrderedDict()

    def get(self, key: str) -> Listing | None:
        listing = self._kept.get(key)
        if listing is not None:
            self._kept.move_to_end(key)
        return listing

    def put(self, key: str, listing: Listing) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self._size -= _weight(key, before)
        if _weight(key, listing) > self._limit // 4:
            return
        self._kept[key] = listing
        self._size += _weight(key, listing)
        self._shrink()

    def _shrink(self) -> None:
        while self._size > self._limit:
            key, oldest = self._kept.popitem(last=False)
            self._size -= _weight(key, oldest)

    def keep_encoded(self, key: str, listing: Listing, encoding: str, body: bytes) -> None:
        """Adds a compressed form to an answer, and counts it if the answer is still kept."""
        before = listing.size
        listing.encoded[encoding] = body
        if self._kept.get(key) is listing:
            self._size += listing.size - before
            self._shrink()

    @property
    def size(self) -> int:
        """Bytes held, never more than the limit."""
        return self._size

    def __len__(self) -> int:
        return len(self._kept)


def _weight(key: str, listing: Listing) -> int:
    """A query may be longer than its answer."""
    return len(key) + listing.size
