"""Who changed what, and why: one entry a change, written when the change is carried on.

Entries are made of what a change's stream entry says, also of who asked for it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from registryd.events.cloudevent import HEALTH_CHANGED
from registryd.events.webhook_store import Record, WebhookStore
from registryd.events.webhook_types import matches
from registryd.feed.revision import Revision, parse_revision
from registryd.feed.stream import Change
from registryd.kit.clock import from_ms, rfc3339
from registryd.registry.document import Admin, Row, effective_health
from registryd.registry.types import split_identity

ITSELF: Final = "registry"
"""Who changed what nobody asked for: an expiry, a probe's finding, the end of a maintenance."""
CHUNK: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a reader asks for; empty means any. `since` is a moment or a revision, exclusive. With
    `prefixes` only what is about services whose names begin with one of them."""

    service: str = ""
    instance_id: str = ""
    types: tuple[str, ...] = ()
    since: str = ""
    after: Revision | None = None
    prefixes: tuple[str, ...] = ()

    def holds(self, entry: Mapping[str, Any]) -> bool:
        return (
            (not self.instance_id or entry["instanceId"] == self.instance_id)
            and (not self.types or any(matches(glob, entry["type"]) for glob in self.types))
            and self._covers(entry["service"])
            and not self.too_old(entry)
        )

    def _covers(self, service: str | None) -> bool:
        return not self.prefixes or (service is not None and service.startswith(self.prefixes))

    def too_old(self, entry: Mapping[str, Any]) -> bool:
        if self.after is not None:
            return bool(entry["revision"]) and parse_revision(entry["revision"]) <= self.after
        return bool(entry["time"] < self.since)


def records_of(change: Change) -> Iterator[Record]:
    """The entries of one change: its own, or one for each of the many instances it is about, and one for
    each capability that came or went with it."""
    fields = change.fields
    kind = fields[b"type"].decode()
    identity = fields[b"id"].decode()
    at = str(change.at)
    service, instance_id = split_identity(identity) if identity else ("", None)
    entry: dict[str, Any] = {
        "id": at,
        "revision": at,
        "type": kind,
        "time": rfc3339(from_ms(int(fields[b"ts"]))),
        "service": service or None,
        "instanceId": instance_id,
        "reason": fields[b"reason"].decode() or None,
        "old": None,
        "new": None,
        "by": fields.get(b"by", b"").decode() or ITSELF,
    }
    if kind == HEALTH_CHANGED and fields[b"row"]:
        entry["old"] = fields[b"old"].decode()
        row, admin = Row.decode(fields[b"row"]), Admin.decode(fields[b"admin"])
        entry["new"] = effective_health(row, admin).value
    many = json.loads(fields[b"ids"]) if fields[b"ids"] else []
    for one in many:
        owner, member = split_identity(one)
        yield _record(owner, entry | {"service": owner, "instanceId": member})
    if not many:
        yield _record(service, entry)
    for number, (what, *claim) in enumerate(json.loads(fields.get(b"caps") or b"[]"), 1):
        capability = dict(zip(("name", "version", "oldVersion"), claim, strict=False))
        entry |= {
            "id": f"{at}.{number}",
            "type": f"capability:{what}",
            "old": None,
            "new": capability,
        }
        yield _record(service, entry)


def deed(kind: str, subject: str, *, by: str, now: datetime, reason: str | None = None) -> bytes:
    """The entry of something that is no change of the registry, such as a new webhook."""
    return _record(
        "",
        {
            "id": subject,
            "revision": None,
            "type": kind,
            "time": rfc3339(now),
            "service": None,
            "instanceId": None,
            "reason": reason,
            "old": None,
            "new": None,
            "by": by or ITSELF,
        },
    ).entry


def _record(service: str, entry: Mapping[str, Any]) -> Record:
    return Record(service, _encode(entry).encode())


_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


async def read(
    store: WebhookStore, wanted: Wanted, *, before: str = "+", limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """The newest entries that are wanted, and the position to go on from, None at the end."""
    found: list[dict[str, Any]] = []
    while True:
        page = await store.history(wanted.service, before, CHUNK)
        for position, entry in page:
            before = position
            if wanted.holds(entry):
                found.append(entry)
                if len(found) == limit:
                    return found, before
        # Entries stand in the order of their times, but for the few that came together.
        if len(page) < CHUNK or all(wanted.too_old(entry) for _, entry in page):
            return found, None
