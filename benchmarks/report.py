"""The table: on the terminal, and in RESULTS.md between two markers. What stands outside them stays,
and so do the lines of rows that were not measured this time."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from benchmarks.bench import Figure, Options, short
from benchmarks.servers import etcd_binary
from registryd.storage.embedded import server_candidates

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"

_COLUMNS: Final = (
    "row", "what", "floor", "aim", "figure", "quartiles", "verdict", "seen", "measured", "command",
)  # fmt: skip
_CELLS: Final = 8
_PREAMBLE: Final = """\
# Results of the benches

`make bench` measures and writes the table below; what stands outside its markers stays. All servers of
a row are up at once and loaded in turn, slice after slice; a figure is the median over the rounds of the
ratio within a round, because absolute rates swing with the machine. Differences under 10 % are no
findings. In brackets: CPU time of the server, and after + of its store, behind one of the things counted.
"bare" is an aiohttp route with two path parameters that answers from a dict. Documents have 560 bytes. Some rows only: `make bench ARGS="H1 R1"`. Where the time goes: `make bench ARGS="--profile H1"`.
"""


def terminal(figures: Sequence[Figure]) -> str:
    rows = [_COLUMNS[:_CELLS], *map(_cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(_CELLS)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def write(
    path: Path, figures: Sequence[Figure], options: Options, order: Sequence[str], layout: str
) -> None:
    """Puts the figures into the file: new lines for the rows measured, the old ones for the others."""
    old = path.read_text() if path.exists() else ""
    before, _, rest = old.partition(BEGIN)
    table, _, after = rest.partition(END)
    lines: dict[str, list[str]] = {}
    for line in table.splitlines():
        if found := re.match(r"\| ([A-Z]\d) \|", line):
            lines.setdefault(found[1], []).append(line)
    when = f"{datetime.now(UTC):%Y-%m-%d}, {options.rounds} x {options.seconds:g} s"
    for row in {figure.row for figure in figures}:
        lines[row] = [_line(figure, when) for figure in figures if figure.row == row]
    body = [
        BEGIN,
        "",
        *[f"- {line}" for line in machine(layout)],
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
        *[line for row in order for line in lines.get(row, [])],
        "",
        END,
    ]
    # Without markers, whatever there was is kept as the text before the table.
    head = before if before.strip() else _PREAMBLE
    path.write_text(f"{head.rstrip()}\n\n" + "\n".join(body) + (after or "\n"))


def _line(figure: Figure, when: str) -> str:
    return f"| {' | '.join((*_cells(figure), when, f'`make bench ARGS={figure.row}`'))} |"


def _cells(figure: Figure) -> tuple[str, ...]:
    spread = figure.spread
    sign = "≥" if figure.better == "more" else "≤"
    unit = "" if figure.unit == "x" else f" {figure.unit}"

    def goal(value: float | None) -> str:
        return "-" if value is None else f"{sign} {value:g}{unit}".rstrip()

    shown, quartiles = "-", "-"
    if spread is not None:
        shown = f"{_figure(spread.median)}{unit or ' x'}".rstrip()
        if spread.count > 1:
            quartiles = f"{_figure(spread.low)} to {_figure(spread.high)}"
    return (
        figure.row,
        figure.what,
        goal(figure.floor),
        goal(figure.aim),
        shown,
        quartiles,
        figure.verdict,
        figure.seen,
    )


def _figure(value: float) -> str:
    return f"{value:.3f}" if value < 0.995 else short(value)


def machine(layout: str) -> list[str]:
    """What the figures were made on. No host name, no path."""
    versions = [f"{platform.python_implementation()} {platform.python_version()}"]
    versions += [f"{name} {_version(name)}" for name in ("aiohttp", "uvloop", "redis", "hiredis")]
    versions.append(_output(next(iter(server_candidates()), None), r"v=([\d.]+)", "valkey"))
    versions.append(_output(etcd_binary(), r"etcd Version: ([\d.]+)", "etcd"))
    return [
        f"{_cpu_model()}, {os.cpu_count()} cores, {platform.system()}; {layout}",
        ", ".join(versions),
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _output(binary: Path | None, pattern: str, name: str) -> str:
    if binary is None:
        return f"{name} absent"
    told = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False)
    found = re.search(pattern, told.stdout)
    return f"{name} {found[1] if found else 'of unknown version'}"


def _cpu_model() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()
