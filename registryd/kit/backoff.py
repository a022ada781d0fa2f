"""Exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", 2015)."""

import random


class Backoff:
    """Delays in seconds, each drawn from [0, min(cap, base * 2**attempt)]; `reset` after a success."""

    def __init__(self, *, base: float, cap: float, rng: random.Random | None = None) -> None:
        self._base = base
        self._cap = cap
        self._attempt = 0
        self._rng = rng or random.Random()  # noqa: S311  jitter, not a secret

    def next(self) -> float:
        ceiling = min(self._cap, self._base * 2**self._attempt)
        if ceiling < self._cap:
            self._attempt += 1
        return self._rng.uniform(0, ceiling)

    def reset(self) -> None:
        self._attempt = 0
