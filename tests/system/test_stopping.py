"""Signals: an orderly end under load, and a reload."""

import asyncio
import json
import os
import signal
import time
from urllib.parse import urlsplit

import pytest
from processes import Load, Machine, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_exit_code_0(machine: Machine, number: signal.Signals) -> None:
    daemon = await machine.start()
    store = daemon.store_pid
    os.killpg(daemon.process.pid, number)  # as Ctrl-C does, to the whole group
    assert await daemon.exit_code(seconds=10) == 0
    assert [entry["event"] for entry in daemon.log][-2:] == ["stopping", "stopped"]
    assert not any(entry["level"] in {"error", "warning"} for entry in daemon.log)
    with pytest.raises(ProcessLookupError):
        os.kill(store, 0)


async def test_a_signal_while_it_starts_ends_it_too(machine: Machine) -> None:
    daemon = await machine.launch("--redis-url", f"unix://{machine.home}/nothing")
    await until(lambda: daemon.said("waiting for the store"))
    daemon.signal(signal.SIGTERM)
    assert await daemon.exit_code(seconds=5) == 0


async def test_a_hang_up_while_it_starts_does_not_end_it(machine: Machine) -> None:
    socket = machine.home / "late.sock"
    daemon = await machine.launch("--redis-url", f"unix://{socket}")
    await until(lambda: daemon.said("waiting for the store"))
    daemon.signal(signal.SIGHUP)
    async with machine.private_store(name="late"):
        await daemon.serving()


async def test_sigterm_under_load_loses_nothing_and_lets_everybody_finish(machine: Machine) -> None:
    daemon = await machine.start()
    await daemon.register("quiet:one")
    _, _, listed = await daemon.get("/services?name=quiet")
    async with Load(daemon) as load:
        await load.more(200)
        waiting = asyncio.create_task(
            daemon.get(f"/services?name=quiet&since={listed['revision']}&wait=60s")
        )
        where = urlsplit(daemon.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        body = b'{"endpoint":"http://127.0.0.1:9000","healthCheck":null}'
        writer.write(
            b"PUT /services/slow/instances/body HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body[:10])
        await load.more(50)

        daemon.signal(signal.SIGTERM)
        told = time.monotonic()
        status, _, answer = await waiting
        assert (status, answer["total"]) == (200, 1)
        assert time.monotonic() - told < 2

        writer.write(body[10:])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 ")
        assert b"\r\nConnection: close\r\n" in head
        written = json.loads(await reader.read())
        assert written["instanceId"] == "body"
        writer.close()
        assert await daemon.exit_code(seconds=10) == 0
        load.daemon_is_gone()
    assert set(load.statuses["write"]) == {201}
    assert set(load.statuses["read"]) == {200}

    again = await machine.start()
    assert {*load.acknowledged, "slow:body", "quiet:one"} <= (await again.instances()).keys()


async def test_readiness_fails_before_anything_else_ends(machine: Machine) -> None:
    daemon = await machine.start()
    where = urlsplit(daemon.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(
        b"PUT /services/slow/instances/body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    )
    await until(lambda: busy(daemon))
    daemon.signal(signal.SIGTERM)
    await until(lambda: daemon.said("stopping"))
    status, headers, answer = await daemon.get("/readyz")
    assert (status, answer) == (503, {"status": "draining"})
    assert headers["Connection"] == "close"
    assert (await daemon.register("web:late"))[0] == 201
    writer.write(b"{}")
    assert (await reader.read()).startswith(b"HTTP/1.1 422 ")
    writer.close()
    assert await daemon.exit_code(seconds=10) == 0


async def test_a_long_poll_on_a_quiet_registry_ends_at_once(machine: Machine) -> None:
    daemon = await machine.start()
    _, _, written = await daemon.register("web:one")
    since = written["revision"]
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(daemon.get(f"/services?since={since}&wait=60s"))
        await until(lambda: busy(daemon))
        daemon.signal(signal.SIGTERM)
    status, headers, answer = waiting.result()
    assert (status, answer["total"], answer["revision"]) == (200, 1, since)
    assert headers["Connection"] == "close"
    assert await daemon.exit_code(seconds=5) == 0


async def test_whoever_does_not_finish_in_time_is_cut_off(machine: Machine) -> None:
    daemon = await machine.start(env={"REGISTRYD_SERVER__SHUTDOWN_GRACE": "1s"})
    where = urlsplit(daemon.url)
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(
        b"PUT /services/a/instances/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    )
    await until(lambda: busy(daemon))
    daemon.signal(signal.SIGTERM)
    told = time.monotonic()
    assert await daemon.exit_code(seconds=10) == 0
    assert 1 < time.monotonic() - told < 5
    writer.close()


async def busy(daemon: object) -> bool:
    return await daemon.metric("http_requests_in_flight") > 1  # type: ignore[attr-defined]


async def test_a_hang_up_reloads_what_can_change_and_names_what_cannot(machine: Machine) -> None:
    config = "registry: {guard: {enabled: %s}}\nlogging: {level: %s}\nredis: {keyPrefix: %s}\n"
    path = machine.write("config.yaml", config % ("true", "info", "ossa"))
    daemon = await machine.start("--config", path, "--port", "0")
    for number in range(10):
        await daemon.register(f"web:{number}", ttlSeconds=2)

    machine.write("config.yaml", config % ("perhaps", "debug", "ossa"))
    daemon.signal(signal.SIGHUP)
    (refused,) = await until(
        lambda: daemon.said("configuration not reloaded, the one in use stays")
    )
    assert "config.yaml:1:20: registry.guard.enabled" in refused["problems"][0]
    # The guard in use is the old one still: all ten leases ending together are held.
    (held,) = await until(lambda: [e for e in daemon.log if e["event"].startswith("expiry guard")])
    assert held["held"] >= 5

    machine.write("config.yaml", config % ("false", "warning", "other"))
    daemon.signal(signal.SIGHUP)
    (restart,) = await until(lambda: daemon.said("restart needed for these settings"))
    assert restart["settings"] == ["redis.keyPrefix"]
    told = len(daemon.said("instance expired"))

    async def all_gone() -> bool:
        return not await daemon.instances()

    await until(all_gone, seconds=5)
    assert len(daemon.said("instance expired")) == told, "these are told at level info"
