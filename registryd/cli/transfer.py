"""The commands that save the registry to a file and read one back."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from registryd.cli.keys import UNREACHABLE, USAGE, Output, OutputOption
from registryd.cli.options import leave
from registryd.errors import NotReady, OutboundFailed, RegistrydError, StorageUnavailable

if TYPE_CHECKING:
    from registryd.client import RegistryClient

T = TypeVar("T")

SHOWN: Final = 20
"""Names of a kind on a terminal; `-o json` has them all."""

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="The registry; else REGISTRYD_URL, else this machine's."),
]


def export(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; standard output without.")
    ] = None,
    url: UrlOption = None,
) -> None:
    """Save all that is registered to a file, which is replaced whole or not at all."""
    if file is None:
        asked(url, _to_stdout)
        return
    path, tell = file, Progress()
    try:
        written = asked(url, lambda client: client.export_to(path, progress=tell))
    except OSError as error:
        leave(f"{path}: {error.strerror}")
    tell.end()
    typer.echo(f"{path}: {written} bytes", err=True)


async def _to_stdout(client: "RegistryClient") -> None:
    from registryd.client.transfer import SILENCE

    async for piece in client.transport.pieces("/export", silence=SILENCE):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def import_(
    file: Annotated[Path, typer.Argument(help="What `export` wrote; - is standard input.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would change.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also remove what is not in the file.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    output: OutputOption = Output.TABLE,
    url: UrlOption = None,
) -> None:
    """Make the registry what a file says, all or nothing."""
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        leave(f"{file}: {error.strerror}", USAGE)
    confirm = ""
    if replace and not dry_run:
        would = asked(url, lambda client: client.import_file(text, replace=True, dry_run=True))
        confirm = would["confirm"] or ""
        if confirm and not yes:
            typer.echo(summary(would), err=True)
            if not (sys.stdin.isatty() and typer.confirm("Go on?", err=True)):
                leave(f"{len(would['removed'])} instances would be removed; say so with --yes")
    answer = asked(
        url,
        lambda client: client.import_file(text, replace=replace, dry_run=dry_run, confirm=confirm),
    )
    if output is Output.JSON:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        typer.echo(summary(answer))


def summary(answer: Mapping[str, Any]) -> str:
    """What an import did or would do, a line for each instance, not too many, and the counts last."""
    lines = []
    for sign, word in (("+", "added"), ("-", "removed"), ("=", "newer")):
        lines += _cut([f"{sign} {name}" for name in answer[word]], answer["counts"][word])
    changed = [f"~ {one['instance']}: {', '.join(one['fields'])}" for one in answer["changed"]]
    lines += _cut(changed, answer["counts"]["changed"])
    counts = ", ".join(f"{count} {word}" for word, count in answer["counts"].items() if count)
    if answer["modelsLeftOut"]:
        counts += f", {answer['modelsLeftOut']} models left out"
    would = "would be: " if answer["dryRun"] else ""
    return "\n".join([*lines, would + (counts.lstrip(", ") or "nothing to do")])


def _cut(lines: list[str], count: int) -> list[str]:
    return [*lines[:SHOWN], f"  … and {count - SHOWN} more"] if count > SHOWN else lines


class Progress:
    """Tells on a terminal how far it is; says nothing elsewhere."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def __call__(self, written: int) -> None:
        if self._on:
            sys.stderr.write(f"\r{written / 1e6:.1f} MB")

    def end(self) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")


def asked(url: str | None, job: "Callable[[RegistryClient], Awaitable[T]]") -> T:
    """What `job` answers with a client of the registry; leaves with a line and an exit code else."""
    from registryd.client import RegistryClient

    async def done() -> T:
        async with RegistryClient(url or ()) as client:
            return await job(client)

    try:
        return asyncio.run(done())
    except (OutboundFailed, StorageUnavailable, NotReady) as away:
        leave(away.detail, UNREACHABLE)
    except RegistrydError as refusal:
        more = "".join(f"\n{one.pointer}: {one.detail}" for one in refusal.errors[1:])
        leave(refusal.detail + more)
