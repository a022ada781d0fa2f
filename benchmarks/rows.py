"""The rows of the table: one function each, which says what it measures. The goals are the project's;
a floor that is met is raised, here and nowhere else."""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import data, watch
from benchmarks.bench import Bench, Figure, Rounds, Side, Spread, short
from benchmarks.client import send_all
from benchmarks.load import GrpcLoad
from benchmarks.servers import Server, cpu_seconds, on, resident_bytes

_KEEPALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
_RANGE: Final = "/etcdserverpb.KV/Range"
_BEATING: Final = 2_000
"""How many instances send the heartbeats."""
_READERS: Final = 8
"""Connections that read lists: enough to keep every server busy. With 64 the slower ones would have more
under way at the end of a slice than they answer in it."""


def _readers(results: int) -> int:
    return _READERS if results <= 100 else _READERS // 2


def _stretch(results: int) -> float:
    """Slices of etcd are longer for lists of which it makes a few dozen or fewer a second."""
    return 1.0 if results <= 100 else 2.0 if results <= 1000 else 4.0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    measure: Callable[[Bench], list[Figure]]


# --- sides that several rows have


_LONG_WAY: Final = "Prefer: return=representation\r\n"


def _heartbeats(bench: Bench, server: Server, name: str, headers: str = "") -> Side:
    return Side(name, bench.load(name, server, data.heartbeats(_BEATING, headers)), server)


def _bare(bench: Bench, headers: str = "") -> Side:
    return _heartbeats(bench, bench.fleet.bare(), "bare", headers)


def _batches(bench: Bench, size: int, connections: int) -> Side:
    daemon, name = bench.fleet.daemon(), f"batch of {size}"
    requests = data.batches(size, 10_000)
    load = bench.load(name, daemon, requests, connections=connections, size=(size * 10, 1 << 20))
    return Side(name, load, daemon, each=size)


def _cached(bench: Bench, results: int) -> Side:
    daemon, name = bench.fleet.daemon(), f"cached {results}"
    load = bench.load(
        name,
        daemon,
        data.repeated_queries(results),
        connections=_readers(results),
        size=_list_size(results),
    )
    return Side(name, load, daemon)


def _etcd_json(bench: Bench, etcd: Server, results: int, connections: int | None = None) -> Side:
    name = f"etcd JSON {results}"
    load = bench.load(
        name,
        etcd,
        data.etcd_ranges(results),
        connections=connections or _readers(results),
        size=_list_size(results),
    )
    return Side(name, load, etcd, stretch=_stretch(results))


def _etcd_grpc(bench: Bench, etcd: Server, results: int) -> Side:
    messages = [data.range_message(each, results) for each in data.etcd_prefixes(results)]
    name = f"etcd gRPC {results}"
    load = GrpcLoad(
        etcd.port,
        _RANGE,
        messages,
        bench.fleet.folder,
        name,
        unary=True,
        streams=_readers(results),
        size=_list_size(results),
    )
    return Side(name, load, etcd, stretch=_stretch(results))


def _list_size(results: int) -> tuple[int, int]:
    """An answer holds all the documents, and at most three times their bytes (base64, our fields)."""
    return results * data.DOCUMENT_BYTES, results * data.DOCUMENT_BYTES * 3 + 4096


def _skipped(
    row: str, whats: dict[str, tuple[float | None, float | None]], why: str
) -> list[Figure]:
    return [Figure(row, what, None, floor, aim, remark=why) for what, (floor, aim) in whats.items()]


# --- heartbeats


def h1(bench: Bench) -> list[Figure]:
    """Heartbeat PUTs a second through the ordinary stack, 64 keep-alive connections, each answered
    after the store has renewed the lease; against the bare handler on the same requests. A header that
    the fast lane leaves to others makes them take that way."""
    ours = _heartbeats(bench, bench.fleet.daemon(), "registryd", _LONG_WAY)
    rounds = bench.compare([ours, _bare(bench, _LONG_WAY)])
    ratio = rounds.ratio("registryd", "bare")
    return [
        Figure(
            "H1", "heartbeat PUTs x bare", ratio, 0.85, 0.95, seen=rounds.seen("registryd", "bare")
        )
    ]


