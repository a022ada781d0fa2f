"""The registry's history without a store: changes with the fields that `emit` in lua/lib.lua writes."""

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from registryd.errors import StorageUnavailable
from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change, ChangeStream
from registryd.registry.bodies import parse_registration
from registryd.registry.document import Admin, Offer, Row, compose, encode, terms_of
from registryd.registry.types import identity
from registryd.registry.view import Contents, Instance, View

EPOCH: Final = 1_700_000_000_000


@dataclass(frozen=True)
class Held:
    """An instance as the store keeps it."""

    row: bytes
    doc: bytes
    admin: bytes
    suspect: bool

    @property
    def document(self) -> Any:
        """What the API shows of it."""
        row, admin = Row.decode(self.row), Admin.decode(self.admin)
        return json.loads(compose(self.doc, row, admin, suspect=self.suspect))


class History:
    """What a store would hold, and the changes that led there."""

    def __init__(self, epoch: int = EPOCH, *, writer: str = "w") -> None:
        self.epoch = epoch
        self.writer = writer
        self.held: dict[str, Held] = {}
        self.changes: list[Change] = []

    @property
    def at(self) -> Revision:
        return self.changes[-1].at if self.changes else NOWHERE

    @property
    def documents(self) -> dict[str, Any]:
        return {name: held.document for name, held in self.held.items()}

    def register(
        self,
        service: str,
        instance_id: str = "i1",
        *,
        health: str = "",
        ttl: int = 300,
        **fields: Any,
    ) -> Change:
        body = {"endpoint": "http://10.0.0.1:80", **fields}
        registration = parse_registration(body, service=service, instance_id=instance_id)
        name = identity(service, instance_id)
        before = self.held.get(name)
        old = json.loads(before.row) if before else {}
        row = {
            "ttl": ttl * 1000,
            "inc": f"{self.writer}{len(self.changes)}",
            "op": "op",
            "health": health or old.get("health", "unknown"),
            "since": old.get("since", self._now()),
            "extra": old.get("extra", ""),
            "probed": 0,
            "registered": old.get("registered", self._now()),
            "updated": self._now(),
            "endpoint": registration.endpoint,
            "terms": json.dumps(terms_of(registration)),
            "check": "",
        }
        if "discovered" in old:
            row["discovered"] = old["discovered"]
        kind = "service:updated" if before else "service:registered"
        admin = before.admin if before else b""
        return self._put(kind, name, row, encode(registration), admin, suspect=False)

    def health(self, name: str, status: str, extra: str = "") -> Change:
        held = self.held[name]
        row = json.loads(held.row) | {"health": status, "since": self._now(), "extra": extra}
        return self._put(
            "service:health:changed", name, row, held.doc, held.admin, suspect=held.suspect
        )

    def discover(self, name: str, offer: Offer) -> Change:
        held = self.held[name]
        row = json.loads(held.row) | {"discovered": offer.encode()}
        if not row["discovered"]:
            del row["discovered"]
        return self._put("service:updated", name, row, held.doc, held.admin, suspect=held.suspect)

    def administer(self, name: str, state: str) -> Change:
        """Puts an instance into `maintenance` or `draining`, or with "" back to work."""
        held = self.held[name]
        admin = json.dumps({"state": state, "by": "op"}).encode() if state else b""
        suspect = held.suspect and state != "draining"
        return self._put(
            "service:updated", name, json.loads(held.row), held.doc, admin, suspect=suspect
        )

    def preserve(self, *names: str) -> Change:
        change = self._emit("registry:preserving", ids=json.dumps(names))
        for name in names:
            row = json.loads(self.held[name].row) | {"rev": change.at.rev}
            self.held[name] = replace(self.held[name], row=json.dumps(row).encode(), suspect=True)
        return change

    def remove(self, name: str, kind: str = "service:unregistered") -> Change:
        del self.held[name]
        return self._emit(kind, name)

    def _put(
        self,
        kind: str,
        name: str,
        row: dict[str, Any],
        doc: bytes,
        admin: bytes,
        *,
        suspect: bool,
    ) -> Change:
        row |= {"epoch": str(self.epoch), "rev": len(self.changes) + 1}
        self.held[name] = held = Held(json.dumps(row).encode(), doc, admin, suspect)
        return self._emit(kind, name, held)

    def _emit(self, kind: str, name: str = "", held: Held | None = None, ids: str = "") -> Change:
        rev = len(self.changes) + 1
        change = Change(
            Revision(self.epoch, rev),
            {
                b"type": kind.encode(),
                b"id": name.encode(),
                b"row": held.row if held else b"",
                b"doc": held.doc if held else b"",
                b"admin": held.admin if held else b"",
                b"suspect": b"1" if held and held.suspect else b"",
                b"reason": b"",
                b"old": b"",
                b"ids": ids.encode(),
                b"caps": b"",
                b"ts": b"1700000000000",
                b"w": f"{self.writer}-{rev}".encode(),
            },
        )
        self.changes.append(change)
        return change

    def _now(self) -> str:
        return f"2026-01-01T00:00:{len(self.changes) // 1000:02d}.{len(self.changes) % 1000:03d}Z"


def instance_of(name: str, held: Held) -> Instance:
    row, admin = Row.decode(held.row), Admin.decode(held.admin)
    return Instance(name, row, held.doc, admin, suspect=held.suspect)


def contents_of(held: dict[str, Held]) -> Contents:
    contents = Contents()
    for name, one in held.items():
        contents.put(instance_of(name, one))
    return contents


def view_of(history: History) -> View:
    view = View()
    for change in history.changes:
        view.apply(change)
    return view


class FakeStream(ChangeStream):
    """A stream in memory. `log` may be cut at the front, as a capped one is, or be another history's."""

    def __init__(self, history: History) -> None:
        self.log = history.changes
        self.away = False

    def _answer(self) -> list[Change]:
        if self.away:
            raise StorageUnavailable("the store is away")
        return self.log

    async def after(self, position: Revision, *, limit: int = 1000) -> list[Change]:
        return [change for change in self._answer() if change.at > position][:limit]

    async def at(self, position: Revision) -> Change | None:
        return next((change for change in self._answer() if change.at == position), None)

    async def head(self) -> Revision:
        log = self._answer()
        return log[-1].at if log else NOWHERE
