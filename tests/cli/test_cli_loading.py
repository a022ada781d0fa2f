"""What help and completion cost: nobody waits for a server to load at TAB."""

import asyncio
import subprocess
import sys

import pytest
from commands import ROOT, environment
from daemons import Api

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

SERVER = {
    "aiohttp", "redis", "structlog", "prometheus_client", "registryd.app",
    "registryd.config", "registryd.web", "registryd.storage", "registryd.registry",
    "registryd.client",
}  # fmt: skip


def loaded(code: str, **more: str) -> set[str]:
    """The modules of a fresh interpreter after this code."""
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('loaded', *sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=environment(**more), check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(output.stdout.split("loaded")[-1].split())


RUN = "sys.argv[1:] = {arguments!r}; from registryd.cli.main import main; main()"


@pytest.mark.parametrize("arguments", [["--help"], ["services", "list", "--help"], ["--version"]])
def test_help_loads_no_server_and_no_client(arguments: list[str]) -> None:
    found = loaded(RUN.format(arguments=arguments))
    assert "registryd.cli.services" in found
    assert found & SERVER == set()


AS_REGISTRYD = "import sys; sys.argv[0] = 'registryd'; from registryd.cli.main import main; main()"
"""The shell's completion goes by the name of the command."""


def completed(line: str, **more: str) -> tuple[list[str], str]:
    """What TAB offers after this line in bash, and what was said beside."""
    result = subprocess.run(
        [sys.executable, "-c", AS_REGISTRYD],
        cwd=ROOT, check=True, capture_output=True, text=True,
        env=environment(
            _REGISTRYD_COMPLETE="complete_bash", COMP_WORDS=line,
            COMP_CWORD=str(len(line.split(" ")) - 1), **more,
        ),
    )  # fmt: skip
    return result.stdout.split(), result.stderr


async def test_names_are_completed_from_the_registry(api: Api) -> None:
    await api.register("chat", "a-1", capabilities=["asr"])
    await api.register("charts", "b-1")
    url = {"REGISTRYD_URL": api.base}
    lines = (
        "registryd services get cha",
        "registryd services get chat a",
        "registryd services list --capability a",
        "registryd services get none",
    )
    tried = await asyncio.gather(*(asyncio.to_thread(completed, line, **url) for line in lines))
    assert [sorted(names) for names, _ in tried] == [["charts", "chat"], ["a-1"], ["asr"], []]
    assert [said for _, said in tried] == [""] * 4


def test_a_registry_that_is_away_completes_nothing_and_says_nothing() -> None:
    assert completed("registryd services get c", REGISTRYD_URL="http://127.0.0.1:1") == ([], "")
