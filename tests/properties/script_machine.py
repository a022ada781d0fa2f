"""Drives the scripts and the model side by side, and compares everything after every step."""

import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis import Redis
from script_model import CAP, Inst, Logged, Model

from registryd.feed.revision import Revision
from registryd.health.decide import Memory
from registryd.health.store import Held, report_of
from registryd.metrics import Metrics
from registryd.probing.types import Finding, Verdict
from registryd.registry.document import Row
from registryd.registry.store import (
    Check,
    Claim,
    Claims,
    Entry,
    Guard,
    Registering,
    RegistryStore,
    Renewal,
    Renewals,
    StoreLimits,
)
from registryd.storage.connection import Connection
from registryd.storage.keys import CORE, Keys
from registryd.storage.pipelined import Argument
from registryd.storage.scripts import Script, ScriptRunner

START: Final = 4_000_000_000_000
"""In the year 2096: no expiring key of ours ends by the store's own clock while we look."""

GUARD: Final = Guard(2, 0.4, timedelta(seconds=1))
IDS: Final = ("a:1", "a:2:x", "a:3~y", "b.c:1", "B_c:1")
HEALTH: Final[tuple[Verdict, ...]] = ("healthy", "degraded", "unhealthy")

BODIES: Final[tuple[dict[str, Any] | None, ...]] = (
    {"version": "1.0", "models": ["é"]},
    {"features": ["chat", "tts", "unmapped"]},
    {"features": ["chat"], "models": ["m/1", "m2"]},
    None,
)
"""What those who pass tell of themselves. One capability is also declared by some."""

Result = TypeVar("Result")


