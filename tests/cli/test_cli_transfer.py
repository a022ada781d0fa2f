"""`registryd export` and `registryd import`, as processes beside a daemon."""

import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from commands import ROOT, registryd
from daemons import Api, running

from registryd.cli.transfer import summary
from registryd.client import RegistryClient, SyncRegistryClient, UnexpectedAnswer, Unreachable

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]


@pytest.fixture
async def api(store_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, f"cli-{tmp_path.name}", tmp_path) as api:
        yield api


async def test_a_registry_is_saved_and_read_back(api: Api, tmp_path: Path) -> None:
    await api.register("chat", "a", weight=4)
    path = tmp_path / "backup.json"
    path.write_text("old")
    path.chmod(0o600)
    code, out, err = await registryd("export", path, "--url", api.base)
    assert (code, out) == (0, ""), err
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["services"]["chat"]["instances"][0]["weight"] == 4
    code, out, _ = await registryd("export", REGISTRYD_URL=api.base)
    assert json.loads(out)["services"] == json.loads(path.read_text())["services"]

    await api.patch("/services/chat/instances/a", {"weight": 5})
    await api.register("other", "b")
    code, out, _ = await registryd("import", path, "--dry-run", "--url", api.base)
    assert (code, out) == (0, "~ chat/a: weight\nwould be: 1 changed\n")
    code, out, _ = await registryd("import", path, "--dry-run", "-o", "json", "--url", api.base)
    assert json.loads(out)["counts"]["changed"] == 1
    code, out, err = await registryd("import", path, "--replace", "--url", api.base)
    assert (code, out) == (1, "")
    assert "- other/b" in err
    assert "--yes" in err
    assert (await api.instance("chat", "a"))["weight"] == 5
    code, out, _ = await registryd("import", path, "--replace", "--yes", "--url", api.base)
    assert (code, out) == (0, "- other/b\n~ chat/a: weight\n1 changed, 1 removed\n")
    assert await api.listed("") == ["chat"]
    assert [name for name in os.listdir(tmp_path) if "json" in name] == ["backup.json"]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ('{"version": "7"}', 2, "'7' is not known here"),
        ('{"services": {"a": {"instances": [{}]}}}', 2, "/services/a/instances/0/endpoint"),
        ("{", 2, "not JSON"),
        (None, 2, "No such file"),
    ],
)
async def test_what_is_wrong_with_a_file_is_told(
    api: Api, tmp_path: Path, text: str | None, code: int, said: str
) -> None:
    if text is not None:
        (tmp_path / "f.json").write_text(text)
    found, out, err = await registryd("import", tmp_path / "f.json", "--url", api.base)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


async def test_a_registry_that_is_not_there_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "backup.json"
    path.write_text("old")
    code, _, err = await registryd("export", path, "--url", "http://127.0.0.1:1")
    assert code == 4
    assert "Check that the registry runs there" in err
    assert os.listdir(tmp_path) == ["backup.json"]
    assert path.read_text() == "old"
    assert (await registryd("export", tmp_path / "no" / "f", "--url", "http://127.0.0.1:1"))[0] == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_kill_while_saving_leaves_the_old_file_whole(tmp_path: Path) -> None:
    half = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b'5\r\n{\n "v\r\n')
        await writer.drain()
        half.set()
        await reader.read()
        writer.close()

    path = tmp_path / "backup.json"
    path.write_text("old")
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "registryd", "export", str(path), "--url", url,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    await asyncio.wait_for(half.wait(), 30)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    assert path.read_text() == "old"
    server.close()


@pytest.mark.parametrize(
    ("rest", "error"),
    [(b'5\r\n{\n "v\r\n', Unreachable), (b"2\r\n{}\r\n0\r\n\r\n", UnexpectedAnswer)],
)
async def test_half_an_export_is_none(tmp_path: Path, rest: bytes, error: type[Exception]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + rest)
        await writer.drain()
        writer.close()

    path = tmp_path / "backup.json"
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with RegistryClient(url, environ={}) as client:
        with pytest.raises(error):
            await client.export_to(path)
    assert os.listdir(tmp_path) == []
    server.close()
    await server.wait_closed()


async def test_the_sync_client_saves_and_reads_too(api: Api, tmp_path: Path) -> None:
    await api.register("chat", "a")

    def work() -> tuple[int, object]:
        with SyncRegistryClient(api.base, environ={}) as client:
            written = client.export_to(tmp_path / "f.json")
            return written, client.import_file((tmp_path / "f.json").read_bytes())["counts"]

    written, counts = await asyncio.to_thread(work)
    assert written == (tmp_path / "f.json").stat().st_size
    assert isinstance(counts, dict)
    assert counts["unchanged"] == 1


def test_a_summary_names_some_of_many() -> None:
    counts = {"added": 1500, "changed": 0, "removed": 0, "unchanged": 2, "newer": 0}
    names = [f"s/{n}" for n in range(1000)]
    lines = summary(
        {"added": names, "changed": [], "removed": [], "newer": [], "counts": counts,
         "dryRun": False, "modelsLeftOut": 3, "incomplete": ["s/9"]}
    ).splitlines()  # fmt: skip
    assert len(lines) == 24
    assert lines[-4:] == [
        "  … and 1480 more",
        "Register these again: exports do not tell what their health checks send along.",
        "? s/9",
        "1500 added, 2 unchanged, 3 models left out",
    ]
