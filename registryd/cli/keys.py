"""The commands that make, list and revoke API keys, on the store itself: the first admin's key, too."""

import json
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from registryd.cli.options import (
    NOT_FOUND,
    UNREACHABLE,
    USAGE,
    ConfigOption,
    DataDirOption,
    RedisUrlOption,
    leave,
)
from registryd.errors import NotFound, StartupRefused, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from registryd.auth.store import AuthStore

T = TypeVar("T")

LONGEST_LIFE: Final = timedelta(days=36_500)


class Role(StrEnum):
    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


app = typer.Typer(
    help="API keys of the registry, in its store; works while daemons run and while none does.",
    no_args_is_help=True,
)

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to write the answer.")]


@app.command("create")
def create_key(
    role: Annotated[Role, typer.Option("--role", help="What the key may do.")],
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--prefix", help="Only services whose names begin so; may be given several times."
        ),
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="How long it holds, such as 90d.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Whose it is, for the list.")] = "",
    output: OutputOption = Output.TABLE,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from registryd.auth import apikey
    from registryd.auth.keyfile import checked_prefixes
    from registryd.auth.types import ROLES
    from registryd.cli import on_store
    from registryd.kit.clock import SystemClock

    now = SystemClock().now()
    try:
        prefixes = checked_prefixes(prefix or ())
        expires_at = None if expires is None else now + _lifetime(expires)
    except ValueError as error:
        leave(str(error), USAGE)
    text, key = apikey.make(ROLES[role.value], prefixes, name=name, now=now, expires_at=expires_at)
    _on_store(config, data_dir, redis_url, lambda store: on_store.create(store, key, now))
    made = {
        "id": key.id,
        "key": text,
        "role": role.value,
        "prefixes": list(prefixes),
        "name": name or None,
        "expiresAt": on_store.time_text(expires_at),
    }
    if output is Output.JSON:
        typer.echo(json.dumps(made, ensure_ascii=False))
        return
    typer.echo(text)
    typer.echo(
        f"id {key.id}, {role.value}, {'names beginning with ' + ', '.join(prefixes) if prefixes else 'all services'}, "
        f"{'until ' + on_store.day_text(expires_at) if expires_at else 'without expiry'}; "
        "keep it: it is not shown again",
        err=True,
    )


@app.command("list")
def list_keys(
    output: OutputOption = Output.TABLE,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
) -> None:
    """Show all keys: what they may do, whether they hold, when they were last used."""
    from registryd.cli import on_store
    from registryd.kit.clock import SystemClock

    now = SystemClock().now()
    rows = _on_store(config, data_dir, redis_url, on_store.listed)
    if output is Output.JSON:
        typer.echo(
            json.dumps([on_store.shown(one, now) for one in rows], indent=2, ensure_ascii=False)
        )
    else:
        typer.echo(on_store.table(rows, now))


@app.command("revoke")
def revoke_key(
    identity: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
) -> None:
    """Make a key worthless, within a second on every daemon."""
    from registryd.cli import on_store
    from registryd.kit.clock import SystemClock

    now = SystemClock().now()
    _on_store(config, data_dir, redis_url, lambda store: on_store.revoke(store, identity, now))
    typer.echo(f"{identity} revoked", err=True)


def _lifetime(text: str) -> timedelta:
    """Raises ValueError."""
    from registryd.kit.duration import parse_duration

    life = parse_duration(text)
    if not timedelta() < life <= LONGEST_LIFE:
        raise ValueError("--expires: has to be longer than zero, and at most 36500d")
    return life


def _on_store(
    config: "Path | None",
    data_dir: "Path | None",
    redis_url: str | None,
    job: "Callable[[AuthStore], Awaitable[T]]",
) -> T:
    """What `job` answers on the store that settings and flags name; leaves with a line and an exit code
    where that cannot be had."""
    import os

    from registryd.cli import on_store
    from registryd.config import load
    from registryd.kit import logs

    logs.configure("error")
    try:
        flags = {"data_dir": data_dir, "redis_url": redis_url}
        return on_store.work(load(config, flags=flags, environ=os.environ), job)
    except NotFound as absent:
        leave(absent.detail, NOT_FOUND)
    except StorageUnavailable as error:
        leave(error.detail, UNREACHABLE)
    except StartupRefused as refusal:
        leave(refusal.detail)
