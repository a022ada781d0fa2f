"""Follows the change stream for one consumer: load, then every change once and in order.

Gaps are seen by revision (the next one has to be position + 1 in the same epoch) and other histories
by nonce: the last entry applied has to stand in the store's log as it was applied (the idea of Raft's
prevLog check). On either the consumer loads again. Knows nothing of what a change means.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import structlog

from registryd.errors import StorageUnavailable
from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change, ChangeStream
from registryd.kit.backoff import Backoff
from registryd.metrics import Metrics

log = structlog.get_logger(__name__)


class Consumer(Protocol):
    async def load(self) -> Revision:
        """Reads everything anew. Changes after the revision it returns will be applied next; some of
        them may already be in what was read."""

    def apply(self, change: Change) -> bool:
        """Takes one change in, or says that everything has to be read anew for it. Never awaits."""


class Follower:
    """Keeps one consumer at the head of the stream. `position` is the last revision it holds."""

    def __init__(self, stream: ChangeStream, consumer: Consumer, metrics: Metrics) -> None:
        self._stream = stream
        self._consumer = consumer
        self._metrics = metrics
        self._waiters: dict[asyncio.Future[None], Revision] = {}
        self._advanced = asyncio.Event()
        self._nonce: bytes | None = None
        """That of the change at `position`, if it was seen."""
        self._backoff = Backoff(base=0.02, cap=0.5)
        self._must_load = True
        self._must_match = False
        self._away = False
        self._answered_at = time.monotonic()
        self.position = NOWHERE
        self.loaded = False
        """Whether the consumer holds anything to answer from; a later load does not take that back."""
        self.connected = False
        self.trouble: Callable[[str, str], None] = lambda code, detail: None
        """Told, in a word and a sentence, when the store goes away or the stream has a gap."""

    @property
    def stale_for(self) -> float:
        """Seconds since the store last answered; 0 while it does."""
        return 0.0 if self.connected else time.monotonic() - self._answered_at

    async def turn(self) -> None:
        """One read of the stream, or a load. For a supervised loop."""
        try:
            if self._must_load:
                await self._load()
            elif self._must_match and not await self._same_history():
                self._metrics.feed_gaps.inc()
                log.warning(
                    "the store's history is another one, loading anew", position=str(self.position)
                )
                self.trouble("feed_gap", "the store's history is another one, loading anew")
                await self._load()
            self._must_match = False
            if not self.connected:
                self._mark_connected()
            changes = await self._stream.after(self.position)
            if not changes:
                self._must_match = await self._stream.head() != self.position
        except StorageUnavailable as error:
            if not self._away:
                log.warning(
                    "cannot follow the store", reason=error.detail, position=str(self.position)
                )
                self.trouble(error.code, error.detail)
            self.connected, self._away = False, True
            self._must_match = True
            self._metrics.store_up.set(0)
            await asyncio.sleep(self._backoff.next())
            return
        self._answered_at = time.monotonic()
        self._take(changes)

    def _mark_connected(self) -> None:
        log.info("following the store", position=str(self.position))
        self.connected, self._away = True, False
        self._answered_at = time.monotonic()
        self._metrics.store_up.set(1)
        self._backoff.reset()

    def _take(self, changes: list[Change]) -> None:
        # Whatever ends this early, also a change that the consumer cannot take, ends in a load.
        self._must_load = True
        for change in changes:
            if not self._follows(change.at):
                self._metrics.feed_gaps.inc()
                log.warning(
                    "gap in the change stream, loading anew",
                    position=str(self.position),
                    found=str(change.at),
                )
                self.trouble("feed_gap", "a gap in the change stream, loading anew")
                break
            if not self._consumer.apply(change):
                break
            self.position = change.at
            self._nonce = change.nonce
        else:
            self._must_load = False
        if changes:
            self._wake()

    def _follows(self, at: Revision) -> bool:
        if self.position == NOWHERE:
            return at.rev == 1
        return at == (self.position.epoch, self.position.rev + 1)

    async def _load(self) -> None:
        started = time.perf_counter()
        self._must_load = True  # until all of it is done
        self.position = await self._consumer.load()
        change = await self._stream.at(self.position)
        self._nonce = None if change is None else change.nonce
        self.loaded = True
        self._must_load = False
        self._metrics.snapshots.inc()
        self._metrics.snapshot_seconds.set(time.perf_counter() - started)
        self._wake()

    async def _same_history(self) -> bool:
        """Whether the entry we applied last is the one the store holds there."""
        if self._nonce is None:
            return await self._stream.head() == self.position
        change = await self._stream.at(self.position)
        return change is not None and change.nonce == self._nonce

    async def loaded_once(self) -> None:
        """Returns once the first load is done."""
        while not self.loaded:
            await self.advanced()

    async def reached(self, revision: Revision, *, within: timedelta | None = None) -> None:
        """Returns once `revision`, or a later one, is applied. Waits for ever, or raises TimeoutError."""
        if self.loaded and self.position >= revision:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        # asyncio.timeout would do, at several times the price: every write waits here.
        alarm = within and loop.call_later(within.total_seconds(), _give_up, future)
        self._waiters[future] = revision
        try:
            await future
        finally:
            self._waiters.pop(future, None)
            if alarm:
                alarm.cancel()

    async def catch_up(self) -> None:
        """Returns once everything is applied that the store holds now. Raises StorageUnavailable."""
        await self.reached(await self._stream.head())

    async def advanced(self) -> None:
        """Returns at the next batch of changes or load."""
        await self._advanced.wait()

    def _wake(self) -> None:
        self._advanced.set()
        self._advanced = asyncio.Event()
        for future, revision in self._waiters.items():
            if revision <= self.position and not future.done():
                future.set_result(None)


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
