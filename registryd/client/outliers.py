"""What the caller's own calls say of instances: how long they take, and which to leave alone a while.

`EJECT_AFTER` failures in a row eject an instance, each time for longer; never more than half of them,
for then the fault is rather here. No I/O.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

EJECT_AFTER: Final = 3
"""Failures in a row."""
EJECT_FOR: Final = 5.0
EJECT_AT_MOST: Final = 120.0
"""Seconds; the first time, and the most after doubling each time."""
SMOOTHING: Final = 0.3
"""The part of the newest measurement in the average."""


@dataclass(slots=True)
class _Record:
    running: int = 0
    seconds: float | None = None
    failures: int = 0
    ejections: int = 0
    until: float = 0.0


class Outliers:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    def begin(self, instance_id: str) -> None:
        self._record(instance_id).running += 1

    def end(self, instance_id: str, *, seconds: float, good: bool | None) -> None:
        """A call has ended. `good` None: it says nothing, as when the caller gave up himself."""
        record = self._record(instance_id)
        record.running = max(0, record.running - 1)
        if good is None:
            return
        if good:
            record.failures = record.ejections = 0
            before = seconds if record.seconds is None else record.seconds
            record.seconds = before + SMOOTHING * (seconds - before)
            return
        record.failures += 1
        if record.failures >= EJECT_AFTER:
            span = min(EJECT_AT_MOST, EJECT_FOR * 2**record.ejections)
            record.until = self._clock() + span
            record.ejections += 1
            record.failures = EJECT_AFTER - 1  # back from exile, one failure is enough

    def ejected(self, among: Collection[str]) -> set[str]:
        """Which of these to leave alone now: at most half of them, the latest offenders."""
        now = self._clock()
        out = [one for one in among if one in self._records and self._records[one].until > now]
        out.sort(key=lambda one: self._records[one].until, reverse=True)
        return set(out[: len(among) // 2])

    def load(self, instance_id: str) -> float:
        record = self._records.get(instance_id)
        if record is None or record.seconds is None:
            return 0.0
        return record.seconds * (record.running + 1)

    def forget(self, among: Collection[str]) -> None:
        """Drops what is known of all but these."""
        for one in self._records.keys() - set(among):
            del self._records[one]

    def _record(self, instance_id: str) -> _Record:
        return self._records.setdefault(instance_id, _Record())
