"""What becomes of leases that nobody renews. The only tests here that wait for real time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from daemons import Api, eventually
from redis.asyncio import Redis

TTL = 2
LEASE_ENDS = 6.0
"""Seconds within which a lease of 2 s is over, on a busy machine too."""


@pytest.fixture
async def store(store_url: str) -> AsyncIterator["Redis"]:
    """A plain client of the store, such as any program may be."""
    client: Redis = Redis.from_url(store_url, decode_responses=True)
    yield client
    await client.aclose()


@asynccontextmanager
async def heard(store: Redis, prefix: str) -> AsyncIterator[list[dict[str, Any]]]:
    """The events on pub/sub from now on, as they come."""
    events: list[dict[str, Any]] = []
    subscription = store.pubsub()

    def take(message: dict[str, str]) -> None:
        events.append(json.loads(message["data"]))

    async def collect() -> None:
        async for _ in subscription.listen():
            pass  # `take` gets them

    await subscription.psubscribe(**{f"{prefix}:events:*": take})
    task = asyncio.create_task(collect())
    yield events
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await subscription.aclose()  # type: ignore[no-untyped-call]


@pytest.mark.timeout(20)
async def test_a_lease_that_nobody_renews_ends_once_and_leaves_nothing_behind(
    api: Api, other: Api, store: Redis
) -> None:
    async def over() -> bool:
        assert (await api.put("/services/chat/instances/kept/heartbeat")).status == 200
        await asyncio.sleep(0.1)
        return len(api.daemon.view) == len(other.daemon.view) == 1

    key = f"{api.prefix}:services:chat:gone"
    async with heard(store, api.prefix) as events:
        await api.register("chat", "gone", ttlSeconds=TTL, metadata={"tags": ["ai"]})
        await api.register("chat", "kept", ttlSeconds=TTL, metadata={"tags": ["ai"]})
        assert 0 < await store.pttl(key) <= TTL * 1000
        assert json.loads(str(await store.get(key)))["instanceId"] == "gone"
        await eventually(over, within=LEASE_ENDS)
        await asyncio.sleep(0.5)  # two sweeps of each node, which must not tell it again

    assert await api.listed("view=instances") == ["chat/kept"]
    assert (await other.get("/services/chat/instances/gone")).status == 404
    expired = [event for event in events if event["type"] == "service:expired"]
    assert [event["subject"] for event in expired] == ["chat/gone"]
    assert expired[0]["specversion"] == "1.0"
    assert expired[0]["data"]["instance"]["instanceId"] == "gone"
    assert [event["type"] for event in events].count("service:registered") == 2
    assert await store.exists(key) == 0
    assert await store.exists(f"{api.prefix}:services:chat:kept") == 1
    async for name in store.scan_iter(f"{api.prefix}:index:*"):
        assert await store.smembers(name) == {"chat:kept"}, name
    answer = await api.put("/services/chat/instances/gone/heartbeat")
    assert answer.problem["code"] == "instance_unknown"


@pytest.mark.timeout(20)
async def test_leases_that_end_together_are_held_until_the_guard_is_released(api: Api) -> None:
    for number in range(20):
        await api.register("chat", f"i{number:02}", ttlSeconds=TTL)
    await api.register("chat", "well", ttlSeconds=300)
    # Registered one after the other; renewed at one moment, they end at one moment.
    beats = [{"name": "chat", "instanceId": f"i{number:02}"} for number in range(20)]
    await api.put("/heartbeats", {"heartbeats": beats})

    async def holding() -> bool:
        checks = (await api.get("/readyz?verbose")).json["checks"]
        return bool(checks["expiryGuard"]["holding"])

    await eventually(holding, within=LEASE_ENDS)
    members = (await api.get("/services/chat/instances")).json
    states = {one["instanceId"]: one["lease"]["state"] for one in members}
    assert len(states) == 21
    assert states.pop("well") == "live"
    assert set(states.values()) == {"suspect"}
    # Suspects come last among equals.
    assert await api.offered() == "well"

    guard = (await api.get("/readyz?verbose")).json["checks"]["expiryGuard"]
    assert guard["held"] == 20
    assert "network fault" in guard["reason"]
    assert guard["release"] == "POST /cleanup?force=true"

    assert (await api.put("/services/chat/instances/i00/heartbeat")).status == 200

    async def rescued() -> bool:
        shown = await api.instance("chat", "i00")
        return bool(shown["lease"]["state"] == "live")

    await eventually(rescued)
    assert (await api.post("/cleanup")).json == {"removed": 0}

    answer = await api.post("/cleanup?force=true")
    assert answer.json == {"removed": 19}
    assert await api.listed("view=instances") == ["chat/i00", "chat/well"]
    assert answer.revision == str(api.seen)
    assert not (await api.get("/readyz?verbose")).json["checks"]["expiryGuard"]["holding"]


async def test_a_clean_up_takes_what_is_due_and_shows_it_at_once(api: Api) -> None:
    await api.register()
    assert (await api.post("/cleanup?force=false")).json == {"removed": 0}
    await api.put("/services/chat/instances/a/drain", {"seconds": 0})
    removed = (await api.post("/cleanup")).json["removed"]
    assert removed in {0, 1}  # the daemon's own sweep may have been first
    assert await api.listed("") == []
