"""How long changes took, whatever the clocks say."""

from datetime import UTC, datetime, timedelta

from changes import History

from registryd.events.propagation import Excess, Propagation
from registryd.feed.broadcast import Broadcast
from registryd.metrics import Metrics


def test_the_shortest_way_is_the_difference_of_the_clocks() -> None:
    excess = Excess(period=300)
    assert [excess.of(figure, 1.0) for figure in (-50.0, -49.75, -50.5, -50.25)] == [
        0,
        0.25,
        0,
        0.25,
    ]


def test_a_shortest_way_of_long_ago_counts_no_more() -> None:
    excess = Excess(period=300)
    assert excess.of(1.0, 0.0) == 0
    assert excess.of(3.0, 299.0) == 2.0
    assert excess.of(3.0, 301.0) == 2.0  # the period before still counts
    assert excess.of(3.5, 602.0) == 0.5
    assert excess.of(9.0, 5000.0) == 0.0


class HandClock:
    """Goes when it is told to; the store's clock is an hour ahead of it."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        start = datetime.fromtimestamp(1_700_000_000, UTC) - timedelta(hours=1)
        return start + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed


def observed(metrics: Metrics, kind: str) -> tuple[float, float]:
    """How many, and their sum in seconds."""
    name, labels = "registryd_propagation_seconds", {"kind": kind}
    value = metrics.registry.get_sample_value
    return value(f"{name}_count", labels) or 0, round(value(f"{name}_sum", labels) or 0, 3)


class Busy(Broadcast):
    @property
    def busy(self) -> bool:
        return self.telling

    telling = True


def test_registrations_count_when_they_show_and_deaths_when_all_were_told() -> None:
    clock, metrics, history = HandClock(), Metrics(), History()
    broadcast = Busy(metrics, most=1, limit=1)
    propagation = Propagation(clock, metrics, broadcast)
    propagation.changed(history.register("a", "1"), [])
    clock.passed += 0.2
    propagation.changed(history.register("a", "2"), [])
    assert observed(metrics, "registered") == (2, 0.2)
    propagation.changed(history.remove("a:1", "service:expired"), [])
    clock.passed += 0.1
    assert observed(metrics, "gone") == (0, 0)
    propagation.told()
    propagation.told()
    assert observed(metrics, "gone") == (1, 0.3)
    broadcast.telling = False
    propagation.changed(history.remove("a:2"), [])
    propagation.told()
    assert observed(metrics, "gone") == (1, 0.3)
