"""How findings in a row become a status."""

from registryd.probing.rise_fall import Counts, Rules, count, reached
from registryd.probing.types import Verdict


def statuses(rules: Rules, *verdicts: Verdict, every_ms: int = 1000) -> list[Verdict | None]:
    counts, found = Counts(), []
    for number, verdict in enumerate(verdicts):
        counts = count(rules, counts, verdict, age_ms=number * every_ms)
        found.append(reached(rules, counts, verdict))
    return found


def test_a_status_is_reached_at_its_threshold_and_stays_while_the_row_goes_on() -> None:
    assert statuses(Rules(2, 3), *["healthy"] * 3) == [None, "healthy", "healthy"]
    assert statuses(Rules(2, 3), *["unhealthy"] * 4) == [None, None, "unhealthy", "unhealthy"]


def test_one_of_the_other_kind_ends_a_row() -> None:
    found = statuses(Rules(2, 2), "unhealthy", "healthy", "unhealthy", "healthy")
    assert found == [None] * 4


def test_degraded_counts_as_a_success_of_its_own_name() -> None:
    assert statuses(Rules(2, 3), "healthy", "degraded", "healthy") == [None, "degraded", "healthy"]


def test_failures_within_the_grace_do_not_count() -> None:
    rules = Rules(1, 2, grace_ms=2000)
    assert statuses(rules, *["unhealthy"] * 4) == [None, None, None, "unhealthy"]


def test_the_grace_ends_with_the_first_success() -> None:
    rules = Rules(1, 2, grace_ms=60_000)
    found = statuses(rules, "unhealthy", "healthy", "unhealthy", "unhealthy")
    assert found == [None, "healthy", None, "unhealthy"]
