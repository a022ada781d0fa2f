"""When a row of findings becomes a status: so many successes, or so many failures, one after the other.

Pure. Probes, heartbeats and outside monitors are all counted by this rule.
"""

from typing import NamedTuple

from registryd.probing.types import Verdict


class Rules(NamedTuple):
    """`rise` successes, or `fall` failures, in a row. Failures before the first success ever do not
    count for `grace_ms`."""

    rise: int
    fall: int
    grace_ms: int = 0


class Counts(NamedTuple):
    """The row so far: one of the two is 0. `started` once anything has succeeded."""

    failures: int = 0
    successes: int = 0
    started: bool = False


def count(rules: Rules, counts: Counts, verdict: Verdict, *, age_ms: int) -> Counts:
    """The row with one more finding, `age_ms` after counting began."""
    if verdict != "unhealthy":
        return Counts(0, counts.successes + 1, started=True)
    if not counts.started and age_ms < rules.grace_ms:
        return counts
    return counts._replace(failures=counts.failures + 1, successes=0)


def reached(rules: Rules, counts: Counts, verdict: Verdict) -> Verdict | None:
    """The status that the row stands for, now that `verdict` ended it; None below the thresholds."""
    if verdict == "unhealthy":
        return verdict if counts.failures >= rules.fall else None
    return verdict if counts.successes >= rules.rise else None
