"""Clients that hold connections, and what the others notice of them."""

import asyncio
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
from processes import Machine, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

BODY = b"PUT /services/web/instances/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{"


async def test_idle_connections_and_slow_bodies_stop_nobody_and_are_closed(
    machine: Machine,
) -> None:
    env = {"REGISTRYD_SERVER__BODY_TIMEOUT": "2s", "REGISTRYD_SERVER__KEEPALIVE_TIMEOUT": "2s"}
    daemon = await machine.start(env=env)
    where = urlsplit(daemon.url)
    async with AsyncExitStack() as stack:
        idle, slow = [], []
        for number in range(400):
            reader, writer = await asyncio.open_connection(where.hostname, where.port)
            stack.callback(writer.close)
            if number % 2:
                writer.write(BODY)
                slow.append(reader)
            else:
                writer.write(b"GET /livez HTTP/1.1\r\n")
                idle.append(reader)
        in_flight = len(slow) + 1  # and the request that asks for this figure

        async def all_there() -> bool:
            return await daemon.metric("http_requests_in_flight") == in_flight

        await until(all_there, seconds=10)
        for number in range(50):
            assert (await daemon.register(f"web:{number}", ttlSeconds=60))[0] == 201
            assert (await daemon.get("/services/web", seconds=2))[0] == 200
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(reader.read() for reader in slow))
            assert {answer.split(b"\r\n")[0] for answer in answers} == {
                b"HTTP/1.1 408 Request Timeout"
            }
            await asyncio.gather(*(reader.read() for reader in idle))
    assert len(await daemon.instances()) == 50
