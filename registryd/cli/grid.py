"""Tables as lines: which columns fit, how far they shrink, and what is cut off. Pure.

Every text here may come from somebody else's service, so control characters do not get through to the
terminal.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

GAP: Final = 2
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    style: str = ""
    icon: str = ""
    """Stands before the text where there are colours."""


@dataclass(frozen=True, slots=True)
class Column:
    """`least`: the width to which it may shrink. Where that is not enough whole columns go, those with
    the highest `rank` first; rank 0 stays. `wide`: only shown when all is asked for."""

    title: str
    least: int = 6
    rank: int = 0
    wide: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def narrowed(self, *, wide: bool) -> "Grid":
        """Without the columns that only `wide` shows."""
        return self if wide else self._kept([not one.wide for one in self.columns])

    def _kept(self, keep: Sequence[bool]) -> "Grid":
        return Grid(
            [column for column, kept in zip(self.columns, keep, strict=True) if kept],
            [
                [cell for cell, kept in zip(row, keep, strict=True) if kept]
                for row in self.rows
            ],
        )  # fmt: skip

    def lines(self, *, width: int | None = None, colour: bool = False) -> list[Text]:
        """The heading and the rows. `width` None: as wide as it is, for pipes."""
        natural = [
            max(cell_len(column.title), *(_length(row[at], colour) for row in self.rows), 0)
            for at, column in enumerate(self.columns)
        ]
        widths = natural if width is None else fit(self.columns, natural, width)
        heading = [Cell(column.title, "bold") for column in self.columns]
        return [self._line(row, widths, colour) for row in (heading, *self.rows)]

    def _line(self, row: Sequence[Cell], widths: Sequence[int], colour: bool) -> Text:
        line = Text(no_wrap=True)
        for column, cell, width in zip(self.columns, row, widths, strict=True):
            if width == 0:
                continue
            if len(line):
                line.append(" " * GAP)
            text = cut(_shown(cell, colour), width)
            pad = " " * (width - cell_len(text))
            line.append(pad if column.right else "")
            line.append(text, cell.style if colour else "")
            line.append("" if column.right else pad)
        line.rstrip()
        return line


def fit(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """The width of each column, 0 for one that has to go, so that all fit into `width` if they can."""
    widths = list(natural)

    def excess() -> int:
        shown = [one for one in widths if one]
        return sum(shown) + GAP * (len(shown) - 1) - width

    def shrink() -> None:
        while (over := excess()) > 0:
            able = [at for at, one in enumerate(widths) if one > columns[at].least]
            if not able:
                return
            widest = max(able, key=lambda at: widths[at])
            second = max((widths[at] for at in able if at != widest), default=0)
            floor = max(columns[widest].least, min(second, widths[widest] - 1))
            widths[widest] = max(floor, widths[widest] - over)

    shrink()
    while excess() > 0:
        droppable = [at for at, one in enumerate(widths) if one and columns[at].rank]
        if not droppable:
            break
        widths[max(droppable, key=lambda at: columns[at].rank)] = 0
        widths[:] = [0 if one == 0 else natural[at] for at, one in enumerate(widths)]
        shrink()
    return widths


def clean(text: str) -> str:
    """In one line, and without what a terminal would obey."""
    return _CONTROL.sub("�", text)


def cut(text: str, width: int) -> str:
    """At most `width` cells, with … for what is left out."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def _shown(cell: Cell, colour: bool) -> str:
    text = clean(cell.text)
    return f"{cell.icon} {text}" if colour and cell.icon else text


def _length(cell: Cell, colour: bool) -> int:
    return cell_len(_shown(cell, colour))
