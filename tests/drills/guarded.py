"""A real daemon that demands credentials, its keys as `registryd keys create` makes them, and raw HTTP.

Nothing here refuses or repairs what it sends: bytes go out as they are given.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from processes import Machine, Registryd, until

from registryd.app import Daemon
from registryd.config import Settings
from registryd.metrics import Metrics
from registryd.storage.connection import Connection
from registryd.web.routing import Route

NO_ANSWER = 0
"""The status of a connection that was closed, or said nothing, without an answer."""
PATIENCE = 20.0


@dataclass(frozen=True)
class Said:
    """What came back on a connection until it was closed. `answers` counts heads of answers."""

    status: int
    head: str
    body: bytes
    answers: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str, target: str, *headers: str, body: bytes = b"", host: str = "localhost"
) -> bytes:
    """A request that ends its connection. Headers are lines; text that is not ASCII goes as UTF-8."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines += [f"Content-Length: {len(body)}"]
        if not any(line.lower().startswith("content-type:") for line in headers):
            lines += ["Content-Type: application/json"]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def unchunked(body: bytes) -> bytes:
    """The chunks of a body, joined; what is cut off counts as far as it came."""
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        whole, body = whole + rest[:length], rest[length + 2 :]
        if not length:
            break
    return whole


@dataclass
class Guarded:
    machine: Machine
    daemon: Registryd
    host: str
    port: int
    keys: dict[str, str] = field(default_factory=dict)
    """By role, or by role and prefix: `writer`, `writer team-a-`."""
    tls: ssl.SSLContext | None = None

    @classmethod
    async def start(
        cls,
        machine: Machine,
        *flags: str,
        keys: tuple[str, ...] = ("reader", "writer", "admin"),
        env: Mapping[str, str] | None = None,
        data: str = "data",
        tls: ssl.SSLContext | None = None,
    ) -> "Guarded":
        settings = {"REGISTRYD_AUTH__MODE": "required", "REGISTRYD_LOGGING__LEVEL": "debug"}
        daemon = await machine.launch(*flags, data=data, env={**settings, **(env or {})})

        def address() -> str:
            assert daemon.process.returncode is None, daemon.lines
            return next((entry["listen"][0] for entry in daemon.said("serving")), "")

        where = urlsplit(f"//{await until(address)}")
        assert where.port is not None
        guarded = cls(machine, daemon, "127.0.0.1", where.port, tls=tls)
        made = await asyncio.gather(*(guarded.create_key(kind) for kind in keys))
        guarded.keys = dict(zip(keys, made, strict=True))
        return guarded

    async def create_key(self, kind: str, *more: str) -> str:
        """The text of a new key for `<role>` or `<role> <prefix>`, from the command line."""
        role, _, prefix = kind.partition(" ")
        command = await self.machine.run(
            *("keys", "create", "--role", role, "-o", "json", "--data-dir"),
            *(str(self.daemon.data_dir), *(("--prefix", prefix) if prefix else ()), *more),
        )
        assert await command.exit_code() == 0, command.lines
        return str(json.loads(command.lines[-1])["key"])

    async def tell(self, data: bytes) -> Said:
        """Sends bytes on a connection of their own, and reads until the daemon closes it."""
        said = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
                try:
                    writer.write(data)
                    await writer.drain()
                    while part := await reader.read(65536):
                        said += part
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            pass  # what was said until then counts
        head, _, body = bytes(said).partition(b"\r\n\r\n")
        if b"\r\ntransfer-encoding: chunked" in head.lower():
            body = unchunked(body)
        words = head.split(b" ", 2)
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else NO_ANSWER
        return Said(status, head.decode("latin-1"), body, said.count(b"HTTP/1.1 "))

    async def ask(
        self, method: str, target: str, body: object = None, *headers: str, key: str = "admin"
    ) -> Said:
        """One request with a key; `key=""` sends none."""
        lines = [f"Authorization: Bearer {self.keys[key]}"] if key else []
        text = b"" if body is None else json.dumps(body).encode()
        return await self.tell(request(method, target, *lines, *headers, body=text))

    def alive(self) -> bool:
        return self.daemon.process.returncode is None

    def tracebacks(self) -> list[str]:
        return [
            line[:300] for line in self.daemon.lines if "Traceback" in line or '"exception"' in line
        ]

    def resident_kib(self) -> int:
        """Memory of the process, from /proc."""
        with open(f"/proc/{self.daemon.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1])


def routes() -> tuple[Route, ...]:
    """The route table of a daemon, without running one."""
    daemon = Daemon(Settings())
    daemon.wire(Connection("redis://localhost", Metrics()), {})
    return daemon.table
