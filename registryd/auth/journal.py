"""The record of access: what was denied, and what admins did, for the log and for the store.

`add` only queues, so that a request never waits for it; one loop groups what is alike, says it in the
log, and writes it to the store. A flood of denials costs a few lines a turn and no more memory than the
queue has: what does not fit is counted.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from registryd.auth.store import AuthStore, Entry
from registryd.errors import StorageUnavailable
from registryd.kit.clock import Clock
from registryd.metrics import Metrics
from registryd.web.access import REFUSALS, Attempt

log = structlog.get_logger(__name__)

WRITE_EVERY: Final = timedelta(milliseconds=500)
MOST_WAITING: Final = 2_000
MOST_LINES: Final = 10
"""Lines of the log a turn."""
MOST_WRITTEN: Final = 200
"""Entries written a turn; others wait for the next."""


class Journal:
    def __init__(self, store: AuthStore, metrics: Metrics, clock: Clock) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._new: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        """Said in the log, and not yet in the store."""

    def add(self, attempt: Attempt) -> None:
        if len(self._new) >= MOST_WAITING:
            self._metrics.access_entries_lost.inc()
            return
        self._new.append(
            Entry(
                self._clock.now(),
                attempt.signature,
                attempt.request_id,
                attempt.method,
                attempt.path,
                attempt.outcome,
                attempt.detail,
            )
        )

    async def turn(self) -> None:
        """Says and writes what has come since the last turn. While the store is away it waits here."""
        entries = grouped(self._new)
        self._new.clear()
        _say([entry for entry in entries if entry.outcome in REFUSALS])
        self._waiting.extend(entries)
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._metrics.access_entries_lost.inc()
        batch = list(itertools.islice(self._waiting, MOST_WRITTEN))
        if not batch:
            return
        try:
            await self._store.record(batch)
        except StorageUnavailable:
            return
        for _ in batch:
            self._waiting.popleft()


def grouped(entries: Iterable[Entry]) -> list[Entry]:
    """Denials that differ only in time and request id as one, with their number, at the time of the first.
    What admins asked for stays as it is."""
    firsts: dict[tuple[str, ...], Entry] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for entry in entries:
        told_apart = "" if entry.outcome in REFUSALS else entry.request_id
        key = (entry.by, entry.method, entry.path, entry.outcome, entry.detail, told_apart)
        firsts.setdefault(key, entry)
        counts[key] += 1
    return [replace(entry, count=counts[key]) for key, entry in firsts.items()]


def _say(denials: list[Entry]) -> None:
    for entry in denials[:MOST_LINES]:
        log.warning(
            "access denied",
            by=entry.by,
            request_id=entry.request_id,
            method=entry.method,
            route=entry.path,
            code=entry.outcome,
            detail=entry.detail,
            count=entry.count,
        )
    if left := denials[MOST_LINES:]:
        log.warning("more access denied", count=sum(entry.count for entry in left))
