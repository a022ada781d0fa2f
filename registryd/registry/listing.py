"""Lists as bytes: sorting, paging, field masks, and the cache of finished answers.

Pure but for the cache, which belongs to one view. Instances are copied as the JSON they are kept in;
only `fields` and sorting by a field look inside.
"""

import base64
import binascii
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from registryd.errors import Malformed
from registryd.feed.revision import Revision
from registryd.registry.query import FIELDS, Filters
from registryd.registry.types import PREFERENCE
from registryd.registry.versions import sort_key
from registryd.registry.view import Instance, View

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
    found = filters.select(view)
    items: Sequence[_Item]
    if page.shape == "services":
        items = _by_service(found)
    else:
        items = [_Item(i.service, i.instance_id, i, ()) for i in found]
    total = len(items)
    chosen, more = _cut(items, page)
    wrote = [_instance(item, page) if not item.members else _service(item, page) for item in chosen]
    cursor = _cursor(chosen[-1], page) if more else None
    # Where nothing was ever written there is no revision to speak of; 0-0 stands for it.
    body = b'{"%b":[%b],"total":%d,"revision":"%b","next":%b}' % (
        page.shape.encode(),
        b",".join(wrote),
        total,
        str(view.revision).encode(),
        json.dumps(cursor).encode(),
    )
    return Listing(body, view.revision, view.generation, total, cursor)


def array(instances: Sequence[Instance]) -> bytes:
    """A bare JSON array of instances, in the order given."""
    return b"[%b]" % b",".join([instance.fragment for instance in instances])


def service_object(members: Sequence[Instance]) -> bytes:
    """A service: the fields of its best instance, its `url`, and its `instances` (not none)."""
    best = min(members, key=_betterness)
    head = best.fragment[:-1]
    endpoint = json.loads(best.document)["endpoint"]
    return b'%b,"url":%b,"instances":[%b]}' % (
        head,
        json.dumps(endpoint).encode(),
        b",".join([instance.fragment for instance in members]),
    )


def _betterness(instance: Instance) -> tuple[tuple[bool, int, bool], str]:
    return instance.rank, instance.instance_id


@dataclass(frozen=True, slots=True)
class _Item:
    """A row of a list: an instance, or a service by its best instance with its `members`."""

    service: str
    instance_id: str
    best: Instance
    members: Sequence[Instance]


def _by_service(found: list[Instance]) -> list[_Item]:
    found.sort(key=lambda instance: (instance.service, instance.instance_id))
    items = []
    for service, group in itertools.groupby(found, key=lambda instance: instance.service):
        members = list(group)
        items.append(_Item(service, "", min(members, key=_betterness), members))
    return items


def _cut(items: Sequence[_Item], page: Page) -> tuple[Sequence[_Item], bool]:
    """The items of the page in order, and whether more follow."""
    key = _KEYS[page.sort]

    def order(item: _Item) -> Any:
        return key(_value(item, page.sort)), item.service, item.instance_id

    if page.sort == "name" and page.shape == "services" and not page.descending:
        ordered = list(items)
    else:
        ordered = sorted(items, key=order, reverse=page.descending)
    if page.after is not None:
        value, service, instance_id = page.after
        last = (key(value), service, instance_id)
        if page.descending:
            ordered = [item for item in ordered if order(item) < last]
        else:
            ordered = [item for item in ordered if order(item) > last]
    if page.limit is None or len(ordered) <= page.limit:
        return ordered, False
    return ordered[: page.limit], True


def _value(item: _Item, sort: str) -> str:
    """What an item is sorted by, as text."""
    if sort == "name":
        return ""  # service and instance id follow in the key anyway
    if sort == "health":
        return item.best.health.value
    return str(json.loads(item.best.fragment).get(sort, ""))


def _text(value: str) -> str:
    return value


def _health_order(value: str) -> int:
    return next((rank for status, rank in PREFERENCE.items() if status == value), len(PREFERENCE))


_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {
    "name": _text,
    "registeredAt": _text,
    "updatedAt": _text,
    "health": _health_order,
    "version": sort_key,
}


def _service(item: _Item, page: Page) -> bytes:
    return _masked(service_object(item.members), page)


def _instance(item: _Item, page: Page) -> bytes:
    return _masked(item.best.fragment, page)


def _masked(fragment: bytes, page: Page) -> bytes:
    if not page.fields:
        return fragment
    whole = json.loads(fragment)
    shown = {name: whole[name] for name in page.fields if name in whole}
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def _cursor(item: _Item, page: Page) -> str:
    order = ("-" if page.descending else "") + page.sort
    text = json.dumps([page.shape, order, _value(item, page.sort), item.service, item.instance_id])
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
