"""The command line as users have it: a process, with its exit code and both its outputs."""

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent


class Result(NamedTuple):
    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRYD_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


async def started(*arguments: object, **more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "registryd", *map(str, arguments),
        env=environment(**more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def registryd(*arguments: object, given: str = "", **more: str) -> Result:
    """Runs a command to its end; `given` is its standard input, `more` its environment."""
    process = await started(*arguments, **more)
    out, err = await process.communicate(given.encode())
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())
