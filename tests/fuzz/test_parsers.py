"""Hypothesis against every parser of what strangers send."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import LONGEST, PARSERS, Parser, examine

pytestmark = pytest.mark.timeout(60)


def hostile(parser: Parser) -> st.SearchStrategy[bytes]:
    """Good inputs cut, joined and sprinkled with words, and arbitrary bytes."""
    whole = st.sampled_from(parser.seeds)
    word = st.sampled_from(parser.words) if parser.words else st.binary(max_size=3)
    cut = st.builds(
        lambda seed, start, end: seed[start % (len(seed) + 1) :][: end % (len(seed) + 1)],
        whole,
        st.integers(0, 500),
        st.integers(0, 500),
    )
    repeated = st.builds(lambda part, times: part * times, word, st.integers(1, 300))
    parts = st.lists(whole | cut | word | repeated | st.binary(max_size=6), max_size=8)
    inserted = st.builds(
        lambda seed, at, part: seed[: at % (len(seed) + 1)] + part + seed[at % (len(seed) + 1) :],
        whole,
        st.integers(0, 500),
        word | st.binary(max_size=4),
    )
    return (inserted | parts.map(b"".join) | st.binary(max_size=60)).map(lambda it: it[:LONGEST])


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_reads_or_refuses_in_time_and_says_the_same_twice(name: str) -> None:
    parser = PARSERS[name]

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile(parser))
    def every(data: bytes) -> None:
        examine(parser, data)

    for seed in parser.seeds:
        examine(parser, seed)
    every()


@pytest.mark.parametrize("name", PARSERS)
def test_a_seed_is_worth_its_place(name: str) -> None:
    """One at least of each is read, else all of the above would only try the first line."""
    outcomes = [examine(PARSERS[name], seed) for seed in PARSERS[name].seeds]
    assert any(outcome.startswith("read") for outcome in outcomes), outcomes


def test_what_goes_wrong_is_noticed() -> None:
    answers = iter(range(100))
    for broken in (
        Parser(lambda data: next(answers), (b"",)),
        Parser(lambda data: data.decode("ascii"), (b"\xff",), pure=True),
        Parser(lambda data: sum(range(200_000_000)), (b"",)),
    ):
        with pytest.raises(AssertionError):
            examine(broken, broken.seeds[0])
    with pytest.raises(UnicodeDecodeError):
        examine(Parser(lambda data: data.decode("ascii"), ()), b"\xff")