def h2(bench: Bench) -> list[Figure]:
    """The same as any client sends them, in the fast lane; against the bare handler, and against one
    round trip of redis-py for each PUT."""
    sides = [
        _heartbeats(bench, bench.fleet.daemon(), "registryd"),
        _bare(bench),
        _heartbeats(bench, bench.fleet.plain(), "one trip each"),
    ]
    goals: dict[str, tuple[float | None, float | None]] = {
        "heartbeat PUTs in the fast lane x bare": (None, 3),
        "heartbeat PUTs in the fast lane x one trip each": (None, 10),
    }
    pairs = [("registryd", "bare"), ("registryd", "one trip each")]
    return _figures("H2", goals, pairs, bench.compare(sides))


def h3(bench: Bench) -> list[Figure]:
    """Instances a second through the batch endpoint, 1000 ids a request on 4 connections; against the
    bare handler's requests a second on 64."""
    ours = _batches(bench, 1000, 4)
    rounds = bench.compare([ours, _bare(bench)])
    return [
        Figure(
            "H3", "instances by batches of 1000 x bare requests", rounds.ratio(ours.name, "bare"),
            8, 12, seen=rounds.seen(ours.name, "bare"),
        )
    ]  # fmt: skip


def h4(bench: Bench) -> list[Figure]:
    """Calls of the heartbeat script for each heartbeat answered, at 64 concurrent clients: a counter."""
    daemon = bench.fleet.daemon()
    calls, beats = 'registryd_store_calls_total{script="heartbeat"}', "renewals"
    side = _heartbeats(bench, daemon, "registryd")
    before = _with_renewals(daemon.counters())
    rounds = bench.compare([side])
    after = _with_renewals(daemon.counters())
    figure = (after[calls] - before[calls]) / (after[beats] - before[beats])
    seen = f"{short(after[beats] - before[beats])} heartbeats; {rounds.seen('registryd')}"
    return [
        Figure(
            "H4", "store calls per heartbeat, 64 clients", Spread.exact(figure),
            0.1, 0.03, "less", "", seen, counted=True,
        )
    ]  # fmt: skip


def _with_renewals(counters: dict[str, float]) -> dict[str, float]:
    """Adds `renewals`: what was sent to the store, as the histogram of batch sizes summed it up."""
    return counters | {"renewals": counters["registryd_renewal_batch_size_sum"]}


def h5(bench: Bench) -> list[Figure]:
    """Heartbeats against etcd's lease keep-alives on the same core: the JSON gateway on 64 connections;
    64 gRPC streams with one message outstanding each, every one on a connection of its own as 64 clients
    have it; and the batch endpoint against 64 streams of one connection that keep 32 outstanding each."""
    goals: dict[str, tuple[float | None, float | None]] = {
        "PUTs x etcd JSON keep-alives": (1.5, 7),
        "PUTs x etcd gRPC, 64 streams x 1": (None, 2),
        "batches x etcd gRPC, pipelined": (None, 3),
    }
    etcd, why = bench.optional(bench.fleet.etcd)
    if etcd is None:
        return _skipped("H5", goals, why)
    leases = [data.keepalive_message(number) for number in range(1, 65)]
    folder = bench.fleet.folder
    batch = _batches(bench, 1000, 4)
    sides = [
        _heartbeats(bench, bench.fleet.daemon(), "registryd"),
        Side("etcd JSON", bench.load("etcd JSON", etcd, data.etcd_keepalives(_BEATING)), etcd),
        Side(
            "etcd gRPC",
            GrpcLoad(etcd.port, _KEEPALIVE, leases, folder, "etcd gRPC", connections=64),
            etcd,
        ),
        batch,
        Side(
            "etcd pipelined",
            GrpcLoad(etcd.port, _KEEPALIVE, leases, folder, "etcd pipelined", outstanding=32),
            etcd,
        ),
    ]
    rounds = bench.compare(sides)
    pairs = [("registryd", "etcd JSON"), ("registryd", "etcd gRPC"), (batch.name, "etcd pipelined")]
    return _figures("H5", goals, pairs, rounds)


