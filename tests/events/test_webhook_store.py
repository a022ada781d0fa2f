"""The scripts of webhooks: what waits, who may deliver it, and what is given up. Time is given."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import pytest

from registryd.events.cloudevent import Event
from registryd.events.webhook_store import (
    Carried,
    Claimed,
    Delivery,
    Dispatch,
    QueueLimits,
    Record,
    WebhookStore,
)
from registryd.events.webhook_types import NewWebhook, Subscription, subscribe
from registryd.feed.revision import Revision
from registryd.metrics import Metrics
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.storage.scripts import ScriptRunner, load

NOON = 1_800_000_000_000
TURN = timedelta(seconds=3)
LEASE = timedelta(seconds=20)

Make = Callable[..., WebhookStore]


@pytest.fixture
def make(connection: Connection, keys: Keys, metrics: Metrics) -> Make:
    scripts = load(files("registryd.events") / "lua", flags=True)
    runner = ScriptRunner(connection, scripts, keys.events, metrics)

    def one(deliveries: int = 100, size: int = 10_000) -> WebhookStore:
        limits = QueueLimits(deliveries, size)
        return WebhookStore(runner, connection, keys, limits=limits, now_ms=NOON)

    return one


def hook_for(url: str = "http://h/") -> Subscription:
    wish = NewWebhook(url=url, types=["*"])
    return subscribe(wish, by="me", now=datetime(2027, 1, 1, tzinfo=UTC))


async def put(store: WebhookStore) -> Subscription:
    hook = hook_for()
    assert await store.put(hook, b"{}", disabled="") == "put"
    return hook


async def queue(
    store: WebhookStore, count: int, *hooks: Subscription, body: bytes = b"{}"
) -> Carried:
    """Carries `count` events for the subscriptions, in one call."""
    turn = await store.turn(TURN)
    start = turn.cursor.rev if turn.cursor else 0
    dispatches = [
        Dispatch(Event(f"1-{start + n}", "a:b", "s/i", "s", body), tuple(h.id for h in hooks))
        for n in range(1, count + 1)
    ]
    return await store.carry(turn, Revision(1, start + count), [], dispatches)


async def claim(store: WebhookStore, limit: int = 10, each: int = 10, **room: int) -> Claimed:
    return await store.claim(limit, each, LEASE, room)


async def fail(store: WebhookStore, delivery: Delivery, outcome: Any = "dead", **more: Any) -> str:
    return await store.report(delivery, outcome, b"{}", error="HTTP 500", **more)


async def test_deliveries_leave_in_the_order_of_their_events(make: Make) -> None:
    store = make()
    hook = await put(store)
    assert (await queue(store, 12, hook)).queued == 12
    first = await claim(store, 10)
    rest = await claim(store, 10)
    ids = [one.event_id for one in first.deliveries + rest.deliveries]
    assert ids == [f"1-{n}" for n in range(1, 13)]
    assert {one.attempt for one in first.deliveries} == {1}
    assert first.next_due == timedelta(0)
    assert rest.next_due == LEASE


async def test_a_claim_is_one_nodes_until_its_lease_ends(make: Make) -> None:
    one, other = make(), make()
    await queue(one, 1, await put(one))
    (mine,) = (await claim(one)).deliveries
    assert (await claim(other)).deliveries == []
    other.now_ms += int(LEASE.total_seconds() * 1000) + 1
    (theirs,) = (await claim(other)).deliveries
    assert (theirs.id, theirs.attempt) == (mine.id, 2)
    assert await fail(one, mine) == "stale"
    assert await fail(other, theirs, "retry", pause=timedelta(seconds=5)) == "noted"
    assert (await claim(other)).next_due == timedelta(seconds=5)


async def test_what_a_late_claimer_delivered_is_delivered(make: Make) -> None:
    one, other = make(), make()
    hook = await put(one)
    await queue(one, 1, hook)
    (mine,) = (await claim(one)).deliveries
    other.now_ms += 60_000
    (theirs,) = (await claim(other)).deliveries
    assert await one.report(mine, "delivered", b"{}") == "noted"
    assert await fail(other, theirs) == "unknown"
    figures = (await one.figures([hook.id]))[hook.id]
    assert (figures.waiting, figures.dead, figures.delivered) == (0, 0, 1)


async def test_nobody_takes_all_places(make: Make) -> None:
    store = make()
    greedy, modest = await put(store), await put(store)
    await queue(store, 20, greedy)
    await queue(store, 2, modest)
    claimed = (await claim(store, 10, 4)).deliveries
    assert [one.to.id for one in claimed].count(greedy.id) == 4
    assert [one.to.id for one in claimed].count(modest.id) == 2
    # Whose attempts are under way gets no more, and stands in nobody's way.
    await queue(store, 1, modest)
    again = (await claim(store, 10, 4, **{greedy.id: 0})).deliveries
    assert [one.to.id for one in again] == [modest.id]


async def test_beyond_the_limit_the_oldest_is_given_up(make: Make) -> None:
    store = make(deliveries=3)
    hook = await put(store)
    assert await queue(store, 5, hook) == Carried("carried", 5, 2)
    figures = (await store.figures([hook.id]))[hook.id]
    assert (figures.waiting, figures.dead, figures.died) == (3, 2, 2)
    letters = await store.letters(hook.id, 0, 10)
    assert [one.item["event"] for one in letters] == ["1-2", "1-1"]
    assert letters[0].item["error"] == "the queue was full"


async def test_beyond_the_bytes_the_oldest_is_given_up(make: Make) -> None:
    store = make(size=1_000)
    hook = await put(store)
    assert (await queue(store, 5, hook, body=b"x" * 300)).overflow == 2
    for one in (await claim(store)).deliveries:
        assert await store.report(one, "delivered", b"{}") == "noted"
    # What has left makes room.
    assert (await queue(store, 3, hook, body=b"x" * 300)).overflow == 0


async def test_the_oldest_dead_letters_are_forgotten_and_counted(make: Make) -> None:
    store = make(deliveries=1)
    hook = await put(store)
    await queue(store, 1_011, hook)
    figures = (await store.figures([hook.id]))[hook.id]
    assert (figures.dead, figures.forgotten, figures.died) == (1_000, 10, 1_010)
    (oldest,) = await store.letters(hook.id, 999, 10)
    assert oldest.item["event"] == "1-11"


async def test_all_dead_letters_are_sent_again_as_far_as_there_is_room(make: Make) -> None:
    store = make(deliveries=300)
    hook = await put(store)
    await queue(store, 250, hook)
    for one in (await claim(store, 250, 250)).deliveries:
        await fail(store, one)
    assert await store.replay(hook.id, None) == (250, 0)
    (first, *_) = (await claim(store, 250, 250)).deliveries
    assert (first.event_id, first.attempt) == ("1-1", 1)
    assert await store.replay(hook.id, None) == (0, 0)

    full = make(deliveries=250)
    full.now_ms += 4_000  # the turn of the first is over
    other = await put(full)
    await queue(full, 250, other)
    for one in (await full.claim(10, 10, LEASE, {hook.id: 0})).deliveries:
        await fail(full, one)
    await queue(full, 4, other)
    assert await full.replay(other.id, None) == (6, 4)


async def test_who_is_gone_gets_nothing_more_until_enabled(make: Make) -> None:
    store = make()
    hook = await put(store)
    await queue(store, 2, hook)
    (one,) = (await claim(store, 1)).deliveries
    await fail(store, one, "gone")
    assert await claim(store) == Claimed(None, [])
    assert await store.enabled() == []
    held = await store.subscription(hook.id)
    assert await store.put(hook, b"{}", before=held, disabled="") == "put"
    assert len((await claim(store)).deliveries) == 1


async def test_only_who_has_the_turn_carries_on(make: Make) -> None:
    one, other = make(), make()
    mine = await one.turn(TURN)
    assert mine.mine
    theirs = await other.turn(TURN)
    assert not theirs.mine
    assert (await other.carry(theirs, Revision(1, 1), [], [])).outcome == "lost"
    other.now_ms += 3_001
    late = await other.turn(TURN)
    assert late.mine
    assert (await one.carry(mine, Revision(1, 1), [], [])).outcome == "lost"
    record = Record("s", b'{"type":"a:b"}')
    assert (await other.carry(late, Revision(1, 1), [record], [])).outcome == "carried"
    # The same once more, as a client library may send it: the cursor has moved.
    assert (await other.carry(late, Revision(1, 1), [record], [])).outcome == "lost"
    assert len(await other.history("s", "+", 10)) == len(await other.history("", "+", 10)) == 1
    assert await other.cursor() == Revision(1, 1)


async def test_a_clock_that_was_set_back_keeps_nobody_waiting(make: Make) -> None:
    one, other = make(), make()
    assert (await one.turn(TURN)).mine
    other.now_ms -= 3_600_000
    assert (await other.turn(TURN)).mine


async def test_who_matched_against_old_subscriptions_matches_again(make: Make) -> None:
    store = make()
    turn = await store.turn(TURN)
    await put(store)
    assert (await store.carry(turn, Revision(1, 1), [], [])).outcome == "changed"


async def test_a_change_that_did_not_see_the_latest_is_refused(make: Make) -> None:
    store = make()
    hook = await put(store)
    held = await store.subscription(hook.id)
    assert await store.put(hook_like(hook, "http://a/"), b"{}", before=held) == "put"
    assert await store.put(hook_like(hook, "http://b/"), b"{}", before=held) == "changed"
    assert await store.drop(hook.id, b"{}")
    assert await store.put(hook, b"{}", before=held) == "unknown"
    assert not await store.drop(hook.id, b"{}")


def hook_like(hook: Subscription, url: str) -> Subscription:
    fields: dict[str, Any] = json.loads(hook.encode()) | {"url": url}
    return Subscription.decode(json.dumps(fields).encode())


async def test_a_report_for_a_deleted_subscription_writes_nothing(
    make: Make, connection: Connection, keys: Keys
) -> None:
    store = make()
    hook = await put(store)
    await queue(store, 1, hook)
    (one,) = (await claim(store)).deliveries
    await store.drop(hook.id, b"{}")
    assert await fail(store, one) == "unknown"
    left = [n async for n in connection.scan(f"{keys.prefix}:webhooks:{hook.id}", 100)]
    assert left == []
    assert await claim(store) == Claimed(None, [])


async def test_the_history_of_a_service_is_bounded_and_ends(
    make: Make, connection: Connection, keys: Keys
) -> None:
    store = make()
    for start in range(0, 3_000, 500):
        turn = await store.turn(TURN)
        records = [Record("s", b"{}")] * 500
        await store.carry(turn, Revision(1, start + 500), records, [])
    assert 1_000 <= await connection.call("XLEN", keys.history("s")) <= 1_200
    days = await connection.call("PTTL", keys.history("s")) / 86_400_000
    assert 6.9 < days <= 7


def test_a_subscription_prints_without_its_secret() -> None:
    hook = hook_for()
    assert hook.secret not in repr(hook) + str(hook)
    assert Subscription.decode(hook.encode()) == hook
