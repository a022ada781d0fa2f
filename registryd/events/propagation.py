"""How long a change takes from the store to this node and on to its watchers.

The entry bears the store's time, and the clocks of two machines differ by what nobody knows. So the
shortest way of late is taken to be the difference of the clocks, and what is told is how much longer a
change took.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from registryd.feed.broadcast import Broadcast
from registryd.feed.stream import Change
from registryd.kit.clock import Clock
from registryd.metrics import Metrics
from registryd.registry.view import Move

PERIOD: Final = 300.0
"""Seconds after which an older shortest way counts no more: clocks drift."""


class Excess:
    """By how much a figure is above the least of the last one to two periods. Pure, but for what it keeps."""

    def __init__(self, period: float = PERIOD) -> None:
        self._period = period
        self._since = 0.0
        self._least: float | None = None
        self._before: float | None = None

    def of(self, figure: float, now: float) -> float:
        if self._least is None or now - self._since >= self._period:
            self._before = self._least if now - self._since < 2 * self._period else None
            self._since, self._least = now, figure
        self._least = min(self._least, figure)
        least = self._least if self._before is None else min(self._least, self._before)
        return figure - least


class Propagation:
    """Observes the ways of changes. A listener of the view, told after those who write to watchers."""

    def __init__(self, clock: Clock, metrics: Metrics, broadcast: Broadcast) -> None:
        self._clock = clock
        self._broadcast = broadcast
        self._excess = Excess()
        self._registered = metrics.propagation_seconds.labels("registered")
        self._gone = metrics.propagation_seconds.labels("gone")
        self._untold: deque[float] = deque(maxlen=1000)

    def changed(self, change: Change, moves: Sequence[Move]) -> None:
        left = self._clock.now().timestamp() - int(change.fields[b"ts"]) / 1000
        took = self._excess.of(left, self._clock.monotonic())
        match change.fields[b"type"]:
            case b"service:registered":
                self._registered.observe(took)
            case b"service:expired" | b"service:unregistered" if self._broadcast.busy:
                self._untold.append(self._clock.monotonic() - took)

    def told(self) -> None:
        """Everything has been written to everybody whom it concerns."""
        now = self._clock.monotonic()
        for began in self._untold:
            self._gone.observe(now - began)
        self._untold.clear()

    def reloaded(self) -> None:
        self._untold.clear()