def h6(bench: Bench) -> list[Figure]:
    """CPU time of the store process for each heartbeat inside batches of 200 scattered ids, on one
    connection; what the store itself counts for the script stands beside it."""
    daemon = bench.fleet.daemon()
    side = _batches(bench, 200, 1)
    if bench.options.profile_to:
        bench.compare([side])
    micros, scripts = [], []
    for _ in range(bench.options.rounds):
        store = daemon.store()
        used, script = cpu_seconds(daemon.store_pid), _script_micros(store.info("commandstats"))
        beats = bench.once(side).answers * side.each
        micros.append((cpu_seconds(daemon.store_pid) - used) * 1e6 / beats)
        scripts.append((_script_micros(store.info("commandstats")) - script) / beats)
    seen = f"script alone {statistics.median(scripts):.1f} µs by commandstats"
    return [
        Figure(
            "H6", "store CPU per heartbeat in batches of 200", Spread.of(micros),
            8, 6, "less", "µs", seen,
        )
    ]  # fmt: skip


def _script_micros(stats: Any) -> float:
    return sum(
        float(stats.get(f"cmdstat_{name}", {}).get("usec", 0)) for name in ("evalsha", "fcall")
    )


# --- reads


def r1(bench: Bench) -> list[Figure]:
    """Filtered discovery of 100 of 11 000 instances by a daemon whose result cache is off: every list is
    made anew, as it is after a change. Against etcd's range of the same 100 documents, over JSON and over
    gRPC, and against the plain Redis way (SINTER, MGET, parse, encode)."""
    daemon = bench.fleet.uncached()
    goals: dict[str, tuple[float | None, float | None]] = {
        "uncached 100 of 11 000 x etcd JSON": (10, 15),
        "uncached 100 of 11 000 x etcd gRPC": (3, 4),
        "uncached 100 of 11 000 x plain Redis": (40, 65),
    }
    load = bench.load(
        "registryd", daemon, data.repeated_queries(100), connections=_READERS, size=_list_size(100)
    )
    plain_load = bench.load(
        "plain",
        bench.fleet.plain(),
        data.repeated_queries(100),
        connections=_READERS,
        size=_list_size(100),
    )
    sides = [Side("registryd", load, daemon), Side("plain", plain_load, bench.fleet.plain())]
    etcd, why = bench.optional(bench.fleet.etcd)
    if etcd is not None:
        sides += [_etcd_json(bench, etcd, 100), _etcd_grpc(bench, etcd, 100)]
    hit = 'registryd_result_cache_lookups_total{outcome="hit"}'
    before = daemon.counters()[hit]
    rounds = bench.compare(sides)
    if hits := daemon.counters()[hit] - before:
        raise RuntimeError(
            f"{hits:.0f} answers came from the cache, so the row measured something else"
        )
    peers = ["etcd JSON 100", "etcd gRPC 100", "plain"]
    return _figures("R1", goals, [("registryd", peer) for peer in peers], rounds, why)


def r2(bench: Bench) -> list[Figure]:
    """The same queries again and again, answered from the result cache, with 100 and with 1000 results,
    against etcd's ranges."""
    goals: dict[str, tuple[float | None, float | None]] = {
        "cached 100 x etcd JSON": (20, 35),
        "cached 100 x etcd gRPC": (4, 7),
        "cached 1000 x etcd JSON": (40, 120),
        "cached 1000 x etcd gRPC": (10, 15),
    }
    etcd, why = bench.optional(bench.fleet.etcd)
    if etcd is None:
        return _skipped("R2", goals, why)
    sides, pairs = [], []
    for results in (100, 1000):
        group = [
            _cached(bench, results),
            _etcd_json(bench, etcd, results),
            _etcd_grpc(bench, etcd, results),
        ]
        sides += group
        pairs += [(group[0].name, group[1].name), (group[0].name, group[2].name)]
    return _figures("R2", goals, pairs, bench.compare(sides))


