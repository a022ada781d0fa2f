"""Latency is judged by the latest probes together."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.probing.latency import WINDOW, noted, typical_worst


def window(*took: float) -> tuple[int, ...]:
    kept: tuple[int, ...] = ()
    for one in took:
        kept = noted(kept, one)
    return kept


@pytest.mark.parametrize(
    ("took", "worst"),
    [
        ([], 0),
        ([900], 900),
        ([900, 10], 10),
        ([900, 800, 700, 600], 600),
        ([10, 10, 900, 10, 10], 10),
        ([10, 900, 10, 900, 10], 900),
        ([10] * 19 + [900], 10),
        ([10] * 18 + [900, 901], 900),
        ([900, 900] + [10] * 19, 10),
        ([199.4, 199.6, 1, 1, 1], 199),
    ],
)
def test_one_slow_answer_is_let_pass_a_second_is_not(took: list[float], worst: int) -> None:
    assert typical_worst(window(*took)) == worst


@given(st.lists(st.integers(0, 10_000), min_size=WINDOW, max_size=3 * WINDOW))
def test_of_a_full_window_it_is_the_95th_percentile_by_nearest_rank(took: list[int]) -> None:
    latest = sorted(took[-WINDOW:])
    assert typical_worst(window(*took)) == latest[ceil(0.95 * WINDOW) - 1]
    assert len(window(*took)) == WINDOW
