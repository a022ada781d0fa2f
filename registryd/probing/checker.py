"""The loop that probes: claim what is due, probe it, report. On every daemon at once, without a leader.

The store gives each check to one daemon and makes it due again in the same step, so a daemon that dies
costs a round and nothing else. No more is claimed than can be probed now: slots in all, and for each
host fewer, so that one slow machine does not hold up the others. Knows nothing of what is probed.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import structlog

from registryd.errors import StorageUnavailable
from registryd.kit.backoff import Backoff
from registryd.metrics import Metrics
from registryd.probing.types import Finding, Probe, Target

log = structlog.get_logger(__name__)

JITTER: Final = 0.1
"""Intervals vary by this part in all, so that what began together drifts apart."""
LOOK: Final = 1.0
"""Seconds after which a loop without anything to do looks again, for what no hint told of."""
WAITING_PER_SLOT: Final = 4
"""How many claimed checks may wait for their host, for each slot there is."""
RETRY_AFTER: Final = 0.1
"""Seconds before the second attempt of a probe; twice that before the third, and so on."""
LEAST_ATTEMPT_MS: Final = 50
"""An attempt that could not last longer is not begun."""

Handle = TypeVar("Handle")
Outcome = TypeVar("Outcome")
Outcome_co = TypeVar("Outcome_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due(Generic[Handle]):
    """A claimed check. `handle` is what its store knows it by, `kind` its label in metrics."""

    handle: Handle
    kind: str
    what: Target | Finding
    """What to probe; or what is found already, where there is nothing to dial."""
    retries: int = 0
    interval_ms: int
    late_ms: int
    first: bool = False
    """It was never probed before: many such come at once, and that is no lack of means."""

    @property
    def budget(self) -> float:
        """Seconds within which everything has to be over: before the check may be claimed again."""
        return self.interval_ms * (1 - JITTER) / 1000


@dataclass(frozen=True, slots=True)
class Claimed(Generic[Handle]):
    checks: Sequence[Due[Handle]]
    next_due: float | None
    """Seconds until the next check is due, of those that were not claimed."""


class CheckStore(Protocol[Handle, Outcome_co]):
    """Where checks are claimed and reported. Both raise StorageUnavailable."""

    async def claim(
        self, limit: int, *, stretch: float, jitter: float, chance: float, only: str = ""
    ) -> Claimed[Handle]: ...

    async def report(self, due: Due[Handle], finding: Finding) -> Outcome_co: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Probes under way at a time: in all, and to one host."""

    total: int = 256
    per_host: int = 8


# --- how long intervals are to be ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """`stretch`: how many times longer than asked intervals are made, because checks come late."""

    stretch: float = 1.0
    share: float = 0.0
    """How late checks are, as a part of their interval."""


LONGEST_STRETCH: Final = 8.0
LATE_FROM: Final = 0.1
ON_TIME_BELOW: Final = 0.02
UNAVOIDABLE_MS: Final = 250
"""So late may be any check without it meaning load."""


def lateness(late_ms: int, interval_ms: int) -> float:
    """How late, as a part of the interval, beyond what is unavoidable."""
    return max(0, late_ms - UNAVOIDABLE_MS) / interval_ms


def paced(pace: Pace, shares: Sequence[float]) -> Pace:
    """After a second in which checks came `shares` of their intervals late: intervals become as much
    longer at once, and shorter again slowly, also when none came."""
    share = sum(shares) / len(shares) if shares else 0.0
    needed = 1.0 + share if share > LATE_FROM else 1.0
    held = pace.stretch / 1.1 if share < ON_TIME_BELOW else pace.stretch
    return Pace(min(LONGEST_STRETCH, max(1.0, needed, held)), share)


# --- the loop -----------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Round(Generic[Handle, Outcome]):
    """One claimed check on its way."""

    due: Due[Handle]
    host: str
    ends: float
    """Monotonic seconds: later the check may be somebody else's."""
    asked: "asyncio.Future[tuple[Finding, Outcome]] | None" = None


