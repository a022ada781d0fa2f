"""The measuring method: slices of all sides in turn, round after round, and the median of the ratios
within a round. What swings with the machine swings for both sides of a ratio."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from benchmarks import data
from benchmarks.load import GrpcLoad, Load, LoadFailed, Slice
from benchmarks.profiling import profile
from benchmarks.servers import Absent, Fleet, Server, cpu_seconds, on

NOISE: Final = 0.10
"""Differences below this are no findings."""

_SETTLE_SECONDS: Final = 0.02
_SETTLE_LOOKS: Final = 50


@dataclass(frozen=True, slots=True)
class Options:
    rounds: int = 11
    seconds: float = 1.0
    quick: bool = False
    profile_to: Path | None = None
    """Profile the daemon under the row's load into this file, instead of measuring."""


class Profiled(Exception):
    """The profile is written; the row has nothing more to do."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))

    @classmethod
    def exact(cls, value: float) -> "Spread":
        return cls(value, value, value, 1)


@dataclass(frozen=True, slots=True)
class Side:
    """One competitor of a comparison: a load, and how many things one answer of it stands for."""

    name: str
    load: Load | GrpcLoad
    server: Server
    each: float = 1.0
    load_cpus: frozenset[int] | None = None
    stretch: float = 1.0
    """How much longer its slices are: for one that would answer a handful of requests in a second."""


@dataclass
class Rounds:
    """What every side did in every round: things a second, and the CPU seconds a thing took of its
    server and of its server's store."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    store_cpu: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, ours: str, theirs: str) -> Spread:
        pairs = zip(self.rates[ours], self.rates[theirs], strict=True)
        return Spread.of([a / b for a, b in pairs])

    def seen(self, *names: str) -> str:
        """The absolute rates, and the CPU time of the server and (after +) of its store behind one."""
        told = " · ".join(self._seen(name) for name in names)
        if len(names) == 2 and all(map(any, (self.cpu[name] for name in names))):
            # Steadier than the rates where others use the machine too; knows no waiting, though.
            ours, theirs = (self.cpu[name] for name in names)
            pairs = zip(ours, theirs, strict=True)
            told += f"; by server CPU {short(statistics.median([b / a for a, b in pairs]))} x"
        return told

    def rates_of(self, *names: str) -> str:
        return " · ".join(
            f"{name} {short(statistics.median(self.rates[name]))}/s" for name in names
        )

    def _seen(self, name: str) -> str:
        rate = f"{name} {short(statistics.median(self.rates[name]))}/s"
        cpu, store = (statistics.median(each[name]) * 1e6 for each in (self.cpu, self.store_cpu))
        if not cpu:
            return rate
        return f"{rate} ({short(cpu)}{f' + {short(store)}' if store else ''} µs)"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `spread` None: not measured, `remark` says why."""

    row: str
    what: str
    spread: Spread | None
    floor: float | None = None
    aim: float | None = None
    better: Literal["more", "less"] = "more"
    unit: str = "x"
    seen: str = ""
    remark: str = ""
    counted: bool = False
    """A counter, which does not wander: no allowance for noise."""

    @property
    def verdict(self) -> str:
        if self.spread is None:
            return f"skipped: {self.remark}"
        value = self.spread.median
        if self.floor is None and self.aim is None:
            return "no goal"
        if self.aim is not None and self._reaches(value, self.aim):
            return "aim met"
        if self.floor is None:
            return "aim missed"
        if self._reaches(value, self.floor):
            return "floor met"
        near = value / (1 - NOISE) if self.better == "more" else value * (1 - NOISE)
        if not self.counted and self._reaches(near, self.floor):
            return "at the floor (within 10 %)"
        return "BELOW THE FLOOR"

    def _reaches(self, value: float, goal: float) -> bool:
        return value >= goal if self.better == "more" else value <= goal


class Bench:
    """What a row is given to measure with."""

    def __init__(self, options: Options, fleet: Fleet, say: Callable[[str], None]) -> None:
        self.options = options
        self.fleet = fleet
        self.say = say

    def compare(self, sides: Sequence[Side]) -> Rounds:
        """Slices of every side in turn. Raises LoadFailed when a server refuses requests."""
        if self.options.profile_to is not None:
            self._profile(sides, self.options.profile_to)
        for side in sides:
            self.say(f"warming up {side.name}")
            self._slice(side, 1.0)
        rounds = Rounds()
        for number in range(1, self.options.rounds + 1):
            told = []
            for side in sides:
                self._settle(sides)
                server = side.server
                before, store_before = self._cpu(server.pid), self._cpu(server.store_pid)
                slice_ = self._slice(side, self.options.seconds)
                things = slice_.answers * side.each
                rounds.rates.setdefault(side.name, []).append(slice_.rate * side.each)
                used = self._cpu(server.pid) - before
                store_used = self._cpu(server.store_pid) - store_before
                rounds.cpu.setdefault(side.name, []).append(used / things)
                rounds.store_cpu.setdefault(side.name, []).append(store_used / things)
                told.append(f"{side.name} {short(slice_.rate * side.each)}/s")
            self.say(f"round {number}/{self.options.rounds}: {', '.join(told)}")
        return rounds

    def once(self, side: Side) -> Slice:
        """One slice, for rows that count rather than compare."""
        return self._slice(side, self.options.seconds)

    def optional(self, start: Callable[[], Server]) -> tuple[Server | None, str]:
        """A peer, or why there is none."""
        try:
            return start(), ""
        except Absent as absent:
            self.say(f"without {absent}")
            return None, f"no {absent}"

    def load(
        self,
        name: str,
        server: Server,
        requests: data.Requests,
        *,
        connections: int = 64,
        size: tuple[int, int] = (1, 1 << 40),
    ) -> Load:
        return Load(server.port, requests, self.fleet.folder, name, connections, size)

    def _slice(self, side: Side, seconds: float) -> Slice:
        with on(side.load_cpus or self.fleet.cpus.load):
            return side.load.run(seconds * side.stretch)

    def _settle(self, sides: Sequence[Side]) -> None:
        """Waits, not for long, until no server works any more on what the last slice left under way:
        they share a CPU, and would work at the expense of the next."""
        pids = {side.server.pid for side in sides}
        for _ in range(_SETTLE_LOOKS):
            before = sum(map(self._cpu, pids))
            time.sleep(_SETTLE_SECONDS)
            if sum(map(self._cpu, pids)) - before < _SETTLE_SECONDS / 10:
                return

    def _cpu(self, pid: int) -> float:
        """0 where there is no such process, or the kernel does not tell."""
        try:
            return cpu_seconds(pid) if pid else 0.0
        except Absent:
            return 0.0

    def _profile(self, sides: Sequence[Side], to: Path) -> None:
        side = next((each for each in sides if each.server.name == "registryd"), None)
        if side is None:
            raise LoadFailed("this row loads no registryd that could be profiled")
        self.say(f"warming up {side.name}")
        self._slice(side, 1.0)
        seconds = max(10.0, self.options.rounds * self.options.seconds)
        self.say(f"profiling {side.name} for {seconds:.0f} s")
        rate = profile(side.server, lambda: self._slice(side, 1.0).rate * side.each, seconds, to)
        self.say(f"{short(rate)}/s while it was watched; profile in {to.name}")
        raise Profiled


def short(value: float) -> str:
    """Three digits, thousands as k."""
    if value >= 9950:
        return f"{value / 1000:.0f}k" if value >= 99_500 else f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
