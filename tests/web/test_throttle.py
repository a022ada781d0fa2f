"""How much a caller and an address may use, and what is never held against them."""

import asyncio
import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from daemons import eventually
from hypothesis import given
from hypothesis import strategies as st
from wired import get, request, route, serving

from registryd.errors import InstanceUnknown, RateLimited, Unauthenticated
from registryd.metrics import Metrics
from registryd.web.access import OpenAccess
from registryd.web.caller import ANYBODY, Caller, Peer, Permission
from registryd.web.forwarded import Proxies
from registryd.web.reply import Reply, Stream
from registryd.web.throttle import Allowance, Buckets, Limits, Slots, Throttle, network_of


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


WIDE = Limits(
    caller=Allowance(1e6, 1e6, 1000),
    address=Allowance(1e6, 1e6, 1000),
    burst_seconds=1.0,
    denied_per_minute=1e6,
    connections=1000,
    connections_per_address=1000,
)


def limits(**fields: Any) -> Limits:
    """So wide that only those given are ever met."""
    return replace(WIDE, **fields)


ANN, BOB = Caller("key:ann", Permission.WRITER), Caller("key:bob", Permission.WRITER)
HERE, THERE = Peer("192.0.2.1"), Peer("192.0.2.2")


# --- buckets and slots


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    time = Time()
    bucket = Buckets(5, 2, now=time)
    assert [bucket.take("a") for _ in range(10)] == [0.0] * 10
    assert bucket.take("a") == pytest.approx(0.2)
    assert bucket.take("b") == 0
    time.now += 0.2
    assert bucket.wait("a") == 0
    assert bucket.take("a") == 0
    assert bucket.wait("a") == pytest.approx(0.2)


@given(
    st.floats(0.1, 1000),
    st.floats(0.1, 20),
    st.lists(st.floats(0, 3), max_size=60),
)
def test_no_pattern_gets_more_than_burst_and_rate(rate, burst, pauses) -> None:
    time = Time()
    bucket = Buckets(rate, burst, now=time)
    taken = sum(bucket.take("a") == 0 for _ in range(3))
    for pause in pauses:
        time.now += pause
        taken += bucket.take("a") == 0
    assert taken <= max(rate * burst, 1) + rate * (time.now - 1000) + 1e-3


def test_what_is_given_back_can_be_taken_again() -> None:
    bucket = Buckets(1, 1, now=Time())
    assert bucket.take("a") == 0
    bucket.give_back("a")
    assert bucket.take("a") == 0
    assert bucket.take("a") > 0
    bucket.give_back("never seen")


def test_only_so_many_buckets_are_kept_and_first_those_that_are_full_go() -> None:
    time = Time()
    bucket = Buckets(1, 1, kept=4, now=time)
    bucket.take("old")
    time.now += 5
    for key in ("busy", "b", "c"):
        bucket.take(key)
    assert len(bucket) == 4
    bucket.take("d")
    assert len(bucket) == 2
    assert bucket.take("d") > 0
    for number in range(100):
        bucket.take(str(number))
        assert len(bucket) <= 4


def test_slots_are_counted_for_each_key() -> None:
    slots = Slots(2)
    assert [slots.take("a") for _ in range(3)] == [True, True, False]
    assert slots.take("b")
    slots.give_back("a")
    assert slots.take("a")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", "unknown"),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


# --- the throttle


def admits(throttle: Throttle, caller: Caller, peer: Peer, *, write: bool) -> bool:
    return throttle.take(caller, peer, write) is None


def test_callers_addresses_reads_and_writes_are_counted_apart() -> None:
    throttle = Throttle(limits(caller=Allowance(2, 1, 9)), Metrics(), now=Time())
    assert [admits(throttle, ANN, HERE, write=False) for _ in range(3)] == [True, True, False]
    assert not admits(throttle, ANN, THERE, write=False)
    assert admits(throttle, ANN, HERE, write=True)
    assert admits(throttle, BOB, HERE, write=False)


def test_an_address_is_counted_whoever_calls_from_it() -> None:
    throttle = Throttle(limits(address=Allowance(2, 1, 9)), Metrics(), now=Time())
    assert admits(throttle, ANN, HERE, write=False)
    assert admits(throttle, BOB, HERE, write=False)
    assert not admits(throttle, BOB, HERE, write=False)
    assert admits(throttle, BOB, THERE, write=False)


def test_callers_without_a_name_are_told_apart_by_address_alone() -> None:
    throttle = Throttle(limits(caller=Allowance(1, 1, 1)), Metrics(), now=Time())
    for _ in range(5):
        throttle.charge(ANYBODY, HERE, write=True)
        throttle.hold(ANYBODY, HERE)


def test_a_refusal_takes_nothing_and_says_when_to_come_back() -> None:
    time, metrics = Time(), Metrics()
    throttle = Throttle(
        limits(caller=Allowance(1, 0.25, 9), address=Allowance(9, 2, 9)), metrics, now=time
    )
    throttle.charge(ANN, HERE, write=True)
    for _ in range(5):
        with pytest.raises(RateLimited) as refused:
            throttle.charge(ANN, HERE, write=True)
    assert refused.value.retry_after == pytest.approx(4)
    throttle.charge(BOB, HERE, write=True)
    value = metrics.registry.get_sample_value
    assert value("registryd_limited_total", {"limit": "caller_writes"}) == 5


