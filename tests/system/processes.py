"""Runs registryd, and stores of our own, as processes, and leaves none behind.

Every wait is bounded and ends as soon as what it waits for has come.
"""

import asyncio
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import RedisError

from registryd.storage.embedded import server_candidates

ROOT: Final = Path(__file__).parent.parent.parent
PATIENCE: Final = 30.0
"""Seconds: far more than anything here takes, also on a busy machine."""

T = TypeVar("T")
Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, and the body, parsed when it is JSON."""


async def until(
    look: Callable[[], Awaitable[T] | T], *, seconds: float = PATIENCE, pause: float = 0.02
) -> T:
    """What `look` returns, once that is true. Raises TimeoutError with the last thing seen."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if isinstance(seen, Awaitable):
            seen = await seen
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s; last seen: {seen!r}")
        await asyncio.sleep(pause)


def environment(runtime: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of registryd, with a place for sockets of our own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRYD_")}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(runtime), **(more or {})}


class Registryd:
    """One daemon process. `log` holds its stderr so far, `url` where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.lines: list[str] = []
        self.url = ""
        self._closed = False
        self.session: aiohttp.ClientSession | None = None
        self._readers = [
            asyncio.create_task(self._read(stream))
            for stream in (process.stderr, process.stdout)
            if stream is not None
        ]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines.append(line.decode().rstrip("\n"))

    # --- what it says

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log lines, parsed. Whatever does not parse fails the test that looks."""
        return [json.loads(line) for line in self.lines]

    def said(self, event: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry["event"] == event]

    async def serving(self) -> None:
        """Returns once it has told where it listens. Raises AssertionError if it ended instead."""

        def address() -> str:
            assert self.process.returncode is None, self.lines
            return next((entry["listen"][0] for entry in self.said("serving")), "")

        self.url = f"http://{await until(address)}"
        self.session = aiohttp.ClientSession(self.url)

    # --- asking

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        seconds: float = PATIENCE,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        if self.session is None or self.session.closed:
            raise ConnectionResetError("this daemon was killed")
        async with self.session.request(
            method, path, json=body, headers=headers, timeout=aiohttp.ClientTimeout(seconds)
        ) as response:
            text = await response.text()
            parsed = json.loads(text) if "json" in response.content_type else text
            return response.status, response.headers, parsed

    async def get(self, path: str, **more: Any) -> Answer:
        return await self.ask("GET", path, **more)

    async def register(self, identity: str, **fields: Any) -> Answer:
        """Registers `<service>:<instance>`, by default for long."""
        service, instance = identity.split(":")
        body = {
            "endpoint": f"http://127.0.0.1:9000/{instance}",
            "ttlSeconds": 300,
            "healthCheck": None,
            **fields,
        }
        return await self.ask("PUT", f"/services/{service}/instances/{instance}", body)

    async def beat(self, identity: str) -> Answer:
        service, instance = identity.split(":")
        return await self.ask("PUT", f"/services/{service}/instances/{instance}/heartbeat")

    async def leave(self, path: str) -> Answer:
        return await self.ask("DELETE", path)

    async def instances(self, query: str = "") -> dict[str, dict[str, Any]]:
        """Everything it lists, by `<service>:<instance>`; fails on a duplicate."""
        status, _, body = await self.get(f"/services?view=instances&limit=10000{query}")
        assert status == 200, body
        found = {f"{item['name']}:{item['instanceId']}": item for item in body["instances"]}
        assert len(found) == len(body["instances"]) == body["total"]
        return found

    async def metric(self, name: str) -> float:
        """A figure of /metrics, summed over its labels."""
        _, _, text = await self.get("/metrics")
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.split("{")[0].split(" ")[0] == f"registryd_{name}"
        )

    # --- its store

    @property
    def store_pid(self) -> int:
        """The process that serves the data directory, which may be about to change."""
        return int((self.data_dir / "server.lock").read_text())

    @property
    def store_url(self) -> str:
        return f"unix://{(self.data_dir / 'socket').readlink()}"

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Redis]:
        async with Redis.from_url(self.store_url, decode_responses=True, protocol=3) as client:
            yield client

    # --- ending

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self, *, seconds: float = PATIENCE) -> int:
        async with asyncio.timeout(seconds):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def crash(self) -> None:
        """kill -9, and the death of its embedded store, which follows."""
        self.signal(signal.SIGKILL)
        await self.close()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self.session is not None:
            await self.session.close()
            self.session = None
        if self.process.returncode is None:
            self.signal(signal.SIGKILL)
        await self.exit_code()
        # The kernel tells the embedded store to go with its daemon; one that is stopped goes harder.
        try:
            await until(lambda: not _locked(self.data_dir / "server.lock"), seconds=5)
        except TimeoutError:
            os.kill(self.store_pid, signal.SIGKILL)


