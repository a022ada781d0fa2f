"""What findings make of an instance's health."""

import json
from collections.abc import Sequence

import pytest

from registryd.health.decide import Memory, decide, details_of, heard, verdict_of
from registryd.probing.rise_fall import Rules
from registryd.probing.types import Finding, Verdict

MINUTE = 60_000


class Instance:
    """An instance whose probes come `every_ms`; each claim reads what the report before it wrote."""

    def __init__(
        self, *, rise: int = 2, fall: int = 3, shown: str = "unknown", **row: object
    ) -> None:
        self.shown = shown
        self.now_ms = 0
        self.row = {"interval": 30_000, "timeout": 5_000, "rise": rise, "fall": fall, "since": 0}
        self.row |= {"counts": "", "flap": "", **row}

    @property
    def memory(self) -> Memory:
        return Memory.decode(json.dumps(self.row).encode())

    def finds(self, verdicts: Sequence[Verdict], *, every_ms: int = 30_000) -> list[str]:
        shown = []
        for verdict in verdicts:
            self.now_ms += every_ms
            memory, self.shown = decide(self.memory, verdict, shown=self.shown, now_ms=self.now_ms)
            self.row |= {"counts": memory.encode_counts(), "flap": memory.encode_flap()}
            shown.append(self.shown)
        return shown


UP: list[Verdict] = ["healthy"] * 2
DOWN: list[Verdict] = ["unhealthy"] * 3


def test_the_thresholds_decide() -> None:
    assert Instance().finds([*UP, *DOWN, *UP]) == [
        "unknown",
        "healthy",
        "healthy",
        "healthy",
        "unhealthy",
        "unhealthy",
        "healthy",
    ]


def test_a_claimed_status_stands_until_the_thresholds_say_otherwise() -> None:
    assert Instance(shown="healthy").finds(DOWN) == ["healthy", "healthy", "unhealthy"]


def test_the_grace_runs_from_the_registration() -> None:
    instance = Instance(fall=1, rise=1, grace=2 * MINUTE)
    assert instance.finds([*DOWN, "unhealthy"]) == ["unknown"] * 3 + ["unhealthy"]


def flapping() -> Instance:
    instance = Instance(rise=1, fall=1)
    instance.finds(["healthy"])
    found = instance.finds(["unhealthy", "healthy"] * 3)
    assert found == ["unhealthy", "healthy", "unhealthy", "healthy", "unhealthy", "degraded"]
    return instance


def test_from_the_sixth_change_it_is_shown_as_degraded_whatever_it_does() -> None:
    instance = flapping()
    assert set(instance.finds(["unhealthy", "healthy"] * 5)) == {"degraded"}
    assert details_of(instance.memory) is not None


def test_what_kept_still_is_shown_as_it_is_again() -> None:
    instance = flapping()
    shown = instance.finds(["healthy"] * 60)
    assert shown[0] == "degraded"
    assert shown[-1] == "healthy"
    assert shown == sorted(shown)  # degraded, then healthy, and never back
    assert details_of(instance.memory) is None


def test_a_long_row_of_failures_is_an_outage_also_while_damped() -> None:
    instance = flapping()
    assert instance.finds(DOWN) == ["degraded", "degraded", "unhealthy"]
    assert instance.finds(["healthy"]) == ["degraded"]


def test_a_slow_change_to_and_fro_is_never_damped() -> None:
    instance = Instance(rise=1, fall=1)
    shown = instance.finds(["healthy", "unhealthy"] * 20, every_ms=3 * MINUTE)
    assert shown == ["healthy", "unhealthy"] * 20


def test_becoming_known_is_no_change() -> None:
    instance = Instance(rise=1, fall=1)
    instance.finds(["healthy"])
    assert instance.memory.flap.recent == ()


# --- heartbeats


def test_missed_heartbeats_make_it_unhealthy_and_the_next_ones_heal_it() -> None:
    instance = Instance(rise=1, fall=2, beats=True)
    found = instance.finds(["healthy", "unhealthy", "unhealthy", "healthy"])
    assert found == ["healthy", "healthy", "unhealthy", "healthy"]


@pytest.mark.parametrize("said", ["degraded", "unhealthy"])
def test_a_heartbeat_does_not_overrule_what_the_instance_says_of_itself(said: str) -> None:
    assert set(Instance(rise=1, shown=said, beats=True).finds(["healthy"] * 3)) == {said}


def test_who_speaks_for_himself_after_missing_heartbeats_is_believed() -> None:
    instance = Instance(rise=1, fall=1, beats=True)
    instance.finds(["healthy", "unhealthy"])
    instance.shown = "degraded"
    assert instance.finds(["healthy", "healthy"]) == ["degraded", "degraded"]


@pytest.mark.parametrize(
    ("renewed_ms", "looked_ms", "verdict"),
    [
        (30_000, 0, "healthy"),
        (30_001, 0, "unhealthy"),
        (32_000, 68_000, "healthy"),
        (32_001, 68_000, "unhealthy"),
    ],
)
def test_a_heartbeat_is_due_in_every_interval_or_since_the_last_look(
    renewed_ms: int, looked_ms: int, verdict: Verdict
) -> None:
    memory = Memory(Rules(1, 1), 30_000, 5_000, 0, beats=True, looked_ms=looked_ms)
    finding = heard(memory, renewed_ms, now_ms=100_000)
    assert finding.verdict == verdict
    assert (finding.error is None) == (verdict == "healthy")


# --- verdicts


@pytest.mark.parametrize(
    ("verdict", "body", "expected"),
    [
        ("healthy", {"status": "degraded"}, "degraded"),
        ("healthy", {"status": "WARN"}, "degraded"),
        ("healthy", {"status": "down"}, "healthy"),
        ("healthy", {"status": ["degraded"]}, "healthy"),
        ("healthy", None, "healthy"),
        ("unhealthy", {"status": "degraded"}, "unhealthy"),
    ],
)
def test_who_says_that_he_is_degraded_is(
    verdict: Verdict, body: dict[str, object] | None, expected: Verdict
) -> None:
    finding = Finding(verdict=verdict, response_time_ms=1.0, body=body)
    assert verdict_of(finding) == expected
