"""The README's commands about backups, run as they stand there beside a daemon."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from processes import ROOT, Machine, environment

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def test_the_lines_about_backups_work(machine: Machine, tmp_path: Path) -> None:
    block = re.search(
        r"<!-- runs in tests/system/test_readme_transfer.py -->\n```sh\n(.*?)```",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert block
    daemon = await machine.start()
    await daemon.register("chat:a")
    command = tmp_path / "registryd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m registryd "$@"\n')
    command.chmod(0o755)
    settings = environment(tmp_path, {"REGISTRYD_URL": daemon.url})
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-euc", f"PATH={tmp_path}:$PATH\n{block[1]}"),
        cwd=tmp_path,
        env=settings,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await shell.communicate()
    assert shell.returncode == 0, err.decode()
    assert out.decode().splitlines() == ["would be: 1 unchanged", "1 unchanged"]
    assert re.fullmatch(r"backup.json: \d+ bytes\n", err.decode())