def r3(bench: Bench) -> list[Figure]:
    """A 304 for a list of 1000 instances, and a cached list of 100 in full, against the bare handler's
    small answer."""
    daemon = bench.fleet.daemon()
    query = data.BROAD % 0
    _, headers, _ = daemon.fresh_asker().ask("GET", query)
    condition = f"If-None-Match: {headers['etag']}\r\n"
    requests = data.Ring((data.request("GET", query, headers=condition).encode(),))
    sides = [
        Side("304", bench.load("304", daemon, requests, size=(1, 1000)), daemon),
        _cached(bench, 100),
        _bare(bench),
    ]
    goals: dict[str, tuple[float | None, float | None]] = {
        "304 of a 1000-result list x bare": (0.85, 0.9),
        "cached 100-result body x bare": (0.7, 1.2),
    }
    rounds = bench.compare(sides)
    return _figures("R3", goals, [("304", "bare"), ("cached 100", "bare")], rounds)


def r4(bench: Bench) -> list[Figure]:
    """Cache hits with one change for every 10 queries, over 600 distinct queries asked at random (300
    capabilities, each in 2 zones, 18 or 19 instances each). Every answer is compared with what a naive
    filter over the harness's own list of instances finds; a single stale one fails the row."""
    daemon = bench.fleet.daemon()
    queries = 1500 if bench.options.quick else 6000
    dice = random.Random(20)
    weights = dict.fromkeys(range(data.INSTANCES), 100)
    groups: dict[tuple[int, int], list[int]] = {}
    for number in weights:
        key = number % data.FEATURES, number // data.FEATURES % data.ZONES
        groups.setdefault(key, []).append(number)
    keys = sorted(groups)
    assert len(keys) == 600
    hit = 'registryd_result_cache_lookups_total{outcome="hit"}'
    before = daemon.counters()[hit]
    asker = daemon.fresh_asker()
    stale = 0
    for turn in range(queries):
        if turn % 10 == 0:
            number = dice.randrange(data.INSTANCES)
            weights[number] = weights[number] % 1000 + 1
            name, instance = data.service_of(number), data.instance_id_of(number)
            asker.json(
                "PATCH", f"/services/{name}/instances/{instance}", {"weight": weights[number]}
            )
        feature, zone = keys[dice.randrange(600)]
        target = f"/services?capability=feature-{feature:03d}&zone=zone-{zone}&view=instances"
        found = asker.json("GET", target)["instances"]
        expected = {data.instance_id_of(n): weights[n] for n in groups[feature, zone]}
        stale += {each["instanceId"]: each["weight"] for each in found} != expected
    if stale:
        raise RuntimeError(f"{stale} of {queries} answers were stale")
    rate = (daemon.counters()[hit] - before) / queries
    seen = f"{queries} queries, {queries // 10} changes, 0 stale"
    return [
        Figure(
            "R4", "cache hits at 1 change per 10 queries over 600", Spread.exact(rate),
            0.7, 0.75, unit="", seen=seen, counted=True,
        )
    ]  # fmt: skip


def r5(bench: Bench) -> list[Figure]:
    """A list of 10 000 instances made anew for every request (a daemon whose result cache is off, on the
    same store), one client: CPU time of the server a request, and against etcd's range over JSON."""
    daemon = bench.fleet.uncached()
    requests = data.Ring((data.request("GET", data.WHOLE).encode(),))
    load = bench.load("registryd", daemon, requests, connections=1, size=_list_size(data.BULK))
    sides = [Side("registryd", load, daemon)]
    etcd, why = bench.optional(bench.fleet.etcd)
    if etcd is not None:
        sides.append(_etcd_json(bench, etcd, data.BULK, connections=1))
    rounds = bench.compare(sides)
    cpu = Spread.of([each * 1000 for each in rounds.cpu["registryd"]])
    figures = [
        Figure("R5", "10 000-result list uncached, server CPU", cpu, 6, 4, "less", "ms",
               rounds.seen("registryd"))
    ]  # fmt: skip
    goals: dict[str, tuple[float | None, float | None]] = {
        "10 000-result list uncached x etcd JSON": (25, 50)
    }
    name = f"etcd JSON {data.BULK}"
    return figures + _figures("R5", goals, [("registryd", name)], rounds, why)


