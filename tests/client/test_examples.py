"""The examples, run as their first lines say, against a daemon."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from daemons import Api, eventually

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.timeout(30)  # each is a fresh interpreter


@asynccontextmanager
async def example(
    name: str, api: Api, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SERVICE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples" / name), *arguments),
        env={**kept, "PYTHONPATH": str(ROOT), "REGISTRYD_URL": api.base, **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(name: str, api: Api, *arguments: str) -> list[str]:
    async with example(name, api, *arguments) as process:
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode().splitlines()


async def test_the_readmes_client_runs(api: Api, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    marker = "<!-- runs in tests/client/test_examples.py -->"
    block = re.search(rf"{marker}\n```python\n(.*?)```", text, re.DOTALL)
    assert block
    program = tmp_path / "readme.py"
    program.write_text(block[1])
    assert await said(str(program), api) == [
        "calling http://127.0.0.1:9000",
        "['http://127.0.0.1:9000']",
    ]


async def test_the_pair_finds_each_other(api: Api) -> None:
    assert await said("aiohttp_pair.py", api) == ["pong heard ping", "ping heard pong"]
    assert await api.listed("") == []


async def test_work_goes_to_whoever_can_do_it(api: Api) -> None:
    assert await said("capability_routing.py", api) == [
        "image_generation → http://127.0.0.1:18101 http://127.0.0.1:18102",
        "video_generation@>=2;<3 → http://127.0.0.1:18103",
        "voice_cloning → nobody",
    ]


async def test_prometheus_gets_its_targets(api: Api, tmp_path: Path) -> None:
    await api.register("chat", "a", zone="eu-1", metadata={"tags": ["metrics"]})
    await api.register("chat", "b")
    path = tmp_path / "targets.json"
    assert await said("prometheus_scrape.py", api, str(path)) == ["1 targets, 0 s old"]
    assert json.loads(path.read_text()) == [
        {
            "targets": ["10.0.0.1:8080"],
            "labels": {"job": "chat", "instance_id": "a", "zone": "eu-1"},
        }
    ]


async def test_events_are_told_as_they_happen(api: Api) -> None:
    assert len((ROOT / "examples" / "events.py").read_text().splitlines()) <= 10
    async with example("events.py", api) as process:
        assert process.stdout is not None
        line = asyncio.create_task(process.stdout.readline())
        number = 0

        async def told() -> bool:
            nonlocal number
            number += 1
            await api.register("chat", f"i{number}")
            await asyncio.wait([line], timeout=0.1)
            return line.done()

        await eventually(told, within=20)
        assert line.result().split()[1] == b"service:registered"


async def test_fastapi_registers_itself_and_leaves_on_sigterm(
    api: Api, unused_tcp_port: int
) -> None:
    environ = {
        "SERVICE_NAME": "greeter",
        "SERVICE_HOST": "127.0.0.1",
        "SERVICE_PORT": str(unused_tcp_port),
    }
    async with example("fastapi_service.py", api, environ=environ) as process:

        async def there() -> bool:
            return await api.listed("") == ["greeter"]

        async def serves() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(there, within=20)
        await eventually(serves, within=5)  # it has heard that it is registered
        process.terminate()

        async def out() -> bool:
            return (await api.get("/services/greeter/url")).status == 404

        await eventually(out, within=2)
        shown = (await api.get("/services/greeter")).json
        assert shown["admin"]["state"] == "draining"
        assert process.returncode is None  # it still serves who has not heard
        await process.wait()
    assert await api.listed("") == []
