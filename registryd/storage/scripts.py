"""Loads Lua scripts and runs them: EVALSHA, and EVAL once where the store does not know one yet."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Final

from redis.exceptions import ResponseError

from registryd.metrics import Metrics
from registryd.storage.connection import Connection
from registryd.storage.pipelined import Argument

LIBRARY: Final = "lib"

ALLOW_OOM: Final = frozenset(
    {
        "heartbeat",
        "deregister",
        "sweep",
        "report_check",
        "report_status",
        "claim_checks",
        "monitoring",
        "health",
        "repair",
        "audit",
        "snapshot",
        "setup",
        "fan_turn",
        "webhook_claim",
        "webhook_report",
        "webhook_drop",
        "webhook_status",
    }
)
"""Scripts that run on a store that is out of memory: they read, keep or free, they
hardly add.

Without it a full store would refuse heartbeats, and so expire everybody because it is full.
"""


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: bytes
    sha: str


def load(folder: Traversable, *, flags: bool) -> dict[str, Script]:
    """The scripts in `folder`, each behind the library `lib.lua`.

    `flags` puts the `#!lua` line in front, which Redis 7, Valkey and later read; older stores and
    fakeredis take it for a syntax error.
    """
    sources = {
        entry.name.removesuffix(".lua"): entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }
    library = sources.pop(LIBRARY)
    scripts = {}
    for name, body in sources.items():
        head = b""
        if flags:
            head = b"#!lua flags=allow-oom\n" if name in ALLOW_OOM else b"#!lua\n"
        source = head + library + body
        scripts[name] = Script(
            name, source, hashlib.sha1(source, usedforsecurity=False).hexdigest()
        )
    return scripts


class ScriptRunner:
    """Runs scripts over fixed KEYS; knows nothing of what they mean."""

    def __init__(
        self,
        connection: Connection,
        scripts: dict[str, Script],
        keys: Iterable[str],
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._scripts = scripts
        self._keys = list(keys)
        self._calls = {name: metrics.store_calls.labels(name) for name in scripts}
        self._seconds = {name: metrics.store_call_seconds.labels(name) for name in scripts}

    async def run(self, name: str, arguments: Iterable[Argument]) -> Any:
        """The script's reply as bytes, ints and lists. Raises StorageUnavailable."""
        script = self._scripts[name]
        tail = (len(self._keys), *self._keys, *arguments)
        started = time.perf_counter()
        try:
            try:
                return await self._connection.script_call("EVALSHA", script.sha, *tail)
            except ResponseError as error:
                if not str(error).startswith(("NOSCRIPT", "No matching script")):
                    raise
                return await self._connection.script_call("EVAL", script.source, *tail)
        finally:
            self._calls[name].inc()
            self._seconds[name].observe(time.perf_counter() - started)
