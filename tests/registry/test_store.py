"""What each script does, on a real store, mostly on a clock of the test's own."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from importlib.resources import files
from typing import Any

import pytest
from redis.exceptions import ResponseError

from registryd.errors import StartupRefused, StorageUnavailable
from registryd.feed.revision import Revision
from registryd.health.decide import Memory
from registryd.health.store import Held, report_of
from registryd.metrics import Metrics
from registryd.probing.types import Finding, Verdict
from registryd.registry.document import Admin, Row, compose
from registryd.registry.store import (
    SWEEP_LIMIT,
    Check,
    Claim,
    Entry,
    Guard,
    Refused,
    RegistryStore,
    Removed,
    Renewal,
    Renewed,
    Stored,
    StoreLimits,
    Swept,
)
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.storage.scripts import ScriptRunner, load

START = 4_000_000_000_000
"""In the year 2096, so that no expiring key ends by the store's own clock during a test."""

TTL = 10_000
GUARD = Guard(5, 0.15, timedelta(minutes=5))
MAINTENANCE = b'{"state":"maintenance","by":"ops","reason":"a \\"quoted\\" / reason"}'
DRAINING = b'{"state":"draining","by":"ops"}'


async def renew(store: RegistryStore, renewals: list[Renewal]) -> list[Renewed | Refused]:
    """An outcome for each, also for those that the store does not speak of."""
    answer = await store.renew(renewals)
    return [answer.of(position, renewal) for position, renewal in enumerate(renewals)]


@pytest.fixture
def clocked(store: RegistryStore) -> RegistryStore:
    """The store, on a clock that stands still until the test moves it."""
    store.now_ms = START
    return store


def entry(
    name: str = "a:1",
    *,
    terms: Sequence[str] = (),
    ttl_ms: int = TTL,
    port: int = 80,
    check: Check | None = None,
) -> Entry:
    endpoint = f"http://h:{port}"
    document = json.dumps(
        {"name": name, "endpoint": endpoint, "list": [], "n": 12345678901234567890}
    )
    return Entry(name, document.encode(), list(terms), ttl_ms, endpoint, check)


def done(answer: Stored | Refused) -> Stored:
    assert isinstance(answer, Stored), answer
    return answer


async def register(store: RegistryStore, name: str = "a:1", **options: Any) -> Stored:
    return done(await store.register(entry(name, **options)))


async def drain(store: RegistryStore, name: str = "a:1", seconds: int = 5) -> Stored:
    return done(
        await store.amend(name, reason="drain", admin=DRAINING, drain=timedelta(seconds=seconds))
    )


async def beat(store: RegistryStore, *names: str) -> list[Renewed | Refused]:
    return await renew(store, [Renewal(name, "", TTL) for name in names])


