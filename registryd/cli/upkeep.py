"""The commands that keep an instance listed, hide it, or let it go."""

from typing import Annotated, Any

import typer

from registryd.cli import rows
from registryd.cli.options import USAGE, leave
from registryd.cli.services import InstanceArgument, NameArgument, now, path_of
from registryd.cli.session import Session, asking

IncarnationOption = Annotated[
    str | None, typer.Option("--incarnation", help="Only if it is still this one.")
]


@asking
async def heartbeat(
    session: Session,
    name: NameArgument,
    instance: InstanceArgument = None,
    *,
    status: Annotated[
        str | None, typer.Option("--status", help="healthy, degraded or unhealthy.")
    ] = None,
    incarnation: IncarnationOption = None,
) -> None:
    """Renew the lease of an instance."""
    body = {"status": status, "incarnation": incarnation}
    given = {field: value for field, value in body.items() if value}
    reply = await session.call("PUT", f"{path_of(name, instance)}/heartbeat", body=given or None)
    _show(session, reply.json, name, instance)


@asking
async def maintenance(
    session: Session,
    name: NameArgument,
    instance: InstanceArgument = None,
    *,
    off: Annotated[bool, typer.Option("--off", help="End it.")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="For those who wonder.")] = None,
    lasting: Annotated[
        str | None, typer.Option("--for", help="It ends by itself after, such as 2h.")
    ] = None,
) -> None:
    """Hide an instance, or all of a service, from choices until it is taken back."""
    body: dict[str, Any] = {"enabled": not off}
    if reason:
        body["reason"] = reason
    if lasting:
        from registryd.kit.duration import parse_duration

        try:
            body["until"] = (now() + parse_duration(lasting)).isoformat()
        except (ValueError, OverflowError) as error:
            leave(f"--for: {error}", USAGE)
    reply = await session.call("PUT", f"{path_of(name, instance)}/maintenance", body=body)
    _show_instance(session, reply.json)


@asking
async def drain(
    session: Session,
    name: NameArgument,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="One of its instances.")],
    *,
    seconds: Annotated[int, typer.Option("--seconds", min=0, max=86_400)] = 30,
) -> None:
    """Take an instance out of every choice at once, and deregister it after a while."""
    reply = await session.call(
        *("PUT", f"{path_of(name, instance)}/drain"),
        body={"seconds": seconds},
        idempotent=False,  # sent twice it would end later
    )
    _show_instance(session, reply.json)


@asking
async def monitoring(
    session: Session,
    state: Annotated[
        str | None, typer.Argument(metavar="[on|off]", help="Else it is told.")
    ] = None,
) -> None:
    """Tell whether instances are probed; pause or resume all probing."""
    if state not in {None, "on", "off"}:
        leave("monitoring is either on or off", USAGE)
    reply = await (
        session.call("GET", "/monitoring")
        if state is None
        else session.call("PUT", "/monitoring", body={"enabled": state == "on"})
    )
    word = "on" if reply.json["enabled"] else "off"
    session.printer.show(
        reply.json, lambda: rows.facts_grid({"monitoring": word}), lambda: [word]
    )  # fmt: skip


def _show_instance(session: Session, document: Any) -> None:
    from registryd.client.answers import valid
    from registryd.registry.types import InstanceShown

    shown = valid(InstanceShown, document)
    session.printer.show(
        document,
        lambda: rows.instances_grid([shown], now()),
        lambda: [f"{shown.name}/{shown.instance_id}"],
    )


def _show(session: Session, document: Any, name: str, instance: str | None) -> None:
    session.printer.show(
        document,
        lambda: rows.facts_grid(document),
        lambda: [f"{name}/{instance}" if instance else name],
    )
