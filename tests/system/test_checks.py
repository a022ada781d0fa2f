"""Several daemons probe as one, also when one of them is killed."""

import asyncio
import itertools
import time

import pytest
from processes import Machine, Registryd, until
from targets import Service, service

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

INTERVAL = 1.0
CHECKS = 60
MANY, EVERY = 500, 4.0


async def register_all(
    daemon: Registryd, target: Service, count: int = CHECKS, every: float = INTERVAL
) -> None:
    for number in range(count):
        status, _, body = await daemon.register(
            f"web:{number}",
            endpoint=target.url,
            healthCheck={"path": f"/{number}", "intervalMs": int(every * 1000), "timeoutMs": 300},
        )
        assert status == 201, body


async def test_when_one_of_two_daemons_is_killed_every_check_goes_on_within_an_interval(
    machine: Machine,
) -> None:
    # Nobody waits for the one host that there is: arrivals are as regular as the checks.
    env = {"REGISTRYD_HEALTH__CONCURRENCY_PER_HOST": "64"}
    first = await machine.start(env=env)
    second = await machine.start("--redis-url", first.store_url, data="none", env=env)
    async with service() as target:
        await register_all(first, target, MANY, EVERY)
        await until(lambda: len(target.seen) == MANY)
        await until(lambda: all(len(times) > 1 for times in target.seen.values()))
        shares = [await one.metric("checks_total") for one in (first, second)]
        assert min(shares) > 0, shares  # both take part

        target.delay = 0.1  # so that some are under way when it dies
        await asyncio.sleep(EVERY / 2)
        died = time.monotonic()
        await second.crash()
        target.delay = 0.0
        await until(lambda: all(times[-1] > died for times in target.seen.values()))
        # What it had claimed is due again when the claim's interval is over, jitter included.
        assert time.monotonic() - died < EVERY * 1.05 + 1.0
        await asyncio.sleep(EVERY)
        for path, times in target.seen.items():
            gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
            assert min(gaps) > EVERY * 0.6, f"{path} was probed twice in a round: {gaps}"

        shown = await first.instances()
        assert {one["health"]["status"] for one in shown.values()} == {"healthy"}
        assert await first.metric("check_lateness_seconds_count") > 0


async def test_a_pause_holds_on_every_daemon_and_over_a_restart(machine: Machine) -> None:
    first = await machine.start()
    async with service() as target:
        await register_all(first, target)
        await until(lambda: len(target.seen) == CHECKS)
        status, _, body = await first.ask("PUT", "/monitoring", {"enabled": False})
        assert (status, body) == (200, {"enabled": False})
        await first.crash()
        target.asked.clear()

        first = await machine.start()
        second = await machine.start("--redis-url", first.store_url, data="none")
        await asyncio.sleep(2 * INTERVAL)
        assert target.asked == []
        assert (await second.get("/monitoring"))[2] == {"enabled": False}
        await second.ask("PUT", "/monitoring", {"enabled": True})
        target.seen.clear()
        await until(lambda: len(target.seen) == CHECKS)


async def test_a_daemon_that_stops_leaves_its_checks_to_the_other(machine: Machine) -> None:
    first = await machine.start()
    second = await machine.start("--redis-url", first.store_url, data="none")
    async with service() as target:
        await register_all(first, target)
        await until(lambda: len(target.seen) == CHECKS)
        target.delay = 0.25
        await asyncio.sleep(INTERVAL)
        second.process.terminate()
        assert await second.exit_code() == 0
        target.seen.clear()
        target.delay = 0.0
        await until(lambda: len(target.seen) == CHECKS, seconds=3 * INTERVAL)
        assert not second.said("loop failed")
        assert not second.said("a check failed")
