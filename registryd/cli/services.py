"""The commands about services and their instances."""

import json
import sys
from collections.abc import Callable, Sequence, Sized
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from registryd.cli import completion, rows
from registryd.cli.grid import Column, Grid
from registryd.cli.options import NOT_FOUND, USAGE, DryRunOption, YesOption, leave
from registryd.cli.printing import DOCUMENTS
from registryd.cli.session import Session, asking

if TYPE_CHECKING:
    from registryd.client.types import Filters
    from registryd.registry.types import InstanceShown

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The service.", autocompletion=completion.services)
]
InstanceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[INSTANCE]", help="One of its instances.", autocompletion=completion.instances
    ),
]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Stay, and show each change, until Ctrl-C.")
]

app = typer.Typer(help="Services and their instances.", no_args_is_help=True)


@app.command("list")
@asking
async def list_services(
    session: Session,
    *,
    instances: Annotated[
        bool, typer.Option("--instances", "-i", help="Their instances, not the services.")
    ] = False,
    watch: WatchOption = False,
    **filters: Any,
) -> None:
    """List services, or the instances of all of them, that match all filters."""
    wanted = given(filters)
    draw = rows.instances_grid if instances else rows.services_grid
    if watch:
        from registryd.cli.live import watched

        await watched(session, (), wanted, draw)
        return
    if session.printer.output in DOCUMENTS:
        view = "instances" if instances else "services"
        query = [*pairs(wanted), ("view", view)]
        session.printer.document(await session.whole("/services", view, query))
        return
    found = await session.client.instances(**wanted)
    session.doubt(found.stale_for, found.doubt)
    names = (
        (f"{one.name}/{one.instance_id}" for one in found)
        if instances
        else rows.by_service(found)
    )  # fmt: skip
    session.printer.show(None, lambda: draw(found, now()), lambda: sorted(names))


@app.command("get")
@asking
async def get_service(
    session: Session,
    name: NameArgument,
    instance: InstanceArgument = None,
    *,
    watch: WatchOption = False,
) -> None:
    """Show a service with its instances, or one instance."""
    from registryd.client.answers import shaped
    from registryd.registry.types import InstanceShown, ServiceShown

    if watch:
        from registryd.cli.live import watched

        # The name holds for all instances; of one the others are left out here.
        def draw(found: Any, *rest: Any) -> Grid:
            kept = [one for one in found if instance in (None, one.instance_id)]
            return rows.instances_grid(kept, *rest)

        await watched(session, (name,), {}, draw)
        return
    reply = await session.call("GET", path_of(name, instance))
    members = (
        shaped(ServiceShown, reply).instances
        if instance is None
        else [shaped(InstanceShown, reply)]
    )  # fmt: skip
    _show_instances(session, reply.json, members)


