"""The README's commands, run as they stand there."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from registryd.app import Daemon
from registryd.config import Settings

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.system
@pytest.mark.timeout(180)
async def test_the_curl_lines_of_the_readme_work(store_url: str) -> None:
    block = re.search(
        r"<!-- runs in .*? -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert block
    settings = Settings.model_validate(
        {"server": {"listen": "127.0.0.1:0"}, "redis": {"url": store_url, "keyPrefix": "readme"}}
    )
    daemon = Daemon(settings)
    await daemon.start()
    try:
        _, port = daemon.addresses[0]
        script = block[1].replace("localhost:8082", f"127.0.0.1:{port}")
        script = script.replace("curl -s", "curl -sf -w '\\n'")
        shell = await asyncio.create_subprocess_exec(
            "bash", "-euc", script, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await shell.communicate()
    finally:
        await daemon.stop()
    assert shell.returncode == 0
    registered, renewed, found, listed, chosen = map(json.loads, output.split(b"\n")[:5])
    assert registered["name"] == "hello"
    assert renewed["ttlSeconds"] == 300
    assert found["total"] == listed["total"] == 1
    assert chosen["url"] == "http://127.0.0.1:9000"


@pytest.mark.system
@pytest.mark.timeout(180)
async def test_the_streams_of_the_readme_open(store_url: str) -> None:
    block = re.search(
        r"<!-- so do these lines -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert block
    settings = Settings.model_validate(
        {
            "server": {"listen": "127.0.0.1:0"},
            "redis": {"url": store_url, "keyPrefix": "readme-sse"},
        }
    )
    daemon = Daemon(settings)
    await daemon.start()
    try:
        _, port = daemon.addresses[0]
        streams = re.findall(r"curl -N '([^']+)'", block[1])
        assert len(streams) == 2
        for url in streams:
            shell = await asyncio.create_subprocess_exec(
                "curl", "-sN", "--max-time", "1", url.replace("localhost:8082", f"127.0.0.1:{port}"),
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            output, _ = await shell.communicate()
            assert b"retry: " in output
            assert (b"event: snapshot" in output) is ("/watch" in url)
    finally:
        await daemon.stop()
