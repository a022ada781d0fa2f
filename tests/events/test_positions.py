"""Positions and globs, as they are written."""

import pytest

from registryd.errors import Malformed
from registryd.events.stream import Wanted, parse_types
from registryd.events.types import Position, parse_position
from registryd.feed.revision import Revision


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("17-42", Position(Revision(17, 42))),
        ("17-42.1", Position(Revision(17, 42), 1)),
        ("17-42.9999", Position(Revision(17, 42), 9999)),
    ],
)
def test_a_position_reads_as_it_is_written(text: str, position: Position) -> None:
    assert parse_position(text, what="since") == position
    assert str(position) == text
    assert position.whole == text.endswith(".9999")


@pytest.mark.parametrize(
    "text", ["", "1", "1-", "-1", "1-2.", "1-2.x", "1-2.12345", " 1-2", "1-2\n", "\u0661-2"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="since"):
        parse_position(text, what="since")


def test_a_star_stands_for_anything_and_nothing_else_is_special() -> None:
    wanted = Wanted(parse_types("service:*, capability:added"))
    takes = wanted.takes_type
    assert takes("service:registered")
    assert takes("service:health:changed")
    assert takes("capability:added")
    assert not takes("capability:removed")
    assert not takes("a-service:registered")
    assert Wanted().takes_type("registry:error")
    for text in ("ser.ice:x", "a b", "(", "A"):
        with pytest.raises(Malformed, match="types"):
            parse_types(text)


def test_many_stars_are_matched_in_linear_time() -> None:
    # The time limit of a test is what fails: as a regular expression this takes for ever.
    wanted = Wanted(parse_types(f"{'*' * 62}x"))
    assert not wanted.takes_type("service:health:changed")
