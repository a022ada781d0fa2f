"""What importing the SDK costs those who use it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SERVER = (
    "aiohttp redis structlog prometheus_client typer httpx ruamel registryd.app registryd.config "
    "registryd.web registryd.storage registryd.feed registryd.events registryd.registry.store "
    "registryd.registry.view registryd.registry.routes registryd.kit.outbound"
)


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter after this code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    return set(output.stdout.split())


def test_importing_the_client_loads_no_server_and_no_aiohttp() -> None:
    assert loaded("import registryd.client") & set(SERVER.split()) == set()


def test_aiohttp_comes_with_the_first_request() -> None:
    code = (
        "import asyncio\n"
        "from registryd.client import RegistryClient, Unreachable\n"
        "async def main():\n"
        "    async with RegistryClient('http://127.0.0.1:1', patience=0) as client:\n"
        "        assert 'aiohttp' not in __import__('sys').modules\n"
        "        try:\n"
        "            await client.stats()\n"
        "        except Unreachable:\n"
        "            pass\n"
        "asyncio.run(main())"
    )
    now = loaded(code)
    assert "aiohttp" in now
    assert now & {"registryd.web", "registryd.storage", "registryd.app", "redis"} == set()
