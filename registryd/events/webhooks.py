"""Delivers what waits for webhooks: claims, sends, reports; and says when to try again.

Everything that is waited for stands in the store. An attempt is counted when it is claimed, so that one
which takes its node down with it does not start from the beginning for ever.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, NamedTuple

import structlog

from registryd.errors import StorageUnavailable
from registryd.events.webhook_store import Delivery, WebhookStore
from registryd.events.webhook_types import Subscription
from registryd.kit.clock import Clock, rfc3339
from registryd.metrics import Metrics
from registryd.notify.types import Notice, Notifier, Receipt, Target

log = structlog.get_logger(__name__)

CONCURRENCY: Final = 64
EACH: Final = 4
"""Attempts under way for one subscription: a slow receiver takes no more of a node than that."""
IDLE: Final = timedelta(seconds=1)
COUNT_EVERY: Final = timedelta(seconds=5)
AWAY: Final = timedelta(milliseconds=200)


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient deliveries are: the pause after the n-th failure is drawn from 0 to
    min(cap, base * 5^(n-1))."""

    timeout: timedelta = timedelta(seconds=10)
    attempts: int = 8
    base: timedelta = timedelta(seconds=5)
    cap: timedelta = timedelta(hours=1)

    @property
    def lease(self) -> timedelta:
        """How long a claim holds: longer than an attempt with its report can take."""
        return self.timeout * 1.5 + timedelta(seconds=2)


class Verdict(NamedTuple):
    outcome: Literal["delivered", "retry", "dead", "gone"]
    pause: timedelta = timedelta(0)


def judge(receipt: Receipt, attempt: int, policy: Policy, dice: random.Random) -> Verdict:
    """What becomes of a delivery after its `attempt`-th attempt, counted from 1."""
    match receipt.outcome:
        case "delivered":
            return Verdict("delivered")
        case "gone":
            return Verdict("gone")
        case "failed":
            if attempt >= policy.attempts:
                return Verdict("dead")
            ceiling = min(policy.cap, policy.base * 5 ** min(attempt - 1, 20))
            pause = ceiling * dice.random()
            if receipt.retry_after_seconds is not None:
                # At least what the receiver asks for, with the same spread after it, so that all
                # that was refused does not come back at once.
                asked = timedelta(
                    seconds=min(receipt.retry_after_seconds, policy.cap.total_seconds())
                )
                pause = min(policy.cap, asked + pause)
            return Verdict("retry", pause)


def message_id(event_id: str, subscription: str) -> str:
    """The same at every attempt and replay. Without dots: they separate what is signed."""
    return f"{event_id.replace('.', '_')}_{subscription}"


