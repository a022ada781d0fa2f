"""Slices of load: so and so many connections, each waiting for its answer, for so and so many seconds.

wrk does it where it is installed, fed by Lua that is written here; else a client in Python, which is
slower than the servers it loads (the report says which). gRPC has a client of its own, in a process
of its own.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.client import drive, for_seconds, send_all
from benchmarks.data import Field, Requests, Ring

_SPARE: Final = 10_000
"""A slice starts that far beyond where the last one ended: what was under way then is not asked again."""

_DONE: Final = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nSLICE {"answers":%d,"micros":%d,"bytes":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.status,
    e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""

_RING: Final = """
local ring, count, at = {}, 0, 0
function init(args)
  local file = io.open(%s, "rb")
  local text = file:read("*a")
  file:close()
  for each in text:gmatch("[^%%z]+") do count = count + 1; ring[count] = each end
  at = tonumber(args[1]) %% count
end
function request()
  at = at %% count + 1
  return ring[at]
end
"""

_COUNTED: Final = """
local format, floor = string.format, math.floor
local render = {%s}
local kinds, at, shown = #render, 0, false
function init(args) at = tonumber(args[1]) end
function request()
  local made = render[at %% kinds + 1](floor(at / kinds))
  -- wrk takes the first request for a look, and does not send it.
  if shown then at = at + 1 else shown = true end
  return made
end
"""


class LoadFailed(Exception):
    """A server refused or dropped requests, so its rate says nothing."""


@dataclass(frozen=True, slots=True)
class Slice:
    rate: float
    answers: int
    bytes_each: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass
class Load:
    """One kind of requests against one port. `size` bounds the bytes of an answer, head included: a
    wrong answer is seldom of the right size."""

    port: int
    requests: Requests
    folder: Path
    name: str
    connections: int = 64
    size: tuple[int, int] = (1, 1 << 40)
    before: Callable[[int], Iterable[bytes]] | None = None
    """What has to be sent before a slice that starts at the request of that number."""
    _next: int = field(default=0, init=False)
    _script: Path | None = field(default=None, init=False)

    def run(self, seconds: float) -> Slice:
        tool = shutil.which("wrk")
        if self.before is not None:
            send_all(self.port, self.before(self._next))
        slice_ = self._wrk(tool, seconds) if tool else self._python(seconds)
        self._next += (slice_.answers + _SPARE) // 2 * 2  # templates come in ones and twos
        low, high = self.size
        if not low <= slice_.bytes_each <= high:
            raise LoadFailed(
                f"{self.name}: answers of {slice_.bytes_each:.0f} bytes, expected {low} to {high}"
            )
        return slice_

    def _wrk(self, tool: str, seconds: float) -> Slice:
        if self._script is None:
            self._script = self._write_script()
        command = [
            tool, "-t1", f"-c{self.connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
            "-s", str(self._script), f"http://127.0.0.1:{self.port}", "--", str(self._next),
        ]  # fmt: skip
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 60, check=False
        )
        found = re.search(r"^SLICE (.*)$", ended.stdout, re.MULTILINE)
        if ended.returncode or found is None:
            raise LoadFailed(f"{self.name}: wrk said {(ended.stderr or ended.stdout)[-500:]}")
        told: dict[str, Any] = json.loads(found[1])
        return self._slice(told, told["micros"] / 1e6)

    def _python(self, seconds: float) -> Slice:
        tally = asyncio.run(
            drive(self.port, for_seconds(self.requests, self._next, seconds), self.connections)
        )
        return self._slice(vars(tally), tally.seconds)

    def _slice(self, told: dict[str, Any], seconds: float) -> Slice:
        if told["refused"] or told["broken"] or not told["answers"]:
            raise LoadFailed(
                f"{self.name}: of {told['answers']} requests {told['refused']} were refused, "
                f"{told['broken']} connections broke"
            )
        return Slice(
            told["answers"] / seconds,
            told["answers"],
            told["bytes"] / told["answers"],
            told.get("p50", 0) / 1000,
            told.get("p99", 0) / 1000,
        )

    def _write_script(self) -> Path:
        stem = re.sub(r"\W+", "-", self.name)
        script = self.folder / f"{stem}-{self.port}.lua"
        requests = self.requests
        if isinstance(requests, Ring):
            ring = script.with_suffix(".ring")
            ring.write_bytes(b"\0".join(requests.requests))
            body = _RING % _quoted(str(ring))
        else:
            body = _COUNTED % ", ".join(map(_renderer, requests.templates))
        script.write_text(body + _DONE)
        return script


def _renderer(kind: tuple[str, tuple[Field, ...]]) -> str:
    """One kind of counted requests as a Lua function of its number."""
    template, fields = kind
    values = [f"floor(n / {each.divisor}) % {each.modulus} + {each.offset}" for each in fields]
    return f"function(n) return format({', '.join([_quoted(template), *values])}) end"


def _quoted(text: str) -> str:
    """A Lua string."""
    plain = set(range(32, 127)) - {ord('"'), ord("\\")}
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03d}" for b in text.encode()) + '"'


@dataclass
class GrpcLoad:
    """Calls over gRPC: unary ones, each stream one call, or messages on streams that stay open.

    `outstanding` messages are under way on each of `streams` streams, over `connections` connections.
    """

    port: int
    path: str
    messages: list[bytes]
    folder: Path
    name: str
    unary: bool = False
    streams: int = 64
    outstanding: int = 1
    connections: int = 1
    size: tuple[int, int] = (1, 1 << 40)

    def run(self, seconds: float) -> Slice:
        wish = {
            "port": self.port,
            "path": self.path,
            "messages": [message.hex() for message in self.messages],
            "unary": self.unary,
            "streams": self.streams,
            "outstanding": self.outstanding,
            "connections": self.connections,
            "seconds": seconds,
        }
        ended = subprocess.run(
            [sys.executable, "-m", "benchmarks.grpc_load"],
            input=json.dumps(wish), capture_output=True, text=True, timeout=seconds + 60, check=False,
        )  # fmt: skip
        if ended.returncode:
            raise LoadFailed(f"{self.name}: {ended.stderr[-800:]}")
        told = json.loads(ended.stdout)
        if not told["answers"]:
            raise LoadFailed(f"{self.name}: no answers")
        each = told["bytes"] / told["answers"]
        low, high = self.size
        if not low <= each <= high:
            raise LoadFailed(f"{self.name}: {each:.0f} bytes an answer, expected {low} to {high}")
        return Slice(told["answers"] / told["seconds"], told["answers"], each)