def test_denied_attempts_are_counted_by_address() -> None:
    time = Time()
    throttle = Throttle(limits(denied_per_minute=2), Metrics(), now=time)
    for _ in range(2):
        throttle.check_denied(HERE)
        throttle.deny(HERE)
    with pytest.raises(RateLimited):
        throttle.check_denied(HERE)
    throttle.check_denied(THERE)
    time.now += 30
    throttle.check_denied(HERE)


def test_streams_are_counted_for_caller_and_address_until_they_end() -> None:
    throttle = Throttle(
        limits(caller=Allowance(9, 9, 1), address=Allowance(9, 9, 2)), Metrics(), now=Time()
    )
    end = throttle.hold(ANN, HERE)
    with pytest.raises(RateLimited, match="caller"):
        throttle.hold(ANN, HERE)
    throttle.hold(BOB, HERE)
    with pytest.raises(RateLimited, match="address"):
        throttle.hold(Caller("key:eve", Permission.READER), HERE)
    end()
    throttle.hold(ANN, HERE)


def test_connections_are_counted_for_addresses_and_in_total_but_proxies_carry_many() -> None:
    throttle = Throttle(
        limits(connections=5, connections_per_address=1),
        Metrics(),
        spared=lambda address: address == "10.0.0.1",
    )
    end = throttle.connect("192.0.2.1")
    assert end is not None
    assert throttle.connect("192.0.2.1") is None
    end()
    assert throttle.connect("192.0.2.1") is not None
    for _ in range(4):
        assert throttle.connect("10.0.0.1") is not None
    assert throttle.connect("192.0.2.2") is None


# --- over the wire