def _locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Machine:
    """Where the processes of one test live: a short directory, and all that was started in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[Registryd] = []

    async def start(
        self, *flags: str, data: str = "data", env: Mapping[str, str] | None = None
    ) -> Registryd:
        """A daemon that serves on a port of its own, with its store in the directory `data`."""
        daemon = await self.launch(*flags, data=data, env=env)
        await daemon.serving()
        return daemon

    async def launch(
        self, *flags: str, data: str = "data", env: Mapping[str, str] | None = None
    ) -> Registryd:
        """A daemon that has only just been started, and may well refuse."""
        port = () if "--port" in flags or "--config" in flags else ("--port", "0")
        data_dir = self.home / data
        daemon = await self.run("serve", "--data-dir", str(data_dir), *port, *flags, env=env)
        daemon.data_dir = data_dir
        return daemon

    async def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> Registryd:
        """`python -m registryd` with these arguments, in a process group of its own."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "registryd", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env=environment(self.home, env),
            start_new_session=True,
        )
        self.started.append(Registryd(process, self.home / "data"))
        return self.started[-1]

    def write(self, name: str, text: str) -> str:
        path = self.home / name
        path.write_text(text)
        return str(path)

    @asynccontextmanager
    async def private_store(
        self, *flags: str, name: str = "private", password: str | None = None
    ) -> AsyncIterator[Redis]:
        """A Valkey that is not registryd's, on a unix socket and a port; gone at the end."""
        port = free_port()
        path = self.home / f"{name}.sock"
        process = await asyncio.create_subprocess_exec(
            *(next(server_candidates()), "--port", str(port), "--unixsocket", str(path)),
            *("--dir", str(self.home), "--save", "", "--appendonly", "no", *flags),
            *(("--requirepass", password) if password else ()),
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        client = Redis(
            unix_socket_path=str(path), password=password, decode_responses=True, protocol=3
        )

        async def answers() -> bool:
            try:
                return bool(await client.ping())
            except (RedisError, OSError):
                return False

        try:
            await until(answers)
            client.port = port
            yield client
        finally:
            await client.aclose()
            process.kill()
            await process.wait()

    async def close(self) -> None:
        for daemon in self.started:
            await daemon.close()


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def answers_of(requests: Sequence[Awaitable[Answer]]) -> list[Answer]:
    return list(await asyncio.gather(*requests))


class Load:
    """Clients that register, renew and read without pause, and remember what they were promised."""

    def __init__(self, daemon: Registryd, *, name: str = "load", clients: int = 8) -> None:
        self.daemon = daemon
        self.acknowledged: dict[str, int] = {}
        """When each instance was acknowledged, by its place among all answers."""
        self.statuses: dict[str, dict[int, int]] = {"write": {}, "beat": {}, "read": {}}
        self.without_retry_after = 0
        self.stale_reads = 0
        self.longest: dict[str, float] = {"write": 0.0, "beat": 0.0, "read": 0.0}
        self.cut_off = 0
        self._name = name
        self._clients = clients
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self._clients)]
        self._tasks.append(asyncio.create_task(self._beat()))
        self._tasks.append(asyncio.create_task(self._read()))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stopping = True
        if error[0] is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error[0] is not None)

    async def more(self, count: int) -> None:
        """Returns after `count` further acknowledgements."""
        goal = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= goal)

    def daemon_is_gone(self) -> None:
        """Ends the clients: what they are told from now on is that nobody is there."""
        self._stopping = True

    async def _ask(self, kind: str, asked: Awaitable[Answer]) -> Answer | None:
        began = time.monotonic()
        try:
            status, headers, body = await asked
        except (aiohttp.ClientError, ConnectionError):
            self.cut_off += 1
            await asyncio.sleep(0.05)
            return None
        self.longest[kind] = max(self.longest[kind], time.monotonic() - began)
        seen = self.statuses[kind]
        seen[status] = seen.get(status, 0) + 1
        self.without_retry_after += status == 503 and "Retry-After" not in headers
        self.stale_reads += kind == "read" and "X-Registry-Stale-Ms" in headers
        if status >= 400:
            await asyncio.sleep(0.05)
        return status, headers, body

    async def _write(self, number: int) -> None:
        count = 0
        while not self._stopping and self.daemon.session is not None:
            count += 1
            identity = f"{self._name}:{number}-{count}"
            answer = await self._ask("write", self.daemon.register(identity))
            if answer and answer[0] in {200, 201}:
                self.acknowledged[identity] = len(self.acknowledged)

    async def _beat(self) -> None:
        while not self._stopping and self.daemon.session is not None:
            for identity in list(self.acknowledged)[-5:]:
                await self._ask("beat", self.daemon.beat(identity))
            await asyncio.sleep(0.01)

    async def _read(self) -> None:
        while not self._stopping and self.daemon.session is not None:
            await self._ask("read", self.daemon.get("/services?limit=5"))
            await asyncio.sleep(0.01)
