"""SIGTERM in whole programs, whoever runs their loop."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from daemons import Api, eventually

ROOT = Path(__file__).parent.parent.parent

AIOHTTP = """
from aiohttp import web
from registryd.client import registered_aiohttp
app = web.Application()
app.cleanup_ctx.append(registered_aiohttp("chat", "http://10.0.0.1:1", drain_seconds=1))
web.run_app(app, host="127.0.0.1", port=0, print=None)
"""
PLAIN = """
import asyncio
from registryd.client import RegistryClient
async def main():
    async with RegistryClient() as client:
        async with client.registration(
            "chat", "http://10.0.0.1:1", drain_seconds=1, on_sigterm=True
        ):
            await asyncio.Event().wait()
try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
"""
UVLOOP = PLAIN.replace("asyncio.run(", "uvloop.run(").replace(
    "import asyncio", "import asyncio, uvloop"
)


@pytest.mark.timeout(30)  # a fresh interpreter
@pytest.mark.parametrize("program", [AIOHTTP, PLAIN, UVLOOP], ids=["aiohttp", "asyncio", "uvloop"])
async def test_a_program_drains_and_then_ends_as_it_would_have(api: Api, program: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": str(ROOT), "REGISTRYD_URL": api.base},
    )
    try:

        async def there() -> bool:
            return await api.listed("") == ["chat"]

        await eventually(there, within=20)
        process.terminate()

        async def draining() -> bool:
            shown = (await api.get("/services/chat")).json
            return bool(shown.get("admin", {}).get("state") == "draining")

        await eventually(draining)
        assert process.returncode is None
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert await api.listed("") == []