async def live_on(store: RegistryStore, ms: int, *, beating: Sequence[str] = ()) -> list[str]:
    """Lets a daemon of 500 ms sweeps run; answers with the ids that went."""
    gone: list[str] = []
    for _ in range(ms // 500):
        store.now_ms += 500
        if beating:
            await beat(store, *beating)
        gone += (await store.sweep(None)).removed
    return gone


async def sweep_all(
    store: RegistryStore, guard: Guard | None, *, force: bool = False
) -> list[Swept]:
    """As the reaper does: until nothing is due."""
    sweeps = [await store.sweep(guard, force=force)]
    while sweeps[-1].due or (force and sweeps[-1].held):
        sweeps.append(await store.sweep(guard, force=force))
    return sweeps


def gone(sweeps: Sequence[Swept]) -> list[str]:
    return [name for swept in sweeps for name in swept.removed]


class Eyes:
    """Reads the store behind the scripts' backs."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self.do = connection.call
        self.keys = keys
        self.core = dict(zip(("meta", "leases", "renew", "inst", "docs"), keys.core, strict=False))

    async def events(self) -> list[dict[str, Any]]:
        entries = await self.do("XRANGE", self.keys.stream, "-", "+")
        return [
            {"at": at.decode()} | {key.decode(): value.decode() for key, value in fields.items()}
            for at, fields in entries
        ]

    async def kinds(self) -> list[tuple[str, str]]:
        return [(event["type"], event["id"]) for event in await self.events()]

    async def members(self, term: str) -> set[str]:
        return {name.decode() for name in await self.do("SMEMBERS", self.keys.index(term))}

    async def shown(self, name: str = "a:1") -> dict[str, Any]:
        raw = await self.do("GET", self.keys.instance(name))
        value: dict[str, Any] = json.loads(raw)
        return value

    async def expiry(self, name: str = "a:1") -> int:
        return int(await self.do("PEXPIRETIME", self.keys.instance(name)))

    async def row(self, name: str = "a:1") -> Row:
        return Row.decode(await self.do("HGET", self.core["inst"], name))

    async def dump(self) -> dict[bytes, Any]:
        """Every key but the clock's: to tell that nothing at all has changed."""
        names = sorted(await self.do("KEYS", "*"))
        return {name: await self.do("DUMP", name) for name in names}


@pytest.fixture
def eyes(connection: Connection, keys: Keys) -> Eyes:
    return Eyes(connection, keys)


# --- registering


async def test_a_first_registration_is_the_first_revision(clocked: RegistryStore) -> None:
    stored = await register(clocked)
    assert stored.outcome == "registered"
    assert stored.revision == Revision(START, 1)
    assert stored.expires_at_ms == START + TTL
    assert stored.row.registered_at == stored.row.updated_at == "2096-10-02T07:06:40.000Z"


async def test_the_same_registration_renews_and_makes_no_event(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    first = await register(clocked)
    clocked.now_ms += 400
    again = await register(clocked)
    assert again.outcome == "same"
    assert again.row == first.row
    assert again.expires_at_ms == await eyes.expiry() == START + 400 + TTL
    assert await eyes.kinds() == [("service:registered", "a:1")]


async def test_a_changed_registration_is_an_update_with_a_new_incarnation(
    clocked: RegistryStore,
) -> None:
    first = await register(clocked)
    second = await register(clocked, port=81)
    assert second.outcome == "updated"
    assert second.row.incarnation != first.row.incarnation
    assert second.row.registered_at == first.row.registered_at


async def test_a_changed_registration_keeps_the_health(clocked: RegistryStore) -> None:
    await clocked.register(entry(), claim="healthy")
    assert (await register(clocked, port=81)).row.health == "healthy"


async def test_an_incarnation_that_a_client_names_is_kept(clocked: RegistryStore) -> None:
    first = done(await clocked.register(entry(), incarnation="mine"))
    again = done(await clocked.register(entry(), incarnation="mine"))
    other = done(await clocked.register(entry(), incarnation="other"))
    assert (first.row.incarnation, again.outcome, other.outcome) == ("mine", "same", "updated")


@pytest.mark.parametrize("expected", ["absent", "current"])
async def test_a_registration_takes_place_at_the_expected_revision(
    clocked: RegistryStore, expected: str
) -> None:
    if expected == "current":
        expected = str((await register(clocked)).revision)
    assert isinstance(await clocked.register(entry(port=81), expected=expected), Stored)


@pytest.mark.parametrize("expected", ["absent", "1-1"])
async def test_a_registration_at_another_revision_changes_nothing(
    clocked: RegistryStore, eyes: Eyes, expected: str
) -> None:
    await register(clocked)
    before = await eyes.dump()
    assert await clocked.register(entry(port=81), expected=expected) == Refused("mismatch")
    assert await eyes.dump() == before


async def test_an_instance_whose_lease_is_over_counts_as_absent(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked, ttl_ms=400)
    clocked.now_ms += 500
    stored = done(await clocked.register(entry(), expected="absent"))
    assert stored.outcome == "registered"
    assert [kind for kind, _ in await eyes.kinds()] == [
        "service:registered",
        "service:expired",
        "service:registered",
    ]


async def test_an_exclusive_registration_is_refused_while_another_endpoint_holds_the_id(
    clocked: RegistryStore,
) -> None:
    await register(clocked, ttl_ms=400)
    other = entry(port=81)
    assert await clocked.register(other, exclusive=True) == Refused("taken")
    assert done(await clocked.register(entry(ttl_ms=400), exclusive=True)).outcome == "same"
    clocked.now_ms += 500
    assert done(await clocked.register(other, exclusive=True)).outcome == "registered"


async def test_a_claim_of_health_counts_until_the_first_probe(clocked: RegistryStore) -> None:
    probed = entry(check=Check(1_000, 1, 1))
    assert done(await clocked.register(probed, claim="healthy")).row.health == "healthy"
    assert done(await clocked.register(probed, claim="degraded")).row.health == "degraded"
    [claim] = (await clocked.claim_checks(1)).claims
    await report(clocked, claim, "healthy")
    assert done(await clocked.register(probed, claim="degraded")).row.health == "healthy"


async def test_a_claim_counts_again_once_nothing_probes_any_more(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(1_000, 1, 1))
    [claim] = (await clocked.claim_checks(1)).claims
    await report(clocked, claim, "unhealthy")
    await register(clocked)
    assert await clocked.report_status("a:1", "", "healthy") is not None
    assert done(await clocked.register(entry(), claim="degraded")).row.health == "degraded"


async def test_a_patch_that_ends_probing_lets_reports_count_again(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(1_000, 1, 1))
    [claim] = (await clocked.claim_checks(1)).claims
    await report(clocked, claim, "unhealthy")
    await clocked.amend("a:1", reason="patch", entry=entry())
    assert await clocked.report_status("a:1", "", "healthy") is not None


async def test_index_sets_follow_the_terms(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked, terms=["capability:x", "tag:é/1"])
    await register(clocked, terms=["tag:é/1", "version:1.0"])
    assert await eyes.members("capability:x") == set()
    assert await eyes.members("tag:é/1") == {"a:1"}
    assert await eyes.members("version:1.0") == {"a:1"}
    assert await eyes.members("health:unknown") == {"a:1"}


# --- amending


async def test_a_patch_keeps_incarnation_and_deadline(clocked: RegistryStore, eyes: Eyes) -> None:
    first = await register(clocked)
    clocked.now_ms += 400
    stored = done(await clocked.amend("a:1", reason="patch", entry=entry(port=81, ttl_ms=20_000)))
    assert stored.outcome == "amended"
    assert stored.row.incarnation == first.row.incarnation
    assert stored.expires_at_ms == await eyes.expiry() == START + TTL
    assert stored.row.ttl_ms == 20_000


async def test_a_patch_that_changes_nothing_makes_no_event(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked)
    assert done(await clocked.amend("a:1", reason="patch", entry=entry())).outcome == "same"
    assert len(await eyes.events()) == 1


async def test_a_patch_of_what_is_not_there_is_unknown(clocked: RegistryStore) -> None:
    assert await clocked.amend("a:1", reason="patch", entry=entry()) == Refused("unknown")


async def test_a_patch_at_another_revision_is_a_mismatch(clocked: RegistryStore) -> None:
    await register(clocked)
    answer = await clocked.amend("a:1", reason="patch", entry=entry(port=81), expected="1-1")
    assert answer == Refused("mismatch")


async def test_maintenance_hides_the_health_and_its_end_shows_it_again(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await clocked.register(entry(), claim="healthy")
    await clocked.amend("a:1", reason="work", admin=MAINTENANCE)
    assert (await eyes.shown())["health"]["status"] == "maintenance"
    assert (await eyes.shown())["admin"] == json.loads(MAINTENANCE)
    assert await eyes.members("health:maintenance") == {"a:1"}
    await clocked.amend("a:1", reason="done", admin="none")
    assert (await eyes.shown())["health"]["status"] == "healthy"
    assert "admin" not in await eyes.shown()
    assert await eyes.members("health:maintenance") == set()
    assert [kind for kind, _ in await eyes.kinds()][1:] == ["service:health:changed"] * 2


async def test_maintenance_ends_at_its_until(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked)
    await clocked.amend("a:1", reason="m", admin=MAINTENANCE, admin_end_ms=START + 300)
    clocked.now_ms += 299
    await clocked.sweep(None)
    assert "admin" in await eyes.shown()
    clocked.now_ms += 1
    await clocked.sweep(None)
    assert "admin" not in await eyes.shown()
    last = (await eyes.events())[-1]
    assert (last["type"], last["reason"]) == ("service:health:changed", "maintenance ended")


async def test_maintenance_outlives_a_crash_and_not_a_deregistration(
    clocked: RegistryStore,
) -> None:
    await register(clocked, ttl_ms=2_000)
    await clocked.amend("a:1", reason="m", admin=MAINTENANCE)
    assert await live_on(clocked, 2_500) == ["a:1"]
    assert (await register(clocked)).admin == Admin.decode(MAINTENANCE)
    await clocked.deregister(["a:1"])
    assert (await register(clocked)).admin == Admin()


async def test_maintenance_of_the_gone_ends_too(clocked: RegistryStore) -> None:
    await register(clocked, ttl_ms=2_000)
    await clocked.amend("a:1", reason="m", admin=MAINTENANCE, admin_end_ms=START + 3_000)
    await live_on(clocked, 3_500)
    assert (await register(clocked)).admin == Admin()


# --- draining


async def test_a_drain_ends_as_unregistered(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked)
    assert (await drain(clocked, seconds=2)).expires_at_ms == START + 2_000
    assert await live_on(clocked, 2_500) == ["a:1"]
    last = (await eyes.events())[-1]
    assert (last["type"], last["reason"]) == ("service:unregistered", "drained")


async def test_renewals_and_registrations_do_not_extend_a_drain(clocked: RegistryStore) -> None:
    await register(clocked)
    await drain(clocked, seconds=2)
    clocked.now_ms += 400
    assert await beat(clocked, "a:1") == [Renewed(TTL, START + 2_000)]
    assert (await register(clocked)).expires_at_ms == START + 2_000
    assert (await register(clocked, port=81)).expires_at_ms == START + 2_000
    assert await beat(clocked, "a:1") == [Renewed(TTL, START + 2_000)]
    assert await live_on(clocked, 2_000) == ["a:1"]


async def test_a_drain_that_is_called_off_gives_the_lease_back(clocked: RegistryStore) -> None:
    await register(clocked)
    await drain(clocked, seconds=2)
    clocked.now_ms += 400
    stored = done(await clocked.amend("a:1", reason="back", admin="none"))
    assert stored.expires_at_ms == START + 400 + TTL
    clocked.now_ms += 100
    assert await beat(clocked, "a:1") == [Renewed(TTL, START + 500 + TTL)]


@pytest.mark.parametrize("beaten", [False, True])
async def test_a_drain_that_is_called_off_leaves_who_keeps_the_lease(
    clocked: RegistryStore, eyes: Eyes, *, beaten: bool
) -> None:
    await register(clocked, check=Check(1_000, 1, 1))
    if beaten:
        await beat(clocked, "a:1")
    await drain(clocked)
    await clocked.amend("a:1", reason="back", admin="none")
    clocked.now_ms += 500
    [claim] = (await clocked.claim_checks(1)).claims
    await report(clocked, claim, "healthy")
    assert await eyes.expiry() == START + TTL + (0 if beaten else 500)


async def test_the_end_given_with_a_drain_does_not_turn_it_into_a_death(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked)
    await clocked.amend(
        "a:1",
        reason="drain",
        admin=DRAINING,
        admin_end_ms=START + 1_000,
        drain=timedelta(seconds=1),
    )
    assert await live_on(clocked, 1_500) == ["a:1"]
    assert (await eyes.kinds())[-1] == ("service:unregistered", "a:1")


# --- heartbeats


async def test_a_heartbeat_of_the_unknown_creates_nothing(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    assert await beat(clocked, "a:1") == [Refused("unknown")]
    assert await eyes.do("EXISTS", *eyes.keys.core[1:]) == 0


async def test_a_heartbeat_of_a_predecessor_is_superseded(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    stored = await register(clocked)
    clocked.now_ms += 100
    answers = await renew(clocked, [Renewal("a:1", "old", TTL)])
    assert answers == [Refused("superseded", stored.row.incarnation)]
    assert await eyes.expiry() == START + TTL


async def test_a_heartbeat_learns_the_real_ttl(clocked: RegistryStore) -> None:
    await register(clocked)
    answers = await renew(clocked, [Renewal("a:1", "", 0)])
    assert answers == [Renewed(TTL, START + TTL)]


async def test_a_batch_answers_each_in_its_place(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked, "a:1")
    b = await register(clocked, "b.c:x:~9")
    clocked.now_ms += 500
    answers = await renew(
        clocked,
        [
            Renewal("a:0", "", TTL),
            Renewal("a:1", "", TTL),
            Renewal("b.c:x:~9", "old", TTL),
            Renewal("b.c:x:~9", b.row.incarnation, 7),
            Renewal("a:1", "", TTL),
        ],
    )
    renewed = Renewed(TTL, START + 500 + TTL)
    assert answers == [
        Refused("unknown"),
        renewed,
        Refused("superseded", b.row.incarnation),
        renewed,
        renewed,
    ]
    assert await eyes.expiry("a:1") == await eyes.expiry("b.c:x:~9") == START + 500 + TTL


async def test_a_heartbeat_writes_a_lost_expiring_key_again(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked)
    before = await eyes.shown()
    await eyes.do("DEL", eyes.keys.instance("a:1"))
    clocked.now_ms += 300
    await beat(clocked, "a:1")
    assert await eyes.shown() == before
    assert await eyes.expiry() == START + 300 + TTL


async def test_a_late_heartbeat_renews_until_the_sweep(clocked: RegistryStore) -> None:
    await register(clocked, ttl_ms=400)
    clocked.now_ms += 500
    assert await renew(clocked, [Renewal("a:1", "", 400)]) == [Renewed(400, START + 900)]
    assert (await clocked.sweep(None)).removed == []


async def test_a_heartbeat_after_the_sweep_is_unknown(clocked: RegistryStore) -> None:
    await register(clocked, ttl_ms=400)
    clocked.now_ms += 500
    assert (await clocked.sweep(None)).removed == ["a:1"]
    assert await beat(clocked, "a:1") == [Refused("unknown")]


async def test_a_lease_ends_after_its_deadline_and_not_at_it(clocked: RegistryStore) -> None:
    await register(clocked, ttl_ms=400)
    clocked.now_ms += 400
    assert (await clocked.sweep(None)).removed == []
    clocked.now_ms += 1
    assert (await clocked.sweep(None)).removed == ["a:1"]


async def test_on_the_stores_own_clock_the_expiring_key_ends_with_the_lease(
    store: RegistryStore, eyes: Eyes
) -> None:
    stored = await register(store)
    assert await eyes.expiry() == stored.expires_at_ms
    [renewed] = await beat(store, "a:1")
    assert isinstance(renewed, Renewed)
    assert await eyes.expiry() == renewed.expires_at_ms


# --- deregistering


async def test_many_go_at_once_with_one_event_each(clocked: RegistryStore, eyes: Eyes) -> None:
    for name in ("a:1", "a:2"):
        await register(clocked, name, terms=["tag:t"], check=Check(1_000, 1, 1))
    answer = await clocked.deregister(["a:1", "a:0", "a:2", "a:1"])
    assert answer == Removed(Revision(START, 4), 2)
    assert (await eyes.kinds())[2:] == [
        ("service:unregistered", "a:1"),
        ("service:unregistered", "a:2"),
    ]
    left = {name.decode() for name in await eyes.do("KEYS", "ossa:*")}
    assert {name for name in left if not name.startswith("ossa:ops:")} == {
        "ossa:meta",
        "ossa:stream",
        "ossa:tombstones",
    }


async def test_none_goes_when_one_is_superseded_or_at_another_revision(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    first = await register(clocked, "a:1")
    second = await register(clocked, "a:2")
    refused = await clocked.deregister(["a:1", "a:2"], incarnation=first.row.incarnation)
    assert refused == Refused("superseded", second.row.incarnation)
    assert await clocked.deregister(["a:1", "a:2"], expected=str(first.revision)) == Refused(
        "mismatch"
    )
    assert len(await eyes.events()) == 2


async def test_a_deregistration_of_nothing_is_unknown(clocked: RegistryStore) -> None:
    assert await clocked.deregister(["a:1"]) == Refused("unknown")


async def test_a_retried_deregistration_spares_the_successor(clocked: RegistryStore) -> None:
    await register(clocked)
    first = await clocked.deregister(["a:1"], nonce="once")
    await register(clocked)
    assert await clocked.deregister(["a:1"], nonce="once") == first
    assert (await clocked.sweep(None)).instances == 1


async def test_a_tombstone_stands_until_the_next_registration(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked)
    await clocked.deregister(["a:1"])
    tombstone = json.loads(await eyes.do("HGET", eyes.keys.tombstones, "a:1"))
    assert tombstone == {"epoch": str(START), "rev": 2, "at": START}
    await register(clocked)
    assert await eyes.do("HLEN", eyes.keys.tombstones) == 0


# --- operations sent twice


async def test_a_retry_gets_the_first_answer_and_changes_nothing(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    first = await clocked.register(entry(), nonce="one")
    await clocked.register(entry(port=81), nonce="two")
    amended = await clocked.amend("a:1", reason="m", admin=MAINTENANCE, nonce="three")
    clocked.now_ms += 700
    before = await eyes.dump()
    assert await clocked.register(entry(), nonce="one") == first
    assert await clocked.amend("a:1", reason="m", admin=MAINTENANCE, nonce="three") == amended
    assert await eyes.dump() == before


async def test_answers_are_kept_for_120_seconds(clocked: RegistryStore, eyes: Eyes) -> None:
    await clocked.register(entry(), nonce="one")
    assert 119_000 < await eyes.do("PTTL", "ossa:ops:one") <= 120_000


# --- what an instance says of itself


async def test_a_report_changes_the_health_once(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked)
    details = ',"details":{"é":[]}'.encode()
    assert await clocked.report_status("a:1", "", "healthy", details) == Revision(START, 2)
    assert await clocked.report_status("a:1", "", "healthy") is None
    health = (await eyes.shown())["health"]
    assert (health["status"], health["details"]) == ("healthy", {"é": []})
    assert await eyes.members("health:unknown") == set()


async def test_a_report_of_the_unknown_or_superseded_changes_nothing(
    clocked: RegistryStore,
) -> None:
    assert await clocked.report_status("a:1", "", "healthy") is None
    await register(clocked)
    assert await clocked.report_status("a:1", "old", "healthy") is None


async def test_a_report_does_not_count_after_the_first_probe(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(1_000, 2, 2))
    [claim] = (await clocked.claim_checks(1)).claims
    assert await report(clocked, claim, "healthy") == "counted"
    assert await clocked.report_status("a:1", "", "degraded") is None


async def test_a_report_during_maintenance_stays_hidden(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked)
    await clocked.amend("a:1", reason="m", admin=MAINTENANCE)
    await clocked.report_status("a:1", "", "unhealthy")
    assert (await eyes.kinds())[-1] == ("service:updated", "a:1")
    assert (await eyes.shown())["health"]["status"] == "maintenance"
    assert await eyes.members("health:unhealthy") == set()


# --- checks


async def report(
    store: RegistryStore, claim: Claim, found: Verdict, *, nonce: str | None = None
) -> str:
    """Reports what a probe found, as the checker would; answers with the outcome."""
    held = Held(claim, Memory.decode(claim.state))
    finding = Finding(verdict=found, response_time_ms=1.0, error="x")
    told = report_of(held, finding, {}, now="2026-01-01T00:00:00.000Z")
    return (await store.report_check(claim, told, nonce=nonce)).outcome


async def probe(store: RegistryStore, found: Verdict) -> str:
    """One round: claims the only check when it is due, and reports."""
    store.now_ms += 500
    [claim] = (await store.claim_checks(10)).claims
    return await report(store, claim, found)


async def test_health_changes_at_the_thresholds(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked, check=Check(500, 2, 3))
    found = ["healthy"] * 2 + ["unhealthy"] * 2 + ["degraded"] + ["unhealthy"] * 3
    outcomes = [await probe(clocked, status) for status in found]
    assert outcomes == ["counted", "changed"] + ["counted"] * 5 + ["changed"]
    assert (await eyes.row()).health == "unhealthy"
    changes = [e for e in await eyes.events() if e["type"] == "service:health:changed"]
    assert [change["old"] for change in changes] == ["unknown", "healthy"]


async def test_a_claimed_check_is_not_given_twice_before_its_next_turn(
    clocked: RegistryStore,
) -> None:
    stored = await register(clocked, check=Check(500, 1, 1))
    [claim] = (await clocked.claim_checks(10)).claims
    state = json.loads(claim.state)
    assert (claim.id, state["inc"], state["interval"]) == ("a:1", stored.row.incarnation, 500)
    assert claim.document == entry().document
    assert (claim.health, claim.late_ms, claim.renewed_ms) == ("unknown", 0, 0)
    assert (await clocked.claim_checks(10)).claims == []
    clocked.now_ms += 500
    [again] = (await clocked.claim_checks(10)).claims
    assert json.loads(again.state)["token"] != state["token"]


async def test_a_token_counts_once(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(500, 2, 2))
    [claim] = (await clocked.claim_checks(1)).claims
    assert await report(clocked, claim, "healthy") == "counted"
    assert await report(clocked, claim, "healthy") == "stale"


async def test_a_token_is_over_when_the_check_is_claimed_again(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(500, 1, 1))
    [old] = (await clocked.claim_checks(1)).claims
    clocked.now_ms += 500
    [new] = (await clocked.claim_checks(1)).claims
    assert await report(clocked, old, "healthy") == "stale"
    assert await report(clocked, new, "healthy") == "changed"


async def test_a_retried_report_gets_the_first_answer(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(500, 1, 1))
    [claim] = (await clocked.claim_checks(1)).claims
    assert await report(clocked, claim, "healthy", nonce="p") == "changed"
    assert await report(clocked, claim, "healthy", nonce="p") == "changed"


async def test_a_report_for_a_predecessor_or_the_gone_does_not_count(
    clocked: RegistryStore,
) -> None:
    await register(clocked, check=Check(500, 1, 1))
    [claim] = (await clocked.claim_checks(1)).claims
    await register(clocked, port=81, check=Check(500, 1, 1))
    assert await report(clocked, claim, "unhealthy") == "stale"
    await clocked.deregister(["a:1"])
    assert await report(clocked, claim, "unhealthy") == "gone"
    assert await report(clocked, claim._replace(id="b:1"), "unhealthy") == "gone"


async def test_an_empty_token_is_no_token(clocked: RegistryStore) -> None:
    await register(clocked, check=Check(500, 1, 1))
    [claim] = (await clocked.claim_checks(1)).claims
    await report(clocked, claim, "healthy")
    forged = claim._replace(state=json.dumps({**json.loads(claim.state), "token": ""}).encode())
    assert await report(clocked, forged, "healthy") == "stale"


async def test_a_passing_probe_keeps_the_lease_of_one_that_never_beat(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked, check=Check(500, 1, 5))
    await probe(clocked, "degraded")
    assert await eyes.expiry() == START + 500 + TTL
    await probe(clocked, "unhealthy")
    assert await eyes.expiry() == START + 500 + TTL


async def test_a_passing_probe_does_not_keep_the_lease_of_one_that_beats(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked, check=Check(500, 1, 1))
    await beat(clocked, "a:1")
    await probe(clocked, "healthy")
    assert await eyes.expiry() == START + TTL


# --- sweeping


async def test_a_sweep_takes_at_most_a_batch_and_each_goes_once(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    names = [f"a:{n:03}" for n in range(SWEEP_LIMIT + 50)]
    for name in names:
        await register(clocked, name, ttl_ms=400)
    clocked.now_ms += 500
    sweeps = await sweep_all(clocked, None)
    assert [len(swept.removed) for swept in sweeps] == [SWEEP_LIMIT, 50]
    assert gone(sweeps) == names
    expired = [name for kind, name in await eyes.kinds() if kind == "service:expired"]
    assert expired == names


async def test_a_batch_is_not_exceeded_when_held_and_drained_end_together(
    clocked: RegistryStore,
) -> None:
    for n in range(80):
        await register(clocked, f"a:{n:03}", ttl_ms=400)
    clocked.now_ms += 500
    await sweep_all(clocked, GUARD)
    for n in range(80, 160):
        await register(clocked, f"a:{n:03}", ttl_ms=400)
        await clocked.amend(f"a:{n:03}", reason="d", admin=DRAINING, drain=timedelta(seconds=0.4))
    await register(clocked, "b:1", ttl_ms=400)
    clocked.now_ms += 500
    sweeps = await sweep_all(clocked, GUARD)
    assert [len(swept.removed) for swept in sweeps] == [SWEEP_LIMIT, 61]


async def test_a_sweep_counts_what_the_store_lost(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked)
    await eyes.do("DEL", eyes.core["inst"])
    swept = await clocked.sweep(None)
    assert (swept.instances, swept.leases) == (0, 1)


async def test_leases_without_instances_are_swept_away_under_the_guard_too(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    for n in range(10):
        await register(clocked, f"a:{n}", ttl_ms=400)
    await eyes.do("DEL", eyes.core["inst"])
    clocked.now_ms += 500
    assert (await clocked.sweep(GUARD)).due == 0


# --- the guard


async def crowd(
    store: RegistryStore, dying: int, living: int = 0, *, ttl_ms: int = 2_000
) -> list[str]:
    """So many whose leases have just ended, and so many that go on; answers with the former."""
    names = [f"a:{n:04}" for n in range(dying)]
    for name in names:
        await register(store, name, ttl_ms=ttl_ms)
    for n in range(living):
        await register(store, f"b:{n:04}", ttl_ms=3_600_000)
    for _ in range(ttl_ms // 500):
        store.now_ms += 500
        await store.sweep(GUARD)
    store.now_ms += 1
    return names


@pytest.mark.parametrize(
    ("dying", "living", "held"), [(4, 0, 0), (5, 0, 5), (5, 28, 5), (5, 29, 0), (6, 34, 6)]
)
async def test_the_guard_holds_from_5_leases_and_15_percent_on(
    clocked: RegistryStore, dying: int, living: int, held: int
) -> None:
    await crowd(clocked, dying, living)
    swept = await clocked.sweep(GUARD)
    assert (swept.preserving, swept.held, len(swept.removed)) == (held > 0, held, dying - held)


async def test_ended_drains_do_not_count_for_the_guard(clocked: RegistryStore) -> None:
    for n in range(8):
        await register(clocked, f"a:{n}")
        await drain(clocked, f"a:{n}", seconds=0)
    clocked.now_ms += 1
    swept = await clocked.sweep(GUARD)
    assert (swept.preserving, len(swept.removed)) == (False, 8)


async def test_the_held_are_shown_as_suspect_for_their_ttl(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    names = await crowd(clocked, 6)
    held_at = clocked.now_ms
    swept = await clocked.sweep(GUARD)
    for name in names:
        shown = await eyes.shown(name)
        assert shown["lease"]["state"] == "suspect"
        assert shown["revision"] == str(swept.revision)
        assert await eyes.expiry(name) == held_at + 2_000


async def test_no_hold_is_longer_than_the_bound(clocked: RegistryStore, eyes: Eyes) -> None:
    await crowd(clocked, 5, ttl_ms=3_000)
    await clocked.sweep(Guard(5, 0.15, timedelta(seconds=1)))
    assert await eyes.expiry("a:0000") == clocked.now_ms + 1_000


async def test_the_held_expire_after_the_hold_and_the_guard_says_that_it_is_over(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    names = await crowd(clocked, 6)
    await clocked.sweep(GUARD)
    sweeps = []
    for _ in range(5):
        clocked.now_ms += 500
        sweeps.append(await clocked.sweep(GUARD))
    assert [len(swept.removed) for swept in sweeps] == [0, 0, 0, 0, 6]
    assert gone(sweeps) == names
    assert not sweeps[-1].preserving
    guards = [event for event in await eyes.events() if event["type"] == "registry:preserving"]
    assert [json.loads(event["ids"]) for event in guards] == [names, []]
    assert [event["reason"] for event in guards] == ["6 of 6 leases ended together", "over"]


async def test_a_heartbeat_rescues_once_and_clears_the_mark(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    before = len(await eyes.events())
    await beat(clocked, "a:0000", "a:0000")
    await beat(clocked, "a:0000")
    rescues = (await eyes.events())[before:]
    assert [
        (event["type"], event["id"], event["reason"], event["suspect"]) for event in rescues
    ] == [("service:updated", "a:0000", "renewed", "")]
    assert (await eyes.shown("a:0000"))["lease"]["state"] == "live"
    assert (await eyes.shown("a:0001"))["lease"]["state"] == "suspect"


async def test_the_guard_is_over_when_all_are_rescued(clocked: RegistryStore) -> None:
    names = await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    await beat(clocked, *names)
    swept = await clocked.sweep(GUARD)
    assert (swept.preserving, swept.held, swept.due) == (False, 0, 0)


@pytest.mark.parametrize("port", [80, 81])
async def test_a_registration_of_a_suspect_makes_it_live(
    clocked: RegistryStore, eyes: Eyes, port: int
) -> None:
    await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    stored = await register(clocked, "a:0000", ttl_ms=2_000, port=port)
    assert not stored.suspect
    shown = await eyes.shown("a:0000")
    assert (shown["lease"]["state"], shown["revision"]) == ("live", str(stored.revision))
    assert (await clocked.sweep(GUARD)).held == 4


async def test_a_patch_or_maintenance_of_a_suspect_leaves_it_suspect(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    ends = await eyes.expiry("a:0000")
    assert done(await clocked.amend("a:0000", reason="p", entry=entry("a:0000", port=81))).suspect
    assert done(await clocked.amend("a:0000", reason="m", admin=MAINTENANCE)).suspect
    assert (await eyes.shown("a:0000"))["lease"]["state"] == "suspect"
    assert await eyes.expiry("a:0000") == ends


async def test_a_drain_of_a_suspect_ends_the_hold(clocked: RegistryStore, eyes: Eyes) -> None:
    await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    assert not (await drain(clocked, "a:0000", seconds=60)).suspect
    assert (await eyes.shown("a:0000"))["lease"]["state"] == "live"
    assert (await clocked.sweep(GUARD)).held == 4


async def test_deregistering_all_held_ends_the_guard(clocked: RegistryStore) -> None:
    names = await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    await clocked.deregister(names)
    assert not (await clocked.sweep(GUARD)).preserving


async def suspect_with_a_check(store: RegistryStore, *, beaten: bool) -> Claim:
    for n in range(5):
        await register(store, f"a:{n}", ttl_ms=500, check=Check(60_000, 1, 1))
    claims = (await store.claim_checks(5)).claims
    if beaten:
        await renew(store, [Renewal(f"a:{n}", "", 500) for n in range(5)])
    store.now_ms += 501
    assert (await store.sweep(GUARD)).held == 5
    return claims[0]


async def test_a_failing_probe_leaves_a_suspect_suspect(clocked: RegistryStore, eyes: Eyes) -> None:
    claim = await suspect_with_a_check(clocked, beaten=False)
    await report(clocked, claim, "unhealthy")
    shown = await eyes.shown("a:0")
    assert (shown["lease"]["state"], shown["health"]["status"]) == ("suspect", "unhealthy")
    assert (await eyes.events())[-1]["suspect"] == "1"


async def test_a_passing_probe_leaves_a_suspect_that_used_to_beat_suspect(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    claim = await suspect_with_a_check(clocked, beaten=True)
    await report(clocked, claim, "healthy")
    assert (await eyes.shown("a:0"))["lease"]["state"] == "suspect"
    assert (await clocked.sweep(GUARD)).held == 5


async def test_a_passing_probe_that_rescues_makes_one_event(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    claim = await suspect_with_a_check(clocked, beaten=False)
    before = len(await eyes.events())
    await report(clocked, claim, "healthy")
    [event] = (await eyes.events())[before:]
    assert (event["type"], event["suspect"]) == ("service:health:changed", "")
    shown = await eyes.shown("a:0")
    assert (shown["lease"]["state"], shown["revision"]) == ("live", event["at"])
    assert (await clocked.sweep(GUARD)).held == 4


async def test_a_failing_probe_writes_the_lost_key_of_a_suspect_as_suspect(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    for n in range(5):
        await register(clocked, f"a:{n}", ttl_ms=500, check=Check(60_000, 1, 9))
    claim = (await clocked.claim_checks(5)).claims[0]
    clocked.now_ms += 501
    await clocked.sweep(GUARD)
    await eyes.do("DEL", eyes.keys.instance("a:0"))
    await report(clocked, claim, "unhealthy")
    assert (await eyes.shown("a:0"))["lease"]["state"] == "suspect"


async def test_others_that_become_due_during_the_hold_are_held_too(
    clocked: RegistryStore,
) -> None:
    await register(clocked, "c:1", ttl_ms=2_500)
    await crowd(clocked, 6)
    await clocked.sweep(GUARD)
    clocked.now_ms += 500
    swept = await clocked.sweep(GUARD)
    assert (swept.held, swept.removed) == (7, [])
    for _ in range(6):
        clocked.now_ms += 500
        swept = await clocked.sweep(GUARD)
    assert (swept.preserving, swept.instances) == (False, 0)


async def test_the_guard_holds_nobody_beyond_its_bound(clocked: RegistryStore) -> None:
    guard = Guard(5, 0.15, timedelta(seconds=1))
    await register(clocked, "c:1", ttl_ms=3_000)
    names = await crowd(clocked, 6)
    assert (await clocked.sweep(guard)).held == 6
    clocked.now_ms += 500
    await register(clocked, "c:2", ttl_ms=300)
    clocked.now_ms += 400
    assert (await clocked.sweep(guard)).held == 7
    clocked.now_ms += 200
    swept = await clocked.sweep(guard)
    assert (swept.removed, swept.held) == (["c:1", *names], 1)
    clocked.now_ms += 200
    swept = await clocked.sweep(guard)
    assert (swept.removed, swept.preserving) == (["c:2"], False)


async def test_drains_end_during_the_hold(clocked: RegistryStore) -> None:
    await register(clocked, "c:1", ttl_ms=60_000)
    await crowd(clocked, 6)
    await clocked.sweep(GUARD)
    await drain(clocked, "c:1", seconds=0)
    clocked.now_ms += 100
    assert (await clocked.sweep(GUARD)).removed == ["c:1"]


async def test_force_lets_all_held_go(clocked: RegistryStore) -> None:
    names = await crowd(clocked, 6)
    await clocked.sweep(GUARD)
    swept = await clocked.sweep(GUARD, force=True)
    assert (swept.removed, swept.preserving) == (names, False)


@pytest.mark.timeout(20)
async def test_a_thousand_leases_at_once_are_held_in_batches_and_then_go(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    names = await crowd(clocked, 1_000)
    assert gone(await sweep_all(clocked, GUARD)) == []
    events = [event for event in await eyes.events() if event["type"] == "registry:preserving"]
    batches = [json.loads(event["ids"]) for event in events]
    assert [len(batch) for batch in batches] == [100] * 10
    assert [name for batch in batches for name in batch] == names
    await beat(clocked, *names[:100])
    for _ in range(4):
        clocked.now_ms += 500
        await beat(clocked, *names[:100])
        assert gone(await sweep_all(clocked, GUARD)) == []
    clocked.now_ms += 500
    sweeps = await sweep_all(clocked, GUARD)
    assert sorted(gone(sweeps)) == names[100:]
    assert max(len(swept.removed) for swept in sweeps) == SWEEP_LIMIT


# --- messages


async def heard(
    connection: Connection, action: Callable[[], Awaitable[Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """The messages that an action sends: channel and content."""
    async with connection.client.pubsub() as subscriber:
        await subscriber.psubscribe("ossa:events:*")
        await subscriber.get_message(timeout=1)
        await action()
        found = []
        while message := await subscriber.get_message(ignore_subscribe_messages=True, timeout=0.05):
            found.append((message["channel"].decode(), json.loads(message["data"])))
        return found


async def test_a_message_is_a_cloud_event_with_the_whole_instance(
    clocked: RegistryStore, connection: Connection, eyes: Eyes
) -> None:
    [(channel, event)] = await heard(connection, lambda: register(clocked, "a.b_C:x:~1"))
    assert channel == "ossa:events:service:registered"
    assert event == {
        "specversion": "1.0",
        "id": f"{START}-1",
        "source": "/registryd/test",
        "type": "service:registered",
        "subject": "a.b_C/x:~1",
        "time": "2096-10-02T07:06:40.000Z",
        "datacontenttype": "application/json",
        "data": {"service": "a.b_C", "instance": await eyes.shown("a.b_C:x:~1")},
    }


async def test_a_message_of_health_tells_old_and_new(
    clocked: RegistryStore, connection: Connection
) -> None:
    await register(clocked)
    [(channel, event)] = await heard(
        connection, lambda: clocked.report_status("a:1", "", "healthy")
    )
    assert channel == "ossa:events:service:health:changed"
    assert (event["data"]["old"], event["data"]["new"]) == ("unknown", "healthy")
    assert event["data"]["reason"] == "reported by the instance"
    assert event["data"]["instance"]["health"]["status"] == "healthy"


async def test_a_message_of_the_gone_names_it_and_the_reason(
    clocked: RegistryStore, connection: Connection
) -> None:
    await register(clocked)
    reason = 'said "no"/\n\\ é'
    [(channel, event)] = await heard(connection, lambda: clocked.deregister(["a:1"], reason=reason))
    assert channel == "ossa:events:service:unregistered"
    assert event["data"] == {"service": "a", "instance": {"instanceId": "1", "reason": reason}}


async def test_a_message_of_the_guard_lists_whom_it_holds(
    clocked: RegistryStore, connection: Connection
) -> None:
    names = await crowd(clocked, 5)
    [(channel, event)] = await heard(connection, lambda: clocked.sweep(GUARD))
    assert channel == "ossa:events:registry:preserving"
    assert event["data"] == {"reason": "5 of 5 leases ended together", "instances": names}
    assert "subject" not in event


async def test_what_makes_no_event_sends_no_message(
    clocked: RegistryStore, connection: Connection
) -> None:
    await register(clocked)
    assert await heard(connection, lambda: beat(clocked, "a:1")) == []
    assert await heard(connection, lambda: register(clocked)) == []


# --- the lease clock


async def test_a_clock_that_leaps_ahead_expires_nobody(clocked: RegistryStore) -> None:
    await register(clocked)
    clocked.now_ms += 3_600_000
    swept = await clocked.sweep(None)
    assert (swept.removed, swept.jump_ms, swept.repair) == ([], 3_600_000, True)
    assert isinstance((await beat(clocked, "a:1"))[0], Renewed)
    assert await live_on(clocked, 9_000, beating=["a:1"]) == []


async def test_a_clock_that_leaps_back_expires_nobody(clocked: RegistryStore) -> None:
    await register(clocked)
    clocked.now_ms -= 3_600_000
    assert (await clocked.sweep(None)).jump_ms == -3_600_000
    assert await live_on(clocked, 9_000, beating=["a:1"]) == []


@pytest.mark.parametrize("leap_ms", [3_600_000, -3_600_000])
async def test_the_dead_die_on_time_after_a_leap(clocked: RegistryStore, leap_ms: int) -> None:
    await register(clocked)
    assert await live_on(clocked, 5_000) == []
    clocked.now_ms += leap_ms
    # A leap ahead counts as the cap, 600 ms; one back as nothing.
    assert (await clocked.sweep(None)).removed == []
    assert await live_on(clocked, 4_000) == []
    assert await live_on(clocked, 1_500) == ["a:1"]


async def test_sweeps_slower_than_the_cap_expire_in_the_end(clocked: RegistryStore) -> None:
    await register(clocked)
    removed: list[list[str]] = []
    for _ in range(17):  # each brings the lease 600 ms nearer to its end
        clocked.now_ms += 4_000
        removed.append((await clocked.sweep(None)).removed)
    assert removed == [[]] * 16 + [["a:1"]]


async def test_an_epoch_is_above_any_left_in_the_stream(clocked: RegistryStore, eyes: Eyes) -> None:
    await eyes.do("XADD", eyes.keys.stream, f"{START + 5}-7", "type", "x")
    assert (await register(clocked)).revision == Revision(START + 6, 1)


# --- what can be derived again


async def test_repair_dates_the_expiring_keys_after_a_leap(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked)
    clocked.now_ms += 3_600_000
    await clocked.sweep(None)
    await clocked.repair(0, 100)
    assert await eyes.expiry() == START + 3_600_000 - 600 + TTL
    assert not (await clocked.sweep(None)).repair


async def test_repair_writes_missing_keys_and_members(clocked: RegistryStore, eyes: Eyes) -> None:
    for name in ("a:1", "a:2"):
        await register(clocked, name, terms=["tag:t"])
    before = await eyes.shown()
    await eyes.do("DEL", eyes.keys.instance("a:1"), eyes.keys.index("tag:t"))
    assert await clocked.repair(0, 100) == (0, 1, 2)
    assert await eyes.shown() == before
    assert await eyes.expiry() == START + TTL
    assert await eyes.members("tag:t") == {"a:1", "a:2"}
    assert await clocked.repair(0, 100) == (0, 0, 0)


async def test_the_audit_drops_members_that_no_row_backs(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked, terms=["tag:t"])
    await eyes.do("SADD", eyes.keys.index("tag:t"), "a:2")
    await eyes.do("SADD", eyes.keys.index("tag:u"), "a:1")
    assert await clocked.audit("index", "tag:t", "a:1", "a:2") == 1
    assert await clocked.audit("index", "tag:u", "a:1") == 1
    assert await clocked.audit("index", "health:unknown", "a:1") == 0
    assert await eyes.members("tag:t") == {"a:1"}


async def test_the_audit_drops_keys_of_the_gone(clocked: RegistryStore, eyes: Eyes) -> None:
    await register(clocked)
    await eyes.do("SET", eyes.keys.instance("a:2"), "{}")
    assert await clocked.audit("keys", "a:1", "a:2", "a:3") == 1
    assert await eyes.do("EXISTS", eyes.keys.instance("a:1")) == 1


async def test_the_audit_forgets_old_tombstones_with_their_maintenance(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked, ttl_ms=400)
    await clocked.amend("a:1", reason="m", admin=MAINTENANCE)
    clocked.now_ms += 500
    await clocked.sweep(None)
    assert await clocked.audit("tombstones", 1_000, "a:1") == 0
    clocked.now_ms += 1_001
    assert await clocked.audit("tombstones", 1_000, "a:1", "a:2") == 1
    assert (await register(clocked)).admin == Admin()


async def test_a_foreign_key_in_the_place_of_an_index_does_not_fail_a_change(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await eyes.do("SET", eyes.keys.index("tag:t"), "foreign")
    assert (await register(clocked, terms=["tag:t", "tag:u"])).outcome == "registered"
    swept = await clocked.sweep(None)
    assert (swept.derived_errors, swept.repair) == (1, True)
    assert await eyes.members("tag:u") == {"a:1"}
    assert (await eyes.shown())["name"] == "a:1"
    assert isinstance(await clocked.deregister(["a:1"]), Removed)


async def test_a_change_that_the_stream_refuses_leaves_nothing_behind(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await register(clocked)
    # An entry from beyond: no id of ours can follow it.
    await eyes.do("XADD", eyes.keys.stream, f"{START}-9", "type", "x")
    before = await eyes.dump()
    with pytest.raises(ResponseError, match="equal or smaller"):
        await clocked.register(entry("a:2"))
    assert await eyes.dump() == before


# --- a store that is full


@pytest.fixture
async def full(connection: Connection) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Makes the store full when called; empties it of the limit at the end."""

    async def fill() -> None:
        await connection.call("CONFIG", "SET", "maxmemory", "1")

    yield fill
    await connection.call("CONFIG", "SET", "maxmemory", "0")


async def test_a_full_store_refuses_a_registration_whole(
    clocked: RegistryStore, eyes: Eyes, full: Callable[[], Awaitable[Any]]
) -> None:
    await register(clocked)
    before = await eyes.dump()
    await full()
    with pytest.raises(StorageUnavailable, match="out of memory"):
        await register(clocked, "a:2")
    with pytest.raises(StorageUnavailable, match="out of memory"):
        await clocked.amend("a:1", reason="p", entry=entry(port=81))
    assert await eyes.dump() == before


async def test_on_a_full_store_leases_live_and_end(
    clocked: RegistryStore, full: Callable[[], Awaitable[Any]]
) -> None:
    await register(clocked, "a:1", check=Check(500, 1, 1))
    await register(clocked, "a:2", ttl_ms=500)
    await full()
    [claim] = (await clocked.claim_checks(5)).claims
    assert await report(clocked, claim, "healthy") == "changed"
    assert await live_on(clocked, 1_000, beating=["a:1"]) == ["a:2"]
    assert await clocked.repair(0, 10) == (0, 0, 0)
    assert isinstance(await clocked.deregister(["a:1"]), Removed)


# --- one document, composed twice


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unicode and slashes": {"terms": ["tag:é/ü", "version:1.0+ß"]},
    "short lease": {"ttl_ms": 2_000},
    "long lease": {"ttl_ms": 86_400_000},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "extra", [b"", ',"responseTime":1.5,"error":"a \\"b\\" / é \\u2028"'.encode()]
)
@pytest.mark.parametrize("admin", [b"", MAINTENANCE, DRAINING])
async def test_the_store_and_the_daemon_compose_the_same_bytes(
    clocked: RegistryStore, eyes: Eyes, options: dict[str, Any], extra: bytes, admin: bytes
) -> None:
    clocked.now_ms += 123
    await register(clocked, "a:x:1~", **options)
    await clocked.report_status("a:x:1~", "", "degraded", extra)
    if admin:
        await clocked.amend("a:x:1~", reason="r", admin=admin)
    document = await eyes.do("HGET", eyes.core["docs"], "a:x:1~")
    expected = compose(document, await eyes.row("a:x:1~"), Admin.decode(admin), suspect=False)
    assert await eyes.do("GET", eyes.keys.instance("a:x:1~")) == expected
    assert json.loads(expected)["list"] == []
    assert b"12345678901234567890" in expected


async def test_the_store_and_the_daemon_compose_the_same_bytes_of_a_suspect(
    clocked: RegistryStore, eyes: Eyes
) -> None:
    await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    document = await eyes.do("HGET", eyes.core["docs"], "a:0001")
    expected = compose(document, await eyes.row("a:0001"), Admin(), suspect=True)
    assert await eyes.do("GET", eyes.keys.instance("a:0001")) == expected


@pytest.mark.parametrize(
    ("now_ms", "text"),
    [
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
        (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
        (1_735_689_599_007, "2024-12-31T23:59:59.007Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ],
)
async def test_moments_are_calendar_dates(store: RegistryStore, now_ms: int, text: str) -> None:
    store.now_ms = now_ms
    assert (await register(store)).row.registered_at == text


# --- snapshot, set-up, partitions


async def test_a_snapshot_holds_every_instance_as_it_stands(clocked: RegistryStore) -> None:
    await crowd(clocked, 5)
    await clocked.sweep(GUARD)
    await register(clocked, "b:1")
    stored = done(await clocked.amend("b:1", reason="m", admin=MAINTENANCE))
    page = await clocked.snapshot(0, 100)
    assert (page.cursor, page.revision) == (0, stored.revision)
    by_id = {row.id: row for row in page.rows}
    assert len(by_id) == 6
    assert Row.decode(by_id["b:1"].row) == stored.row
    assert (by_id["b:1"].admin, by_id["b:1"].suspect) == (MAINTENANCE, False)
    assert by_id["a:0000"].suspect


async def test_a_snapshot_of_an_empty_store_is_at_the_beginning(clocked: RegistryStore) -> None:
    page = await clocked.snapshot(0, 100)
    assert (page.cursor, page.revision, page.rows) == (0, Revision(0, 0), [])


async def test_a_store_of_another_deployment_is_refused(store: RegistryStore) -> None:
    assert await store.set_up(None) == "test"
    with pytest.raises(StartupRefused, match="belongs to deployment 'test'"):
        await store.set_up("other")


async def test_every_key_of_a_partition_carries_its_tag(
    connection: Connection, metrics: Metrics
) -> None:
    keys = Keys("mine", 3)
    scripts = load(files("registryd.registry") / "lua", flags=True)
    store = RegistryStore(
        ScriptRunner(connection, scripts, keys.core, metrics), keys, StoreLimits()
    )
    store.now_ms = START
    await store.set_up("test")
    await register(store, terms=["tag:t"], check=Check(500, 1, 1))
    names = {name.decode() for name in await connection.call("KEYS", "*")}
    assert all(re.match(r"mine:[a-z]+:\{3\}", name) for name in names)
    assert "mine:services:{3}:a:1" in names
    assert "mine:index:{3}:tag:t" in names
