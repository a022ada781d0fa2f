"""What dies, hangs or is swapped while registryd runs, and what its clients notice of it."""

import asyncio
import os
import signal
import time

import pytest
from processes import Load, Machine, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

NO_GUARD = {"REGISTRYD_REGISTRY__GUARD__ENABLED": "false"}


async def test_a_killed_daemon_comes_back_with_everything_it_acknowledged(machine: Machine) -> None:
    first = await machine.start()
    await asyncio.gather(*(first.register(f"web:{n}", ttlSeconds=86400) for n in range(50)))
    before = await first.instances()
    _, headers, _ = await first.get("/services")
    epoch, _, rev = headers["X-Registry-Revision"].partition("-")
    await first.crash()

    second = await machine.start()
    assert await second.instances() == before
    _, headers, written = await second.register("web:new")
    assert written["revision"] == f"{epoch}-{int(rev) + 1}"


async def test_the_downtime_of_the_daemon_expires_only_what_was_dead_before(
    machine: Machine,
) -> None:
    first = await machine.start(env=NO_GUARD)
    for identity in ("web:live", "web:dead"):
        await first.register(identity, ttlSeconds=2)
    await first.crash()
    await asyncio.sleep(3)  # the downtime itself: longer than the lease

    second = await machine.start(env=NO_GUARD)
    assert (await second.beat("web:live"))[0] == 200
    started = time.monotonic()

    async def the_dead_is_gone() -> bool:
        assert (await second.beat("web:live"))[0] == 200
        return "web:dead" not in await second.instances()

    await until(the_dead_is_gone, seconds=2 + 2)
    assert time.monotonic() - started > 1, "it had most of its lease left"
    assert set(await second.instances()) == {"web:live"}


async def test_a_killed_store_is_started_again_and_loses_nothing(machine: Machine) -> None:
    daemon = await machine.start()
    async with Load(daemon) as load:
        for kill in range(1, 3):
            await load.more(100)
            os.kill(daemon.store_pid, signal.SIGKILL)
            await until(lambda kill=kill: len(daemon.said("embedded store restarted")) == kill)
            await load.more(100)
    assert load.acknowledged.keys() <= (await daemon.instances()).keys()
    assert set(load.statuses["read"]) == {200}
    assert load.stale_reads > 0
    assert set(load.statuses["write"]) <= {200, 201, 503}
    assert set(load.statuses["beat"]) <= {200, 503}
    assert load.without_retry_after == load.cut_off == 0
    assert (await daemon.get("/readyz"))[2] == {"status": "ready"}
    assert [entry for entry in daemon.log if "exception" in entry] == []


async def test_a_frozen_store_expires_nobody_and_reads_say_how_stale_they_are(
    machine: Machine,
) -> None:
    daemon = await machine.start(env=NO_GUARD)
    for identity in ("web:live", "web:dead"):
        await daemon.register(identity, ttlSeconds=2)
    os.kill(daemon.store_pid, signal.SIGSTOP)
    frozen = time.monotonic()
    try:

        async def tells() -> int:
            status, headers, body = await daemon.get("/services?view=instances")
            assert (status, body["total"]) == (200, 2)
            return int(headers.get("X-Registry-Stale-Ms", 0))

        await until(tells, seconds=4)
        assert (await daemon.get("/readyz"))[::2] == (200, {"status": "degraded"})
        assert (await daemon.get("/services?maxStaleMs=1"))[0] == 503
        status, headers, body = await daemon.register("web:new", ttlSeconds=2)
        assert (status, body["code"]) == (503, "storage_unavailable")
        assert "Retry-After" in headers
        await asyncio.sleep(max(0.0, 4 - (time.monotonic() - frozen)))
        assert await tells() > 1000
    finally:
        os.kill(daemon.store_pid, signal.SIGCONT)

    async def the_dead_is_gone() -> bool:
        status, _, _ = await daemon.beat("web:live")
        assert status in {200, 503}  # never 404
        return "web:dead" not in await daemon.instances()

    await until(the_dead_is_gone, seconds=2 + 2)
    assert "web:live" in await daemon.instances()
    assert (await daemon.get("/readyz"))[2] == {"status": "ready"}


async def test_a_flushed_store_is_noticed_and_what_it_holds_is_served(machine: Machine) -> None:
    daemon = await machine.start()
    await daemon.register("web:old")
    async with daemon.store() as store:
        await store.flushall()
    await until(lambda: gone(daemon, "web:old"), seconds=3)
    assert await daemon.metric("feed_gaps_total") == 1
    status, _, written = await daemon.register("web:new")
    assert (status, written["instanceId"]) == (201, "new")
    assert set(await daemon.instances()) == {"web:new"}
    assert (await daemon.get("/readyz"))[2] == {"status": "ready"}


async def test_another_history_behind_a_running_daemon_is_noticed(machine: Machine) -> None:
    daemon = await machine.start()
    await daemon.register("web:kept")
    async with daemon.store() as store:
        saved = {
            key: await store.execute_command("DUMP", key, NEVER_DECODE=[])
            for key in await store.keys()
        }
        await daemon.register("web:lost")
        # A backup is put back: same epoch, a lower revision, and no sign of it in the stream.
        pipe = store.pipeline(transaction=True)
        pipe.flushall()
        for key, dump in saved.items():
            pipe.restore(key, 0, dump)
        await pipe.execute()
    await until(lambda: gone(daemon, "web:lost"), seconds=3)
    assert set(await daemon.instances()) == {"web:kept"}
    assert await daemon.metric("feed_gaps_total") == 1
    assert (await daemon.beat("web:lost"))[0] == 404
    # The revision that web:lost had is given away anew.
    assert (await daemon.register("web:other"))[0] == 201
    assert set(await daemon.instances()) == {"web:kept", "web:other"}


async def test_a_stream_trimmed_behind_a_sleeping_daemon_is_read_around(machine: Machine) -> None:
    sleeper = await machine.start()
    other = await machine.start("--redis-url", sleeper.store_url, data="none")
    await sleeper.register("web:old")
    sleeper.signal(signal.SIGSTOP)
    try:
        await other.register("web:new")
        await other.ask("DELETE", "/services/web/instances/old")
        async with sleeper.store() as store:
            await store.xtrim("ossa:stream", maxlen=0, approximate=False)
        await other.register("web:newer")
    finally:
        sleeper.signal(signal.SIGCONT)
    wanted = await other.instances()
    assert set(wanted) == {"web:new", "web:newer"}

    async def equal() -> bool:
        return await sleeper.instances() == wanted

    await until(equal, seconds=5)
    assert await sleeper.metric("feed_gaps_total") == 1


async def gone(daemon: object, identity: str) -> bool:
    return identity not in await daemon.instances()  # type: ignore[attr-defined]
