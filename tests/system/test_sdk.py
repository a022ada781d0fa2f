"""The SDK while the registry dies and while services come and go: nobody's call fails."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from processes import ROOT, Machine, Registryd, free_port, until

from registryd.client import RegistryClient
from registryd.errors import RegistrydError

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

SERVICES, PICKERS = 200, 20
TTL = 6
AWAY = float(os.environ.get("REGISTRYD_DRILL_SECONDS", "3"))
"""Seconds that the daemon is gone."""


class Picks:
    """Clients that choose without pause, each by itself, and count what came of it."""

    def __init__(self, url: str) -> None:
        self.good = 0
        self.failed: Counter[str] = Counter()
        self._url = url
        self._stopping = False

    async def run(self) -> None:
        async with RegistryClient(self._url, environ={}) as client:
            await until(lambda: client.pick("fleet"))
            while not self._stopping:
                try:
                    await client.pick("fleet", strategy="p2c")
                    self.good += 1
                except RegistrydError as error:
                    self.failed[error.detail] += 1
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.run()) for _ in range(PICKERS)]
        try:
            await until(lambda: self.good > PICKERS)
            yield
        finally:
            self._stopping = True
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("store", ["the same store", "an empty store"])
async def test_a_daemon_killed_for_a_while_costs_no_pick_and_no_registration(
    machine: Machine, store: str
) -> None:
    port = str(free_port())
    daemon = await machine.start("--port", port)
    picks = Picks(daemon.url)
    async with RegistryClient(daemon.url, environ={}) as client, AsyncExitStack() as services:
        regs = [
            client.registration(
                *("fleet", f"http://127.0.0.1:{20000 + number}"),
                ttl_seconds=TTL,
                health_check=None,
                health={"status": "healthy"},
            )
            for number in range(SERVICES)
        ]
        for reg in regs:
            await services.enter_async_context(reg)
        ids = {reg.instance_id for reg in regs}
        assert len(await daemon.instances()) == SERVICES
        async with picks.going_on():
            await daemon.crash()
            before = picks.good
            await asyncio.sleep(AWAY)
            assert picks.good > before  # they went on while nobody was there
            data = "data" if store == "the same store" else "new"
            daemon = await machine.start("--port", port, data=data)
            back = time.monotonic()

            async def all_renewed() -> bool:
                if any(reg.state != "registered" or reg.due < back for reg in regs):
                    return False
                return len(await daemon.instances()) == SERVICES

            await until(all_renewed)
            # A third of the lease, and what one busy machine needs for everything else on it.
            assert time.monotonic() - back < TTL / 3 + 3
        assert {reg.instance_id for reg in regs} == ids
        assert {one["instanceId"] for one in (await daemon.instances()).values()} == ids
        assert picks.failed == {}
    assert await daemon.instances() == {}


async def service(daemon: Registryd, port: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "examples" / "fastapi_service.py")),
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "REGISTRYD_URL": daemon.url,
            "SERVICE_NAME": "greeter",
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": str(port),
        },
    )


async def test_a_service_that_is_asked_to_stop_under_load_fails_no_call(machine: Machine) -> None:
    daemon = await machine.start()
    ports = [free_port() for _ in range(2)]
    running = [await service(daemon, port) for port in ports]
    results: Counter[str] = Counter()
    stopping = asyncio.Event()
    try:
        async with (
            RegistryClient(daemon.url, environ={}) as client,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
        ):
            picker = client.picker("greeter", strategy="round_robin")

            async def both() -> bool:
                return len(await daemon.instances()) == 2

            await until(both)
            # Both have to have been found healthy, else only one is chosen.
            await client.check("greeter")
            await client.check("greeter")

            async def call() -> None:
                while not stopping.is_set():
                    async with picker.use() as target, session.get(f"{target.url}/hello") as answer:
                        results[(await answer.json())["hello"]] += 1

            callers = [asyncio.create_task(call()) for _ in range(8)]
            await until(lambda: all(results[str(port)] > 20 for port in ports))
            running[0].send_signal(signal.SIGTERM)
            await running[0].wait()
            gone = results[str(ports[0])]
            goal = results[str(ports[1])] + 200
            await until(lambda: results[str(ports[1])] > goal)
            stopping.set()
            await asyncio.gather(*callers)  # raises what any call met
            assert results[str(ports[0])] == gone
            assert len(await daemon.instances()) == 1
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()
