"""Damping of what changes to and fro: a penalty for each change, which decays by half-lives.

Pure; after route flap damping (RFC 2439). A target is damped when its penalty has grown high *and* it
has changed at least six times within ten minutes, so an ordinary bad hour never is. It is let go once
the penalty has decayed below `reuse`, at most `HALF_LIFE_MS * log2(ceiling / reuse)` after its last
change: 24 minutes.
"""

from typing import Final, NamedTuple

HALF_LIFE_MS: Final = 600_000
WINDOW_MS: Final = 600_000
CHANGES: Final = 6
EACH: Final = 1_000.0
SUPPRESS: Final = 4_000.0
REUSE: Final = 1_500.0
CEILING: Final = 8_000.0


class Flap(NamedTuple):
    """`penalty` as of `at_ms`; the moments of the latest changes, at most `CHANGES`, oldest first."""

    penalty: float = 0.0
    at_ms: int = 0
    recent: tuple[int, ...] = ()
    damped: bool = False


def decayed(flap: Flap, now_ms: int) -> Flap:
    """As it stands `now_ms`, with damping ended when it is time."""
    elapsed = max(0, now_ms - flap.at_ms)
    penalty = flap.penalty * 0.5 ** (elapsed / HALF_LIFE_MS)
    return Flap(penalty, max(now_ms, flap.at_ms), flap.recent, flap.damped and penalty >= REUSE)


def changed(flap: Flap, now_ms: int) -> Flap:
    """After one more change at `now_ms`."""
    flap = decayed(flap, now_ms)
    penalty = min(CEILING, flap.penalty + EACH)
    recent = (*flap.recent, now_ms)[-CHANGES:]
    often = len(recent) == CHANGES and now_ms - recent[0] <= WINDOW_MS
    return Flap(penalty, flap.at_ms, recent, flap.damped or (often and penalty >= SUPPRESS))
