"""Keeps a view in step with the store: the snapshot it starts from, and the changes after it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change
from registryd.metrics import Metrics
from registryd.registry.document import Admin, Row
from registryd.registry.store import RegistryStore
from registryd.registry.view import Contents, Instance, Move, View


class Listener(Protocol):
    """Hears of everything that reaches the view, in order and just after it did. Never awaits."""

    def changed(self, change: Change, moves: Sequence[Move]) -> None:
        """One change; `moves` is what it did to instances."""

    def reloaded(self) -> None:
        """The view was loaded anew: what happened in between is not known change by change."""


class ViewSync:
    """The feed's consumer for the registry. `listeners` are told of what it did."""

    def __init__(self, store: RegistryStore, view: View, metrics: Metrics, *, chunk: int) -> None:
        self._store = store
        self._view = view
        self._metrics = metrics
        self._chunk = chunk
        self._counts: dict[bytes, Callable[[], None]] = {}
        self.listeners: list[Listener] = []
        self._together: list[Change] = []
        """Changes of an import that was one call: the rest of them follows at once."""
        self._withheld: set[str] = set()
        """Instances that an import in parts has written or removed so far."""

    async def load(self) -> Revision:
        """A fuzzy snapshot: chunks are read while writes go on, and the stream is followed from the
        revision of the first. A row that a chunk gave twice counts in its newer version."""
        # A snapshot would show half of an import that is under way.
        while await self._store.continue_import():
            pass
        self._together.clear()
        self._withheld.clear()
        contents = Contents()
        start: Revision | None = None
        cursor = 0
        while True:
            page = await self._store.snapshot(cursor, self._chunk)
            if start is None:
                start = page.revision
            for identity, raw, document, admin, suspect in page.rows:
                row = Row.decode(raw)
                held = contents.by_id.get(identity)
                if held is None or held.revision < row.revision:
                    contents.put(
                        Instance(identity, row, document, Admin.decode(admin), suspect=suspect)
                    )
            cursor = page.cursor
            if cursor == 0:
                break
        if start == NOWHERE and self._store.deployment is not None:
            # Somebody has emptied the store: what comes next has to bear its name again.
            await self._store.set_up(self._store.deployment)
        self._view.replace(contents, start, page.revision)
        for listener in self.listeners:
            listener.reloaded()
        return start

    def apply(self, change: Change) -> bool:
        """Takes a change in, those of an import all at once; False when that takes a load."""
        fields = change.fields
        part, identity = fields.get(b"import"), fields[b"id"].decode()
        if part == b"whole":
            self._together.append(change)
            return True
        for one in self._together:
            self._apply(one)
        self._together.clear()
        if part == b"part":
            self._withheld.add(identity)
        elif self._withheld and fields[b"type"] == b"registry:imported":
            return False
        if part == b"part" or (identity in self._withheld and not fields.get(b"by")):
            # What nobody asked for, such as a probe's finding, would show an instance too early.
            self._view.pass_over(change.at)
        else:
            self._apply(change)
        return True

    def _apply(self, change: Change) -> None:
        moves = self._view.apply(change)
        kind = change.fields[b"type"]
        count = self._counts.get(kind)
        if count is None:
            count = self._counts[kind] = self._metrics.events.labels(kind.decode()).inc
        count()
        for listener in self.listeners:
            listener.changed(change, moves)
