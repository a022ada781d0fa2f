"""Watchers of a real process: many, cut off, not reading, and at its end."""

import asyncio
import random
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from processes import Machine, Registryd, until
from sse import Block, Copy, Source, connect, key

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

WATCHERS = 1000
CHANGES = 1000


class Listening:
    """Opens streams, and closes them all at the end of a test."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def __call__(self, daemon: Registryd, path: str, last_id: str = "") -> Source:
        address = urlsplit(daemon.url)
        assert address.hostname is not None
        assert address.port is not None
        source = await connect(address.hostname, address.port, path, last_id=last_id)
        self.sources.append(source)
        assert source.status == 200, source.head
        return source

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for source in self.sources:
            source.writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def listen() -> AsyncIterator[Listening]:
    listening = Listening()
    yield listening
    await listening.close()


async def test_a_write_wakes_each_whom_it_concerns_once_and_nobody_else(
    machine: Machine, listen: Listening
) -> None:
    daemon = await machine.start()
    await daemon.register("a:1")
    await daemon.register("b:1")
    sources = [await listen(daemon, "/watch?service=a") for _ in range(WATCHERS)]
    for source in sources:
        assert (await source.event()).name == "snapshot"
    writes = await daemon.metric("stream_writes_total")
    await daemon.register("b:1", weight=2)
    await daemon.register("b:2")
    await daemon.leave("/services/b/instances/1")
    await daemon.get("/services?minRevision=0-0")
    assert await daemon.metric("stream_writes_total") == writes
    await daemon.register("a:2")
    await daemon.leave("/services/a/instances/1")
    for source in sources:
        added, removed = await source.event(), await source.event()
        assert [one["instanceId"] for one in added.json["added"]] == ["2"]
        assert [one["instanceId"] for one in removed.json["removed"]] == ["1"]
    assert await daemon.metric("stream_writes_total") - writes <= 2 * WATCHERS
    assert await daemon.metric("watchers") == WATCHERS
    for source in sources:
        source.writer.transport.abort()
    await until(lambda: gone(daemon))


async def gone(daemon: Registryd) -> bool:
    return await daemon.metric("watchers") == 0


class Events(Copy):
    """The state that a client gets by replaying the events of instances; fails when one comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def take(self, block: Block) -> None:
        if block.name == "reset":
            super().take(block)
            return
        assert block.id not in self.seen
        self.seen.add(block.id)
        data = block.json["data"]
        name = block.json["subject"]
        if "endpoint" in data["instance"]:
            assert key(data["instance"]) == name
            self.instances[name] = data["instance"]
        else:
            self.instances.pop(name, None)


class Dropped:
    """A client that loses its connection again and again, and comes back with the id it saw last."""

    def __init__(
        self, listen: Listening, daemon: Registryd, path: str, copy: Copy, dice: random.Random
    ) -> None:
        self.listen, self.daemon, self.path, self.copy = listen, daemon, path, copy
        self.dice = dice
        self.drops = 0
        self.task = asyncio.create_task(self._follow())
        listen.tasks.append(self.task)

    async def _follow(self) -> None:
        last_id = ""
        while True:
            source = await self.listen(self.daemon, self.path, last_id)
            for _ in range(self.dice.randrange(1, 60)):
                self.copy.take(await source.event(within=100))
                last_id = source.last_id
            source.writer.transport.abort()
            self.drops += 1
            await asyncio.sleep(self.dice.random() * 0.02)


async def change(daemon: Registryd, dice: random.Random) -> None:
    identity = f"{dice.choice('abc')}:{dice.randrange(8)}"
    match dice.randrange(5):
        case 0:
            service, instance = identity.split(":")
            await daemon.leave(f"/services/{service}/instances/{instance}")
        case 1:
            service, instance = identity.split(":")
            status = dice.choice(["healthy", "degraded", "unhealthy"])
            path = f"/services/{service}/instances/{instance}/heartbeat"
            await daemon.ask("PUT", path, {"status": status})
        case _:
            tags = [tag for tag in ("t1", "t2") if dice.random() < 0.5]
            fields: dict[str, Any] = {"weight": dice.randrange(5), "metadata": {"tags": tags}}
            await daemon.register(identity, capabilities=["x", "y"][: dice.randrange(3)], **fields)


