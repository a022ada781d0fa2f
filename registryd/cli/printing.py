"""How an answer gets to where the user looks: a table, names, or the document as the API gave it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TextIO

from registryd.cli.grid import Grid, clean
from registryd.cli.options import Output

DOCUMENTS: Final = frozenset({Output.JSON, Output.YAML})


def coloured(stream: TextIO, environ: Mapping[str, str], *, no_color: bool) -> bool:
    """Whether colours are wanted there (no-color.org) and can be shown."""
    plain = no_color or environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


@dataclass(frozen=True, slots=True)
class Printer:
    """`width` None: nothing is cut, since no terminal is there."""

    output: Output
    colour: bool
    width: int | None
    stream: TextIO

    @classmethod
    def of(cls, output: Output, *, no_color: bool) -> "Printer":
        """For standard output."""
        terminal = sys.stdout.isatty()
        return cls(
            output,
            coloured(sys.stdout, os.environ, no_color=no_color),
            shutil.get_terminal_size().columns if terminal else None,
            sys.stdout,
        )

    def show(
        self, document: Any, grid: Callable[[], Grid], names: Callable[[], Iterable[str]]
    ) -> None:
        """Whichever of the three is asked for."""
        match self.output:
            case Output.JSON | Output.YAML:
                self.document(document)
            case Output.NAME:
                for name in names():
                    self.line(name)
            case Output.TABLE | Output.WIDE:
                self.grid(grid())

    def document(self, document: Any) -> None:
        if self.output is Output.YAML:
            from ruamel.yaml import YAML

            yaml = YAML(typ="safe", pure=True)
            yaml.default_flow_style = False
            yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
            yaml.allow_unicode = True
            yaml.dump(document, self.stream)
        else:
            json.dump(document, self.stream, indent=2, ensure_ascii=False)
            self.stream.write("\n")

    def record(self, document: Any, line: str) -> None:
        """One of many that come in time: a line each, for YAML a document each."""
        if self.output is Output.YAML:
            self.stream.write("---\n")
            self.document(document)
        elif self.output is Output.JSON:
            self.stream.write(json.dumps(document, ensure_ascii=False) + "\n")
        else:
            self.line(line)
        self.stream.flush()

    def line(self, text: str) -> None:
        self.stream.write(f"{clean(text)}\n")

    def grid(self, grid: Grid) -> None:
        lines = grid.narrowed(wide=self.output is Output.WIDE).lines(
            width=self.width, colour=self.colour
        )
        if not self.colour:
            self.stream.writelines(f"{line.plain}\n" for line in lines)
            return
        from rich.console import Console

        console = Console(file=self.stream, width=self.width, highlight=False, markup=False)
        for line in lines:
            console.print(line, no_wrap=True, crop=False, overflow="ignore")
