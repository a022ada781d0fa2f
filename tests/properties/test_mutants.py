"""Scripts with a fault each: the comparison with the model has to notice every one of them.

The random steps of test_scripts_model.py find these faults too, but some of them only after a minute.
Here fixed stories, one for each corner, lead to them at once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import NamedTuple

import pytest
from redis import Redis
from script_machine import GUARD, ScriptMachine, machine

from registryd.registry.store import Check, Entry, Registering, Renewal
from registryd.storage.scripts import Script, load

SCRIPTS = load(files("registryd.registry") / "lua", flags=True)


class Mutant(NamedTuple):
    before: str
    after: str


MUTANTS = {
    "old terms stay in the index": Mutant(
        "if not keep[t] then derive('SREM', INDEX .. t, id) end", ""
    ),
    "answers are not remembered": Mutant("if stored then return recalled(stored) end", ""),
    "a batch does not remember": Mutant("if known[k] then return recalled(known[k]) end", ""),
    "a batch takes one operation for all": Mutant(
        "  operate(ARGV[at + 1])\n  replies", "  replies"
    ),
    "a batch forgets an index": Mutant("table.insert(joined[term], p.id)", "joined[term] = {p.id}"),
    "the guard holds without a bound": Mutant("holding and L < guard + max_hold", "holding"),
    "the guard holds again and again": Mutant(
        "elseif not is_suspect(id) and not call", "elseif not call"
    ),
    "a drain counts for the guard": Mutant("- call('ZCOUNT', DRAINS, '-inf', cutoff)", ""),
    "a heartbeat revives the unknown": Mutant(
        "local raw = rows[i]\n", "local raw = rows[i] or '2000 x 0'\n"
    ),
    "a heartbeat of a predecessor renews": Mutant(
        "if inc ~= '' and inc ~= sub(raw, space + 1, -3) then", "if false then"
    ),
    "the lease clock has no cap": Mutant(
        "elseif d > CAP then skew = skew + (d - CAP); jump = d end", "end"
    ),
    "a slow lease clock stands still": Mutant("skew = skew + (d - CAP)", "skew = skew + d"),
    "the lease clock goes back": Mutant(
        "if d < 0 then skew = skew + d; jump = d", "if d < 0 then jump = d"
    ),
    "a lease ends at its deadline": Mutant("local cutoff = '(' .. int(L)", "local cutoff = int(L)"),
    "a token counts twice": Mutant("state.token = ''\nstate.counts", "state.counts"),
    "a claimed check stays due": Mutant(
        "call('ZADD', CHECKS, int(L + state.interval", "int((L + state.interval"
    ),
    "the memory of a check is lost": Mutant(
        "state.counts, state.flap = ARGV[11], ARGV[12]", "state.counts = ARGV[11]"
    ),
    "a check of heartbeats overrules what the instance said since": Mutant(
        "if state.beats and row.health ~= ARGV[17] then wanted = '' end", ""
    ),
    "a check of heartbeats renews the lease": Mutant(
        "passed and not state.beats and", "passed and"
    ),
    "a held lease counts as renewed": Mutant(
        "if not is_suspect(id) and not call('ZSCORE', DRAINS, id) then\n      local deadline",
        "if true then\n      local deadline",
    ),
    "pausing pauses nothing": Mutant("elseif probing[1] == 'paused' then", "elseif false then"),
    "transitions outlive the instance": Mutant(
        "for _, name in ipairs({'findings', 'transitions', 'discovered'}) do",
        "for _, name in ipairs({}) do",
    ),
    "a transition is written of what the same call removes": Mutant(
        "if transitions[n][1] == id then", "if false then"
    ),
    "a probe keeps the lease of one that beats": Mutant(
        "not draining and beaten_of(id) == '0'", "not draining"
    ),
    "no tombstone is written": Mutant(
        "call('HSET', TOMBSTONES, id, cjson.encode({epoch = epoch, rev = tonumber(rev), at = now}))",
        "",
    ),
    "a rescue tells nobody": Mutant(
        "emit({kind = 'service:updated', id = id, row = row, doc = doc, admin = admin, reason = 'renewed'})",
        "",
    ),
    "renewals extend a drain": Mutant("elseif beaten >= DRAINING then", "elseif false then"),
    "a drain ends as a death": Mutant(
        "if state_of(admin_of(id)) == 'draining' then remove", "if false then remove"
    ),
    "maintenance outlives a deregistration": Mutant(
        "if kind ~= 'service:expired' or state ~= 'maintenance' then", "if false then"
    ),
    "a lost key stays lost": Mutant(
        "if row then project(id, row, call('HGET', DOCS",
        "if false then project(id, row, call('HGET', DOCS",
    ),
    "an update forgets the health": Mutant(
        "if not heard then fresh.health, fresh.since, fresh.extra = row.health, row.since, row.extra end",
        "",
    ),
    "what is discovered is not indexed": Mutant(
        "for _, c in ipairs(undeclared(row)) do terms[#terms + 1] = 'capability:' .. c.name end", ""
    ),
    "what is declared counts as discovered too": Mutant(
        "if not declared['capability:' .. c.name] then counting", "do counting"
    ),
    "another endpoint keeps what was discovered": Mutant(
        "row.endpoint ~= endpoint or check", "check"
    ),
    "another endpoint keeps what was counted": Mutant(
        "row.check ~= ARGV[13] or row.endpoint ~= ARGV[14]", "row.check ~= ARGV[13]"
    ),
    "what nobody probes stays discovered": Mutant(
        "or check == '' or string.find(check, '\"beats\"', 1, true) then return nil",
        "then return nil",
    ),
    "an update forgets what was discovered": Mutant(
        "fresh.discovered = still_discovered(row, fresh.endpoint, check)\n    before, had",
        "before, had",
    ),
    "nothing discovered goes again": Mutant("ARGV[18] or nil", "ARGV[18] or row.discovered"),
    "a removal tells nothing of the discovered": Mutant(
        "had = claimed(row), has = '[]'", "had = row.caps or '[]', has = '[]'"
    ),
    "a revision is not compared": Mutant(
        "return expected == row.epoch .. '-' .. int(row.rev)", "return true"
    ),
}


def mutate(mutant: Mutant) -> dict[str, Script]:
    """The scripts with the fault, wherever its place stands in them."""
    mutated, hits = {}, 0
    for name, script in SCRIPTS.items():
        source = script.source.replace(mutant.before.encode(), mutant.after.encode())
        hits += source != script.source
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        mutated[name] = Script(name, source, sha)
    # In the library a place is in every script, in a script of its own in one.
    assert hits in {1, len(SCRIPTS)}, "the place of the fault is not, or no longer, in the source"
    return mutated


def entry(ttl_ms: int = 2_000, *, identity: str = "a:1", terms: tuple[str, ...] = ()) -> Entry:
    return Entry(
        identity, b'{"n":%d}' % len(terms), list(terms), ttl_ms, "http://h", Check(700, 2, 2)
    )


def step(m: ScriptMachine, wait_ms: int) -> None:
    """So much later the daemon sweeps; both have to agree then."""
    m.the_store_is_what_the_model_says()
    m.wait(wait_ms)
    m.both("sweep", GUARD)
    m.the_store_is_what_the_model_says()


def a_lease_ends_after_its_deadline(m: ScriptMachine) -> None:
    m.both("register", entry(600, terms=("tag:t",)), remembered=True)
    step(m, 600)
    step(m, 1)


def registrations_follow_each_other(m: ScriptMachine) -> None:
    m.both("register", entry(terms=("tag:t", "tag:u")), claim="healthy", remembered=True)
    m.both("register", entry(terms=("tag:u",)), remembered=True)
    m.the_store_is_what_the_model_says()
    m.the_client_sends_again(1)
    m.the_store_is_what_the_model_says()
    m.both("register", entry(), expected="1-1", remembered=True)
    m.both("deregister", ["a:1"], remembered=True)
    m.both("register", entry(), remembered=True)
    m.the_client_sends_again(1)


def many_register_at_once(m: ScriptMachine) -> None:
    several = [
        Registering(entry(identity=identity, terms=("tag:t",)), f"n-{identity}")
        for identity in ("a:1", "a:3~y")
    ]
    m.both("register_all", several)
    m.the_store_is_what_the_model_says()
    m.wait(700)
    m.both("register_all", [several[0], Registering(entry(identity="b.c:1"), "n-new")])
    m.the_store_is_what_the_model_says()


def the_clock_is_wrong(m: ScriptMachine) -> None:
    m.both("register", entry(5_000), remembered=True)
    for jump in (3_600_000, -50, -3_600_000, 4_000, 4_000):
        step(m, jump)
    for _ in range(10):
        step(m, 600)


def a_drain_runs_out(m: ScriptMachine) -> None:
    m.both("register", entry(), remembered=True)
    m.drain({"a:1"}, 400)
    m.heartbeat([Renewal("a:1", "", 2_000)])
    step(m, 401)


def drains_run_out_beside_a_death(m: ScriptMachine) -> None:
    for identity in ("a:1", "a:3~y", "b.c:1"):
        m.both("register", entry(400, identity=identity), remembered=True)
    m.drain({"a:1", "b.c:1"}, 400)
    step(m, 401)


def heartbeats_of_all_sorts(m: ScriptMachine) -> None:
    m.heartbeat([Renewal("a:1", "", 0)])
    m.the_store_is_what_the_model_says()
    m.both("register", entry(), remembered=True)
    m.wait(300)
    m.heartbeat([Renewal("a:1", "wrong", 0)])
    m.the_expiring_key_is_lost("a:1")
    m.heartbeat([Renewal("a:1", "", 0)])


def the_guard_holds_within_its_bound(m: ScriptMachine) -> None:
    m.a_crowd_registers(2_000, 500)
    for _ in range(10):
        step(m, 500)


def the_guard_holds_each_once(m: ScriptMachine) -> None:
    for identity, ttl_ms in (("a:1", 600), ("a:3~y", 600), ("b.c:1", 1_300)):
        m.both("register", entry(ttl_ms, identity=identity), remembered=True)
    for wait_ms in (300, 301, 500, 299, 500):
        step(m, wait_ms)


def the_held_come_back(m: ScriptMachine) -> None:
    m.a_crowd_registers(600, 0)
    step(m, 300)
    step(m, 301)
    m.heartbeat([Renewal("a:1", "", 0)])
    step(m, 400)


def probes_pass_and_fail(m: ScriptMachine) -> None:
    m.both("register", entry(5_000), remembered=True)
    m.the_daemon_probes_on(["healthy", "unhealthy", "healthy"], beating=False)
    m.the_store_is_what_the_model_says()
    m.report(0, "healthy")
    m.the_daemon_probes_on(["healthy", "healthy"], beating=True)
    m.wait(700)
    m.take(1)
    m.report(0, "healthy")


def heartbeats_are_looked_at(m: ScriptMachine) -> None:
    beating = Entry("a:1", b"{}", [], 5_000, "http://h", Check(700, 1, 1, beats=True))
    m.both("register", beating, remembered=True)
    m.the_daemon_probes_on(["healthy", "unhealthy"], beating=False)
    m.the_store_is_what_the_model_says()
    step(m, 350)
    m.wait(350)
    m.take(1)
    m.both("report_status", "a:1", "", "degraded")
    m.report(0, "healthy")
    m.the_store_is_what_the_model_says()
    step(m, 350)
    m.wait(350)
    m.take(1)
    m.report(0, "unhealthy")


def the_held_are_claimed(m: ScriptMachine) -> None:
    m.a_crowd_registers(600, 0)
    step(m, 300)
    step(m, 301)
    m.take(5)


def probing_pauses(m: ScriptMachine) -> None:
    m.both("register", entry(5_000), remembered=True)
    m.both("monitoring", enabled=False)
    m.take(5)
    m.take(1, only="a:1")
    m.wait(1_000)
    m.both("monitoring", enabled=True)
    m.wait(100)
    m.take(5)


def an_instance_goes_with_all_that_is_known_of_it(m: ScriptMachine) -> None:
    m.both("register", entry(5_000), remembered=True)
    m.the_daemon_probes_on(["healthy", "healthy", "unhealthy", "unhealthy"], beating=False)
    m.the_store_is_what_the_model_says()
    m.both("deregister", ["a:1"], remembered=True)


def it_changes_to_and_fro(m: ScriptMachine) -> None:
    m.both("register", entry(60_000), remembered=True)
    for _ in range(8):
        m.the_daemon_probes_on(["healthy", "healthy", "unhealthy", "unhealthy"], beating=False)
        m.the_store_is_what_the_model_says()


def it_tells_of_itself(m: ScriptMachine) -> None:
    def said(*terms: str, endpoint: str = "http://h", beats: bool = False) -> Entry:
        document = json.dumps([endpoint, *terms]).encode()
        claims = [f"{term.partition(':')[2]}@2.0.0" for term in terms]
        check = Check(700, 2, 2, beats=beats)
        return Entry("a:1", document, list(terms), 5_000, endpoint, check, claims)

    def registers(one: Entry) -> None:
        m.both("register", one, remembered=True)
        m.the_store_is_what_the_model_says()

    def tells(body: int, *, rounds: int = 1) -> None:
        m.the_daemon_probes_on(["healthy"] * rounds, beating=False, body=body)
        m.the_store_is_what_the_model_says()

    def discovered() -> str:
        return m.model.instances["a:1"].discovered

    registers(said())
    tells(1)
    assert "chat" in discovered()
    registers(said("capability:chat"))
    assert "chat" in discovered()
    tells(2, rounds=3)
    assert "audio/x" not in discovered()
    registers(said(endpoint="http://other"))
    assert not discovered()
    tells(1)
    m.both("amend", "a:1", reason="moved", entry=said(), remembered=True)
    m.the_store_is_what_the_model_says()
    assert not discovered()
    tells(1)
    registers(said(beats=True))
    assert not discovered()
    registers(said())
    tells(1)
    tells(3, rounds=3)
    assert not discovered()
    tells(1)
    m.both("deregister", ["a:1"], remembered=True)


def maintenance_ends_with_a_deregistration(m: ScriptMachine) -> None:
    m.both("register", entry(), remembered=True)
    m.maintain("a:1", None)
    m.both("deregister", ["a:1"], remembered=True)


def maintenance_and_lease_end_in_one_sweep(m: ScriptMachine) -> None:
    m.both("register", entry(2_000), remembered=True)
    m.maintain("a:1", 2_500)
    for _ in range(6):
        step(m, 500)


STORIES: list[Callable[[ScriptMachine], None]] = [
    a_lease_ends_after_its_deadline,
    registrations_follow_each_other,
    many_register_at_once,
    the_clock_is_wrong,
    a_drain_runs_out,
    drains_run_out_beside_a_death,
    heartbeats_of_all_sorts,
    the_guard_holds_within_its_bound,
    the_guard_holds_each_once,
    the_held_come_back,
    probes_pass_and_fail,
    heartbeats_are_looked_at,
    the_held_are_claimed,
    probing_pauses,
    an_instance_goes_with_all_that_is_known_of_it,
    it_changes_to_and_fro,
    it_tells_of_itself,
    maintenance_ends_with_a_deregistration,
    maintenance_and_lease_end_in_one_sweep,
]


@pytest.fixture
def valkey(store_url: str) -> Iterator[Redis]:
    with Redis.from_url(store_url) as client:
        yield client


def tell(story: Callable[[ScriptMachine], None], client: Redis, scripts: dict[str, Script]) -> None:
    m = machine(client, scripts)()
    story(m)
    m.the_store_is_what_the_model_says()


def tell_all(client: Redis, scripts: dict[str, Script]) -> None:
    for story in STORIES:
        tell(story, client, scripts)


@pytest.mark.parametrize("story", STORIES)
def test_without_a_fault_the_model_agrees_when(
    valkey: Redis, story: Callable[[ScriptMachine], None]
) -> None:
    tell(story, valkey, SCRIPTS)


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_the_model_notices_that(valkey: Redis, mutant: Mutant) -> None:
    scripts = mutate(mutant)
    for script in scripts.values():
        valkey.script_load(script.source)  # a fault in the meaning, not in the grammar
    with pytest.raises(AssertionError):
        tell_all(valkey, scripts)
