"""The commands about webhooks: who is told of events, and what could not be delivered."""

from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from registryd.cli import completion, rows
from registryd.cli.grid import Cell, Column, Grid
from registryd.cli.options import leave
from registryd.cli.services import now
from registryd.cli.session import Session, asking

PREFIX: Final = "/api/v1"

WEBHOOKS: Final = (
    Column("ID", least=12),
    Column("URL", least=20),
    Column("TYPES", least=10, rank=1),
    Column("STATE", least=8),
    Column("QUEUED", least=6, right=True),
    Column("DEAD", least=4, right=True),
    Column("DELIVERED", least=9, rank=2, right=True),
    Column("SERVICES", wide=True, rank=3),
    Column("BY", wide=True, rank=4),
)
DEAD_LETTERS: Final = (
    Column("ID", least=15),
    Column("TYPE", least=14),
    Column("SUBJECT", least=12),
    Column("DIED", least=6, right=True),
    Column("ATTEMPTS", least=8, rank=1, right=True),
    Column("ERROR", least=16),
)

IdArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="As `webhooks list` shows it.", autocompletion=completion.webhooks
    ),
]

app = typer.Typer(help="Webhooks: events sent to somebody's URL.", no_args_is_help=True)


@app.command("list")
@asking
async def list_webhooks(session: Session) -> None:
    """List them, with how their deliveries fare."""
    document = await session.whole("/webhooks", "webhooks", prefix=PREFIX, limit="100")
    found = document["webhooks"]
    session.printer.show(document, lambda: _grid(found), lambda: [one["id"] for one in found])


@app.command("create")
@asking
async def create_webhook(
    session: Session,
    receiver: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent.")],
    types: Annotated[
        list[str] | None, typer.Argument(metavar="[TYPE]...", help="Else 'service:*'.")
    ] = None,
    *,
    service: Annotated[
        list[str] | None,
        typer.Option("--service", help="Of these services only; * is a glob; may be repeated."),
    ] = None,
    description: Annotated[str | None, typer.Option("--description")] = None,
) -> None:
    """Have events sent to a URL. Prints the secret that signs them, once."""
    body: dict[str, Any] = {"url": receiver, "types": types or ["service:*"]}
    if service:
        body["services"] = service
    if description:
        body["description"] = description
    made = (await session.call("POST", "/webhooks", body=body, prefix=PREFIX)).json
    session.printer.show(
        made,
        lambda: rows.facts_grid({"id": made["id"], "secret": made["secret"]}),
        lambda: [made["id"]],
    )
    session.note("keep the secret: it is not shown again")


@app.command("delete")
@asking
async def delete_webhook(session: Session, webhook: IdArgument) -> None:
    """Delete one, with what waits for it."""
    await session.call("DELETE", _path(webhook), prefix=PREFIX)
    session.note(f"{webhook} deleted")


@app.command("test")
@asking
async def test_webhook(session: Session, webhook: IdArgument) -> None:
    """Send a test event now. Fails when the receiver did not take it."""
    reply = await session.call(
        "POST", f"{_path(webhook)}/test", prefix=PREFIX, timeout=DELIVERY_TIMEOUT
    )
    told = reply.json
    session.printer.show(
        told, lambda: rows.facts_grid(told), lambda: ["delivered" if told["success"] else "failed"]
    )
    if not told["success"]:
        leave(f"{webhook} did not take it: {told.get('error') or told.get('httpStatus')}")


DELIVERY_TIMEOUT: Final = 65.0
"""Seconds: a delivery may be given a minute."""


@app.command("dead-letters")
@asking
async def dead_letters(session: Session, webhook: IdArgument) -> None:
    """List what could not be delivered."""
    path = f"{_path(webhook)}/dead-letters"
    document = await session.whole(path, "deadLetters", prefix=PREFIX, limit="100")
    found = document["deadLetters"]
    session.printer.show(
        document,
        lambda: rows.told_grid(
            DEAD_LETTERS,
            (
                [
                    one["id"],
                    one["type"],
                    one["subject"],
                    rows.ago(one["diedAt"], now()),
                    one["attempts"],
                    Cell(one["error"], "red"),
                ]
                for one in found
            ),
        ),
        lambda: [one["id"] for one in found],
    )


@app.command("replay")
@asking
async def replay(
    session: Session,
    webhook: IdArgument,
    letters: Annotated[
        list[str] | None, typer.Argument(metavar="[LETTER]...", help="These only; else all.")
    ] = None,
) -> None:
    """Send what could not be delivered again."""
    reply = await session.call(
        "POST",
        f"{_path(webhook)}/dead-letters/replay",
        body={"ids": letters} if letters else None,
        prefix=PREFIX,
    )
    session.printer.show(
        reply.json, lambda: rows.facts_grid(reply.json), lambda: [str(reply.json["replayed"])]
    )


def _path(webhook: str) -> str:
    return f"/webhooks/{quote(webhook, safe='')}"


def _grid(found: list[dict[str, Any]]) -> Grid:
    return rows.told_grid(
        WEBHOOKS,
        (
            [
                one["id"],
                one["url"],
                ",".join(one["types"]),
                Cell("enabled", "green") if one["enabled"] else Cell("disabled", "red"),
                one["status"]["queued"],
                one["status"]["deadLetters"],
                one["status"]["delivered"],
                ",".join(one["services"] or ()),
                one["createdBy"],
            ]
            for one in found
        ),
    )
