"""Registrations that are not lost, against real daemons."""

import asyncio
import os
import random
import signal
from pathlib import Path
from types import FrameType

import pytest
from daemons import Api, eventually, running

from registryd import errors
from registryd.client import RegistryClient, from_environment
from registryd.client.identity import base_urls, default_id
from registryd.client.lives import TAKEOVERS, Life, after_superseded, parse_life
from registryd.client.signals import before_sigterm
from registryd.registry.types import InstanceShown

ENDPOINT = "http://10.0.0.1:8080"


async def ids(api: Api, name: str = "chat") -> list[str]:
    return [one["instanceId"] for one in (await api.get(f"/discover/{name}")).json]


async def test_an_instance_is_there_for_as_long_as_the_block_runs(
    api: Api, client: RegistryClient
) -> None:
    async with client.registration("chat", ENDPOINT, instance_id="a", weight=3) as reg:
        assert reg.state == "registered"
        assert (await api.instance())["weight"] == 3
    assert reg.state == "left"
    assert await ids(api) == []


async def test_heartbeats_keep_it_beyond_its_lease(api: Api, client: RegistryClient) -> None:
    async with client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=2) as reg:
        before = reg.due
        await eventually(lambda: reg.due > before + 1.5, within=4)  # two heartbeats later
        assert await ids(api) == ["a"]
        assert (await api.instance())["incarnation"] == str(reg.life)


async def test_many_registrations_renew_in_one_call(api: Api, client: RegistryClient) -> None:
    regs = [
        client.registration("chat", ENDPOINT, instance_id=f"i{number}", ttl_seconds=3)
        for number in range(30)
    ]
    for reg in regs:
        await reg.__aenter__()
    before = [reg.due for reg in regs]
    await eventually(lambda: all(reg.due != due for reg, due in zip(regs, before, strict=True)))
    page = (await api.get("/metrics")).body.decode()
    beats = [
        line
        for line in page.splitlines()
        if 'requests_total{method="PUT",route="/heartbeats"' in line
    ]
    assert 1 <= sum(float(line.rsplit(" ", 1)[1]) for line in beats) <= 3
    for reg in regs:
        await reg.__aexit__()


async def test_what_the_registry_has_lost_registers_again(api: Api, client: RegistryClient) -> None:
    async with client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3, weight=3):
        await api.delete("/services/chat/instances/a")
        assert await ids(api) == []

        async def back() -> bool:
            return await ids(api) == ["a"]

        await eventually(back)
        assert (await api.instance())["weight"] == 3


async def test_a_registry_that_is_away_does_not_stop_the_service(
    store_url: str, prefix: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    async with (
        RegistryClient(f"http://127.0.0.1:{unused_tcp_port}", environ={}) as client,
        client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3) as reg,
    ):
        assert reg.state == "waiting"
        listen = {"listen": f"127.0.0.1:{unused_tcp_port}"}
        async with running(store_url, prefix, tmp_path, server=listen) as api:
            await asyncio.wait_for(reg.registered(), 4)
            assert await ids(api) == ["a"]


async def test_what_no_attempt_would_mend_is_raised_unless_forgiving(
    client: RegistryClient, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(errors.Invalid):
        await client.registration("chat", "nowhere").__aenter__()
    async with client.registration("chat", "nowhere", forgiving=True) as reg:
        assert reg.state == "waiting"
    assert "Service registry registration failed: " in caplog.text


async def test_a_successor_at_the_same_endpoint_is_left_alone(
    api: Api, client: RegistryClient
) -> None:
    old = client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3)
    await old.__aenter__()
    await asyncio.sleep(0.002)  # the next starts later, by the millisecond
    async with client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3) as new:
        await eventually(lambda: old.state == "yielded")
        await old.__aexit__()
        assert await ids(api) == ["a"]
        assert (await api.instance())["incarnation"] == str(new.life)


async def test_a_namesake_elsewhere_lives_on_under_another_id(
    api: Api, client: RegistryClient
) -> None:
    async with (
        client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3) as old,
        RegistryClient(api.base, environ={}) as another,
    ):
        await asyncio.sleep(0.002)  # it starts later, by the millisecond
        async with another.registration(
            "chat", "http://10.0.0.2:1", instance_id="a", ttl_seconds=3
        ) as new:
            await eventually(lambda: old.instance_id != "a" and old.state == "registered")
            assert sorted(await ids(api)) == ["a", old.instance_id]
            assert (await api.instance())["incarnation"] == str(new.life)
            assert old.instance_id.startswith("a~")
    assert await ids(api) == []


async def test_an_edit_by_somebody_else_does_not_cost_the_registration(
    api: Api, client: RegistryClient
) -> None:
    async with client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3) as reg:
        await api.register("chat", "a", endpoint=ENDPOINT, weight=9)

        async def ours() -> bool:
            return bool((await api.instance())["incarnation"] == str(reg.life))

        assert not await ours()
        await eventually(ours)
        assert reg.life.number == 2


def holder(incarnation: str, endpoint: str = ENDPOINT) -> InstanceShown:
    return InstanceShown.model_validate(
        {
            "name": "chat", "instanceId": "a", "endpoint": endpoint, "weight": 1,
            "capabilities": [], "metadata": {}, "incarnation": incarnation, "revision": "1-1",
            "health": {"status": "healthy", "since": ""}, "registeredAt": "", "updatedAt": "",
            "lease": {"ttlSeconds": 3, "renewIntervalSeconds": 1, "state": "live"},
        }
    )  # fmt: skip


