"""When to try again. Pure: the dice and the time come from outside.

Full jitter (M. Brooker, "Exponential Backoff And Jitter", 2015): many clients that failed together
do not come back together.
"""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

BASE: Final = 0.1
CAP: Final = 5.0
"""Seconds."""

IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE"})
"""What may be sent twice (RFC 9110, 9.2.2), unless a call says otherwise of itself."""


def pause(attempt: int, dice: random.Random, *, base: float = BASE, cap: float = CAP) -> float:
    """Seconds before attempt number `attempt` + 1, from [0, min(cap, base * 2**attempt)]."""
    return dice.uniform(0, min(cap, base * 2 ** min(attempt, 32)))


def retry_after(text: str | None, now: float) -> float:
    """Seconds that a `Retry-After` asks for: a number, or an HTTP date against `now` (Unix seconds).
    0.0 when there is none, or nonsense."""
    if not text:
        return 0.0
    if text.strip().isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.fromtimestamp(now, UTC)).total_seconds())


def may_retry(status: int, *, idempotent: bool) -> bool:
    """Whether an answer of this status is worth another attempt. 429 was refused before anything was
    done; a 5xx may have been done."""
    return status == 429 or (idempotent and status in {502, 503, 504})