class Direct:
    """A client that blocks, behind the face of a Connection: no event loop, and errors as they are."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def script_call(self, *command: Argument) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]


def settle(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs what never really awaits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("Result", stop.value)
    raise AssertionError("it awaited")


def store_over(client: Redis, scripts: dict[str, Script], *, now_ms: int = START) -> RegistryStore:
    keys = Keys()
    runner = ScriptRunner(cast("Connection", Direct(client)), scripts, keys.core, Metrics())
    limits = StoreLimits(clock_cap=timedelta(milliseconds=CAP))
    store = RegistryStore(runner, keys, limits, now_ms=now_ms)
    settle(store.set_up("test"))
    return store


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    port = draw(st.sampled_from([80, 81]))
    terms = draw(
        st.sampled_from([[], ["capability:chat"], ["capability:chat", "tag:é/x", "version:1.0"]])
    )
    identity = draw(st.sampled_from(IDS))
    document = {"name": identity.partition(":")[0], "endpoint": f"http://h:{port}", "terms": terms}
    return Entry(
        identity,
        json.dumps(document, ensure_ascii=False).encode(),
        terms,
        draw(st.sampled_from([600, 2_000, 5_000])),
        f"http://h:{port}",
        draw(
            st.sampled_from(
                [None, None, Check(700, 1, 2), Check(700, 2, 1), Check(700, 1, 1, beats=True)]
            )
        ),
        claims=[
            f"{term.partition(':')[2]}@2.0.0" for term in terms if term.startswith("capability:")
        ],
    )


ids = st.sampled_from(IDS)
bodies = st.integers(0, len(BODIES) - 1)
incarnations = st.sampled_from(["", "", "", "own", "wrong"])
"""Beside any, one that clients name themselves, and one that nobody has."""
expectations = st.sampled_from(["", "", "", "absent", "current", "1-1"])
steps = st.sampled_from([0, 1, 99, 100, 101, 300, CAP, CAP + 1, 2_000])


class ScriptMachine(RuleBasedStateMachine):
    """Two registries that must never differ. Subclasses bind `client` and `scripts`."""

    client: Redis
    scripts: dict[str, Script]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.store = store_over(self.client, self.scripts)
        self.model = Model(START)
        self.calls: list[Callable[[], None]] = []
        self.claims: list[Claim] = []
        self.tokens: set[str] = set()
        self.counted: set[str] = set()
        self.seen = 0
        self.deadlines: dict[str, int] = {}
        self.replay: dict[str, tuple[dict[str, Any], bytes, bytes, bool]] = {}
        self.number = 0
        self.sent: list[Registering] = []

    # --- doing the same to both

    def both(self, method: str, *arguments: Any, remembered: bool = False, **options: Any) -> Any:
        if remembered:
            self.number += 1
            options["nonce"] = f"n{self.number}"

        def call() -> Any:
            real = settle(getattr(self.store, method)(*arguments, **options))
            if isinstance(real, Renewals):
                real = [real.of(at, renewal) for at, renewal in enumerate(arguments[0])]
            expected = getattr(self.model, method)(*arguments, **options)
            assert real == expected, f"{method}{arguments} {options}"
            return real

        if remembered:
            self.calls.append(call)
        return call()

    def revision_of(self, identity: str, expected: str) -> str:
        inst = self.model.instances.get(identity)
        return str(inst.revision) if expected == "current" and inst else expected

    def wait(self, ms: int) -> None:
        self.store.now_ms += ms
        self.model.now_ms += ms

    @rule(ms=steps)
    def time_passes(self, ms: int) -> None:
        self.wait(ms)

    @rule(ms=st.sampled_from([4_000, 3_600_000, -50, -3_600_000]))
    def the_clock_jumps(self, ms: int) -> None:
        self.wait(ms)

    @rule(turns=st.integers(1, 12))
    def the_daemon_sweeps_on(self, turns: int) -> None:
        for _ in range(turns):
            self.wait(500)
            self.both("sweep", GUARD)

    @rule(force=st.booleans(), guard=st.sampled_from([GUARD, None]))
    def sweep(self, *, force: bool, guard: Guard | None) -> None:
        self.both("sweep", guard, force=force)
        if force:  # the held may go before their time
            self.deadlines.clear()

    @rule(
        entry=entries(),
        incarnation=incarnations,
        claim=st.sampled_from(["", "", "healthy", "unhealthy"]),
        expected=expectations,
        exclusive=st.booleans(),
    )
    def register(
        self, entry: Entry, incarnation: str, claim: str, expected: str, *, exclusive: bool
    ) -> None:
        self.both(
            "register",
            entry,
            incarnation="" if incarnation == "wrong" else incarnation,
            claim=claim,
            expected=self.revision_of(entry.id, expected),
            exclusive=exclusive,
            remembered=True,
        )

    @rule(
        batch=st.lists(entries(), min_size=1, max_size=4, unique_by=lambda entry: entry.id),
        incarnation=st.sampled_from(["", "own"]),
        claim=st.sampled_from(["", "healthy"]),
        expected=expectations,
        exclusive=st.booleans(),
        again=st.booleans(),
    )
    def several_register(
        self,
        batch: list[Entry],
        incarnation: str,
        claim: str,
        expected: str,
        *,
        exclusive: bool,
        again: bool,
    ) -> None:
        """In one call; at times with one among them that was sent before."""
        sent = {one.entry.id: one for one in self.sent} if again else {}
        registering = []
        for entry in batch:
            self.number += 1
            at = self.revision_of(entry.id, expected)
            new = Registering(entry, f"n{self.number}", incarnation, claim, at, exclusive)
            registering.append(sent.get(entry.id, new))
            sent = {}
        self.sent = registering
        self.both("register_all", registering)

    @rule(ttl_ms=st.sampled_from([600, 2_000]), apart_ms=st.sampled_from([0, 500]))
    def a_crowd_registers(self, ttl_ms: int, apart_ms: int) -> None:
        """Leases that will end together, or in a row while a guard holds the first."""
        for number, identity in enumerate(IDS):
            ttl = ttl_ms + apart_ms * max(0, number - 1)
            entry = Entry(identity, b'{"a":[]}', ["tag:t"], ttl, "http://h:80", Check(700, 2, 2))
            self.both("register", entry, remembered=True)

    @precondition(lambda self: self.model.instances)
    @rule(data=st.data())
    def the_same_registers_again(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(sorted(self.model.instances)))
        self.both("register", self.model.instances[identity].entry, remembered=True)

    @rule(entry=entries(), health=st.sampled_from(["", *HEALTH]), expected=expectations)
    def patch(self, entry: Entry, health: str, expected: str) -> None:
        expected = self.revision_of(entry.id, expected)
        self.both(
            "amend",
            entry.id,
            reason="amended",
            entry=entry,
            health=health,
            expected=expected,
            remembered=True,
        )

    @rule(identity=ids, end=st.sampled_from([None, -1, 0, 700, 3_000]))
    def maintain(self, identity: str, end: int | None) -> None:
        until = None if end is None else self.model.now_ms + end
        admin = json.dumps({"state": "maintenance", "by": 'é"/', "until": until}).encode()
        self.both("amend", identity, reason="m", admin=admin, admin_end_ms=until, remembered=True)

    @rule(identities=st.sets(ids, min_size=1), ms=st.sampled_from([0, 400, 3_000]))
    def drain(self, identities: set[str], ms: int) -> None:
        admin = json.dumps({"state": "draining", "until": self.model.now_ms + ms}).encode()
        for identity in sorted(identities):
            self.both(
                "amend",
                identity,
                reason="d",
                admin=admin,
                admin_end_ms=self.model.now_ms + ms,
                drain=timedelta(milliseconds=ms),
                remembered=True,
            )

    @rule(identity=ids)
    def end_maintenance_or_drain(self, identity: str) -> None:
        self.both("amend", identity, reason="over", admin="none", remembered=True)

    @rule(
        renewals=st.lists(
            st.builds(Renewal, ids, incarnations, st.sampled_from([0, 2_000, 5_000])),
            min_size=1,
            max_size=6,
        )
    )
    def heartbeat(self, renewals: list[Renewal]) -> None:
        self.both("renew", renewals)

    @rule(
        identities=st.lists(ids, min_size=1, max_size=3),
        incarnation=incarnations,
        expected=expectations,
    )
    def deregister(self, identities: list[str], incarnation: str, expected: str) -> None:
        expected = self.revision_of(identities[0], expected)
        self.both(
            "deregister", identities, incarnation=incarnation, expected=expected, remembered=True
        )

    @rule(identity=ids, incarnation=incarnations, status=st.sampled_from(HEALTH))
    def report_status(self, identity: str, incarnation: str, status: str) -> None:
        self.both("report_status", identity, incarnation, status, ',"details":{"é":[]}'.encode())

    @rule(limit=st.integers(1, 5), stretch=st.sampled_from([1.0, 1.0, 1.5]))
    def claim(self, limit: int, stretch: float = 1.0) -> None:
        self.take(limit, stretch=stretch, jitter=0.5, chance=0.25)

    @rule(identity=ids)
    def claim_one_now(self, identity: str) -> None:
        self.take(1, only=identity)

    def take(self, limit: int, **options: Any) -> None:
        real = settle(self.store.claim_checks(limit, **options))
        tokens = [token_of(claim) for claim in real.claims]
        assert not self.tokens & set(tokens), "a token was made twice"
        self.tokens |= set(tokens)
        expected = self.model.claim_checks(limit, tokens, **options)
        assert plain(real) == plain(expected)
        self.claims += real.claims

    @rule(enabled=st.sampled_from([True, True, False, None]))
    def pause_or_resume_probing(self, enabled: bool | None) -> None:
        self.both("monitoring", enabled)

    @precondition(lambda self: self.claims)
    @rule(back=st.integers(0, 4), status=st.sampled_from(HEALTH), body=bodies)
    def report(self, back: int, status: Verdict, body: int = 0) -> None:
        claim = self.claims[-1 - back % len(self.claims)]
        self.count(claim, status, body)

    def count(self, claim: Claim, status: Verdict, body: int) -> None:
        names = None if status == "unhealthy" else BODIES[body % len(BODIES)]
        finding = Finding(verdict=status, response_time_ms=1.5, error="HTTP 503", body=names)
        held = Held(claim, Memory.decode(claim.state))
        report = report_of(held, finding, {"tts": "audio/x"}, now="2096")
        outcome = self.both("report_check", claim, report, remembered=True).outcome
        if outcome in {"counted", "changed"}:
            assert token_of(claim) not in self.counted, "a token counted twice"
            self.counted.add(token_of(claim))

    @rule(
        rounds=st.lists(st.sampled_from(HEALTH), min_size=1, max_size=4),
        beating=st.booleans(),
        body=bodies,
    )
    def the_daemon_probes_on(self, rounds: list[Verdict], *, beating: bool, body: int = 0) -> None:
        for status in rounds:
            if beating:
                self.both("renew", [Renewal(identity, "", 0) for identity in IDS])
            self.wait(350)
            self.both("sweep", GUARD)
            self.wait(350)
            before = len(self.claims)
            self.take(5)
            for claim in self.claims[before:]:
                self.count(claim, status, body)

    @precondition(lambda self: self.calls)
    @rule(back=st.integers(0, 30))
    def the_client_sends_again(self, back: int) -> None:
        self.calls[-1 - back % len(self.calls)]()

    # --- damage, and how it heals

    @rule(identity=ids)
    def the_expiring_key_is_lost(self, identity: str) -> None:
        self.client.delete(Keys().instance(identity))
        if identity in self.model.instances:
            self.model.instances[identity].dated = None

    @rule(identity=ids)
    def an_index_member_is_lost_and_repair_runs(self, identity: str) -> None:
        inst = self.model.instances.get(identity)
        for term in self.model.terms(inst) if inst else ():
            self.client.srem(Keys().index(term), identity)
        cursor, _, _ = settle(self.store.repair(0, 2))
        while cursor:
            cursor, _, _ = settle(self.store.repair(cursor, 2))
        self.model.repair()

    @rule(identity=ids, term=st.sampled_from(["capability:chat", "tag:stale", "health:healthy"]))
    def stale_members_appear_and_the_audit_runs(self, identity: str, term: str) -> None:
        inst = self.model.instances.get(identity)
        added = self.client.sadd(Keys().index(term), identity)
        members = sorted(self.client.smembers(Keys().index(term)))
        dropped = settle(self.store.audit("index", term, *members))
        assert dropped == added or (inst and term in self.model.terms(inst))
        lost = f"gone:{identity[0]}"
        self.client.set(Keys().instance(lost), "{}")
        assert settle(self.store.audit("keys", lost, *IDS)) == 1 + sum(
            1
            for i in IDS
            if i not in self.model.instances and self.client.exists(Keys().instance(i))
        )

    @rule(retention_ms=st.sampled_from([0, 3_000]))
    def old_tombstones_are_forgotten(self, retention_ms: int) -> None:
        dropped = settle(self.store.audit("tombstones", retention_ms, *IDS))
        assert dropped == self.model.forget_tombstones(retention_ms)

    # --- comparing

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        actual = Contents(self.client, self.seen)
        check_events(actual, self.model.log[self.seen :])
        self._replay(actual)
        self.seen = len(self.model.log)
        check_contents(actual, self.model)
        self._check_replay(actual)
        self.deadlines = dict(actual.leases)

    def _replay(self, actual: "Contents") -> None:
        """Takes the new entries of the stream in, as a view would."""
        for at, fields in actual.entries:
            identity = fields["id"]
            if fields["type"] == "registry:preserving":
                for name in json.loads(fields["ids"]):
                    row, document, admin, _ = self.replay[name]
                    row = {**row, "epoch": str(at.epoch), "rev": at.rev}
                    self.replay[name] = row, document, admin, True
            elif fields["row"]:
                row = json.loads(fields["row"])
                assert (row["epoch"], row["rev"]) == (str(at.epoch), at.rev)
                self.replay[identity] = (
                    row,
                    fields["doc"].encode(),
                    fields["admin"].encode(),
                    fields["suspect"] == "1",
                )
            else:
                assert identity in self.replay, f"{fields['type']} of what was not there"
                del self.replay[identity]
                if fields["reason"] == "lease ended" and identity in self.deadlines:
                    assert self.deadlines[identity] < self.model.lease_now, "expired too early"

    def _check_replay(self, actual: "Contents") -> None:
        assert self.replay.keys() == actual.inst.keys()
        for identity, (row, document, admin, suspect) in self.replay.items():
            stored = json.loads(actual.inst[identity])
            # Whether a probe has reported yet concerns the scripts alone and makes no event.
            assert {**row, "probed": 0} == {**stored, "probed": 0}
            assert document.decode() == actual.docs[identity]
            assert admin.decode() == actual.admin.get(identity, "")
            assert suspect == (identity in actual.held)


def token_of(claim: Claim) -> str:
    return str(json.loads(claim.state)["token"])


def plain(claims: Claims) -> object:
    """The same without regard to the order of keys in JSON."""
    found = [claim._replace(state=json.loads(claim.state)) for claim in claims.claims]
    return claims.paused, claims.next_due_ms, found


def machine(client: Redis, scripts: dict[str, Script]) -> type[ScriptMachine]:
    bound = {"client": client, "scripts": scripts}
    return cast("type[ScriptMachine]", type("BoundScriptMachine", (ScriptMachine,), bound))


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_text(item) for item in value]
    return value


class Contents:
    """Everything in the store, in one reading; of the stream what follows the first `skip` entries."""

    def __init__(self, client: Redis, skip: int = 0) -> None:
        core = dict(zip(CORE, Keys().core, strict=True))
        hashes = ("meta", "renew", "inst", "docs", "admin", "checkstate", "tombstones")
        beside = ("findings", "discovered", "transitions")
        ranked = ("leases", "checks", "held", "drains", "until")
        pipe = client.pipeline(transaction=False)
        for name in hashes:
            pipe.hgetall(core[name])
        for name in beside:
            pipe.hgetall(f"{Keys().prefix}:{name}")
        for name in ranked:
            pipe.zrange(core[name], 0, -1, withscores=True)
        pipe.xrevrange(core["stream"], count=200 if skip else None)
        pipe.xlen(core["stream"])
        pipe.keys(Keys().instance("*"))
        pipe.keys(Keys().index("*"))
        *found, stream, length, shown, indexed = pipe.execute()
        (
            self.meta,
            self.renew,
            self.inst,
            self.docs,
            self.admin,
            self.checkstate,
            self.tombstones,
            self.findings,
            self.told,
            self.transitions,
        ) = (cast("dict[str, str]", _text(each)) for each in found[: -len(ranked)])
        self.leases, self.checks, self.held, self.drains, self.until = (
            {_text(name): int(score) for name, score in each} for each in found[-len(ranked) :]
        )
        fresh = list(reversed(stream))[len(stream) - (length - skip) :]
        self.entries = [
            (Revision(*map(int, _text(at).split("-"))), cast("dict[str, str]", _text(fields)))
            for at, fields in fresh
        ]
        for key in shown:
            pipe.get(key)
            pipe.pexpiretime(key)
        for key in indexed:
            pipe.smembers(key)
        details = pipe.execute()
        prefix = len(Keys().instance(""))
        self.shown = {
            _text(key)[prefix:]: (details[2 * n], int(details[2 * n + 1]))
            for n, key in enumerate(shown)
        }
        prefix = len(Keys().index(""))
        self.index = {
            _text(key)[prefix:]: set(_text(members))
            for key, members in zip(indexed, details[2 * len(shown) :], strict=True)
        }


def check_events(actual: Contents, expected: list[Logged]) -> None:
    """Each change exactly once, in order, without a gap."""
    assert [at for at, _ in actual.entries] == [entry.at for entry in expected]
    for (_, fields), entry in zip(actual.entries, expected, strict=True):
        assert fields["type"] == entry.kind
        assert fields["id"] == entry.id
        assert fields["reason"] == entry.reason
        assert fields["old"] == entry.old
        assert json.loads(fields["ids"] or "[]") == entry.ids
        capabilities = sorted(json.loads(fields["caps"] or "[]"), key=lambda one: one[1])
        assert capabilities == entry.capabilities
        assert fields["suspect"] == ("1" if entry.suspect else "")
        assert fields["admin"].encode() == entry.admin
        assert fields["doc"].encode() == entry.document
        assert (Row.decode(fields["row"].encode()) if fields["row"] else None) == entry.row
        assert int(fields["ts"]) == entry.ts
        assert fields["w"]


def check_derived(actual: Contents) -> None:
    """Index sets say what the rows say, and the parts of the truth are of the same instances."""
    alive = actual.inst.keys()
    assert actual.docs.keys() == alive
    assert actual.leases.keys() == alive
    assert actual.renew.keys() == alive
    assert actual.shown.keys() <= alive
    assert actual.checkstate.keys() == actual.checks.keys()
    assert actual.checks.keys() <= alive
    assert actual.findings.keys() | actual.told.keys() <= actual.checks.keys()
    assert actual.transitions.keys() <= alive
    assert actual.held.items() <= actual.leases.items()
    assert actual.drains.items() <= actual.leases.items()
    assert not actual.tombstones.keys() & alive
    wanted: dict[str, set[str]] = {}
    for identity, raw in actual.inst.items():
        row = json.loads(raw)
        state = json.loads(actual.admin.get(identity, "{}")).get("state")
        assert (state == "draining") == (identity in actual.drains)
        health = "maintenance" if state == "maintenance" else row["health"]
        found = json.loads(row.get("discovered", '{"capabilities":[]}'))["capabilities"]
        terms = [*json.loads(row["terms"]), *(f"capability:{one['name']}" for one in found)]
        for term in [*terms, f"health:{health}"]:
            wanted.setdefault(term, set()).add(identity)
    assert actual.index == wanted


def check_contents(actual: Contents, model: Model) -> None:
    check_derived(actual)
    instances = model.instances
    assert actual.inst.keys() == instances.keys()
    assert actual.leases == {i: inst.deadline for i, inst in instances.items()}
    assert actual.admin == {i: raw.decode() for i, raw in model.admin.items()}
    assert actual.until == model.until
    assert actual.held.keys() == {i for i, inst in instances.items() if inst.held}
    assert {
        i: (json.loads(raw)["epoch"], json.loads(raw)["rev"], json.loads(raw)["at"])
        for i, raw in actual.tombstones.items()
    } == {i: (str(at.epoch), at.rev, ms) for i, (at, ms) in model.tombstones.items()}
    for inst in instances.values():
        _check_instance(actual, model, inst)
    assert int(actual.meta.get("rev", 0)) == model.rev
    assert int(actual.meta.get("epoch", 0)) == model.epoch
    assert int(actual.meta.get("skew", 0)) == model.skew
    assert actual.meta.get("probing", "on") == ("paused" if model.paused else "on")
    assert int(actual.meta.get("resumed", 0)) == model.resumed
    assert ("guard" in actual.meta) == (model.guard_since is not None)
    assert "derived_errors" not in actual.meta


def _check_instance(actual: Contents, model: Model, inst: Inst) -> None:
    raw = actual.inst[inst.id].encode()
    assert Row.decode(raw) == inst.row
    assert json.loads(raw)["probed"] == int(inst.probed)
    assert actual.docs[inst.id].encode() == inst.entry.document
    beaten = int(inst.beaten) + 2 * int(model.draining(inst.id))
    assert actual.renew[inst.id] == f"{inst.entry.ttl_ms} {inst.incarnation} {beaten}"
    if inst.dated is None:
        assert inst.id not in actual.shown
    else:
        assert actual.shown.get(inst.id) == (model.shown(inst), inst.dated)
    transitions = json.loads(actual.transitions.get(inst.id, "[]"))
    assert transitions == inst.transitions
    assert actual.findings.get(inst.id, "").encode() == inst.finding
    assert actual.told.get(inst.id, "").encode() == inst.told
    if inst.counts is None:
        assert inst.id not in actual.checks
        return
    assert actual.checks[inst.id] == inst.counts.due
    expected = json.loads(inst.counts.encode(inst.incarnation))
    assert json.loads(actual.checkstate[inst.id]) == expected