class Keys(OpenAccess):
    """`Authorization` names the caller; `known` knows only who was identified before."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.identified = 0

    async def identify(self, headers, peer: Peer) -> Caller:
        self.identified += 1
        name = headers.get("authorization", "")
        if not name.startswith("key:"):
            raise Unauthenticated("no such key")
        self.seen.add(name)
        return Caller(name, Permission.WRITER)

    def known(self, headers, peer: Peer) -> Caller | None:
        name = headers.get("authorization", "")
        return Caller(name, Permission.WRITER) if name in self.seen else None


class Lease:
    """A heartbeat, and a list, with both lanes. The instance `gone` has no lease."""

    def __init__(self) -> None:
        self.taken = 0
        self.willing = True

    async def long(self, request):
        if "gone" in request.raw.raw_path:
            raise InstanceUnknown("register again")
        return Reply(204)

    def short(self, exchange) -> bool:
        if not self.willing:
            return False
        self.taken += 1
        if "gone" in exchange.path:
            exchange.fail(InstanceUnknown("register again"))
        else:
            exchange.reply(Reply(204))
        return True

    def routes(self):
        both = {"handler": self.long, "shortcut": self.short}
        beat = {"permission": Permission.WRITER, "renewal": True}
        return [
            route("PUT", "/beat", **both, **beat),
            route("PUT", "/beat/gone", **both, **beat),
            route("GET", "/list", permission=Permission.READER, **both),
            route("PUT", "/write", permission=Permission.WRITER),
            route("GET", "/open"),
        ]


ME = "Authorization: key:me"


@pytest.mark.parametrize("more", [(), ("X-Long: a", "X-Long: b")], ids=["fast lane", "long way"])
async def test_reads_and_writes_run_out_renewals_do_not(more: tuple[str, ...]) -> None:
    lease, access = Lease(), Keys()
    few = limits(caller=Allowance(3, 2, 9))
    async with (
        serving(lease.routes(), access=access, throttle=few) as served,
        served.line() as line,
    ):
        await line.ask(get("/open"))
        statuses = [(await line.ask(get("/list", ME, *more))).status for _ in range(4)]
        assert statuses == [204, 204, 204, 429]
        statuses = [(await line.ask(request("PUT", "/write", ME, *more))).status for _ in range(3)]
        assert statuses == [204, 204, 429]
        for _ in range(20):
            assert (await line.ask(request("PUT", "/beat", ME, *more))).status == 204
            assert (await line.ask(get("/open", ME, *more))).status == 204
        refused = await line.ask(request("PUT", "/write", ME))
        assert (refused.json["code"], refused.headers["Retry-After"]) == ("rate_limited", "1")
        assert (await line.ask(get("/list", "Authorization: key:other"))).status == 204
        assert served.limited("caller_reads") == 1
        assert served.limited("caller_writes") == 2
    # The first request of each kind is unknown to `known`, and takes the long way.
    assert lease.taken == (0 if more else 22)


@pytest.mark.parametrize("more", [(), ("X-Long: a", "X-Long: b")], ids=["fast lane", "long way"])
async def test_a_renewal_that_finds_no_lease_counts_as_a_write(more: tuple[str, ...]) -> None:
    few = limits(caller=Allowance(9, 3, 9))
    async with (
        serving(Lease().routes(), access=Keys(), throttle=few) as served,
        served.line() as line,
    ):
        await line.ask(get("/list", ME))
        asked = request("PUT", "/beat/gone", ME, *more)
        assert [(await line.ask(asked)).status for _ in range(5)] == [404, 404, 404, 429, 429]
        assert (await line.ask(request("PUT", "/write", ME))).status == 429
        assert (await line.ask(request("PUT", "/beat", ME, *more))).status == 204


async def test_what_the_fast_lane_hands_on_is_counted_once() -> None:
    lease = Lease()
    few = limits(caller=Allowance(4, 9, 9))
    async with (
        serving(lease.routes(), access=Keys(), throttle=few) as served,
        served.line() as line,
    ):
        await line.ask(get("/list", ME))
        lease.willing = False
        statuses = [(await line.ask(get("/list", ME))).status for _ in range(4)]
    assert statuses == [204, 204, 204, 429]


async def test_guessing_runs_out_and_shuts_nobody_else_out() -> None:
    access = Keys()
    few = limits(denied_per_minute=3)
    async with (
        serving(Lease().routes(), access=access, throttle=few) as served,
        served.line() as line,
    ):
        assert (await line.ask(get("/list", ME))).status == 204
        wrong = get("/list", "Authorization: guess")
        # 60 seconds' worth of 3 in a minute.
        assert [(await line.ask(wrong)).status for _ in range(5)] == [401, 401, 401, 429, 429]
        asked = access.identified
        # A right guess now is not even looked at; who is known goes on.
        assert (await line.ask(get("/list", "Authorization: key:new"))).status == 429
        assert access.identified == asked
        assert (await line.ask(get("/list", ME))).status == 204
        assert served.limited("address_denied") == 3


async def test_without_limits_nothing_is_counted() -> None:
    async with serving(Lease().routes(), access=Keys()) as served, served.line() as line:
        for _ in range(50):
            assert (await line.ask(get("/list", "Authorization: guess"))).status == 401
            assert (await line.ask(request("PUT", "/write", ME))).status == 204


class Streams:
    def __init__(self) -> None:
        self.fails = False
        self.outlets: list = []

    async def stream(self, request):
        async def produce(outlet):
            if self.fails:
                raise RuntimeError("no")
            await outlet.send(b"first")
            self.outlets.append(outlet)

        return Stream(produce, standing=True)

    async def poll(self, request):
        with request.held():
            await asyncio.Event().wait()

    def routes(self):
        reader = {"permission": Permission.READER}
        return [route("GET", "/s", self.stream, **reader), route("GET", "/p", self.poll, **reader)]


async def test_streams_and_long_polls_are_bounded_and_free_their_place_at_the_end() -> None:
    streams = Streams()
    two = limits(caller=Allowance(99, 99, 2))
    async with serving(streams.routes(), access=Keys(), throttle=two) as served:
        async with served.line() as line:
            assert (await line.ask(request("HEAD", "/s", ME))).status == 200  # ends at once
        streams.fails = True
        async with served.line() as line:
            await line.send(get("/s", ME))
            await line.rest()
        streams.fails = False
        async with served.line() as first, served.line() as second, served.line() as third:
            await first.send(get("/s", ME))
            assert (await first.head()).status == 200
            await second.send(get("/p", ME))
            await eventually(lambda: served.pipeline.in_flight == 1)
            for path in ("/s", "/p"):
                refused = await third.ask(get(path, ME))
                assert (refused.status, refused.json["code"]) == (429, "rate_limited")
            assert served.limited("caller_streams") == 2
            second.writer.close()
            await eventually(lambda: served.pipeline.in_flight == 0)
            await third.send(get("/s", ME))
            assert (await third.head()).status == 200
            [outlet, _] = streams.outlets
            outlet.end()
            await first.rest()
            async with served.line() as fourth:
                await fourth.send(get("/s", ME))
                assert (await fourth.head()).status == 200


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async with serving(Lease().routes(), throttle=limits(connections_per_address=2)) as served:
        async with served.line() as first, served.line() as second:
            await first.ask(get("/open"))
            await second.ask(get("/open"))
            async with served.line() as third:
                assert await asyncio.wait_for(third.rest(), 1) == b""
            assert served.limited("address_connections") == 1
            assert (await first.ask(get("/open"))).status == 204
        await eventually(lambda: not served.server._connections())
        async with served.line() as again:
            assert (await again.ask(get("/open"))).status == 204


async def test_behind_a_proxy_the_clients_are_counted() -> None:
    proxies = Proxies([ipaddress.ip_network("127.0.0.0/8")])
    few = limits(address=Allowance(1, 1, 1), connections_per_address=1)
    async with (
        serving(Lease().routes(), proxies=proxies, throttle=few) as served,
        served.line() as first,
        served.line() as second,
    ):
        one = get("/list", "X-Forwarded-For: 203.0.113.1")
        other = get("/list", "X-Forwarded-For: 203.0.113.2")
        assert [(await first.ask(one)).status for _ in range(2)] == [204, 429]
        assert (await second.ask(other)).status == 204
