"""The change stream and its follower on a real store."""

import asyncio
import json

import pytest

from registryd.errors import StorageUnavailable
from registryd.feed.follower import Follower
from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import ChangeStream
from registryd.metrics import Metrics
from registryd.registry.bodies import parse_registration
from registryd.registry.document import encode
from registryd.registry.store import Entry, RegistryStore, Stored, entry_of
from registryd.registry.sync import ViewSync
from registryd.registry.view import View
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys


def entry(service: str, instance_id: str = "i1", **fields: object) -> Entry:
    body = {"endpoint": "http://10.0.0.1:80", **fields}
    registration = parse_registration(body, service=service, instance_id=instance_id)
    return entry_of(f"{service}:{instance_id}", registration, encode(registration), 300_000)


async def register(store: RegistryStore, service: str, instance_id: str = "i1") -> Revision:
    stored = await store.register(entry(service, instance_id), incarnation="", claim="")
    assert isinstance(stored, Stored)
    return stored.revision


@pytest.fixture
def stream(connection: Connection, keys: Keys) -> ChangeStream:
    return ChangeStream(connection, keys)


@pytest.fixture
def view() -> View:
    return View()


@pytest.fixture
def follower(store: RegistryStore, stream: ChangeStream, view: View, metrics: Metrics) -> Follower:
    return Follower(stream, ViewSync(store, view, metrics, chunk=10), metrics)


async def load(follower: Follower) -> None:
    """A turn up to the point where it waits for news."""
    turn = asyncio.ensure_future(follower.turn())
    await follower.loaded_once()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)


def gaps(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("registryd_feed_gaps_total") or 0.0


async def test_an_empty_store_is_nowhere(store: RegistryStore, stream: ChangeStream) -> None:
    assert await stream.head() == NOWHERE
    assert await stream.at(NOWHERE) is None


async def test_changes_come_after_a_position_with_the_fields_of_their_script(
    store: RegistryStore, stream: ChangeStream
) -> None:
    first = await register(store, "chat")
    second = await register(store, "draw")
    changes = await stream.after(NOWHERE)
    assert [change.at for change in changes] == [first, second]
    assert await stream.after(first) == changes[1:]
    assert await stream.after(NOWHERE, limit=1) == changes[:1]
    assert await stream.at(second) == changes[1]
    assert await stream.at(Revision(second.epoch, 3)) is None
    assert await stream.head() == second
    fields = changes[0].fields
    assert (fields[b"type"], fields[b"id"]) == (b"service:registered", b"chat:i1")
    assert json.loads(fields[b"row"])["endpoint"] == "http://10.0.0.1:80"
    assert changes[0].nonce != changes[1].nonce


async def test_a_waiting_read_answers_with_the_change_that_comes(
    store: RegistryStore, stream: ChangeStream
) -> None:
    at = await register(store, "chat")
    waiting = asyncio.ensure_future(stream.after(at))
    await register(store, "draw")
    assert [change.fields[b"id"] for change in await waiting] == [b"draw:i1"]


async def test_a_view_follows_a_store_from_its_first_change(
    store: RegistryStore, follower: Follower, view: View
) -> None:
    await register(store, "chat")
    await load(follower)
    await register(store, "draw")
    await store.deregister(["chat:i1"])
    await follower.turn()
    await follower.catch_up()
    assert list(view.contents.by_id) == ["draw:i1"]
    assert view.revision == follower.position


async def test_a_view_over_many_chunks_holds_every_instance(
    store: RegistryStore, follower: Follower, view: View
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(600):  # from 512 fields a hash is scanned in pieces
            tasks.create_task(register(store, "chat", f"n{number}"))
    await load(follower)
    assert len(view) == 600
    assert view.revision.rev == 600


async def test_writes_while_a_snapshot_is_read_end_in_the_same_view(
    store: RegistryStore, stream: ChangeStream, follower: Follower, view: View
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(600):
            tasks.create_task(register(store, "chat", f"n{number}"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follower.turn())
        for number in range(0, 600, 7):
            tasks.create_task(store.deregister([f"chat:n{number}"]))
            tasks.create_task(register(store, "draw", f"n{number}"))
    while follower.position != await stream.head():
        await follower.turn()
    expected = {f"chat:n{n}" for n in range(600) if n % 7} | {
        f"draw:n{n}" for n in range(0, 600, 7)
    }
    assert view.contents.by_id.keys() == expected


async def test_a_stream_trimmed_past_the_position_is_loaded_anew(
    store: RegistryStore,
    connection: Connection,
    keys: Keys,
    follower: Follower,
    view: View,
    metrics: Metrics,
) -> None:
    await register(store, "chat")
    await load(follower)
    for number in range(5):
        await register(store, "chat", f"n{number}")
    await connection.call("XTRIM", keys.stream, "MAXLEN", 1)
    await follower.turn()
    assert gaps(metrics) == 1
    await register(store, "draw")
    await follower.turn()
    assert (len(view), gaps(metrics)) == (7, 1)


async def test_a_flushed_store_that_was_written_again_is_loaded_anew(
    store: RegistryStore, connection: Connection, follower: Follower, view: View
) -> None:
    await register(store, "chat")
    await load(follower)
    await connection.call("FLUSHALL")
    await store.set_up("test")
    await register(store, "draw")
    await follower.turn()
    await register(store, "echo")
    await follower.turn()
    assert sorted(view.contents.by_id) == ["draw:i1", "echo:i1"]


async def test_another_history_at_the_same_revision_is_told_by_its_nonce(
    store: RegistryStore,
    connection: Connection,
    keys: Keys,
    follower: Follower,
    view: View,
    metrics: Metrics,
) -> None:
    at = await register(store, "chat")
    await load(follower)
    cut_off = asyncio.ensure_future(follower.turn())
    while b"cmd=xread" not in await connection.call("CLIENT", "LIST"):  # noqa: ASYNC110  only the store knows
        await asyncio.sleep(0)
    await connection.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await cut_off
    assert not follower.connected
    # What a failover to a replica that lacked this write, and another write there, leave behind.
    await connection.call("FLUSHALL")
    await store.set_up("test")
    await connection.call("HSET", keys.meta, "epoch", at.epoch)
    assert await register(store, "draw") == at
    await register(store, "echo")
    await follower.turn()
    assert sorted(view.contents.by_id) == ["draw:i1", "echo:i1"]
    assert gaps(metrics) == 1


async def test_a_store_that_cannot_be_reached_leaves_the_view_as_it_was(metrics: Metrics) -> None:
    connection = Connection("unix:///nowhere/registryd.sock", metrics)
    stream = ChangeStream(connection, Keys())
    with pytest.raises(StorageUnavailable):
        await stream.after(NOWHERE)
    with pytest.raises(StorageUnavailable):
        await stream.head()
    await connection.close()