# --- checks


def k1(bench: Bench) -> list[Figure]:
    """10 000 instances, each probed by HTTP every 30 s at a bare server on the load's CPU: probes a second,
    CPU time of the daemon a probe, and how late the latest hundredth was claimed."""
    target = bench.fleet.new_bare(cpus=bench.fleet.cpus.load)
    settings = {"REGISTRYD_HEALTH__CONCURRENCY_PER_HOST": "64"}  # they all live on one host
    daemon = bench.fleet.new_daemon(settings=settings)
    count = 2_000 if bench.options.quick else 10_000
    bench.say(f"registering {count} instances")
    send_all(daemon.port, data.checked_registrations(count, target.port, _CHECK_EVERY))
    while _probes(daemon) < count:  # the first ones come all at once
        time.sleep(1)
    time.sleep(_CHECK_EVERY * 1.2)
    rates, costs, before = [], [], daemon.counters()
    late = _lateness(before)
    for _ in range(bench.options.rounds):
        made, cpu, began = _probes(daemon), cpu_seconds(daemon.pid), time.monotonic()
        time.sleep(_CHECK_EVERY / 3)
        probes = _probes(daemon) - made
        rates.append(probes / (time.monotonic() - began))
        costs.append((cpu_seconds(daemon.pid) - cpu) / probes * 1e6)
    after = _lateness(daemon.counters())
    spread = {bound: after[bound] - late[bound] for bound in after}
    for server in (daemon, target):
        server.stop()
    seen = f"{statistics.median(rates):.0f} probes/s of {count} instances every {_CHECK_EVERY} s"
    return [
        Figure("K1", "CPU of the daemon a probe", Spread.of(costs), None, None, "less", "µs", seen),
        Figure(
            "K1", "99 of 100 checks are claimed late by at most", Spread.exact(_quantile(spread, 0.99)),
            None, None, "less", "s",
        ),
    ]  # fmt: skip


_CHECK_EVERY: Final = 30


def _probes(daemon: Server) -> float:
    return sum(
        value
        for name, value in daemon.counters().items()
        if name.startswith("registryd_checks_total{")
    )


def _lateness(counters: dict[str, float]) -> dict[float, float]:
    """Checks by the bound of the bucket they fell into or below."""
    head = 'registryd_check_lateness_seconds_bucket{le="'
    return {
        float(name.removeprefix(head).removesuffix('"}')): value
        for name, value in counters.items()
        if name.startswith(head)
    }


def _quantile(buckets: dict[float, float], part: float) -> float:
    """The bound of the first bucket that this part of all falls below."""
    return next(
        bound for bound in sorted(buckets) if buckets[bound] >= part * max(buckets.values())
    )


# --- access


def a1(bench: Bench) -> list[Figure]:
    """Heartbeat PUTs a second with an API key, to a daemon that demands one against one that does not: the
    same requests, on one store."""
    fleet = bench.fleet
    free = fleet.new_daemon()
    send_all(free.port, data.registrations(0, _BEATING))
    headers = f"Authorization: Bearer {fleet.new_key(free)}\r\n"
    required = {"REGISTRYD_AUTH__MODE": "required"}
    guarded = fleet.new_daemon(store_of=free, settings=required)
    sides = [
        _heartbeats(bench, server, name, headers)
        for server, name in ((guarded, "required"), (free, "none"))
    ]
    rounds = bench.compare(sides)
    for server in (guarded, free):
        server.stop()
    goals: dict[str, tuple[float | None, float | None]] = {
        "heartbeat PUTs with a key, auth required x none": (0.95, 1)
    }
    return _figures("A1", goals, [("required", "none")], rounds)