@app.command("register")
@asking
async def register_service(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The service.")] = None,
    endpoint: Annotated[
        str | None, typer.Argument(metavar="[ENDPOINT]", help="Such as http://10.0.0.7:8080.")
    ] = None,
    *,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="JSON or YAML, one or a list; - is standard input."),
    ] = None,
    instance_id: Annotated[
        str | None, typer.Option("--instance-id", help="Else host-port of the endpoint.")
    ] = None,
    version: Annotated[str | None, typer.Option("--version", help="Of the service.")] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", help="name or name@version; may be given several times."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="May be repeated.")] = None,
    environment: Annotated[str | None, typer.Option("--environment")] = None,
    zone: Annotated[str | None, typer.Option("--zone")] = None,
    weight: Annotated[int | None, typer.Option("--weight", help="Share of the choices.")] = None,
    ttl: Annotated[
        int | None, typer.Option("--ttl", help="Seconds that it stays without a heartbeat.")
    ] = None,
    health_path: Annotated[
        str | None, typer.Option("--health-path", help="Probed at the endpoint; else /health.")
    ] = None,
    no_health_check: Annotated[
        bool, typer.Option("--no-health-check", help="Do not probe it.")
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Register instances from flags, or from a file whose contents the flags override."""
    from registryd.client.answers import shaped
    from registryd.registry.types import InstanceShown

    capabilities = [
        {"name": word, **({"version": number} if number else {})}
        for word, _, number in (one.partition("@") for one in capability or ())
    ]
    flags: dict[str, Any] = {
        "name": name, "endpoint": endpoint, "instanceId": instance_id, "version": version,
        "capabilities": capabilities or None, "zone": zone, "weight": weight, "ttlSeconds": ttl,
        "healthCheck": {"path": health_path} if health_path else None,
    }  # fmt: skip
    flags = {field: value for field, value in flags.items() if value is not None}
    if no_health_check:
        flags["healthCheck"] = None
    metadata = {
        **({"tags": tag} if tag else {}),
        **({"environment": environment} if environment else {}),
    }
    bodies = []
    for held in [{}] if file is None else documents(file):
        body = {**held, **flags}
        if metadata:
            body["metadata"] = {**(held.get("metadata") or {}), **metadata}
        if not body.get("name") or not body.get("endpoint"):
            leave("a registration needs NAME and ENDPOINT, as arguments or in --file", USAGE)
        bodies.append(body)
    if dry_run:
        session.note("dry run: this would be sent")
        session.printer.document(bodies if len(bodies) > 1 else bodies[0])
        return
    made = [await session.call("POST", "/services", body=body) for body in bodies]
    shown = [reply.json for reply in made]
    for reply, one in zip(made, shown, strict=True):
        word = "registered" if reply.status == 201 else "was registered, renewed"
        session.note(f"{one['name']}/{one['instanceId']} {word}")
    _show_instances(
        session,
        shown if len(shown) > 1 else shown[0],
        [shaped(InstanceShown, reply) for reply in made],
    )


@app.command("deregister")
@asking
async def deregister(
    session: Session,
    service: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The service.", autocompletion=completion.services),
    ] = None,
    instance: InstanceArgument = None,
    *,
    drain: Annotated[
        int | None,
        typer.Option("--drain", help="Out of every choice now, gone after so many seconds."),
    ] = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    **filters: Any,
) -> None:
    """Take away one instance, all of a service, or all that match filters. Of several it asks first."""
    wanted = given(filters)
    if (service is None) == (not wanted):
        leave("name a service, or give filters such as --tags old, and not both", USAGE)
    if service is not None and instance is not None:
        targets = [(service, instance)]
    else:
        found = await session.client.list_instances(wanted, patience=0) if wanted else None
        if found is not None:
            targets = [(one.name, one.instance_id) for one in found[0]]
        else:
            members = (await session.call("GET", f"{path_of(service or '')}/instances")).json
            targets = [(one["name"], one["instanceId"]) for one in members]
    if not targets:
        leave("nothing matches", NOT_FOUND)
    if len(targets) > 1 and not yes and not dry_run:
        _confirm(targets)
    gone = []
    for name, identity in targets:
        if not dry_run:
            query = [] if drain is None else [("drainSeconds", str(drain))]
            await session.call("DELETE", path_of(name, identity), query=query)
        gone.append({"name": name, "instanceId": identity})
    session.note(
        f"{'dry run: would be ' if dry_run else ''}"
        f"{'draining' if drain else 'deregistered'}: {counted(gone, 'instance')}"
    )
    session.printer.show(
        gone,
        lambda: rows.told_grid(
            (Column("SERVICE", least=12), Column("INSTANCE", least=12)),
            (list(one.values()) for one in gone),
        ),
        lambda: [f"{one['name']}/{one['instanceId']}" for one in gone],
    )


@app.command("watch")
@asking
async def watch_services(
    session: Session,
    service: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="These services only.", autocompletion=completion.services
        ),
    ] = None,
    **filters: Any,
) -> None:
    """Print each change to the result of a query, a line each, until Ctrl-C."""
    from registryd.cli.live import streamed

    await streamed(session, service or (), given(filters))


@app.command("url")
@asking
async def choose_url(
    session: Session,
    service: NameArgument,
    *,
    strategy: Annotated[
        str, typer.Option("--strategy", help="weighted, random, round_robin or consistent.")
    ] = "weighted",
    key: Annotated[str | None, typer.Option("--key", help="For consistent: whose.")] = None,
    exclude: Annotated[
        str | None, typer.Option("--exclude", help="Instances that are not wanted, with commas.")
    ] = None,
    **filters: Any,
) -> None:
    """Print the URL of one instance, chosen by the registry. --zone is preferred, not demanded."""
    more = {"strategy": strategy, "key": key, "exclude": exclude}
    query = pairs({**given(filters), **{word: value for word, value in more.items() if value}})
    reply = await session.call("GET", f"{path_of(service)}/url", query=query)
    chosen = reply.json
    if session.printer.output in DOCUMENTS:
        session.printer.document(chosen)
    else:
        session.printer.line(str(chosen["url"]))


# --- shared with the other commands


def given(filters: dict[str, Any]) -> "Filters":
    """The filters that stand on the command line."""
    found: Any = {name: value for name, value in filters.items() if value}
    return found  # type: ignore[no-any-return]


def pairs(fields: Any) -> list[tuple[str, str]]:
    """Query parameters in the API's style."""
    from pydantic.alias_generators import to_camel

    return [(to_camel(name), str(value)) for name, value in fields.items()]


def now() -> datetime:
    return datetime.now(UTC)


def path_of(name: str, instance: str | None = None) -> str:
    path = f"/services/{quote(name, safe='')}"
    return path if instance is None else f"{path}/instances/{quote(instance, safe='')}"


def counted(things: Sized, word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _show_instances(session: Session, document: Any, members: "Sequence[InstanceShown]") -> None:
    session.printer.show(
        document,
        lambda: rows.instances_grid(members, now()),
        lambda: [f"{one.name}/{one.instance_id}" for one in members],
    )


def documents(file: str) -> list[dict[str, Any]]:
    """The registrations in a file: JSON or YAML, one, a list, or several YAML documents. Leaves when
    there are none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, ValueError) as error:
        leave(f"--file: {file} cannot be read: {error}", USAGE)
    try:
        found = [json.loads(text)] if text.lstrip()[:1] in "{[" else None
    except ValueError:
        found = None  # YAML may begin so, too, and tells better where it is wrong
    if found is None:
        try:
            found = list(YAML(typ="safe", pure=True).load_all(text))
        except YAMLError as error:
            leave(f"--file: {file} is neither JSON nor YAML: {error}", USAGE)
    bodies = [one for part in found for one in (part if isinstance(part, list) else [part])]
    if not bodies or not all(isinstance(one, dict) for one in bodies):
        leave(f"--file: {file} has to hold a registration, or a list of them", USAGE)
    return bodies


def _confirm(targets: Sequence[tuple[str, str]], ask: Callable[..., bool] = typer.confirm) -> None:
    """Leaves unless the user agrees; where nobody can be asked, it takes --yes."""
    some = ", ".join(f"{name}/{identity}" for name, identity in targets[:3])
    what = f"{counted(targets, 'instance')} ({some}{', …' if len(targets) > 3 else ''})"
    if not sys.stdin.isatty():
        leave(f"this would deregister {what}; add --yes if that is meant", USAGE)
    if not ask(f"deregister {what}?", err=True):
        leave("nothing was done")
