"""The registry as a file, through the SDK: saved whole or not at all, and sent as it is."""

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

from registryd.client.transport import Query, Transport
from registryd.client.types import UnexpectedAnswer

SILENCE: Final = 30.0
"""Seconds without a byte after which an export counts as broken off."""
IMPORT_TIMEOUT: Final = 600.0
"""Seconds: a hundred thousand instances take a minute or so."""
END: Final = b"\n}\n"

Progress = Callable[[int], None]


async def export_to(transport: Transport, path: Path, progress: Progress) -> int:
    """Writes the registry to `path`, which holds its old contents until the new ones are whole and on
    disk. Answers with the number of bytes; `progress` is told how many there are so far. Raises as
    `Transport.call` does, and OSError."""
    # Beside the file, so that the last step is a rename; readable as a new file would be.
    handle, name = await asyncio.to_thread(
        tempfile.mkstemp, dir=path.parent, prefix=f".{path.name}."
    )
    try:
        with os.fdopen(handle, "wb") as file:
            written = await _written(transport, file, progress)
            await asyncio.to_thread(_settle, file, name, path)
        return written
    finally:
        _discard(name)


async def _written(transport: Transport, file: BinaryIO, progress: Progress) -> int:
    written, tail = 0, b""
    async for piece in transport.pieces("/export", silence=SILENCE):
        await asyncio.to_thread(file.write, piece)
        written += len(piece)
        tail = (tail + piece)[-len(END) :]
        progress(written)
    if tail != END:
        raise UnexpectedAnswer(
            "what came is no whole export. Check that the URL is that of a registry, and try again."
        )
    return written


def _settle(file: BinaryIO, name: str, path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    os.fchmod(file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~mask)
    file.flush()
    os.fsync(file.fileno())
    Path(name).replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _discard(name: str) -> None:
    """What was not renamed is of no use."""
    Path(name).unlink(missing_ok=True)


async def import_file(
    transport: Transport, file: bytes, *, replace: bool, dry_run: bool, confirm: str
) -> dict[str, Any]:
    """What the import did, or with `dry_run` would do. `confirm` is what the dry run gave, where
    `replace` removes instances."""
    query: Query = [
        ("mode", "replace" if replace else "merge"),
        *([("dryRun", "true")] if dry_run else []),
        *([("confirm", confirm)] if confirm else []),
    ]
    reply = await transport.call(
        # Sent twice it does the same; but the first may be under way still.
        *("POST", "/import"),
        raw=file,
        query=query,
        idempotent=dry_run,
        timeout=IMPORT_TIMEOUT,
    )
    answer: dict[str, Any] = reply.json
    return answer