# --- the client

_BESIDE = "import json, logging, pydantic"
"""What nearly every program that would use the SDK has imported anyway."""


def s1(bench: Bench) -> list[Figure]:
    """How long a process takes to import the SDK beyond pydantic, and with aiohttp, which comes with its
    first request."""
    modules = {
        "pydantic": _BESIDE,
        "client": f"{_BESIDE}, registryd.client",
        "client with aiohttp": f"{_BESIDE}, registryd.client, aiohttp",
    }
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(max(5, bench.options.rounds)):
        for name, imports in modules.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", imports], check=True)
            times[name].append((time.perf_counter() - began) * 1000)
    figures = []
    for name in ("client", "client with aiohttp"):
        more = [mine - bare for mine, bare in zip(times[name], times["pydantic"], strict=True)]
        figures.append(
            Figure(
                "S1", f"import of the {name}", Spread.of(more), None, None, "less", "ms",
                f"pydantic alone {statistics.median(times['pydantic']):.0f} ms",
            )
        )  # fmt: skip
    return figures


# --- memory


def m1(bench: Bench) -> list[Figure]:
    """Resident memory each instance adds at 100 000, over the bytes of its document: of a daemon that
    loaded them from the store, and of the one that took their registrations."""
    count = 20_000 if bench.options.quick else 100_000
    taking = bench.fleet.new_daemon()
    empty = resident_bytes(taking.pid)
    bench.say(f"registering {count} instances")
    send_all(taking.port, data.registrations(0, count))
    _until_all_shown(taking, count)
    loading = bench.fleet.new_daemon(store_of=taking)
    _until_all_shown(loading, count)
    figures = []
    for server, what in ((loading, "loaded from the store"), (taking, "registered here")):
        each = (resident_bytes(server.pid) - empty) / count
        figures.append(
            Figure(
                "M1", f"RSS per instance at {count}, {what} x document",
                Spread.exact(each / data.DOCUMENT_BYTES), 3, 2, "less", "x",
                f"{each:.0f} bytes an instance; empty process {empty >> 20} MB",
            )
        )  # fmt: skip
    loading.stop()
    taking.stop()
    return figures


def m2(bench: Bench) -> list[Figure]:
    """Resident memory of the daemon for each idle watcher, all of one query; the kernel's buffers are not
    counted. What the first thousand take is left out: it is the memory of opening many at a time."""
    daemon = bench.fleet.new_daemon()
    first, more = (200, 1000) if bench.options.quick else (1000, 5000)
    crowd = watch.Crowd(daemon.port, watch.watch_request("watched"), b"event: snapshot")
    crowd.grow(first)
    time.sleep(0.5)
    before = resident_bytes(daemon.pid)
    crowd.grow(more)
    time.sleep(0.5)
    each = (resident_bytes(daemon.pid) - before) / more
    crowd.close()
    daemon.stop()
    return [
        Figure(
            "M2", f"RSS per idle watcher, {more} of them", Spread.exact(each / 1024),
            12, 2, "less", "KB", f"the process has {before >> 20} MB before them",
        )
    ]  # fmt: skip


def _until_all_shown(server: Server, count: int) -> None:
    deadline = time.monotonic() + 60
    while (shown := server.counters()['registryd_instances{health="healthy"}']) != count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{shown:.0f} of {count} instances in the view after 60 s")
        time.sleep(0.2)


# --- events

_WATCHERS: Final = 1000
_MESSAGE_BYTES: Final = 1000


