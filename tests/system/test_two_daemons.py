"""Several daemons on one store behave as one."""

import asyncio
import json
import signal
from collections import Counter

import pytest
from processes import Machine, free_port, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


async def test_what_one_daemon_writes_the_other_shows(machine: Machine) -> None:
    first = await machine.start()
    second = await machine.start("--redis-url", first.store_url, data="none")
    _, _, written = await first.register("web:one")
    status, _, found = await second.get(
        f"/services/web/instances/one?minRevision={written['revision']}"
    )
    assert (status, found["revision"]) == (200, written["revision"])
    assert (await second.ask("DELETE", "/services/web/instances/one"))[0] == 204
    assert (await first.get("/services/web?consistency=strong"))[0] == 404


async def test_each_expiry_is_announced_once_though_one_of_two_daemons_is_killed(
    machine: Machine,
) -> None:
    env = {"REGISTRYD_REGISTRY__GUARD__ENABLED": "false"}
    first = await machine.start(env=env)
    second = await machine.start("--redis-url", first.store_url, data="none", env=env)
    third = await machine.start("--redis-url", first.store_url, data="none", env=env)
    mortal = {f"web:{number}" for number in range(60)}
    async with first.store() as store, store.pubsub() as listener:
        await listener.subscribe("ossa:events:service:expired")
        for at, identity in enumerate(sorted(mortal)):
            await (second, third)[at % 2].register(identity, ttlSeconds=2)
            await asyncio.sleep(0.03)  # so that they end one after the other
        await until(lambda: first.said("instance expired") or third.said("instance expired"))
        await second.crash()

        told: Counter[str] = Counter()

        async def all_told() -> bool:
            message = await listener.get_message(ignore_subscribe_messages=True, timeout=0.01)
            if message is not None:
                told[json.loads(message["data"])["subject"].replace("/", ":")] += 1
            return told.keys() == mortal

        await until(all_told, pause=0)
        assert await listener.get_message(ignore_subscribe_messages=True, timeout=0.5) is None
    assert set(told.values()) == {1}
    for daemon in (first, third):
        assert await daemon.instances() == {}


async def test_daemons_that_start_together_do_not_disturb_each_other(machine: Machine) -> None:
    async with machine.private_store() as store:
        url = f"unix://{store.connection_pool.connection_kwargs['path']}"
        daemons = await asyncio.gather(*(machine.start("--redis-url", url) for _ in range(4)))
        assert len({daemon.said("serving")[0]["deployment"] for daemon in daemons}) == 1


async def test_two_processes_share_one_port(machine: Machine) -> None:
    port = str(free_port())
    first = await machine.start("--reuse-port", "--port", port)
    second = await machine.start(
        "--reuse-port", "--port", port, "--redis-url", first.store_url, data="none"
    )
    _, _, written = await first.register("web:one")
    # Either process may answer; the one that did not take the write is told how new it has to be.
    target = f"/services/web?minRevision={written['revision']}"
    for _ in range(40):  # each with a connection of its own
        status, _, _ = await first.ask("GET", target, headers={"Connection": "close"})
        assert status == 200
    second.signal(signal.SIGTERM)
    assert await second.exit_code() == 0
    assert (await first.get("/services/web"))[0] == 200
