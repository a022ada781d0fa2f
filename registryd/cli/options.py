"""Flags that several commands have, and how a command that cannot go on leaves."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

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


def leave(detail: str, code: int = 1) -> NoReturn:
    """Says why on standard error, a line each."""
    for line in detail.splitlines():
        typer.echo(f"registryd: {line}", err=True)
    raise typer.Exit(code)
