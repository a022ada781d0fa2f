"""Choosing: the strategies alone, the caller's own measurements, and pickers with real daemons."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running
from servers import Clock, faulty, http, problem, stream
from test_known import shown

from registryd import errors
from registryd.client import NoneOffered, RegistryClient, Strategy, Unreachable
from registryd.client.choosing import CHOOSERS, Choice, candidates
from registryd.client.outliers import EJECT_AFTER, EJECT_FOR, Outliers

HEALTHY = {"health": {"status": "healthy", "since": ""}}


def choice(
    seed: int = 1, *, key: str = "", turn: int = 0, outliers: Outliers | None = None
) -> Choice:
    return Choice(key, turn, random.Random(seed), outliers or Outliers(Clock()))


def of(*instances: Any, **more: Any) -> list[str]:
    return [one.instance_id for one in candidates(instances, **more)]


def test_every_strategy_has_a_chooser() -> None:
    assert set(CHOOSERS) == set(Strategy)


def test_candidates_are_the_equally_good_best() -> None:
    ill = {"health": {"status": "unhealthy", "since": ""}}
    odd = {"health": {"status": "degraded", "since": ""}}
    suspect = {"lease": {"ttlSeconds": 3, "renewIntervalSeconds": 1, "state": "suspect"}}
    draining = {"admin": {"state": "draining", "by": ""}}
    assert of(shown("b"), shown("a"), shown("c", **odd), shown("d", **ill)) == ["a", "b"]
    assert of(shown("c", **odd), shown("d", **ill)) == ["c"]
    assert of(shown("d", **ill), shown("e", **draining)) == []
    assert of(shown("a", **suspect), shown("b")) == ["b"]
    assert of(shown("a", weight=0), shown("b")) == ["b"]
    assert of(shown("a", weight=0)) == ["a"]
    assert of(shown("a", zone="x"), shown("b", zone="y"), zone="y") == ["b"]
    assert of(shown("a", zone="x"), zone="y") == ["a"]
    assert of(shown("a"), shown("c", **odd), rejected={"a"}) == ["c"]
    assert of(shown("a"), rejected={"a"}) == ["a"]


def test_weights_share_out_the_calls() -> None:
    able = [shown("a", weight=1), shown("b", weight=3)]
    given = choice()
    counts = Counter(CHOOSERS[Strategy.WEIGHTED](able, given).instance_id for _ in range(4000))
    assert 0.7 < counts["b"] / 4000 < 0.8


def test_round_robin_takes_turns() -> None:
    able = [shown("a"), shown("b"), shown("c")]
    turns = [CHOOSERS[Strategy.ROUND_ROBIN](able, choice(turn=turn)) for turn in range(6)]
    assert [one.instance_id for one in turns] == ["a", "b", "c", "a", "b", "c"]


def test_random_reaches_everybody() -> None:
    able = [shown("a"), shown("b"), shown("c", weight=100)]
    counts = Counter(
        CHOOSERS[Strategy.RANDOM](able, choice(seed)).instance_id for seed in range(3000)
    )
    assert min(counts.values()) > 800


async def test_a_consistent_choice_is_the_registrys_own(api: Api, client: RegistryClient) -> None:
    for number in range(5):
        await api.register("chat", f"i{number}", weight=number + 1, **HEALTHY)
    for key in map(str, range(20)):
        there = await client.url("chat", strategy="consistent", key=key)
        here = await client.pick("chat", strategy="consistent", key=key)
        assert here.instance_id == there.instance_id


def test_the_fastest_is_chosen_once_all_are_measured() -> None:
    outliers = Outliers(Clock())
    able = [shown("a"), shown("b"), shown("c")]
    for instance_id, seconds in (("a", 0.3), ("b", 0.1)):
        outliers.begin(instance_id)
        outliers.end(instance_id, seconds=seconds, good=True)
    fastest = CHOOSERS[Strategy.LEAST_LATENCY]
    assert fastest(able, choice(outliers=outliers)).instance_id == "c"
    assert fastest(able[:2], choice(outliers=outliers)).instance_id == "b"
    for _ in range(5):
        outliers.begin("b")  # five calls are under way there
    assert fastest(able[:2], choice(outliers=outliers)).instance_id == "a"


def test_of_two_drawn_the_less_busy_is_chosen() -> None:
    outliers = Outliers(Clock())
    able = [shown("a"), shown("b"), shown("c")]
    for instance_id, seconds in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        outliers.begin(instance_id)
        outliers.end(instance_id, seconds=seconds, good=True)
    counts = Counter(
        CHOOSERS[Strategy.P2C](able, choice(seed, outliers=outliers)).instance_id
        for seed in range(3000)
    )
    assert counts["c"] == 0
    assert counts["a"] > counts["b"] > 500


def test_failures_in_a_row_eject_for_longer_each_time() -> None:
    clock = Clock()
    outliers = Outliers(clock)

    def fail() -> None:
        outliers.begin("a")
        outliers.end("a", seconds=1, good=False)

    for _ in range(EJECT_AFTER - 1):
        fail()
    assert outliers.ejected(["a", "b"]) == set()
    fail()
    assert outliers.ejected(["a", "b"]) == {"a"}
    clock.time += EJECT_FOR
    assert outliers.ejected(["a", "b"]) == set()
    fail()
    clock.time += EJECT_FOR
    assert outliers.ejected(["a", "b"]) == {"a"}
    clock.time += EJECT_FOR
    outliers.end("a", seconds=1, good=True)
    fail()
    assert outliers.ejected(["a", "b"]) == set()


def test_never_more_than_half_are_ejected() -> None:
    clock = Clock()
    outliers = Outliers(clock)
    for instance_id in "abcde":
        for _ in range(EJECT_AFTER):
            outliers.end(instance_id, seconds=1, good=False)
        clock.time += 0.1
    assert outliers.ejected(list("abcde")) == {"d", "e"}
    assert outliers.ejected(["a"]) == set()


def test_who_gave_up_says_nothing_of_the_instance() -> None:
    outliers = Outliers(Clock())
    for _ in range(EJECT_AFTER):
        outliers.begin("a")
        outliers.end("a", seconds=9, good=None)
    assert outliers.ejected(["a", "b"]) == set()
    assert outliers.load("a") == 0.0


async def test_a_picker_follows_what_happens(api: Api, client: RegistryClient) -> None:
    await api.register("chat", "a", **HEALTHY)
    assert (await client.pick("chat")).instance_id == "a"
    await api.register("chat", "b", **HEALTHY)
    picker = client.picker("chat")
    await eventually(lambda: len(picker.found) == 2)
    await api.put("/services/chat/instances/a/drain", {"seconds": 60})

    async def only_b() -> bool:
        return {(await picker.pick()).instance_id for _ in range(20)} == {"b"}

    await eventually(only_b)
    await api.delete("/services/chat/instances/b")
    await eventually(lambda: len(picker.found) == 1)
    with pytest.raises(NoneOffered, match=r"until one is healthy\.$") as caught:
        await picker.pick()
    assert caught.value.members["reasons"] == {"draining": 1}


def refuse(instance_id: str) -> None:
    if instance_id == "a":
        raise ConnectionRefusedError


async def test_bad_results_turn_the_picker_away(api: Api, client: RegistryClient) -> None:
    for instance_id in ("a", "b"):
        await api.register("chat", instance_id, **HEALTHY)
    picker = client.picker("chat", strategy="round_robin")
    for _ in range(2 * EJECT_AFTER):
        try:
            async with picker.use() as target:
                refuse(target.instance_id)
        except ConnectionRefusedError:
            pass
    assert {(await picker.pick()).instance_id for _ in range(6)} == {"b"}
    async with picker.use() as target:
        target.failed = True
    assert client.picker("chat", strategy="round_robin") is picker


async def test_picks_go_on_while_the_registry_is_away_and_after(
    store_url: str, prefix: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    listen = {"listen": f"127.0.0.1:{unused_tcp_port}"}
    async with RegistryClient(f"http://127.0.0.1:{unused_tcp_port}", environ={}) as client:
        picker = client.picker("chat")
        async with running(store_url, prefix, tmp_path, server=listen) as api:
            await api.register("chat", "a", **HEALTHY)
            assert (await picker.pick()).instance_id == "a"
        await eventually(lambda: not picker.connected)
        assert (await picker.pick()).instance_id == "a"
        assert picker.found.source == "last-known-good"
        async with running(store_url, prefix, tmp_path, server=listen) as api:
            await api.register("chat", "b", **HEALTHY)
            await eventually(lambda: len(picker.found) == 2 and picker.connected)


async def test_what_was_known_on_disk_serves_before_the_registry_does(
    api: Api, tmp_path: Path
) -> None:
    await api.register("chat", "a", **HEALTHY)
    cache = tmp_path / "cache"
    async with RegistryClient(api.base, cache_dir=cache, environ={}) as client:
        await client.pick("chat")
    await api.daemon.stop()
    async with RegistryClient(api.base, cache_dir=cache, environ={}) as client:
        assert (await client.pick("chat")).instance_id == "a"


async def test_a_picker_polls_where_no_stream_gets_through() -> None:
    listed = b'{"instances":[%b],"total":1,"revision":"5-1","next":null}' % (
        shown("a").model_dump_json(by_alias=True, exclude_none=True).encode()
    )
    blocked = http(200, b"<html>", kind="text/html")
    async with (
        faulty(blocked, http(200, listed), blocked) as server,
        RegistryClient(server.url, environ={}) as client,
    ):
        assert (await client.pick("chat")).instance_id == "a"
        assert not client.picker("chat").connected
    assert "GET /api/v1/registry/services?name=%5Echat%24" in server.requests[1]


async def test_without_anything_ever_known_the_reason_is_told() -> None:
    async with (
        faulty(problem(401, "unauthenticated")) as server,
        RegistryClient(server.url, environ={}) as client,
    ):
        with pytest.raises(errors.Unauthenticated):
            await client.pick("chat")


async def test_a_registry_that_restarts_empty_does_not_empty_the_picker() -> None:
    def snapshot(*ids: str) -> bytes:
        items = ",".join(
            shown(one).model_dump_json(by_alias=True, exclude_none=True) for one in ids
        )
        return stream(
            f'id: 5-1\nevent: snapshot\ndata: {{"revision":"5-1","instances":[{items}]}}\n\n'
        )

    gone = problem(503, "not_ready")
    async with (
        faulty(snapshot("a", "b", "c"), gone, snapshot(), gone) as server,
        RegistryClient(server.url, environ={}) as client,
    ):
        picker = client.picker("chat")
        await picker.pick()
        await eventually(lambda: picker.found.doubt)
        assert len(picker.found) == 3
        assert await picker.pick()


async def test_a_cancelled_call_is_not_a_failure(api: Api, client: RegistryClient) -> None:
    await api.register("chat", "a", **HEALTHY)
    await api.register("chat", "b", **HEALTHY)
    picker = client.picker("chat")

    async def hang() -> None:
        async with picker.use():
            await asyncio.Event().wait()

    for _ in range(4 * EJECT_AFTER):
        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    assert picker.outliers.ejected(["a", "b"]) == set()


async def test_nobody_answers_and_nothing_is_known() -> None:
    async with RegistryClient("http://127.0.0.1:1", environ={}) as client:
        with pytest.raises(Unreachable):
            await client.pick("chat")
