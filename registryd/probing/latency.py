"""When slow answers make a target degraded: by the latest of them together, never by one alone. Pure."""

from typing import Final

WINDOW: Final = 20
"""So many of the latest successful probes are looked at."""
ENOUGH: Final = 5
"""From so many on there is a percentile worth the name."""


def noted(window: tuple[int, ...], took_ms: float) -> tuple[int, ...]:
    """The window (ms, oldest first) with one more successful probe."""
    return (*window, round(took_ms))[-WINDOW:]


def typical_worst(window: tuple[int, ...]) -> int:
    """How long, in ms, answers take at worst but for an outlier.

    Of a full window that is the 95th percentile: its second largest. Of fewer that percentile would be
    the largest, so that one slow answer would tell for all that follow; there too one is let pass. Of
    fewer than `ENOUGH`, nothing but that all were slow says that the target is: their smallest.
    """
    if not window:
        return 0
    return sorted(window)[-2] if len(window) >= ENOUGH else min(window)
