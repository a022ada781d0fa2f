"""Tables that fit."""

import pytest

from registryd.cli.grid import Cell, Column, Grid, clean, cut, fit

COLUMNS = (
    Column("NAME", least=8),
    Column("HEALTH", least=9),
    Column("ENDPOINT", least=10, rank=1),
    Column("VERSION", least=7, rank=2, right=True),
)


def grid(*rows: tuple[str, str, str, str]) -> Grid:
    return Grid(COLUMNS, [[Cell(text) for text in row] for row in rows])


LONG = grid(
    ("a" * 40, "unhealthy", "http://" + "h" * 50, "1.2.3"),
    ("chat", "healthy", "http://10.0.0.1:80", "1.2.3"),
)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = LONG.lines(width=width)
    assert len(lines) == 3
    assert max(len(line.plain) for line in lines) <= width


def test_what_is_cut_ends_in_an_ellipsis_and_what_fits_is_left_alone() -> None:
    lines = [line.plain for line in LONG.lines(width=60)]
    assert "…" in lines[1]
    assert "…" not in lines[2]
    assert lines[2].split() == ["chat", "healthy", "http://10.0.0.1:80", "1.2.3"]


def test_the_widest_columns_shrink_first_to_like_widths() -> None:
    assert fit(COLUMNS, [40, 9, 57, 7], 79) == [28, 9, 29, 7]


def test_columns_go_by_rank_when_shrinking_is_not_enough() -> None:
    assert [bool(one) for one in fit(COLUMNS, [40, 9, 57, 7], 38)] == [True, True, True, False]
    assert [bool(one) for one in fit(COLUMNS, [40, 9, 57, 7], 25)] == [True, True, False, False]


def test_without_a_terminal_nothing_is_cut() -> None:
    assert LONG.lines()[1].plain.split()[2] == "http://" + "h" * 50


def test_columns_are_aligned() -> None:
    heading, first, second = (line.plain for line in grid(
        ("a", "healthy", "x", "1"), ("long-name", "unhealthy", "y", "10.0.0")
    ).lines())  # fmt: skip
    assert heading.index("HEALTH") == first.index("healthy") == second.index("unhealthy")
    assert len(heading) == len(first) == len(second), "the last one stands to the right"


def test_wide_characters_take_two_cells() -> None:
    assert cut("日本語サービス", 7) == "日本語…"


def test_what_a_terminal_would_obey_does_not_reach_it() -> None:
    hostile = grid(("\x1b[2Jx", "a\nb", "\u202eevil", "\x9b31m"))
    assert "\x1b" not in hostile.lines()[1].plain
    assert clean("\x1b]0;title\x07") == "�]0;title�"
    assert "\n" not in hostile.lines()[1].plain
    assert "\u202e" not in hostile.lines()[1].plain


def test_icons_and_styles_come_with_colours_only() -> None:
    one = Grid((Column("HEALTH"),), [[Cell("healthy", "green", "●")]])
    assert one.lines()[1].plain == "healthy"
    assert not one.lines()[1].spans
    assert one.lines(colour=True)[1].plain == "● healthy"
    assert [str(span.style) for span in one.lines(colour=True)[1].spans] == ["green"]


def test_wide_columns_are_shown_when_asked_for() -> None:
    both = Grid((Column("A"), Column("B", wide=True)), [[Cell("1"), Cell("2")]])
    assert both.narrowed(wide=False).lines()[1].plain == "1"
    assert both.narrowed(wide=True).lines()[1].plain.split() == ["1", "2"]
