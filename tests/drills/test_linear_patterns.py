"""No regular expression takes more than linear time; the long form is `make drill NAME=security`."""

import pytest
from patterns import Used, hostile, patterns, written_in_place

LENGTH = 4_000
LIMIT = 0.05
"""Seconds: fifty times what a linear one needs for so much, an eighth of what a quadratic one does."""


@pytest.mark.parametrize("used", [*patterns(), *written_in_place()[0]], ids=lambda used: used.name)
def test_a_pattern_takes_linear_time(used: Used) -> None:
    for text in hostile(LENGTH):
        if used.seconds(text, LIMIT) >= LIMIT:  # once more: the machine may have been busy
            assert used.seconds(text, LIMIT) < LIMIT, text[:40]


def test_patterns_are_constants_of_the_source() -> None:
    # One for the settings, and the router's, of the route table. What users write is matched by RE2.
    assert written_in_place()[1] == ["config.py:_is_service_link", "router.py:_request_line"]
