"""What every command that asks a registry has in common: where it is, who asks, and what the answer's
failure means to a shell."""

import asyncio
import functools
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from registryd.cli import completion
from registryd.cli.options import (
    FAILURE,
    NOT_FOUND,
    UNREACHABLE,
    USAGE,
    NoColorOption,
    Output,
    OutputOption,
    leave,
)
from registryd.cli.printing import Printer

if TYPE_CHECKING:
    import ssl

    from registryd.client import RegistryClient
    from registryd.client.transport import Reply
    from registryd.errors import RegistrydError

REGISTRY: Final = "/api/v1/registry"
FIELDS_TOLD: Final = 5
INTERRUPTED: Final = 130
"""What shells expect of a command that Ctrl-C ended."""

UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="REGISTRYD_URL", help="The registry; several with commas."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="REGISTRYD_API_KEY",
        help="Better given by the variable or a file: other users see what stands here.",
    ),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option("--api-key-file", help="A file with the key, which then counts."),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file", envvar="REGISTRYD_CA_FILE", help="PEM of the authority of the registry."
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, max=3600.0, help="Seconds to wait for an answer.")
]


@dataclass(slots=True)
class Session:
    """One command's connection, and where its answer goes."""

    client: "RegistryClient"
    printer: Printer
    endless: bool = False
    """It goes on until Ctrl-C, which is then no failure."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: object = None,
        prefix: str = REGISTRY,
        idempotent: bool | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  the transport's own
    ) -> "Reply":
        """Raises as the SDK does. Says on standard error when the answer is old."""
        from registryd.client.answers import stale_for

        reply = await self.client.transport.call(
            *(method, path),
            query=query,
            body=body,
            prefix=prefix,
            idempotent=idempotent,
            timeout=timeout,
        )
        self.doubt(stale_for(reply))
        return reply

    async def whole(
        self,
        path: str,
        field: str,
        query: Sequence[tuple[str, str]] = (),
        *,
        prefix: str = REGISTRY,
        limit: str = "1000",
    ) -> Any:
        """All pages of a list as one answer, `field` holding everything and `next` null."""
        asked = [*query, ("limit", limit)]
        whole = page = (await self.call("GET", path, query=asked, prefix=prefix)).json
        while page["next"] is not None:
            onward = [*asked, ("cursor", page["next"])]
            page = (await self.call("GET", path, query=onward, prefix=prefix)).json
            whole[field] += page[field]
        return {**whole, "next": None}

    async def reached(self) -> None:
        """Raises Unreachable where nobody answers: streams would try again for ever."""
        await self.call("GET", "/livez", prefix="")

    def doubt(self, stale: float, why: str = "") -> None:
        """Tells how far an answer can be trusted, unless wholly. `stale` in seconds."""
        if stale > 0:
            self.note(f"the store was last heard of {stale:.1f} s ago; this answer is as of then")
        if why:
            self.note(why)

    def note(self, text: str) -> None:
        typer.echo(f"registryd: {text}", err=True)


def asking(command: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A command for Typer out of a coroutine function that takes a session first: with the flags that
    say where and how to ask, an event loop, and exit codes. `**filters` stands for the flags that narrow
    a list."""
    own = inspect.signature(command)
    parameters = [
        *(one for one in list(own.parameters.values())[1:] if one.kind is not one.VAR_KEYWORD),
        *(FILTERS if any(one.kind is one.VAR_KEYWORD for one in own.parameters.values()) else ()),
        *_SHARED,
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        shared = {one.name: given.pop(one.name) for one in _SHARED}
        _run(lambda session: command(session, **given), **shared)

    del run.__wrapped__
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def _shared(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _filter(name: str, text: str, **more: Any) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(flag, help=text, rich_help_panel="Filters", **more)
    return _shared(name, Annotated[str | None, option], None)


FILTERS: Final = (
    _filter("name", "A regular expression, anywhere in the name."),
    _filter(
        "capability",
        "Any of these; ranges such as chat@>=2.",
        autocompletion=completion.capabilities,
    ),
    _filter("capabilities_all", "All of these."),
    _filter("min_version", "Of the capability: that or newer, same major version."),
    _filter("tags", "Any of these."),
    _filter("tags_all", "All of these."),
    _filter("health", "healthy, degraded, unknown, unhealthy, maintenance."),
    _filter("version", "Exact, or a range."),
    _filter("environment", "Such as production, or prod."),
    _filter("zone", "Any of these."),
    _filter("model", "Any of these."),
    _filter("depends_on", "Services that need any of these."),
    _filter("filter", "An expression such as 'metadata.owner == \"nlp\" and weight != 0'."),
)
"""Those of `GET /services`."""


_SHARED: Final = (
    _shared("output", OutputOption, Output.TABLE),
    _shared("url", UrlOption, None),
    _shared("api_key", ApiKeyOption, None),
    _shared("api_key_file", ApiKeyFileOption, None),
    _shared("ca_file", CaFileOption, None),
    _shared("timeout", TimeoutOption, 5.0),
    _shared("no_color", NoColorOption, False),
)


def _run(
    job: Callable[[Session], Awaitable[None]],
    *,
    output: Output,
    url: str | None,
    api_key: str | None,
    api_key_file: Path | None,
    ca_file: Path | None,
    timeout: float,
    no_color: bool,
) -> None:
    from registryd.client import RegistryClient
    from registryd.errors import RegistrydError

    key = api_key if api_key_file is None else _read(api_key_file).strip()
    tls = _authority(ca_file)
    urls = [one.strip() for one in (url or "").split(",") if one.strip()]
    begun: list[Session] = []

    async def work() -> None:
        client = RegistryClient(urls, api_key=key, tls=tls, timeout=timeout, patience=0)
        async with client:
            begun.append(Session(client, Printer.of(output, no_color=no_color)))
            await job(begun[0])

    try:
        asyncio.run(work())
        sys.stdout.flush()
    except RegistrydError as error:
        fail(error)
    except BrokenPipeError:
        # Whoever read us has enough. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise typer.Exit(0 if begun and begun[0].endless else INTERRUPTED) from None


def _authority(file: Path | None) -> "ssl.SSLContext | None":
    if file is None:
        return None
    import ssl

    try:
        return ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        leave(f"--ca-file: {file} holds no certificates that can be used: {error}", USAGE)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError) as error:
        leave(f"--api-key-file: {file} cannot be read: {error}", USAGE)


# --- failures


def fail(error: "RegistrydError") -> NoReturn:
    """What is wrong and what to do next, in a line or two, and the exit code."""
    leave(told(error), exit_code(error))


def exit_code(error: "RegistrydError") -> int:
    from registryd import errors
    from registryd.client import Unreachable

    match error:
        case Unreachable():
            return UNREACHABLE
        case errors.NotFound() | errors.InstanceUnknown():
            return NOT_FOUND
        case errors.Malformed() | errors.Invalid() | errors.AmbiguousInstance():
            return USAGE
        case _:
            return FAILURE


ADVICE: Final = (
    ("unauthenticated", "Set REGISTRYD_API_KEY, or give --api-key-file."),
    ("ambiguous_instance", "Name one: `registryd services get NAME` lists them."),
    ("validation", ""),
    ("superseded", "Another incarnation holds it now: `registryd services get` shows which."),
)
"""Where the SDK's advice speaks of arguments, what a user of the command line can do."""


def told(error: "RegistrydError") -> str:
    from registryd.client import NoneOffered
    from registryd.client.problems import KNOWN

    text = error.detail
    if isinstance(error, NoneOffered):
        sentence, _, _ = text.partition(" Ask GET /explain")
        text = f"{sentence}\n`registryd explain NAME` says why of each instance."
    for code, advice in ADVICE:
        if error.code == code and text.endswith(known := KNOWN[code][1]):
            text = f"{text.removesuffix(known)}{advice}"
    if error.code in {"internal", "storage_unavailable", "not_ready"}:
        number = error.members.get("requestId")
        text += f" (request {number})" if number else ""
    if len(error.errors) < 2:  # the sentence has said it
        return text.strip()
    lines = [f"  {one.pointer or '/'}: {one.detail}" for one in error.errors[:FIELDS_TOLD]]
    if len(error.errors) > FIELDS_TOLD:
        lines.append(f"  and {len(error.errors) - FIELDS_TOLD} more")
    return "\n".join([text.strip(), *lines])
