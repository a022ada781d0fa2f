"""Lengths of time as people write them: `200ms`, `30s`, `1h30m`, or a number of seconds."""

import re
from datetime import timedelta
from typing import Final

_WHOLE = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d{1,12}+(?:\.\d{1,9}+)?)(ms|s|m|h|d)")
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?")
UNITS: Final = (
    ("d", timedelta(days=1)),
    ("h", timedelta(hours=1)),
    ("m", timedelta(minutes=1)),
    ("s", timedelta(seconds=1)),
    ("ms", timedelta(milliseconds=1)),
)


def parse_duration(text: str) -> timedelta:
    """Raises ValueError with a sentence for people."""
    units = dict(UNITS)
    try:
        if _WHOLE.fullmatch(text):
            parts = _PART.findall(text)
            return sum((units[unit] * float(number) for number, unit in parts), timedelta())
        if _SECONDS.fullmatch(text):
            return timedelta(seconds=float(text))
    except OverflowError:
        pass  # answered below, like every other text that is no duration
    raise ValueError("not a duration; write 200ms, 30s, 5m, 24h, or a number of seconds")


def duration_text(value: timedelta) -> str:
    """The shortest way to write `value` that `parse_duration` reads back."""
    for unit, length in UNITS:
        # Days are for reading only: people compare "168h" and "24h" more easily than "7d" and "24h".
        if unit != "d" and value and value % length == timedelta():
            return f"{value // length}{unit}"
    return f"{value / timedelta(milliseconds=1):g}ms" if value else "0s"
