"""Many clients at once on one store and its own clock: what they were told has to fit the log."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import pytest
from redis import Redis
from script_machine import Contents, check_derived

from registryd.feed.revision import Revision
from registryd.health.decide import Memory
from registryd.health.store import Held, report_of
from registryd.metrics import Metrics
from registryd.probing.types import Finding, Verdict
from registryd.registry.store import (
    Check,
    Claim,
    Entry,
    Refused,
    RegistryStore,
    Removed,
    Renewal,
    Renewed,
    Reported,
    Stored,
    StoreLimits,
)
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.storage.scripts import ScriptRunner, load

SECONDS: Final = 2.0
VERDICTS: Final[list[Verdict]] = ["healthy", "unhealthy"]
IDS: Final = [f"s{n % 5}:i{n}" for n in range(60)]
TTLS: Final = [30, 60, 120, 250]
SLACK_MS: Final = 2
"""The clocks of both processes are the same one, read in whole milliseconds."""


async def renew(store: RegistryStore, renewals: list[Renewal]) -> list[Renewed | Refused]:
    """An outcome for each, also for those that the store does not speak of."""
    answer = await store.renew(renewals)
    return [answer.of(position, renewal) for position, renewal in enumerate(renewals)]


@dataclass(frozen=True)
class Told:
    """One call, from just before to just after, and its answer."""

    what: str
    id: str
    nonce: str
    began: float
    ended: float
    answer: Any
    alone: bool = True
    ttl_ms: int = 0


def wall_ms() -> float:
    return time.time() * 1000


class Crowd:
    def __init__(self, connection: Connection, seed: int) -> None:
        keys = Keys()
        scripts = load(files("registryd.registry") / "lua", flags=True)
        runner = ScriptRunner(connection, scripts, keys.core, Metrics())
        self.stores = [RegistryStore(runner, keys, StoreLimits()) for _ in range(3)]
        self.random = random.Random(seed)
        self.told: list[Told] = []
        self.counted: Counter[str] = Counter()
        self.until = time.monotonic() + SECONDS

    @property
    def store(self) -> RegistryStore:
        return self.random.choice(self.stores)

    @property
    def going_on(self) -> bool:
        return time.monotonic() < self.until

    async def sent(
        self,
        what: str,
        identity: str,
        call: Callable[[RegistryStore, str], Awaitable[Any]],
        **more: Any,
    ) -> Any:
        """Sends an operation once, or, as a client library does after a timeout, several times."""
        nonce = self.store.nonce()
        copies = self.random.choice([1, 1, 1, 2, 3])
        began = wall_ms()
        answers = await asyncio.gather(*(call(self.store, nonce) for _ in range(copies)))
        if self.random.random() < 0.2:
            copies += 1
            await asyncio.sleep(self.random.random() * 0.2)
            answers.append(await call(self.store, nonce))
        # Refusals change nothing and are not remembered: the next copy may find other circumstances.
        if not isinstance(answers[0], Refused) and answers[0] not in {
            Reported("stale"),
            Reported("gone"),
        }:
            assert all(answer == answers[0] for answer in answers), answers
        self.told.append(
            Told(what, identity, nonce, began, wall_ms(), answers[0], copies == 1, **more)
        )
        return answers[0]

    async def register(self, identity: str, ttl_ms: int) -> None:
        terms = self.random.sample(["tag:a", "tag:b", "capability:c"], self.random.randint(0, 3))
        document = b'{"v":%d}' % self.random.randint(0, 2)
        check = self.random.choice([None, Check(20, 2, 2), Check(40, 1, 3)])
        entry = Entry(identity, document, terms, ttl_ms, "http://h", check)
        await self.sent(
            "register",
            identity,
            lambda store, nonce: store.register(entry, nonce=nonce),
            ttl_ms=ttl_ms,
        )

    async def deregister(self, identity: str) -> None:
        await self.sent(
            "deregister",
            identity,
            lambda store, nonce: store.deregister([identity], nonce=nonce),
        )

    async def beat(self) -> None:
        names = self.random.sample(IDS, 6)
        began = wall_ms()
        answers = await renew(self.store, [Renewal(name, "", 0) for name in names])
        ended = wall_ms()
        self.told += [
            Told("renew", name, "", began, ended, answer)
            for name, answer in zip(names, answers, strict=True)
        ]

    async def client(self) -> None:
        while self.going_on:
            identity = self.random.choice(IDS)
            match self.random.random():
                case draw if draw < 0.3:
                    await self.register(identity, self.random.choice(TTLS))
                case draw if draw < 0.85:
                    await self.beat()
                case draw if draw < 0.95:
                    await self.deregister(identity)
                case _:
                    await self.store.report_status(
                        identity, "", self.random.choice(["healthy", "degraded"])
                    )
            await asyncio.sleep(self.random.random() * 0.01)

    async def sweeper(self) -> None:
        while self.going_on:
            await self.store.sweep(None)
            await asyncio.sleep(self.random.random() * 0.02)

    async def prober(self) -> None:
        while self.going_on:
            for claim in (await self.store.claim_checks(5)).claims:
                await self.report(claim)
            await asyncio.sleep(0.005)

    async def report(self, claim: Claim) -> None:
        verdict = self.random.choice(VERDICTS)
        held = Held(claim, Memory.decode(claim.state))
        told = report_of(held, Finding(verdict=verdict, response_time_ms=1.0), {}, now="")
        token = json.loads(claim.state)["token"]
        # Once more under another nonce: only one of the two may count.
        for _ in range(self.random.choice([1, 2])):
            outcome = await self.sent(
                "report",
                claim.id,
                lambda store, nonce: store.report_check(claim, told, nonce=nonce),
            )
            self.counted[token] += outcome.outcome in {"counted", "changed"}

    async def run(self) -> None:
        tasks = [self.client() for _ in range(10)]
        await asyncio.gather(*tasks, self.sweeper(), self.sweeper(), self.prober(), self.prober())
        for identity in IDS[::2]:  # some that are there at the end
            await self.register(identity, 60_000)


@dataclass
class Life:
    """From a registration to its end, as the log has it."""

    began: float
    ended: float = float("inf")


class Log:
    """What the stream says: the lives of each id, the events of each operation, the last state."""

    def __init__(self, contents: Contents) -> None:
        self.lives: dict[str, list[Life]] = defaultdict(list)
        self.by_nonce: dict[tuple[str, str], list[tuple[str, Revision]]] = defaultdict(list)
        self.rows: dict[str, dict[str, Any]] = {}
        self.leases: dict[str, list[tuple[float, str, int]]] = defaultdict(list)
        previous = 0
        for at, fields in contents.entries:
            assert at.rev == previous + 1, "a gap"
            previous = at.rev
            identity, kind, ts = fields["id"], fields["type"], float(fields["ts"])
            self.by_nonce[fields["w"], identity].append((kind, at))
            if fields["row"]:
                assert (kind == "service:registered") == (identity not in self.rows), kind
                if identity not in self.rows:
                    self.lives[identity].append(Life(ts))
                self.rows[identity] = row = json.loads(fields["row"])
                self.leases[identity].append((ts, kind, row["ttl"]))
            else:
                del self.rows[identity]
                self.lives[identity][-1].ended = ts
                self.leases[identity].append((ts, kind, 0))
        assert previous == int(contents.meta["rev"])


def check_changes(log: Log, told: list[Told]) -> None:
    """Each acknowledged change stands in the log exactly once, under the revision that was told."""
    for call in told:
        # A renewal by registration of what has just died announces the death under the same nonce.
        made = [at for kind, at in log.by_nonce[call.nonce, call.id] if kind != "service:expired"]
        answer = call.answer
        if isinstance(answer, Removed) or (isinstance(answer, Stored) and answer.outcome != "same"):
            assert made == [answer.revision], call
        elif isinstance(answer, Stored | Refused):
            assert made == [], call


def check_order(told: list[Told]) -> None:
    """What was answered before another began has the lower revision."""
    writes = sorted(
        (call.ended, call.began, call.answer.revision)
        for call in told
        if call.alone
        and (
            isinstance(call.answer, Removed)
            or (isinstance(call.answer, Stored) and call.answer.outcome != "same")
        )
    )
    for number, (ended, _, revision) in enumerate(writes):
        for _, began, later in writes[number + 1 :]:
            assert began <= ended or revision < later


def check_heartbeats(log: Log, told: list[Told]) -> None:
    """A heartbeat was renewed only while its instance lived, and unknown only while it did not."""
    for call in told:
        if call.what != "renew":
            continue
        low, high = call.began - SLACK_MS, call.ended + SLACK_MS
        lives = log.lives[call.id]
        if isinstance(call.answer, Renewed):
            assert any(life.began <= high and life.ended >= low for life in lives), call
        else:
            assert not any(life.began < low and life.ended > high for life in lives), call


def check_deaths(log: Log, told: list[Told]) -> int:
    """Nobody was let go before its ttl was over, counted from the last sign of life."""
    beats = defaultdict(list)
    for call in told:
        if isinstance(call.answer, Renewed):
            beats[call.id].append(call)
    deaths = 0
    for identity, entries in log.leases.items():
        since, ttl = 0.0, 0
        for ts, kind, new_ttl in entries:
            if kind == "service:registered" or (kind == "service:updated" and new_ttl):
                since, ttl = ts, new_ttl
            elif kind == "service:expired":
                deaths += 1
                assert ts >= since + ttl, identity
                for call in beats[identity]:
                    if call.began > since + 1 and call.ended < ts - SLACK_MS:
                        assert ts >= call.began + ttl - SLACK_MS, call
    return deaths


@pytest.mark.timeout(30)
async def test_what_many_clients_are_told_fits_the_log(
    store: RegistryStore, connection: Connection, store_url: str
) -> None:
    crowd = Crowd(connection, seed=random.randrange(10_000))
    await crowd.run()
    store.now_ms = int(wall_ms()) + max(TTLS) + 1  # less than the cap: all short leases are over
    while (await store.sweep(None)).due:
        pass
    assert (await store.sweep(None)).instances == len(IDS[::2])
    with Redis.from_url(store_url) as client:
        contents = Contents(client)
    check_derived(contents)
    skew = int(contents.meta["skew"])
    assert {name: at for name, (_, at) in contents.shown.items()} == {
        name: deadline + skew for name, deadline in contents.leases.items()
    }
    log = Log(contents)
    assert {name: row | {"probed": 0} for name, row in log.rows.items()} == {
        name: json.loads(row) | {"probed": 0} for name, row in contents.inst.items()
    }
    check_changes(log, crowd.told)
    check_order(crowd.told)
    check_heartbeats(log, crowd.told)
    assert check_deaths(log, crowd.told) > 50
    assert max(crowd.counted.values()) == 1
