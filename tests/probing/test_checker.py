"""The loop that probes: how much it claims, what runs at a time, what becomes of what goes wrong."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog
from daemons import eventually
from targets import ScriptedProbe

from registryd.errors import StorageUnavailable
from registryd.metrics import Metrics
from registryd.probing.checker import Checker, Claimed, Due, Limits, Pace, lateness, paced
from registryd.probing.types import Finding, Target

GOOD = Finding(verdict="healthy", response_time_ms=1.0)
BAD = Finding(verdict="unhealthy", response_time_ms=1.0, error="HTTP 503")


class Now:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Checks:
    """A store with a queue of due checks."""

    def __init__(self) -> None:
        self.due: list[Due[str]] = []
        self.limits: list[int] = []
        self.stretches: list[float] = []
        self.reports: list[tuple[str, Finding]] = []
        self.next_due: float | None = None
        self.away = False

    def add(self, handle: str, *, host: str = "h", late_ms: int = 0, **more: Any) -> None:
        target = Target(type="http", url=f"http://{host}:80/{handle}", timeout_ms=100)
        options = {"what": target, "interval_ms": 10_000, **more}
        self.due.append(Due(handle=handle, kind="http", late_ms=late_ms, **options))

    async def claim(
        self, limit: int, *, stretch: float, jitter: float, chance: float, only: str = ""
    ) -> Claimed[str]:
        if self.away:
            raise StorageUnavailable("away")
        self.limits.append(limit)
        self.stretches.append(stretch)
        taken = [due for due in self.due if due.handle == only] if only else self.due[:limit]
        self.due = [due for due in self.due if due not in taken]
        return Claimed(taken, self.next_due)

    async def report(self, due: Due[str], finding: Finding) -> str:
        if self.away:
            raise StorageUnavailable("away")
        self.reports.append((due.handle, finding))
        return f"reported {due.handle}"


@pytest.fixture
def checks() -> Checks:
    return Checks()


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def probe() -> ScriptedProbe:
    return ScriptedProbe(lambda target: GOOD)


@pytest.fixture
async def make(
    checks: Checks, now: Now, probe: ScriptedProbe, metrics: Metrics
) -> AsyncIterator[Callable[..., Checker[str, str]]]:
    made: list[Checker[str, str]] = []

    def make(total: int = 4, per_host: int = 4) -> Checker[str, str]:
        limits = Limits(total, per_host)
        made.append(
            Checker(
                checks,
                {"http": probe},
                metrics,
                limits,
                dice=random.Random(1),
                monotonic=now,
                sleep_between=0.0,
            )
        )
        return made[-1]

    yield make
    for checker in made:
        await checker.stop()


Make = Callable[..., Checker[str, str]]


async def turn(checker: Checker[str, str]) -> None:
    """One turn, which ends at once: it is told that something may have become due."""
    task = asyncio.create_task(checker.turn())
    await asyncio.sleep(0)
    checker.hint()
    await task


async def settled(checker: Checker[str, str]) -> None:
    await eventually(lambda: checker.under_way == 0)


async def test_what_is_due_is_probed_and_reported(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    checks.add("a")
    checker = make()
    await turn(checker)
    await settled(checker)
    assert [target.url for target in probe.asked] == ["http://h:80/a"]
    assert checks.reports == [("a", GOOD)]


async def test_no_more_is_claimed_than_there_are_free_slots(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    for number in range(10):
        checks.add(str(number), host=f"h{number}")
    probe.gate.clear()
    checker = make(total=4)
    await turn(checker)
    await turn(checker)
    assert (checks.limits, len(checks.due)) == ([4], 6)
    probe.gate.set()
    await settled(checker)
    await turn(checker)
    assert checks.limits == [4, 4]


async def test_one_host_gets_no_more_probes_at_a_time_than_it_may(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    for number in range(6):
        checks.add(str(number))
    checks.add("other", host="o")
    probe.gate.clear()
    checker = make(total=8, per_host=2)
    await turn(checker)
    await eventually(lambda: probe.busy == 3)
    probe.gate.set()
    await settled(checker)
    assert probe.busiest == 3
    assert len(checks.reports) == 7


async def test_a_round_that_waited_too_long_for_its_host_is_given_up(
    checks: Checks, make: Make, probe: ScriptedProbe, now: Now, metrics: Metrics
) -> None:
    checks.add("a")
    checks.add("b")
    probe.gate.clear()
    checker = make(per_host=1)
    await turn(checker)
    now.seconds = 9.5
    probe.gate.set()
    await settled(checker)
    assert [handle for handle, _ in checks.reports] == ["a"]
    skipped = metrics.registry.get_sample_value(
        "registryd_checks_total", {"type": "http", "result": "skipped"}
    )
    assert skipped == 1


async def test_it_looks_at_once_when_it_gets_a_hint(checks: Checks, make: Make) -> None:
    checks.next_due = 60.0
    checker = make()
    task = asyncio.create_task(checker.turn())
    await eventually(lambda: checks.limits)
    assert not task.done()
    checker.hint()
    await asyncio.wait_for(task, 0.5)


async def test_it_looks_when_the_next_is_due(checks: Checks, make: Make) -> None:
    checks.next_due = 0.01
    await asyncio.wait_for(make().turn(), 0.5)


@pytest.mark.parametrize(
    ("answers", "attempts", "last"),
    [([BAD, GOOD], 2, GOOD), ([BAD, BAD, BAD], 3, BAD), ([GOOD], 1, GOOD)],
)
async def test_a_probe_that_fails_is_tried_again_and_counts_once(
    checks: Checks,
    make: Make,
    probe: ScriptedProbe,
    answers: list[Finding],
    attempts: int,
    last: Finding,
) -> None:
    left = iter(answers)
    probe.answer = lambda target: next(left)
    checks.add("a", retries=2)
    checker = make()
    await turn(checker)
    await settled(checker)
    assert len(probe.asked) == attempts
    assert checks.reports == [("a", last)]


async def test_attempts_end_before_the_next_round_can_begin(
    checks: Checks, make: Make, probe: ScriptedProbe, now: Now
) -> None:
    def slow(target: Target) -> Finding:
        now.seconds += 4.0
        return BAD

    probe.answer = slow
    checks.add("a", retries=10)
    checker = make()
    await turn(checker)
    await settled(checker)
    assert len(probe.asked) == 3
    assert [target.timeout_ms for target in probe.asked] == [100, 100, 100]


async def test_what_may_not_be_dialled_is_not_tried_again(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    denied = Finding(verdict="unhealthy", response_time_ms=0, error="egress_denied: link-local")
    probe.answer = lambda target: denied
    checks.add("a", retries=3)
    checker = make()
    await turn(checker)
    await settled(checker)
    assert len(probe.asked) == 1


async def test_what_is_found_already_is_reported_without_dialling(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    checks.add("a", what=BAD)
    checker = make()
    await turn(checker)
    await settled(checker)
    assert (probe.asked, checks.reports) == ([], [("a", BAD)])


async def test_a_kind_without_a_probe_fails(checks: Checks, make: Make) -> None:
    checks.add("a", what=Target(type="x", url="x://h", timeout_ms=1))
    checker = make()
    await turn(checker)
    await settled(checker)
    assert checks.reports[0][1].error == "x is not among the kinds that can be probed here"


async def test_a_stop_cancels_what_is_under_way_and_reports_nothing(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    for number in range(4):
        checks.add(str(number))
    probe.gate.clear()
    checker = make(per_host=2)
    await turn(checker)
    await eventually(lambda: probe.busy == 2)
    await checker.stop()
    assert (probe.busy, checker.under_way, checks.reports) == (0, 0, [])


async def test_a_store_that_is_away_costs_the_round_and_nothing_else(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    checks.add("a")
    probe.gate.clear()
    checker = make()
    await turn(checker)
    checks.away = True
    probe.gate.set()
    await settled(checker)
    await checker.turn()
    checks.away = False
    checks.add("b")
    await turn(checker)
    await settled(checker)
    assert [handle for handle, _ in checks.reports] == ["b"]


async def test_a_fault_of_ours_is_logged_and_leaves_the_others_alone(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    def fault(target: Target) -> Finding:
        if target.url.endswith("a"):
            raise ZeroDivisionError
        return GOOD

    probe.answer = fault
    checks.add("a")
    checks.add("b")
    checker = make(per_host=1)
    with structlog.testing.capture_logs() as logs:
        await turn(checker)
        await settled(checker)
    assert [entry["event"] for entry in logs] == ["a check failed"]
    assert [handle for handle, _ in checks.reports] == ["b"]


async def test_one_can_be_probed_now(checks: Checks, make: Make) -> None:
    checks.add("a")
    checks.add("b")
    checker = make()
    assert await checker.check_now("b") == (GOOD, "reported b")
    assert await checker.check_now("b") is None
    checks.away = True
    with pytest.raises(StorageUnavailable):
        await checker.check_now("a")


async def test_who_waits_for_a_probe_is_told_that_the_daemon_stops(
    checks: Checks, make: Make, probe: ScriptedProbe
) -> None:
    checks.add("a")
    probe.gate.clear()
    checker = make()
    asked = asyncio.create_task(checker.check_now("a"))
    await eventually(lambda: probe.busy)
    await checker.stop()
    with pytest.raises(StorageUnavailable):
        await asked


async def test_intervals_are_stretched_when_checks_come_late_and_that_is_said_once(
    checks: Checks, make: Make, now: Now
) -> None:
    checker = make()
    with structlog.testing.capture_logs() as logs:
        for number in range(3):
            now.seconds += 2.0
            checks.add(str(number), late_ms=5_000)
            await turn(checker)
            await settled(checker)
        assert checks.stretches == [1.0, 1.475, 1.475]
        for number in range(60):
            now.seconds += 2.0
            checks.add(str(number))
            await turn(checker)
            await settled(checker)
    assert checker.pace.stretch == 1.0
    assert [entry["event"] for entry in logs] == [
        "checks come late, their intervals are stretched",
        "checks are on time again",
    ]
    assert logs[0]["concurrency"] == 4


async def test_a_storm_of_new_ones_stretches_nothing(checks: Checks, make: Make, now: Now) -> None:
    checker = make()
    for number in range(3):
        now.seconds += 2.0
        checks.add(str(number), late_ms=5_000, first=True)
        await turn(checker)
        await settled(checker)
    assert checks.stretches == [1.0, 1.0, 1.0]


def test_the_pace_has_a_bound_and_needs_evidence() -> None:
    pace = Pace()
    for _ in range(20):
        pace = paced(pace, [9.0])
    assert pace.stretch == 8.0
    assert paced(Pace(), [0.5]).stretch == 1.5, "as much longer as they come late"
    assert paced(pace, []).stretch < 8.0, "without checks it goes back"
    assert paced(pace, [0.05]).stretch == 8.0
    assert lateness(200, 1000) == 0
    assert lateness(350, 1000) == 0.1
