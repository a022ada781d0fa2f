"""The commands that tell of the registry as a whole, and of why things are as they are."""

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Final

import typer

from registryd.cli import completion, rows
from registryd.cli.grid import Cell, Column, Grid
from registryd.cli.options import leave
from registryd.cli.printing import DOCUMENTS
from registryd.cli.services import InstanceArgument, NameArgument, now, path_of
from registryd.cli.session import Session, asking

ServiceOption = Annotated[
    str | None,
    typer.Option("--service", help="Of this service.", autocompletion=completion.services),
]

CAPABILITIES: Final = (
    Column("CAPABILITY", least=12),
    Column("VERSIONS", least=8, rank=1),
    Column("SERVICES", least=12),
    Column("DEFINED", wide=True, rank=2),
)
PROBED: Final = (
    Column("INSTANCE", least=12),
    Column("HEALTH", least=11),
    Column("SINCE", least=5, right=True),
    Column("CHECKED", least=7, rank=3, right=True),
    Column("TOOK", least=6, rank=2, right=True),
    Column("ERROR", least=16, rank=1),
    Column("FAILURES", wide=True, rank=4, right=True),
)
HISTORY: Final = (
    Column("WHEN", least=8, right=True),
    Column("WHAT", least=14),
    Column("SUBJECT", least=16),
    Column("WHY", least=12, rank=2),
    Column("BY", least=10, rank=1),
    Column("REVISION", wide=True, rank=3),
)
REASONS: Final = (
    Column("INSTANCE", least=12),
    Column("OFFERED", least=7),
    Column("REASON", least=10, rank=1),
    Column("IN WORDS", least=24),
)


@asking
async def stats(session: Session) -> None:
    """Count services and instances."""
    document = (await session.call("GET", "/stats")).json
    facts = {
        **{_spaced(name): value for name, value in document.items() if name != "instancesByHealth"},
        **{f"instances {word}": n for word, n in document.get("instancesByHealth", {}).items()},
    }
    session.printer.show(document, lambda: rows.facts_grid(facts), lambda: list(facts))


@asking
async def capabilities(session: Session) -> None:
    """List what anybody claims to be able to do, and who."""
    document = await session.whole("/capabilities", "capabilities")
    found = document["capabilities"]
    session.printer.show(
        document,
        lambda: rows.told_grid(
            CAPABILITIES,
            (
                [one["name"], ",".join(one["versions"]), ",".join(one["services"]), one["defined"]]
                for one in found
            ),
        ),
        lambda: [one["name"] for one in found],
    )


@asking
async def health(
    session: Session,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A service; without it, whether the daemon lives.",
            autocompletion=completion.services,
        ),
    ] = None,
    instance: InstanceArgument = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Probe now, and wait for it.")] = False,
) -> None:
    """Tell how a service fares. Without a name: exit 0 if the daemon lives, else 1, as a container's
    health check wants it."""
    if name is None:
        await _alive(session)
        return
    from registryd.client.client import CHECK_TIMEOUT

    path = path_of(name, instance)
    reply = await (
        session.call("POST", f"{path}/check", timeout=CHECK_TIMEOUT)
        if check
        else session.call("GET", f"{path}/health")
    )
    document = reply.json
    members = document.get("instances", [document])
    session.printer.show(
        document, lambda: _probed(members), lambda: [one["instanceId"] for one in members]
    )
    if session.printer.output not in DOCUMENTS and instance is not None:
        for one in document.get("transitions") or ():
            why = f": {one['error']}" if one.get("error") else ""
            session.printer.line(
                f"{rows.ago(one['at'], now())} ago  {one['old']} → {one['new']}  {one['reason']}{why}"
            )


async def _alive(session: Session) -> None:
    from registryd.errors import RegistrydError

    try:
        reply = await session.call("GET", "/health", prefix="")
    except RegistrydError as error:
        # Container runtimes know 0 and 1; Docker reserves the rest.
        leave(error.detail)
    word = str(reply.json.get("status", ""))
    session.printer.show(
        reply.json, lambda: rows.facts_grid({"status": word}), lambda: [word]
    )  # fmt: skip


def _probed(members: list[dict[str, Any]]) -> Grid:
    return rows.told_grid(
        PROBED,
        (
            [
                one["instanceId"],
                one["status"],
                rows.ago(one.get("since"), now()),
                rows.ago(one.get("lastCheck"), now()),
                "-" if one.get("responseTime") is None else f"{one['responseTime']:.0f} ms",
                Cell(one["error"], "red") if one.get("error") else None,
                one.get("failures"),
            ]
            for one in members
        ),
    )


@asking
async def explain(session: Session, name: NameArgument, instance: InstanceArgument = None) -> None:
    """Say in words why instances are or are not offered, and what to do about it."""
    document = await session.client.explain(name, instance)
    if session.printer.output in DOCUMENTS:
        session.printer.document(document)
        return
    session.printer.line(str(document["summary"]))
    if document.get("advice"):
        session.printer.line(f"advice: {document['advice']}")
    parts = document.get("instances", [document])
    lines = [
        [
            part["instance"] if at == 0 else Cell(""),
            ("yes" if part["offered"] else "no") if at == 0 else Cell(""),
            Cell(reason["code"], rows.LOOKS.get(reason["code"], ("", ""))[0]),
            reason["text"],
        ]
        for part in parts
        for at, reason in enumerate(part["reasons"])
    ]
    if lines:
        session.printer.grid(rows.told_grid(REASONS, lines))


@asking
async def history(
    session: Session,
    service: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The service.", autocompletion=completion.services),
    ] = None,
    instance: InstanceArgument = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
) -> None:
    """Tell who changed what, when and why, the newest first."""
    entries: list[Mapping[str, Any]] = []
    async for entry in session.client.history(service, instance):
        entries.append(entry)
        if len(entries) == limit:
            break
    session.printer.show(
        {"history": entries},
        lambda: rows.told_grid(HISTORY, map(_happened, entries)),
        lambda: [str(one["id"]) for one in entries],
    )


def _happened(entry: Mapping[str, Any]) -> list[object]:
    parts = (entry.get("service"), entry.get("instanceId"))
    old, new = entry.get("old"), entry.get("new")
    moved = f"{old} → {new}" if isinstance(old, str) and isinstance(new, str) else ""
    why = " ".join(filter(None, (moved, entry.get("reason"))))
    return [
        f"{rows.ago(entry['time'], now())} ago",
        entry["type"],
        "/".join(part for part in parts if part),
        why,
        entry.get("by"),
        entry.get("revision"),
    ]


@asking
async def events(
    session: Session,
    types: Annotated[
        list[str] | None, typer.Argument(metavar="[TYPE]...", help="Such as 'service:*'; else all.")
    ] = None,
    *,
    service: ServiceOption = None,
    since: Annotated[
        str, typer.Option("--since", help="After this event or revision; else from now on.")
    ] = "",
) -> None:
    """Print what happens as it happens, until Ctrl-C: a line each, with -o json a CloudEvent each."""
    from registryd.cli.live import messages

    query = [("types", ",".join(types))] if types else []
    query += [("service", service)] if service else []
    await session.reached()
    session.endless = True
    async for message in messages(session, "/events", query, since):
        if message.event == "bye":
            continue
        body = message.json
        if message.event == "reset":
            session.note("what came before is not known any more; going on from now")
        line = f"reset  {body.get('revision', '')}" if message.event == "reset" else None
        session.printer.record(body, line or rows.event_line(body))


def _spaced(name: str) -> str:
    return "".join(chain.from_iterable((" ", c.lower()) if c.isupper() else (c,) for c in name))
