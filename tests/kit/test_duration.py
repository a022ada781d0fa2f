from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.kit.duration import duration_text, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("30s", 30),
        ("5m", 300),
        ("24h", 86400),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("7", 7),
        ("0.5", 0.5),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "5 m", "m", "-1s", "-1", "1e999", "nan", "True", "PT5M", "9" * 20 + "d"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@given(st.integers(0, 10**12).map(lambda ms: timedelta(milliseconds=ms)))
def test_a_duration_survives_being_written_and_read(value: timedelta) -> None:
    assert parse_duration(duration_text(value)) == value