def e1(bench: Bench) -> list[Figure]:
    """From a write to the last of 1000 watchers of that very instance hearing of it, against PUBLISH of as
    many bytes to 1000 subscribers of a store that has the server's CPU to itself."""
    daemon, store = bench.fleet.new_daemon(), bench.fleet.new_store()
    # An event is the instance as a whole: what is around the text in it.
    around = 700
    ours = watch.registryd(daemon.port, _MESSAGE_BYTES - around)
    theirs = watch.pubsub(store.port, _MESSAGE_BYTES)
    ratios, seen = _told(bench, ours, theirs)
    for server in (daemon, store):
        server.stop()
    return [
        Figure(
            "E1", "event to the last of 1000 watchers x pub/sub", Spread.of(ratios),
            1.25, 1.0, "less", seen=seen,
        )
    ]  # fmt: skip


def e2(bench: Bench) -> list[Figure]:
    """The same against 1000 watches of etcd's JSON gateway: how many times sooner ours have heard."""
    etcd, why = bench.optional(bench.fleet.new_etcd)
    what = "event to the last of 1000 watchers, times sooner than etcd"
    if etcd is None:
        return _skipped("E2", {what: (5, 8)}, why)
    daemon = bench.fleet.new_daemon()
    ours = watch.registryd(daemon.port, _MESSAGE_BYTES // 2)
    theirs = watch.etcd(etcd.port, _MESSAGE_BYTES // 2)
    ratios, seen = _told(bench, theirs, ours)
    for server in (daemon, etcd):
        server.stop()
    return [Figure("E2", what, Spread.of(ratios), 5, 8, seen=seen)]


def _told(bench: Bench, one: watch.Told, other: watch.Told) -> tuple[list[float], str]:
    """The ratios of the times of `one` to those of `other`, a round of some events of each at a time."""
    with on(bench.fleet.cpus.load):
        for told in (one, other):
            told.crowd.grow(_WATCHERS)
        number, ratios = 0, []
        times: dict[str, list[float]] = {one.name: [], other.name: []}
        for turn in range(bench.options.rounds + 1):
            medians = {}
            for told in (one, other):
                number += 10
                some = [told.seconds(number + each) for each in range(10)]
                medians[told.name] = statistics.median(some)
            if turn:  # the first is for warming up
                ratios.append(medians[one.name] / medians[other.name])
                for name, median in medians.items():
                    times[name].append(median)
        for told in (one, other):
            told.close()
    seen = ", ".join(
        f"{name} {statistics.median(found) * 1000:.1f} ms" for name, found in times.items()
    )
    return ratios, seen


# --- writes


def w1(bench: Bench) -> list[Figure]:
    """Registrations of new instances a second, each validated, indexed, stored, published and answered
    from the view that has it, on 64 connections; against the bare handler, and against etcd's JSON
    gateway granting a lease and putting the key with it."""
    daemon = bench.fleet.new_daemon()
    name = "registryd"
    load = bench.load(name, daemon, data.new_registrations(), size=(data.DOCUMENT_BYTES, 4096))
    sides = [Side(name, load, daemon), _bare(bench)]
    etcd, why = bench.optional(bench.fleet.new_etcd)
    if etcd is not None:
        puts = bench.load("etcd put+lease", etcd, data.etcd_registrations())
        puts.before = data.etcd_lagging_grants
        sides.append(Side("etcd put+lease", puts, etcd, each=0.5))
    rounds = bench.compare(sides)
    daemon.stop()
    if etcd is not None:
        etcd.stop()
    goals: dict[str, tuple[float | None, float | None]] = {
        "registrations x bare": (0.35, 0.6),
        "registrations x etcd put+lease": (1.2, 2),
    }
    return _figures("W1", goals, [(name, "bare"), (name, "etcd put+lease")], rounds, why)


# --- more processes, compression


def p1(bench: Bench) -> list[Figure]:
    """Two workers on one port (`--reuse-port`) and one store, a CPU each, against one worker. Reads of
    one instance; the load, on the second worker's CPU, takes its share of what there is."""
    fleet, beating = bench.fleet, _BEATING
    one = fleet.new_daemon()
    first = fleet.new_daemon(reuse_port=True)
    for server in (one, first):
        send_all(server.port, data.registrations(0, beating))
    second = fleet.new_daemon(
        store_of=first, port=first.port, reuse_port=True, cpus=fleet.cpus.load
    )
    time.sleep(0.5)  # the view of the second is filled before it listens; its first audit is over
    reads = data.instance_reads(beating)
    sides = [
        Side("one", bench.load("one", one, reads), one),
        Side("two", bench.load("two", first, reads), first, load_cpus=fleet.cpus.both),
    ]
    rounds = bench.compare(sides)
    for server in (one, second, first):
        server.stop()
    ratio = rounds.ratio("two", "one")
    return [
        Figure("P1", "second worker x one", ratio, 1.6, 1.9, seen=rounds.rates_of("two", "one"))
    ]


def c1(bench: Bench) -> list[Figure]:
    """A list of about 100 KB, cached in its compressed form, against aiohttp compressing the same bytes
    anew for every request (gzip on both sides)."""
    daemon = bench.fleet.daemon()
    # Between the queries with 100 and with 1000 results: the page of the latter that has 100 KB.
    _, _, whole = daemon.fresh_asker().ask("GET", data.BROAD % 0)
    each = len(whole) / len(json.loads(whole)["instances"])
    limit = round(100_000 / each)
    query = f"/services?capability=cap-00&view=instances&limit={limit}"
    _, _, body = daemon.asker().ask("GET", query)
    bare = bench.fleet.new_bare(body)
    accept = "Accept-Encoding: gzip\r\n"
    # A compressed body is far smaller: the bound tells that compression took place on both sides.
    size = (200, len(body) // 3)
    sides = [
        Side(name, bench.load(name, server, data.Ring((request,)), size=size), server)
        for name, server, request in (
            ("cached", daemon, data.request("GET", query, headers=accept).encode()),
            ("on the fly", bare, data.request("GET", "/gzip", headers=accept).encode()),
        )
    ]
    rounds = bench.compare(sides)
    bare.stop()
    goals: dict[str, tuple[float | None, float | None]] = {
        f"cached gzip of {len(body) // 1000} KB x gzip on the fly": (10, 29)
    }
    return _figures("C1", goals, [("cached", "on the fly")], rounds)


def _figures(
    row: str,
    goals: dict[str, tuple[float | None, float | None]],
    pairs: list[tuple[str, str]],
    rounds: Rounds,
    absent: str = "",
) -> list[Figure]:
    """One figure for each goal, from the pair of sides in its place."""
    figures = []
    for (what, (floor, aim)), (ours, theirs) in zip(goals.items(), pairs, strict=True):
        if theirs in rounds.rates:
            figure = Figure(
                row, what, rounds.ratio(ours, theirs), floor, aim, seen=rounds.seen(ours, theirs)
            )
        else:
            figure = Figure(row, what, None, floor, aim, remark=absent)
        figures.append(figure)
    return figures


ROWS: Final = (
    Row("H1", "heartbeats", h1),
    Row("H2", "heartbeats in the fast lane", h2),
    Row("H3", "heartbeats in batches", h3),
    Row("H4", "store calls per heartbeat", h4),
    Row("H5", "heartbeats against etcd", h5),
    Row("H6", "store CPU per heartbeat", h6),
    Row("R1", "discovery, uncached", r1),
    Row("R2", "discovery, cached", r2),
    Row("R3", "304 and cached bodies", r3),
    Row("R4", "cache hits under change", r4),
    Row("R5", "a list of 10 000", r5),
    Row("K1", "health checks", k1),
    Row("A1", "heartbeats with a key", a1),
    Row("S1", "import of the client", s1),
    Row("M1", "memory of 100 000 instances", m1),
    Row("M2", "memory of idle watchers", m2),
    Row("E1", "events to 1000 watchers", e1),
    Row("E2", "events against etcd", e2),
    Row("W1", "registrations", w1),
    Row("P1", "a second worker", p1),
    Row("C1", "compressed answers", c1),
)
