"""Carries every change on, once whatever the number of nodes: into history, and into the queues of webhooks.

A node asks for the turn, reads what stands behind the cursor in the stream, decides what each change means
for whom, and hands all of it to one script, which moves the cursor with it. A node that dies in between has
done nothing; one that lost its turn meanwhile is refused.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, NamedTuple

import structlog

from registryd.errors import StorageUnavailable
from registryd.events.cloudevent import events_of
from registryd.events.history import records_of
from registryd.events.webhook_store import Dispatch, Record, Turn, WebhookStore
from registryd.events.webhook_types import Subscription
from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change
from registryd.kit.clock import Clock, rfc3339
from registryd.metrics import Metrics

log = structlog.get_logger(__name__)

TURN: Final = timedelta(seconds=3)
"""How long the changes wait when the node that carried them dies."""
IDLE: Final = timedelta(seconds=1)
QUIET: Final = timedelta(seconds=10)
READ: Final = 200
MAX_AT_ONCE: Final = 500
"""Deliveries and history entries of one script call, unless one change alone makes more."""
MAX_BYTES_AT_ONCE: Final = 1024 * 1024


class Load(NamedTuple):
    """What is carried in one call. `changes` of those that were read are in it."""

    records: list[Record]
    dispatches: list[Dispatch]
    changes: int


def load_of(changes: Sequence[Change], hooks: Sequence[Subscription], source: str) -> Load:
    """As many of the changes as fit one call, but at least one."""
    load = Load([], [], 0)
    size = weight = 0
    for done, change in enumerate(changes):
        if done and (size >= MAX_AT_ONCE or weight >= MAX_BYTES_AT_ONCE):
            return load._replace(changes=done)
        for record in records_of(change):
            load.records.append(record)
            size += 1
        for event in events_of(change, source) if hooks else ():
            to = tuple(hook.id for hook in hooks if hook.wants(event))
            if to:
                load.dispatches.append(Dispatch(event, to))
                size += len(to)
                weight += len(event.body)
    return load._replace(changes=len(changes))


def gap(cursor: Revision | None, first: Revision) -> bool:
    """Whether changes are missing between the last one carried and the first one found."""
    if cursor is None or cursor == NOWHERE:
        return False
    if first.epoch == cursor.epoch:
        return first.rev != cursor.rev + 1
    return first.rev != 1


class Fanout:
    """`source` names the deployment in events, `news` returns at the next change this node hears of, and
    `queued` is told when something waits to be delivered."""

    def __init__(
        self,
        store: WebhookStore,
        metrics: Metrics,
        clock: Clock,
        *,
        source: Callable[[], str],
        news: Callable[[], Awaitable[None]],
        queued: Callable[[], None],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._source = source
        self._advanced = news
        self._queued = queued
        self._hooks: list[Subscription] = []
        self._version = ""
        self._news = asyncio.Event()

    async def listen(self) -> None:
        """Passes news on, or ends when there were none for a while. For a supervised loop of its own:
        what comes while `turn` is busy must not wait for the next."""
        try:
            async with asyncio.timeout(QUIET.total_seconds()):
                await self._advanced()
        except TimeoutError:
            return
        self._news.set()

    async def turn(self) -> None:
        """Everything there is, then a wait for news. For a supervised loop."""
        self._news.clear()
        try:
            while await self._carry():
                pass
        except StorageUnavailable:
            pass  # the feed tells of it; what was not carried stays behind the cursor
        try:
            async with asyncio.timeout(IDLE.total_seconds()):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _carry(self) -> bool:
        """One call's worth; false when there is nothing more for this node to do."""
        turn = await self._store.turn(TURN)
        if not turn.mine:
            return False
        changes = await self._store.changes(turn.cursor or NOWHERE, READ)
        if not changes:
            return False
        if turn.version != self._version:
            self._hooks = await self._store.enabled()
            self._version = turn.version
        missed = self._missed(turn, changes[0].at)
        load = load_of(changes, self._hooks, self._source())
        carried = await self._store.carry(
            turn, changes[load.changes - 1].at, load.records, load.dispatches, missed
        )
        match carried.outcome:
            case "lost":
                return False
            case "changed":
                self._version = ""
                return True
            case "carried":
                pass
        if missed:
            self._metrics.webhook_gaps.inc()
            log.error(
                "changes left the stream before they were carried on; webhooks and history lack them",
                after=str(turn.cursor),
                before=str(changes[0].at),
                advice="raise registry.streamMaxLen",
            )
        if carried.overflow:
            self._metrics.webhook_deliveries.labels("overflow").inc(carried.overflow)
            log.warning(
                "webhook queues are full, the oldest events were given up", count=carried.overflow
            )
        if carried.queued:
            self._queued()
        return True

    def _missed(self, turn: Turn, first: Revision) -> str:
        if not gap(turn.cursor, first):
            return ""
        return json.dumps(
            {"at": rfc3339(self._clock.now()), "after": str(turn.cursor), "before": str(first)}
        )
