"""Heartbeats that travel together."""

import asyncio

import pytest

from registryd.errors import StorageUnavailable
from registryd.metrics import Metrics
from registryd.registry.renew import MAX_BATCH, RenewalQueue
from registryd.registry.store import (
    Entry,
    Refused,
    RegistryStore,
    Renewal,
    Renewals,
    Renewed,
)

CLIENTS = 64
BEATS = 20


class Gate(RegistryStore):
    """A store that answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()

    async def renew(self, renewals: object) -> Renewals:
        assert isinstance(renewals, list)
        self.asked.append([renewal.id for renewal in renewals])
        await self.open.wait()
        return Renewals(1_000, {})


def calls(metrics: Metrics) -> float:
    return (
        metrics.registry.get_sample_value("registryd_store_calls_total", {"script": "heartbeat"})
        or 0.0
    )


async def test_64_clients_need_a_tenth_of_a_store_call_for_each_heartbeat_at_most(
    store: RegistryStore, metrics: Metrics
) -> None:
    names = [f"chat:{number}" for number in range(CLIENTS)]
    for name in names:
        await store.register(Entry(name, b'{"name":"chat"}', (), 60_000, "", None))
    queue = RenewalQueue(store, metrics)

    async def beat(name: str) -> None:
        for _ in range(BEATS):
            assert isinstance(await queue.renew(Renewal(name, "", 60_000)), Renewed)

    await asyncio.gather(*map(beat, names))
    assert calls(metrics) / (CLIENTS * BEATS) <= 0.1


async def test_what_comes_while_a_call_is_under_way_goes_with_the_next(metrics: Metrics) -> None:
    gate = Gate()
    queue = RenewalQueue(gate, metrics)
    first = queue.renew(Renewal("a:1", "", 100))
    neighbour = queue.renew(Renewal("a:2", "", 100))
    await asyncio.sleep(0)
    late = [queue.renew(Renewal(f"b:{number}", "", 100)) for number in range(MAX_BATCH + 1)]
    gate.open.set()
    assert await first == await neighbour == Renewed(100, 1_100)
    await asyncio.gather(*late)
    assert [len(batch) for batch in gate.asked] == [2, MAX_BATCH, 1]


async def test_each_learns_its_own_outcome(store: RegistryStore, metrics: Metrics) -> None:
    await store.register(Entry("a:1", b'{"name":"a"}', (), 60_000, "", None), incarnation="new")
    queue = RenewalQueue(store, metrics)
    outcomes = await asyncio.gather(
        queue.renew(Renewal("a:1", "old", 60_000)),
        queue.renew(Renewal("a:0", "", 60_000)),
        queue.renew(Renewal("a:1", "new", 60_000)),
    )
    assert outcomes[:2] == [Refused("superseded", "new"), Refused("unknown")]
    assert isinstance(outcomes[2], Renewed)


async def test_a_store_that_fails_tells_each_of_the_batch_and_the_next_is_tried(
    metrics: Metrics,
) -> None:
    class Failing(Gate):
        async def renew(self, renewals: object) -> Renewals:
            await super().renew(renewals)
            if len(self.asked) == 1:
                raise StorageUnavailable("away")
            return Renewals(1_000, {})

    store = Failing()
    store.open.set()
    queue = RenewalQueue(store, metrics)
    both = queue.renew(Renewal("a:1", "", 100)), queue.renew(Renewal("a:2", "", 100))
    for future in both:
        with pytest.raises(StorageUnavailable):
            await future
    assert await queue.renew(Renewal("a:1", "", 100)) == Renewed(100, 1_100)
