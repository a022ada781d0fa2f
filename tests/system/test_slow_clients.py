"""Clients that hold connections, and what the others notice of them."""

import asyncio
import os
import resource
import ssl
import sys
import time
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
from authority import Authority
from processes import Machine, Registryd, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

BODY = (
    b"PUT /services/web/instances/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{"
)
EACH = 100
"""Connections of each kind."""
CLOSED_WITHIN = 10.5
"""Seconds: ten, and half a one for a busy machine."""


async def closed(reader: asyncio.StreamReader) -> tuple[float, bytes]:
    """When the server closed a connection, and what it had said before."""
    try:
        said = await reader.read()
    except ConnectionError:  # with bytes of ours unread
        said = b""
    return time.monotonic(), said


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Sends a byte now and then, for as long as anybody takes them."""
    try:
        while not writer.is_closing():
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0.5)
    except ConnectionError:
        return


async def test_idle_partial_and_slow_clients_are_closed_within_ten_seconds(
    machine: Machine,
) -> None:
    daemon = await machine.start()
    where = urlsplit(daemon.url)
    opened: dict[str, list[tuple[float, asyncio.Task[tuple[float, bytes]]]]] = {}
    drips: list[asyncio.Task[None]] = []
    async with AsyncExitStack() as stack:
        for _ in range(EACH):
            for kind, sent, more in (
                ("silent", b"", b""),
                ("partial head", b"GET /livez HTTP/1.1\r\nHost: loc", b""),
                ("dripping head", b"GET /livez HTTP/1.1\r\nX-A: ", b"a"),
                ("body missing", BODY, b""),
                ("dripping body", BODY, b" "),
            ):
                reader, writer = await asyncio.open_connection(where.hostname, where.port)
                stack.callback(writer.close)
                writer.write(sent)
                watching = asyncio.create_task(closed(reader))
                opened.setdefault(kind, []).append((time.monotonic(), watching))
                if more:
                    drips.append(asyncio.create_task(drip(writer, more)))
        await good_clients_are_served(daemon)
        async with asyncio.timeout(30):
            for kind, connections in opened.items():
                for began, watching in connections:
                    ended, said = await watching
                    assert ended - began <= CLOSED_WITHIN, kind
                    if kind == "body missing":
                        assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
                    elif "body" not in kind:
                        assert said == b""
        for dripping in drips:
            dripping.cancel()
        await asyncio.gather(*drips, return_exceptions=True)


async def good_clients_are_served(daemon: Registryd) -> None:
    for number in range(50):
        assert (await daemon.register(f"web:{number}", ttlSeconds=60))[0] == 201
        assert (await daemon.get("/services/web", seconds=2))[0] == 200
    assert len(await daemon.instances()) == 50


async def test_a_handshake_that_does_not_end_is_closed_within_ten_seconds(
    machine: Machine,
) -> None:
    authority = Authority(machine.home)
    files = authority.issue("server")
    env = {
        "REGISTRYD_SERVER__TLS__CERT_FILE": str(files.certificate),
        "REGISTRYD_SERVER__TLS__KEY_FILE": str(files.key),
    }
    daemon = await machine.launch(env=env)
    [serving] = await until(lambda: daemon.said("serving"))
    host, _, port = serving["listen"][0].rpartition(":")
    async with AsyncExitStack() as stack:
        held = []
        for number in range(EACH):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(b"\x16\x03\x01\x02\x00\x01" if number % 2 else b"")
            held.append((time.monotonic(), asyncio.create_task(closed(reader))))
        for sent in (b"", BODY):
            reader = await deaf(stack, host, int(port), authority.client(), sent)
            held.append((time.monotonic(), asyncio.create_task(closed(reader))))
        assert await says_hello(host, int(port), authority.client())
        # A renewed certificate is served without a restart.
        first = await serial(host, int(port), authority.client())
        authority.issue("server")

        async def renewed() -> bool:
            return await serial(host, int(port), authority.client()) != first

        await until(renewed, seconds=10)
        async with asyncio.timeout(30):
            for began, watching in held:
                assert (await watching)[0] - began <= CLOSED_WITHIN


@pytest.mark.skipif(
    sys.platform != "linux", reason="another process's limits are set on Linux alone"
)
async def test_a_process_without_files_left_serves_those_it_has_and_recovers(
    machine: Machine,
) -> None:
    daemon = await machine.start()
    where = urlsplit(daemon.url)
    assert (await daemon.register("web:1"))[0] == 201
    pid = daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 5, before[1]))
    async with AsyncExitStack() as stack:
        for _ in range(30):
            _, writer = await asyncio.open_connection(where.hostname, where.port)
            stack.callback(writer.close)
        await until(lambda: daemon.said("no connection can be accepted"), seconds=5)
        for _ in range(20):
            assert (await daemon.beat("web:1"))[0] == 200
        assert len(daemon.said("no connection can be accepted")) <= 10
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def deaf(
    stack: AsyncExitStack, host: str, port: int, tls: ssl.SSLContext, sent: bytes
) -> asyncio.StreamReader:
    """A client that shakes hands, sends something, and takes no notice of what TLS says from then on."""
    reader, writer = await asyncio.open_connection(host, port)
    stack.callback(writer.close)
    received, sending = ssl.MemoryBIO(), ssl.MemoryBIO()
    line = tls.wrap_bio(received, sending, server_hostname="localhost")
    while True:
        try:
            line.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(sending.read())
            received.write(await reader.read(65536))
    line.write(sent)
    writer.write(sending.read())
    return reader


async def says_hello(host: str, port: int, tls: ssl.SSLContext) -> bool:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200 ")


async def serial(host: str, port: int, tls: ssl.SSLContext) -> str:
    _, writer = await asyncio.open_connection(host, port, ssl=tls)
    number = str(writer.get_extra_info("peercert")["serialNumber"])
    writer.close()
    await writer.wait_closed()
    return number
