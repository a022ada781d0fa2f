"""Who changed what, and why: every change has its entry, and outlives the stream."""

from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running

from registryd.events.fanout import MAX_AT_ONCE, gap, load_of
from registryd.events.history import Wanted
from registryd.events.webhook_types import NewWebhook, Subscription, matches, subscribe
from registryd.feed.revision import NOWHERE, Revision
from registryd.kit.clock import SystemClock

ME = "anonymous@127.0.0.1"


async def entries(api: Api, query: str = "") -> list[Any]:
    answer = await api.get(f"/history?{query}")
    assert answer.status == 200, answer.body
    assert answer.json["upTo"] == answer.revision
    return list(answer.json["history"])


async def test_every_kind_of_write_says_who_asked_for_it(hooked: Api) -> None:
    await hooked.register("chat", "a", health={"status": "healthy"})
    await hooked.patch("/services/chat/instances/a", {"weight": 3})
    await hooked.put("/services/chat/instances/a/maintenance", {"enabled": True, "reason": "disks"})
    await hooked.put("/services/chat/instances/a/maintenance", {"enabled": False})
    await hooked.put("/services/chat/instances/a/drain", {"seconds": 60})
    await hooked.delete("/services/chat/instances/a")
    found = await entries(hooked, "service=chat&instance=a")
    assert [(one["type"], one["reason"], one["by"]) for one in found] == [
        ("service:unregistered", "deregistered", ME),
        ("service:updated", "draining", ME),
        ("service:health:changed", "maintenance ended", ME),
        ("service:health:changed", "disks", ME),
        ("service:updated", "amended", ME),
        ("service:registered", None, ME),
    ]
    assert [(one["old"], one["new"]) for one in found[2:4]] == [
        ("maintenance", "healthy"),
        ("healthy", "maintenance"),
    ]
    assert {one["instanceId"] for one in found} == {"a"}


async def test_webhooks_are_on_record_without_their_secrets(hooked: Api) -> None:
    hook = (await hooked.post("/api/v1/webhooks", {"url": "http://h/", "types": ["x:y"]})).json
    await hooked.patch(f"/api/v1/webhooks/{hook['id']}", {"url": "http://h/2", "enabled": False})
    await hooked.delete(f"/api/v1/webhooks/{hook['id']}")
    found = await entries(hooked, "types=webhook:*")
    assert [(one["type"], one["id"], one["reason"], one["by"]) for one in found] == [
        ("webhook:deleted", hook["id"], None, ME),
        ("webhook:updated", hook["id"], "enabled, url", ME),
        ("webhook:created", hook["id"], None, ME),
    ]


