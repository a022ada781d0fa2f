"""Damping of what changes to and fro."""

from hypothesis import given
from hypothesis import strategies as st

from registryd.probing.flap import (
    CEILING,
    CHANGES,
    HALF_LIFE_MS,
    REUSE,
    WINDOW_MS,
    Flap,
    changed,
    decayed,
)


def after(moments: list[int]) -> Flap:
    flap = Flap()
    for moment in moments:
        flap = changed(flap, moment)
    return flap


def test_the_sixth_change_within_ten_minutes_damps_and_the_fifth_does_not() -> None:
    assert not after([n * 60_000 for n in range(5)]).damped
    assert after([n * 60_000 for n in range(6)]).damped


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=40))
def test_it_never_damps_before_the_sixth_change_within_ten_minutes(gaps: list[int]) -> None:
    moments, flap = [0], changed(Flap(), 0)
    for gap in gaps:
        moments.append(moments[-1] + gap)
        before = decayed(flap, moments[-1])
        flap = changed(flap, moments[-1])
        if flap.damped and not before.damped:
            recent = [one for one in moments if moments[-1] - one <= WINDOW_MS]
            assert len(recent) >= CHANGES


def test_a_penalty_halves_in_a_half_life() -> None:
    flap = after([0, 0])
    assert decayed(flap, HALF_LIFE_MS).penalty == flap.penalty / 2


def test_it_is_let_go_once_it_kept_still_and_not_before() -> None:
    flap = after([0] * 20)
    assert flap.penalty == CEILING
    longest = 25 * 60_000
    assert decayed(flap, longest - 2 * 60_000).damped
    assert not decayed(flap, longest).damped
    assert decayed(flap, longest).penalty < REUSE


def test_a_clock_that_goes_back_does_not_raise_the_penalty() -> None:
    flap = after([1_000_000])
    assert decayed(flap, 0).penalty == flap.penalty
