"""kill -9 of daemon or store in the middle of a large import: all of it, or nothing."""

import asyncio
import os
import random
import signal
from typing import Any

import aiohttp
import pytest
from processes import Machine, Registryd, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

COUNT = 3_000


def file(weight: int) -> dict[str, Any]:
    instances = [
        {"instanceId": f"i{n}", "endpoint": f"http://10.0.0.1:{n + 1}", "weight": weight,
         "healthCheck": None, "ttlSeconds": 3600}
        for n in range(COUNT)
    ]  # fmt: skip
    return {"version": "1.0", "services": {"big": {"instances": instances}}}


async def weights(daemon: Registryd) -> set[int]:
    """The weights of what is listed, which have to be of one import only."""
    found = await daemon.instances("&sort=name")
    assert len(found) in {0, COUNT}, len(found)
    return {one["weight"] for one in found.values()}


async def send(daemon: Registryd, weight: int) -> int:
    try:
        status, _, _ = await daemon.ask("POST", "/import", file(weight), seconds=60)
    except (aiohttp.ClientError, ConnectionError):
        return 0
    return status


async def progress(daemon: Registryd) -> int:
    """How far the store is: parts laid down, or instances written."""
    async with daemon.store() as store:
        keys = [key async for key in store.scan_iter("ossa:import:*")]
        return len(keys) + int(await store.hlen("ossa:inst"))


@pytest.mark.parametrize("seed", range(3))
async def test_a_daemon_killed_during_an_import_leaves_all_of_it_or_nothing(
    machine: Machine, seed: int
) -> None:
    dice = random.Random(seed)
    daemon = await machine.start()
    sending = asyncio.create_task(send(daemon, 7))
    goal = dice.randrange(COUNT)
    await until(lambda: _beyond(daemon, goal), pause=0.002)
    await daemon.crash()
    acknowledged = await sending == 200
    again = await machine.start()
    found = await weights(again)
    assert found == {7} or (not acknowledged and goal == 0)
    async with again.store() as store:
        assert [key async for key in store.scan_iter("ossa:import:*")] == []
        assert await store.zcard("ossa:leases") == await store.hlen("ossa:inst") == COUNT
    assert await send(again, 8) == 200
    assert await weights(again) == {8}


async def _beyond(daemon: Registryd, goal: int) -> bool:
    return await progress(daemon) > goal


async def test_a_daemon_killed_before_the_commit_has_imported_nothing(machine: Machine) -> None:
    daemon = await machine.start()
    sending = asyncio.create_task(send(daemon, 7))
    await until(lambda: _beyond(daemon, 0), pause=0.0)
    os.kill(daemon.process.pid, signal.SIGSTOP)  # so that nothing is done between look and kill
    async with daemon.store() as store:
        committed = await store.hexists("ossa:meta", "import")
        written = await store.hlen("ossa:inst")
    await daemon.crash()
    assert await sending == 0
    again = await machine.start()
    assert await weights(again) == ({7} if committed or written else set())


async def test_a_store_killed_during_an_import_leaves_all_of_it_or_nothing(
    machine: Machine,
) -> None:
    daemon = await machine.start()
    assert await send(daemon, 6) == 200
    sending = asyncio.create_task(send(daemon, 7))

    async def under_way() -> bool:
        async with daemon.store() as store:
            return bool(await store.hexists("ossa:meta", "import"))

    seen: set[frozenset[int]] = set()
    await until(under_way, pause=0.002)
    os.kill(daemon.store_pid, signal.SIGKILL)
    status = 0
    while not sending.done():
        seen.add(frozenset(await weights(daemon)))
        await asyncio.sleep(0.01)
    status = sending.result()

    async def settled() -> bool:
        seen.add(frozenset(await weights(daemon)))
        return frozenset({7}) in seen

    await until(settled)
    assert status in {200, 503}
    assert seen <= {frozenset({6}), frozenset({7})}