async def test_an_expiry_is_the_registrys_own_and_a_cleanup_somebodys(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    unguarded = {"guard": {"enabled": False}}
    async with running(store_url, prefix, tmp_path, registry=unguarded) as api:
        await api.register("chat", "a", ttlSeconds=2)
        await eventually(lambda: api.daemon.view.get("chat:a") is None, within=4)
        (latest, *_) = await entries(api, "service=chat")
    assert (latest["type"], latest["reason"], latest["by"]) == (
        "service:expired",
        "lease ended",
        "registry",
    )


async def test_a_forced_cleanup_is_on_record_as_whoever_forced_it(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    # A guard that holds at the first death, so that only the forced cleanup can end the lease.
    eager = {"guard": {"minDue": 1, "fraction": 0.01}}
    async with running(store_url, prefix, tmp_path, registry=eager) as api:
        await api.register("chat", "a", ttlSeconds=2)

        async def held() -> bool:
            instance = api.daemon.view.get("chat:a")
            return instance is not None and instance.suspect

        await eventually(held, within=4)
        assert (await api.post("/cleanup?force=true")).json == {"removed": 1}
        latest, *older = await entries(api, "service=chat")
    assert (latest["type"], latest["by"]) == ("service:expired", ME)
    assert ("registry:preserving", "a", "registry") in [
        (one["type"], one["instanceId"], one["by"]) for one in older
    ]


async def test_a_capability_has_an_entry_of_its_own(hooked: Api) -> None:
    await hooked.register("chat", "a", capabilities=[{"name": "talk", "version": "2.0.0"}])
    (one,) = await entries(hooked, "types=capability:*")
    assert (one["type"], one["new"]["name"], one["service"]) == ("capability:added", "talk", "chat")


async def test_history_is_read_page_by_page_and_since_a_moment_or_revision(hooked: Api) -> None:
    revisions = [(await hooked.register("chat", f"i{n}"))["revision"] for n in range(5)]
    times = {one["id"]: one["time"] for one in await entries(hooked)}
    answer = await hooked.get("/history?service=chat&limit=2")
    rest = await entries(hooked, f"service=chat&cursor={answer.json['next']}")
    assert [one["id"] for one in answer.json["history"] + rest] == revisions[::-1]
    assert answer.headers["Link"].endswith('rel="next"')
    assert [one["id"] for one in await entries(hooked, f"since={revisions[2]}")] == revisions[:2:-1]
    since = await entries(hooked, f"since={times[revisions[3]]}")
    assert {one["id"] for one in since} >= set(revisions[3:])
    assert await entries(hooked, "since=2999-01-01T00:00:00Z") == []


async def test_history_outlives_the_stream_and_the_daemon(
    store_url: str, prefix: str, tmp_path: Path, connection: Any
) -> None:
    async with running(store_url, prefix, tmp_path) as api:
        await api.register("chat", "a")
        await entries(api)
    await connection.call("XTRIM", f"{prefix}:stream", "MAXLEN", 0)
    async with running(store_url, prefix, tmp_path) as api:
        assert [one["type"] for one in await entries(api)] == ["service:registered"]


async def test_two_daemons_record_each_change_once(
    hooked: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    async with running(store_url, prefix, tmp_path) as second:
        for number in range(30):
            await (hooked, second)[number % 2].register("chat", f"i{number}")
        found = [one["id"] for one in await entries(hooked, "service=chat")]
    assert len(found) == len(set(found)) == 30


@pytest.mark.parametrize(
    "query",
    [
        "instance=a",
        "service=%20",
        "since=yesterday",
        "since=2026-01-01",
        "limit=0",
        "cursor=x",
        "x=1",
    ],
)
async def test_a_wrong_question_is_malformed(hooked: Api, query: str) -> None:
    assert (await hooked.get(f"/history?{query}")).problem["code"] == "malformed"


# --- what is decided without a store


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("*", "", True),
        ("*", "service:registered", True),
        ("service:*", "service:registered", True),
        ("service:*", "services", False),
        ("service:*:changed", "service:health:changed", True),
        ("service:*:changed", "service:changed", False),
        ("*:added", "capability:added", True),
        ("a*a", "a", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*bc*c", "abc", False),
        ("chat", "chat", True),
        ("chat", "chats", False),
        ("*a" * 16, "b" * 100_000, False),
    ],
)
def test_a_star_stands_for_any_characters(pattern: str, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits


@pytest.mark.parametrize(
    ("cursor", "first", "missing"),
    [
        (None, Revision(5, 9), False),
        (NOWHERE, Revision(5, 9), False),
        (Revision(5, 8), Revision(5, 9), False),
        (Revision(5, 7), Revision(5, 9), True),
        (Revision(5, 8), Revision(6, 1), False),
        (Revision(5, 8), Revision(6, 2), True),
    ],
)
def test_a_gap_is_seen_by_the_revisions(
    cursor: Revision | None, first: Revision, missing: bool
) -> None:
    assert gap(cursor, first) is missing


def hook(*types: str) -> Subscription:
    wish = NewWebhook(url="http://h/", types=list(types))
    return subscribe(wish, by="me", now=SystemClock().now())


def test_what_one_call_carries_is_bounded_but_never_nothing() -> None:
    from changes import History

    history = History()
    for number in range(10):
        history.register("chat", f"i{number}")
    crowd = [hook("*") for _ in range(MAX_AT_ONCE)]
    load = load_of(history.changes, crowd, "/s")
    assert (load.changes, len(load.dispatches)) == (1, 1)
    assert load_of(history.changes, [hook("x:y")], "/s").changes == 10


def test_a_moment_or_revision_bounds_what_is_wanted() -> None:
    entry = {
        "service": "chat",
        "instanceId": "a",
        "type": "x:y",
        "time": "2026-01-01T00:00:00.000Z",
        "revision": "5-3",
    }
    assert Wanted(after=Revision(5, 2)).holds(entry)
    assert not Wanted(after=Revision(5, 3)).holds(entry)
    assert not Wanted(since="2026-01-01T00:00:00.001Z").holds(entry)
    assert not Wanted(types=("x:z",)).holds(entry)
