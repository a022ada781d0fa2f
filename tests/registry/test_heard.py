"""Messages are made only where somebody would get them."""

import asyncio
from urllib.parse import urlsplit

import pytest

from registryd.registry.store import Entry, RegistryStore
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys

ENTRY = Entry(
    "a:1", b'{"name":"a"}', ("capability:chat",), 60_000, "http://h", None, ("chat@1.0.0",)
)


async def published(connection: Connection) -> int:
    stats = await connection.call("INFO", "commandstats")
    return int(stats.get("cmdstat_publish", {"calls": 0})["calls"])


async def replicas(connection: Connection, number: int) -> None:
    """Returns when the store has so many."""
    for _ in range(200):
        if (await connection.call("INFO", "replication"))["connected_slaves"] == number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"the store never had {number} replicas")


@pytest.fixture
async def quiet(store: RegistryStore, connection: Connection) -> RegistryStore:
    await store.sweep(None)
    await connection.call("CONFIG", "RESETSTAT")
    return store


async def test_where_nobody_listens_nothing_is_sent(
    quiet: RegistryStore, connection: Connection
) -> None:
    await quiet.register(ENTRY)
    await quiet.deregister([ENTRY.id])
    assert await published(connection) == 0


@pytest.mark.parametrize(
    ("command", "pattern", "sent"),
    [
        ("SUBSCRIBE", "ossa:events:service:registered", {"service:registered"}),
        ("SUBSCRIBE", "ossa:events:capability:added", {"service:registered", "capability:added"}),
        ("PSUBSCRIBE", "ossa:events:*", {"service:registered", "capability:added"}),
    ],
)
async def test_a_subscriber_gets_what_it_asked_for(
    quiet: RegistryStore, store_url: str, command: str, pattern: str, sent: set[str]
) -> None:
    listener = Connection(store_url, None)  # type: ignore[arg-type]
    async with listener.client.pubsub() as pubsub:
        if command == "SUBSCRIBE":
            await pubsub.subscribe(pattern)
        else:
            await pubsub.psubscribe(pattern)
        await pubsub.get_message(timeout=1)
        await quiet.register(ENTRY)
        got = set()
        while message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1):
            got.add(message["channel"].decode().removeprefix("ossa:events:"))
    await listener.close()
    assert got == {kind for kind in sent if command == "PSUBSCRIBE" or pattern.endswith(kind)}


async def test_with_a_replica_all_is_sent_for_its_subscribers_are_not_known(
    quiet: RegistryStore, connection: Connection, store_url: str, keys: Keys
) -> None:
    _, replica = await asyncio.open_unix_connection(urlsplit(store_url).path)
    replica.write(b"SYNC\r\n")
    await replica.drain()
    await replicas(connection, 1)
    await quiet.sweep(None)
    await quiet.register(ENTRY)
    assert await published(connection) == 2
    replica.close()
    await replicas(connection, 0)
    await quiet.sweep(None)
    assert await connection.call("HGET", keys.meta, "relayed") == b"0"