OURS = Life(1000, "mmmmmm")


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (OURS, None, "register"),
        (OURS, holder("01K"), "register"),
        (OURS, holder(str(Life(999, "zzzzzz"))), "register"),
        (OURS, holder(str(Life(1001, "aaaaaa"))), "yield"),
        (OURS, holder(str(Life(1000, "nnnnnn"))), "yield"),
        (OURS, holder(str(Life(1001, "aaaaaa")), "http://elsewhere:1"), "rename"),
        (Life(1000, "mmmmmm", TAKEOVERS + 1), holder("01K"), "yield"),
        (Life(1000, "mmmmmm", TAKEOVERS + 1), holder("01K", "http://elsewhere:1"), "rename"),
    ],
)
def test_the_later_start_keeps_the_id(
    ours: Life, theirs: InstanceShown | None, outcome: str
) -> None:
    assert after_superseded(ours, ENDPOINT, theirs) == outcome


def test_of_two_that_meet_only_one_ever_takes_the_id() -> None:
    dice = random.Random(1)
    for _ in range(200):
        a, b = (Life(dice.randrange(3), dice.choice(["aaaaaa", "bbbbbb"])) for _ in range(2))
        if (a.started_ms, a.mark) != (b.started_ms, b.mark):
            took = [
                after_superseded(one, ENDPOINT, holder(str(other))) == "register"
                for one, other in ((a, b), (b, a))
            ]
            assert sorted(took) == [False, True]


def test_an_incarnation_tells_when_it_began() -> None:
    assert parse_life(str(OURS.next())) == Life(1000, "mmmmmm", 2)
    assert parse_life("01K") is None


async def test_draining_takes_it_out_of_every_choice_while_it_still_serves(
    api: Api, client: RegistryClient
) -> None:
    reg = client.registration("chat", ENDPOINT, instance_id="a", drain_seconds=1)
    async with reg:
        draining = asyncio.create_task(reg.drain())

        async def out() -> bool:
            return await ids(api) == []

        await eventually(out)
        assert not draining.done()
        assert (await api.instance())["admin"]["state"] == "draining"
        await draining
    assert (await api.get("/services/chat/instances/a")).status == 404


async def test_sigterm_is_handed_on_after_the_draining() -> None:
    order: list[str] = []

    def server(number: int, frame: FrameType | None) -> None:
        order.append("server")

    async def drain() -> None:
        order.append("drain")
        await asyncio.sleep(0)

    before = signal.signal(signal.SIGTERM, server)
    try:
        with before_sigterm(drain):
            os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: "server" in order)
        assert order == ["drain", "server"]
        assert signal.getsignal(signal.SIGTERM) is server
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_sigterm_drains_every_registration_of_a_client(
    api: Api, client: RegistryClient
) -> None:
    heard = asyncio.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        async with (
            client.registration("a", ENDPOINT, drain_seconds=1, on_sigterm=True) as first,
            client.registration("b", ENDPOINT, drain_seconds=1, on_sigterm=True) as second,
        ):
            os.kill(os.getpid(), signal.SIGTERM)
            await eventually(lambda: (first.state, second.state) == ("draining", "draining"))
            assert not heard.is_set()
            await asyncio.wait_for(heard.wait(), 3)
        assert await api.listed("") == []
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_second_sigterm_does_not_wait() -> None:
    heard = asyncio.Event()
    begun = asyncio.Event()

    async def drain() -> None:
        begun.set()
        await asyncio.Event().wait()

    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        with before_sigterm(drain):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(begun.wait(), 3)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(heard.wait(), 3)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("environ", "endpoint", "instance_id"),
    [
        ({}, "http://asr:8090", None),
        ({"SERVICE_PORT": "9", "SERVICE_HOST": "h"}, "http://h:9", None),
        ({"SERVICE_PUBLIC_URL": "https://p.example/", "SERVICE_PORT": "9"}, "https://p.example", None),
        ({"SERVICE_PORT": "", "SERVICE_HOST": "", "SERVICE_PUBLIC_URL": "", "SERVICE_INSTANCE_ID": ""},
         "http://asr:8090", None),
        ({"SERVICE_INSTANCE_ID": "x"}, "http://asr:8090", "x"),
    ],
)  # fmt: skip
def test_the_environment_says_who_a_service_is(
    environ: dict[str, str], endpoint: str, instance_id: str | None
) -> None:
    found = from_environment({"SERVICE_NAME": "asr", **environ})
    assert (found.name, found.endpoint, found.instance_id) == ("asr", endpoint, instance_id)


@pytest.mark.parametrize("environ", [{}, {"SERVICE_NAME": ""}])
def test_without_a_name_there_is_no_service(environ: dict[str, str]) -> None:
    with pytest.raises(errors.Invalid, match="SERVICE_NAME"):
        from_environment(environ)


@pytest.mark.parametrize(
    ("environ", "urls"),
    [
        ({}, ["http://127.0.0.1:8082"]),
        ({"REGISTRYD_URL": "", "CONFIG_SERVICE_URL": ""}, ["http://127.0.0.1:8082"]),
        ({"CONFIG_SERVICE_URL": "http://config-service:8082"}, ["http://config-service:8082"]),
        ({"REGISTRYD_URL": "http://a, http://b", "CONFIG_SERVICE_URL": "http://c"},
         ["http://a", "http://b"]),
    ],
)  # fmt: skip
def test_the_environment_says_where_the_registry_is(
    environ: dict[str, str], urls: list[str]
) -> None:
    assert base_urls(environ) == urls


async def test_ids_differ_between_containers_that_share_everything(client: RegistryClient) -> None:
    made = {default_id("asr", ENDPOINT, random.Random(seed), host="box") for seed in range(50)}
    assert len(made) == 50
    assert all(one.startswith("asr-box-8080-") for one in made)
    awkward = default_id("n" * 128, "tcp://h:1", random.Random(1), host="b_x/" * 40)
    shown = await client.register("n", "tcp://h:1", instance_id=awkward)
    assert shown.instance_id == awkward
