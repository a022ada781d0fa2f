"""The commands and their flags. What takes long to import is imported by the command that needs it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from registryd import __version__
from registryd.cli import doctor, keys, looking, services, top, transfer, upkeep, webhooks
from registryd.cli.options import ConfigOption, DataDirOption, RedisUrlOption, leave
from registryd.errors import StartupRefused

app = typer.Typer(
    name="registryd",
    help="A service registry: leases on Redis or Valkey, answers from memory.",
    no_args_is_help=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.")]
PortOption = Annotated[
    int | None, typer.Option("--port", "-p", help="Port to listen on; 0 takes a free one.")
]
ReusePortOption = Annotated[
    bool | None,
    typer.Option(
        "--reuse-port/--no-reuse-port", help="Share the port with other registryd processes."
    ),
]
LogLevelOption = Annotated[
    str | None, typer.Option("--log-level", help="debug, info, warning or error.")
]


@app.callback()
def default(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"registryd {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        config = os.environ.get("REGISTRYD_CONFIG")
        serve(config=Path(config) if config else None)


@app.command("serve")
def serve(
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    redis_url: RedisUrlOption = None,
    reuse_port: ReusePortOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Run the daemon (this is what plain `registryd` does)."""
    from registryd.cli.serve import run

    flags = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "redis_url": redis_url,
        "reuse_port": reuse_port,
        "log_level": log_level,
    }
    try:
        run(config, flags, os.environ)
    except StartupRefused as refusal:
        leave(refusal.detail)


@app.command("check-config")
def check_config(config: ConfigOption = None) -> None:
    """Read the configuration, tell everything that is wrong with it, or show what is in use."""
    from registryd.config import describe, load

    try:
        settings = load(config, flags={}, environ=os.environ)
    except StartupRefused as refusal:
        leave(refusal.detail)
    typer.echo(json.dumps(describe(settings), indent=2, ensure_ascii=False))


@app.command("openapi", hidden=True)
def show_openapi() -> None:
    """Print the OpenAPI document."""
    from registryd.app import openapi_document

    typer.echo(json.dumps(openapi_document(), indent=2, ensure_ascii=False))


@app.command("asyncapi", hidden=True)
def show_asyncapi() -> None:
    """Write the description of the events to standard output."""
    from registryd.app import asyncapi_document

    typer.echo(json.dumps(asyncapi_document("ossa"), indent=2, ensure_ascii=False))


# In the order in which they are shown: behind the daemon's own above, what looks, what changes, what keeps.
app.add_typer(services.app, name="services")
app.command("top")(top.top)
app.command("events")(looking.events)
app.command("health")(looking.health)
app.command("explain")(looking.explain)
app.command("doctor")(doctor.doctor)
app.command("history")(looking.history)
app.command("stats")(looking.stats)
app.command("capabilities")(looking.capabilities)
app.command("heartbeat")(upkeep.heartbeat)
app.command("maintenance")(upkeep.maintenance)
app.command("drain")(upkeep.drain)
app.command("monitoring")(upkeep.monitoring)
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.command("export")(transfer.export)
app.command("import")(transfer.import_)


def main() -> None:
    """Runs the command line; the exit code says how it went."""
    sys.exit(app())
