"""Flags that several commands have, and how a command that cannot go on leaves."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

FAILURE: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNREACHABLE: Final = 4


class Output(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    NAME = "name"
    JSON = "json"
    YAML = "yaml"


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="YAML file; see config.example.yaml.", envvar="REGISTRYD_CONFIG"
    ),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Where the embedded store keeps its data.")
]
RedisUrlOption = Annotated[
    str | None,
    typer.Option("--redis-url", help="embedded, redis://…, rediss://… or unix://…"),
]
OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="table, wide (all columns), name, json or yaml."),
]
NoColorOption = Annotated[
    bool, typer.Option("--no-color", help="Neither colours nor icons, as with NO_COLOR set.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
]


def leave(detail: str, code: int = FAILURE) -> NoReturn:
    """Says why on standard error, a line each."""
    for line in detail.splitlines():
        typer.echo(f"registryd: {line}", err=True)
    raise typer.Exit(code)