@dataclass(slots=True)
class _Lane(Generic[Handle, Outcome]):
    """One host: probes under way to it, and rounds that wait for one of them to end."""

    busy: int = 0
    waiting: deque[_Round[Handle, Outcome]] = field(default_factory=deque)


class Checker(Generic[Handle, Outcome]):
    """Probes what its store says is due. `turn` is for a supervised loop; `stop` ends what it began."""

    def __init__(
        self,
        store: CheckStore[Handle, Outcome],
        probes: Mapping[str, Probe],
        metrics: Metrics,
        limits: Limits,
        *,
        dice: random.Random,
        monotonic: Callable[[], float] = time.monotonic,
        sleep_between: float = RETRY_AFTER,
    ) -> None:
        self._store = store
        self._probes = probes
        self._metrics = metrics
        self._limits = limits
        self._dice = dice
        self._monotonic = monotonic
        self._sleep_between = sleep_between
        self._hint = asyncio.Event()
        self._lanes: dict[str, _Lane[Handle, Outcome]] = {}
        self._waiting = 0
        self._tasks: dict[asyncio.Task[None], _Round[Handle, Outcome]] = {}
        self._backoff = Backoff(base=0.05, cap=LOOK)
        self._shares: list[float] = []
        self._paced_at = monotonic()
        self.pace = Pace()

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    def hint(self) -> None:
        """Something may have become due: look now rather than when the next one was known to be."""
        self._hint.set()

    async def turn(self) -> None:
        """Claims what there is room for, then waits for the next to be due, for room, or for a hint."""
        self._hint.clear()
        room = self._room()
        if room <= 0:
            await self._hint.wait()
            return
        try:
            claimed = await self._claim(room)
        except StorageUnavailable:
            # The feed tells of a store that is away.
            await asyncio.sleep(self._backoff.next())
            return
        self._backoff.reset()
        for due in claimed.checks:
            self._metrics.check_lateness.observe(due.late_ms / 1000)
            if not due.first:
                self._shares.append(lateness(due.late_ms, due.interval_ms))
            self._begin(due)
        self._set_pace()
        if len(claimed.checks) < room:
            pause = LOOK if claimed.next_due is None else min(LOOK, claimed.next_due)
            await self._pause(pause)

    async def check_now(self, only: str) -> tuple[Finding, Outcome] | None:
        """Probes one check at once, due or not; None when there is no such check. It waits for its host
        like any other. Raises StorageUnavailable."""
        claimed = await self._claim(1, only=only)
        if not claimed.checks:
            return None
        asked: asyncio.Future[tuple[Finding, Outcome]] = asyncio.get_running_loop().create_future()
        self._begin(claimed.checks[0], asked)
        return await asked

    async def stop(self) -> None:
        """Cancels the probes under way: their round is lost, and nothing else."""
        for lane in self._lanes.values():
            for round_ in lane.waiting:
                self._drop(round_)
            lane.waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim(self, limit: int, *, only: str = "") -> Claimed[Handle]:
        return await self._store.claim(
            limit,
            stretch=self.pace.stretch,
            jitter=JITTER,
            chance=self._dice.random(),
            only=only,
        )

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hint.wait()
        except TimeoutError:
            pass  # what was waited for is due

    def _room(self) -> int:
        waiting = self._limits.total * WAITING_PER_SLOT - self._waiting
        return min(self._limits.total - len(self._tasks), waiting)

    def _set_pace(self) -> None:
        now = self._monotonic()
        if now - self._paced_at < 1.0:
            return
        before, self.pace = self.pace, paced(self.pace, self._shares)
        self._shares, self._paced_at = [], now
        if before.stretch == 1.0 < self.pace.stretch:
            log.warning(
                "checks come late, their intervals are stretched",
                late_share=round(self.pace.share, 2),
                stretch=round(self.pace.stretch, 2),
                in_flight=len(self._tasks),
                waiting_for_their_host=self._waiting,
                concurrency=self._limits.total,
                per_host=self._limits.per_host,
            )
        elif self.pace.stretch == 1.0 < before.stretch:
            log.info("checks are on time again")

    # --- one round

    def _begin(
        self, due: Due[Handle], asked: "asyncio.Future[tuple[Finding, Outcome]] | None" = None
    ) -> None:
        host = _host(due.what)
        round_ = _Round(due, host, self._monotonic() + due.budget, asked)
        lane = self._lanes.setdefault(host, _Lane())
        if host and lane.busy >= self._limits.per_host:
            lane.waiting.append(round_)
            self._waiting += 1
            return
        self._launch(lane, round_)

    def _launch(self, lane: _Lane[Handle, Outcome], round_: _Round[Handle, Outcome]) -> None:
        lane.busy += 1
        task = asyncio.create_task(self._run(round_), name=f"check {round_.due.kind}")
        self._tasks[task] = round_
        self._metrics.checks_in_flight.set(len(self._tasks))
        task.add_done_callback(self._ended)

    async def _run(self, round_: _Round[Handle, Outcome]) -> None:
        finding = await self._find(round_)
        try:
            outcome = await self._store.report(round_.due, finding)
        except StorageUnavailable as error:
            self._count(round_, "lost")
            if round_.asked is not None and not round_.asked.done():
                round_.asked.set_exception(error)
            return
        self._count(round_, finding.verdict)
        if round_.asked is not None and not round_.asked.done():
            round_.asked.set_result((finding, outcome))

    async def _find(self, round_: _Round[Handle, Outcome]) -> Finding:
        """The last attempt's finding; attempts end with the first that does not fail."""
        due = round_.due
        if isinstance(due.what, Finding):
            return due.what
        probe = self._probes.get(due.what.type)
        if probe is None:
            error = f"{due.what.type} is not among the kinds that can be probed here"
            return Finding(verdict="unhealthy", response_time_ms=0.0, error=error)
        attempt = 0
        while True:
            left = int((round_.ends - self._monotonic()) * 1000)
            target = due.what
            if left < target.timeout_ms:
                target = replace(target, timeout_ms=max(1, left))
            finding = await probe.probe(target)
            if finding.verdict != "unhealthy" or attempt >= due.retries or _hopeless(finding):
                return finding
            pause = self._sleep_between * 2**attempt
            if self._monotonic() + pause + LEAST_ATTEMPT_MS / 1000 >= round_.ends:
                return finding
            await asyncio.sleep(pause)
            attempt += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        round_ = self._tasks.pop(task)
        self._metrics.checks_in_flight.set(len(self._tasks))
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # Probes answer with a finding whatever happens, so this is a fault of ours.
            log.error("a check failed", kind=round_.due.kind, exc_info=error)
        if task.cancelled() or error is not None:
            self._drop(round_)
        lane = self._lanes[round_.host]
        lane.busy -= 1
        while lane.waiting and lane.busy < self._limits.per_host:
            next_round = lane.waiting.popleft()
            self._waiting -= 1
            if self._monotonic() >= next_round.ends - LEAST_ATTEMPT_MS / 1000:
                self._drop(next_round, "skipped")
            else:
                self._launch(lane, next_round)
        if not lane.busy:
            del self._lanes[round_.host]
        self._hint.set()

    def _drop(self, round_: _Round[Handle, Outcome], result: str = "lost") -> None:
        self._count(round_, result)
        if round_.asked is not None and not round_.asked.done():
            round_.asked.set_exception(
                StorageUnavailable("the probe could not be made in time; try again")
            )

    def _count(self, round_: _Round[Handle, Outcome], result: str) -> None:
        self._metrics.checks.labels(round_.due.kind, result).inc()


def _host(what: Target | Finding) -> str:
    """What counts as one machine; "" for what dials nothing."""
    return (urlsplit(what.url).hostname or "") if isinstance(what, Target) else ""


def _hopeless(finding: Finding) -> bool:
    """A target that may not be dialled stays so."""
    return (finding.error or "").startswith("egress_denied")
