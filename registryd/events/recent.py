"""What happened last and what it did to instances, kept in memory for those who resume."""

from collections.abc import Iterator, Sequence

from registryd.feed.broadcast import Ring
from registryd.feed.revision import Revision
from registryd.feed.stream import Change
from registryd.registry.view import Move, View

Happened = tuple[Change, Sequence[Move]]

_OVERHEAD = 1024
"""Bytes that a change takes beyond its contents: a guess on the safe side."""


class Recent:
    """The last changes of a view, without a gap. A listener, to be told before those who resume from it."""

    def __init__(self, view: View, ring: Ring[Happened]) -> None:
        self._view = view
        self._ring = ring

    def changed(self, change: Change, moves: Sequence[Move]) -> None:
        before = sum(len(move.before.fragment) for move in moves if move.before is not None)
        size = _OVERHEAD + before + sum(map(len, change.fields.values()))
        self._ring.append(change.at, size, (change, moves))

    def reloaded(self) -> None:
        self._ring.restart(self._view.settled)

    def covers(self, position: Revision) -> bool:
        """Whether `position` is past and every change after it is here."""
        return position <= self._view.revision and self._ring.covers(position)

    def holds(self, position: Revision) -> bool:
        """Whether the change at `position` is here too."""
        return self._ring.holds(position)

    def after(self, position: Revision) -> Iterator[Happened]:
        """The changes after a covered position, in order."""
        for _, happened in self._ring.after(position):
            yield happened