class Courier:
    """Delivers on this node. `policy` is asked for at each turn."""

    def __init__(
        self,
        store: WebhookStore,
        notifier: Notifier,
        metrics: Metrics,
        clock: Clock,
        dice: random.Random,
        *,
        policy: Callable[[], Policy],
    ) -> None:
        self._store = store
        self._notifier = notifier
        self._metrics = metrics
        self._clock = clock
        self._dice = dice
        self._policy = policy
        self._news = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._counted_at = -COUNT_EVERY.total_seconds()

    def hear(self) -> None:
        """There may be something to deliver, or room to do it."""
        self._news.set()

    async def turn(self) -> None:
        """Starts what is due and there is room for, then waits. For a supervised loop."""
        self._news.clear()
        wait = IDLE
        try:
            await self._count()
            if len(self._tasks) < CONCURRENCY:
                wait = await self._start()
        except StorageUnavailable:
            pass  # the feed tells of it; what is due stays due
        try:
            async with asyncio.timeout(wait.total_seconds()):
                await self._news.wait()
        except TimeoutError:
            pass

    async def stop(self, grace: timedelta) -> None:
        """Lets the attempts under way end for a while; what is cut off another node repeats."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace.total_seconds())
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def send(self, to: Subscription, event_id: str, kind: str, body: bytes) -> Receipt:
        """One attempt, by itself."""
        target = Target(
            url=to.url,
            secrets=to.secrets_at(self._clock.now()),
            timeout=self._policy().timeout,
        )
        notice = Notice(id=message_id(event_id, to.id), type=kind, body=body)
        return await self._notifier.notify(target, notice)

    async def _start(self) -> timedelta:
        """Claims and begins; answers with how long there is nothing to do."""
        under_way = Counter(self._tasks.values())
        claimed = await self._store.claim(
            CONCURRENCY - len(self._tasks),
            EACH,
            self._policy().lease,
            {name: max(0, EACH - count) for name, count in under_way.items()},
        )
        for delivery in claimed.deliveries:
            task = asyncio.create_task(self._deliver(delivery), name=f"webhook {delivery.to.id}")
            self._tasks[task] = delivery.to.id
            task.add_done_callback(self._done)
        if claimed.next_due is None or (not claimed.next_due and not claimed.deliveries):
            return IDLE  # nothing, or only for those who have enough under way: they tell when they are done
        return min(IDLE, claimed.next_due)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        self._news.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a delivery failed inside", task=task.get_name(), exc_info=error)

    async def _deliver(self, delivery: Delivery) -> None:
        policy = self._policy()
        at = self._clock.now()
        deadline = self._clock.monotonic() + policy.lease.total_seconds()
        receipt = await self.send(delivery.to, delivery.event_id, delivery.type, delivery.body)
        verdict = judge(receipt, delivery.attempt, policy, self._dice)
        self._metrics.webhook_deliveries.labels(verdict.outcome).inc()
        self._metrics.webhook_seconds.observe(receipt.duration_ms / 1000)
        attempt = {
            "deliveryId": delivery.id,
            "eventId": delivery.event_id,
            "type": delivery.type,
            "subject": delivery.subject,
            "attempt": delivery.attempt,
            "at": rfc3339(at),
            "outcome": verdict.outcome,
            "httpStatus": receipt.status,
            "durationMs": receipt.duration_ms,
            "error": receipt.error,
            "nextAttemptAt": rfc3339(self._clock.now() + verdict.pause)
            if verdict.outcome == "retry"
            else None,
        }
        self._tell(delivery, receipt, verdict)
        encoded = json.dumps(attempt, ensure_ascii=False, separators=(",", ":")).encode()
        while True:
            try:
                await self._store.report(
                    delivery,
                    verdict.outcome,
                    encoded,
                    pause=verdict.pause,
                    error=receipt.error or "",
                )
            except StorageUnavailable:
                # Once the lease is over somebody else repeats the attempt anyway.
                if self._clock.monotonic() >= deadline:
                    return
                await asyncio.sleep(AWAY.total_seconds())
            else:
                return

    def _tell(self, delivery: Delivery, receipt: Receipt, verdict: Verdict) -> None:
        match verdict.outcome:
            case "dead":
                log.warning(
                    "webhook delivery given up",
                    webhook=delivery.to.id,
                    event_id=delivery.event_id,
                    attempts=delivery.attempt,
                    reason=receipt.error,
                )
            case "gone":
                log.warning(
                    "webhook disabled, the receiver answered 410 Gone", webhook=delivery.to.id
                )
            case "retry" | "delivered":
                log.debug(
                    "webhook attempt",
                    webhook=delivery.to.id,
                    event_id=delivery.event_id,
                    outcome=verdict.outcome,
                    reason=receipt.error,
                )

    async def _count(self) -> None:
        """Brings the gauges up to date now and then."""
        now = self._clock.monotonic()
        if now - self._counted_at < COUNT_EVERY.total_seconds():
            return
        self._counted_at = now
        figures = (await self._store.figures(list(await self._store.subscriptions()))).values()
        self._metrics.webhook_queue.set(sum(one.waiting for one in figures))
        self._metrics.webhook_dead_letters.set(sum(one.dead for one in figures))
        oldest = max((one.oldest_ms or 0 for one in figures), default=0)
        self._metrics.webhook_oldest_seconds.set(oldest / 1000)
