"""The commands that save the registry to a file and read one back."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from registryd.cli.options import USAGE, DryRunOption, YesOption, leave
from registryd.cli.printing import DOCUMENTS
from registryd.cli.session import Session, asking

if TYPE_CHECKING:
    from registryd.client import RegistryClient

SHOWN: Final = 20
"""Names of a kind on a terminal; `-o json` has them all."""


@asking
async def export(
    session: Session,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to; standard output without.")
    ] = None,
) -> None:
    """Save all that is registered to a file, which is replaced whole or not at all."""
    if file is None:
        await _to_stdout(session.client)
        return
    tell = Progress()
    try:
        written = await session.client.export_to(file, progress=tell)
    except OSError as error:
        leave(f"{file}: {error.strerror}")
    finally:
        tell.end()
    typer.echo(f"{file}: {written} bytes", err=True)


async def _to_stdout(client: "RegistryClient") -> None:
    from registryd.client.transfer import SILENCE

    async for piece in client.transport.pieces("/export", silence=SILENCE):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


@asking
async def import_(
    session: Session,
    file: Annotated[Path, typer.Argument(help="What `export` wrote; - is standard input.")],
    *,
    dry_run: DryRunOption = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also remove what is not in the file.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Make the registry what a file says, all or nothing."""
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        leave(f"{file}: {error.strerror}", USAGE)
    confirm = ""
    if replace and not dry_run:
        would = await session.client.import_file(text, replace=True, dry_run=True)
        confirm = would["confirm"] or ""
        if confirm and not yes:
            typer.echo(summary(would), err=True)
            if not (sys.stdin.isatty() and typer.confirm("Go on?", err=True)):
                leave(f"{len(would['removed'])} instances would be removed; say so with --yes")
    answer = await session.client.import_file(
        text, replace=replace, dry_run=dry_run, confirm=confirm
    )
    if session.printer.output in DOCUMENTS:
        session.printer.document(answer)
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
    if answer["incomplete"]:
        lines.append(
            "Register these again: exports do not tell what their health checks send along."
        )
        lines += _cut([f"? {name}" for name in answer["incomplete"]], len(answer["incomplete"]))
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