async def test_whoever_comes_back_ends_with_exactly_what_the_daemon_holds(
    machine: Machine, listen: Listening
) -> None:
    daemon, dice = await machine.start(), random.Random(7)
    filters = [
        "",
        "service=a,b",
        "tags=t1",
        "health=healthy&tags=t2",
        "filter=weight != 1",
        "name=^c",
    ]
    clients = [
        Dropped(listen, daemon, f"/watch?{one.replace(' ', '%20')}", Copy(), dice)
        for one in filters * 2
    ]
    clients += [
        Dropped(listen, daemon, "/events?types=service:*", Events(), dice) for _ in range(4)
    ]
    clients += [Dropped(listen, daemon, "/events", Events(), dice) for _ in range(4)]
    await asyncio.sleep(0.2)
    writers = [random.Random(number) for number in range(8)]

    async def write(own: random.Random) -> None:
        for _ in range(CHANGES // len(writers)):
            await change(daemon, own)

    await asyncio.gather(*(write(own) for own in writers))
    for client, query in zip(clients, [*filters * 2, *[""] * 8], strict=True):
        held = await expected(daemon, query)

        def same(client: Dropped = client, held: dict[str, Any] = held) -> bool:
            assert not client.task.done(), client.task.exception()
            return client.copy.instances == held

        try:
            await until(same, seconds=20)
        except TimeoutError:
            assert client.copy.instances == held, client.path
    assert sum(client.drops for client in clients) > 100


async def expected(daemon: Registryd, query: str) -> dict[str, Any]:
    if query.startswith("service="):
        query = "filter=name == a or name == b"
    found = await daemon.instances(f"&{query}" if query else "")
    return {key(one): one for one in found.values()}


def resident(daemon: Registryd) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def test_who_does_not_read_is_cut_and_costs_little_and_can_resume(
    machine: Machine, listen: Listening
) -> None:
    daemon = await machine.start()
    await daemon.register("b:1")
    address = urlsplit(daemon.url)
    slow = []
    for _ in range(20):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect((address.hostname, address.port))
        one.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        slow.append(one)
    reader = await listen(daemon, "/events?types=service:*")
    await reader.block()
    first = reader.last_id
    await until(lambda: watching(daemon, 21))
    before = resident(daemon)
    large = {"text": "x" * 60_000}
    heard = 0
    for number in range(150):  # 9 MB for each, 180 MB for all the slow ones
        await daemon.register("a:1", metadata={**large, "number": number})
        assert (await reader.event()).json["data"]["instance"]["metadata"]["number"] == number
        heard += 1
    assert await daemon.metric("slow_readers_cut_total") == 20
    assert await watching(daemon, 1)
    assert resident(daemon) - before < 60 * 1024 * 1024
    for one in slow:
        one.close()
    late = await listen(daemon, "/events?types=service:*", first)
    numbers = [
        (await late.event()).json["data"]["instance"]["metadata"]["number"] for _ in range(heard)
    ]
    assert numbers == list(range(heard))


async def watching(daemon: Registryd, count: int) -> bool:
    return await daemon.metric("watchers") == count


async def test_cut_connections_to_the_store_make_nobody_miss_anything(
    machine: Machine, listen: Listening
) -> None:
    daemon = await machine.start()
    source, copy = await listen(daemon, "/watch"), Copy()
    events, replayed = await listen(daemon, "/events?types=service:*"), Events()
    copy.take(await source.event())
    async with daemon.store() as store:
        for number in range(60):
            if number % 10 == 5:
                await store.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for _ in range(40):
                status, _, _ = await daemon.register(f"a:{number}")
                if status in {200, 201}:
                    break
                assert status == 503
                await asyncio.sleep(0.05)
    while len(copy.instances) < 60:
        copy.take(await source.event())
    while len(replayed.instances) < 60:
        block = await events.event()
        if block.name.startswith("service:"):
            replayed.take(block)
    held = await expected(daemon, "")
    assert copy.instances == replayed.instances == held


async def test_open_streams_do_not_hold_up_the_end(machine: Machine, listen: Listening) -> None:
    daemon = await machine.start()
    sources = [await listen(daemon, path) for path in ("/watch", "/events") for _ in range(50)]
    await until(lambda: watching(daemon, 100))
    began = asyncio.get_running_loop().time()
    daemon.signal(signal.SIGTERM)
    for source in sources:
        while (block := await source.event()).name != "bye":
            assert block.name == "snapshot"
        assert block.retry == "1000"
        with pytest.raises(EOFError):
            await source.event()
    assert await daemon.exit_code() == 0
    assert asyncio.get_running_loop().time() - began < 8
    assert [entry for entry in daemon.log if entry["level"] in {"warning", "error"}] == []
