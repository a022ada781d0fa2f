"""Registrations that travel together."""

import asyncio

import pytest

from registryd.errors import StorageUnavailable
from registryd.kit.actor import act_as
from registryd.metrics import Metrics
from registryd.registry.admit import MAX_BATCH, RegistrationQueue
from registryd.registry.store import Entry, Refused, Registering, RegistryStore, Stored, signed
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys


def entry(identity: str) -> Entry:
    return Entry(identity, b'{"name":"chat"}', ("capability:chat",), 60_000, "http://h", None)


class Gate(RegistryStore):
    """A store that answers when it is let, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()
        self.error = error

    async def register_all(self, batch: object) -> list[Stored | Refused]:
        assert isinstance(batch, list)
        self.asked.append([one.operation for one in batch])
        await self.open.wait()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return [Refused("taken", one.operation) for one in batch]


async def test_a_storm_needs_few_calls_and_each_gets_its_own_answer(
    store: RegistryStore, metrics: Metrics
) -> None:
    queue = RegistrationQueue(store)
    names = [f"chat:{number}" for number in range(200)]
    stored = await asyncio.gather(
        *(queue.register(Registering(entry(name), store.nonce())) for name in names)
    )
    calls = metrics.registry.get_sample_value("registryd_store_calls_total", {"script": "register"})
    assert calls == -(-200 // MAX_BATCH)
    revisions = [one.revision.rev for one in stored if isinstance(one, Stored)]
    assert revisions == list(range(1, 201))
    page = await store.snapshot(0, 1000)
    assert sorted(row.id for row in page.rows) == sorted(names)


async def test_what_comes_while_a_call_is_under_way_goes_with_the_next() -> None:
    gate = Gate()
    queue = RegistrationQueue(gate)
    tasks = [asyncio.create_task(queue.register(Registering(entry("a:1"), "one")))]
    await asyncio.sleep(0.01)
    tasks += [
        asyncio.create_task(queue.register(Registering(entry(f"a:{name}"), name)))
        for name in ("two", "three")
    ]
    await asyncio.sleep(0.01)
    assert gate.asked == [["one"]]
    gate.open.set()
    assert [outcome.detail for outcome in await asyncio.gather(*tasks)] == ["one", "two", "three"]  # type: ignore[union-attr]
    assert gate.asked == [["one"], ["two", "three"]]


async def test_two_of_one_instance_go_one_after_the_other() -> None:
    gate = Gate()
    gate.open.set()
    queue = RegistrationQueue(gate)
    names = [("a:1", "one"), ("a:2", "two"), ("a:1", "three"), ("a:1", "four")]
    await asyncio.gather(
        *(queue.register(Registering(entry(identity), name)) for identity, name in names)
    )
    assert gate.asked == [["one", "two"], ["three"], ["four"]]


async def test_who_has_gone_before_it_was_sent_is_not_registered() -> None:
    gate = Gate()
    queue = RegistrationQueue(gate)
    first = asyncio.create_task(queue.register(Registering(entry("a:1"), "one")))
    await asyncio.sleep(0.01)
    gone = asyncio.create_task(queue.register(Registering(entry("a:2"), "two")))
    stays = asyncio.create_task(queue.register(Registering(entry("a:3"), "three")))
    await asyncio.sleep(0.01)
    gone.cancel()
    gate.open.set()
    await asyncio.gather(first, stays)
    assert gate.asked == [["one"], ["three"]]


async def test_a_failed_call_fails_all_that_were_in_it_and_no_others() -> None:
    gate = Gate(StorageUnavailable("gone"))
    queue = RegistrationQueue(gate)
    tasks = [
        asyncio.create_task(queue.register(Registering(entry(f"a:{name}"), name)))
        for name in ("one", "two")
    ]
    await asyncio.sleep(0.01)
    later = asyncio.create_task(queue.register(Registering(entry("a:3"), "three")))
    await asyncio.sleep(0.01)
    gate.open.set()
    for task in tasks:
        with pytest.raises(StorageUnavailable, match="gone"):
            await task
    assert isinstance(await later, Refused)
    assert gate.asked == [["one", "two"], ["three"]]


async def test_each_is_recorded_for_who_asked(
    store: RegistryStore, connection: Connection, keys: Keys
) -> None:
    queue = RegistrationQueue(store)

    async def register(name: str) -> Stored | Refused:
        act_as(lambda: f"{name}@10.0.0.1")
        return await queue.register(Registering(entry(f"a:{name}"), signed(store.nonce())))

    await asyncio.gather(*(asyncio.create_task(register(name)) for name in ("ann", "bob")))
    changes = await connection.call("XRANGE", keys.stream, "-", "+")
    assert [(fields[b"id"], fields[b"by"]) for _, fields in changes] == [
        (b"a:ann", b"ann@10.0.0.1"),
        (b"a:bob", b"bob@10.0.0.1"),
    ]


async def test_where_all_have_gone_the_store_is_not_asked() -> None:
    gate = Gate()
    queue = RegistrationQueue(gate)
    gone = asyncio.create_task(queue.register(Registering(entry("a:1"), "one")))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0.01)
    gate.open.set()
    await queue.register(Registering(entry("a:2"), "two"))
    assert gate.asked == [["two"]]
