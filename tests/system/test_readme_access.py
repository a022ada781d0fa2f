"""The README's commands about access, run as they stand there."""

import asyncio
import os
import re
import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.system
@pytest.mark.timeout(180)
async def test_the_lines_about_access_work(tmp_path: Path) -> None:
    block = re.search(
        r"<!-- runs in tests/system/test_readme_access.py -->\n```sh\n(.*?)```",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert block
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = tmp_path / "registryd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m registryd "$@"\n')
    command.chmod(0o755)
    ready = f"until curl -sf localhost:{port}/readyz >/dev/null; do sleep 0.1; done"
    script = block[1].replace("localhost:8082", f"localhost:{port}").replace("sleep 3", ready)
    script = script.replace("curl -s localhost", "curl -sf localhost")
    assert ready in script
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRYD_")}
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euc", f"trap 'kill %1; wait' EXIT\n{script}",
        cwd=tmp_path,
        env={
            **kept,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REGISTRYD_SERVER__LISTEN": f"127.0.0.1:{port}",
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await shell.communicate()
    assert shell.returncode == 0, err.decode()
    assert b'{"services":[],"total":0' in out
    assert b"writer  team-a-   valid" in out
    assert b"revoked" in err
