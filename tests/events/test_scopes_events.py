"""Event streams, watches and history of callers with prefixes: what is about their services, and no more."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from callers import HeaderAccess
from changes import History
from daemons import Api, running
from sse import Copy, listening

from registryd.events.stream import within

TEAM_A = {"X-Caller": "a;reader;team-a."}
TEAM_B = {"X-Caller": "b;reader;team-b."}


@pytest.fixture
async def api(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, prefix, tmp_path, access=HeaderAccess()) as api:
        yield api


def test_a_change_of_many_instances_is_cut_down_to_one_s_own() -> None:
    history = History()
    names = ["team-a.x:1", "team-a.x:2", "team-ab:1", "team-b.x:1"]
    for name in names:
        history.register(*name.split(":"))
    held = history.preserve(*names)
    part = within(held, ("team-a.",))
    assert part is not None
    assert json.loads(part.fields[b"ids"]) == names[:2]
    assert {**part.fields, b"ids": b""} == {**held.fields, b"ids": b""}
    assert part.at == held.at
    assert within(held, ("team-c.",)) is None
    assert within(held, ()) is held
    over = history.preserve()  # of no instance: about the whole registry
    assert within(over, ("team-a.",)) is None
    assert within(over, ()) is over
    # An identity is no name: what stands behind the colon does not count.
    assert within(history.changes[0], ("team-a.x:",)) is None
    assert within(history.changes[0], ("team-a.x",)) is history.changes[0]


async def test_each_gets_the_events_of_one_s_own_services(api: Api) -> None:
    async with (
        listening(api, "/events", **TEAM_A) as ours,
        listening(api, "/events", **TEAM_B) as theirs,
        listening(api, "/events") as whole,
    ):
        await api.register("team-b.x", "1")
        await api.register("team-a.x", "1")
        assert (await ours.event()).json["subject"] == "team-a.x/1"
        assert (await theirs.event()).json["subject"] == "team-b.x/1"
        subjects = [(await whole.event()).json["subject"] for _ in range(2)]
        assert subjects == ["team-b.x/1", "team-a.x/1"]
        assert await ours.quiet()


async def test_who_comes_back_gets_what_was_missed_of_one_s_own(api: Api) -> None:
    await api.register("team-a.x", "1")
    seen = str(api.seen)
    for name in ("team-b.x", "team-a.x", "team-b.y"):
        await api.register(name, "2", capabilities=["c"])
    async with listening(api, "/events", last_id=seen, **TEAM_A) as source:
        missed = [await source.event() for _ in range(2)]
        assert [one.json["subject"] for one in missed] == ["team-a.x/2"] * 2
        assert await source.quiet()
    # Nothing of one's own happened since: the others' do not count.
    async with listening(api, "/events", last_id=missed[-1].id, **TEAM_A) as source:
        assert await source.quiet()


async def test_who_comes_back_too_late_gets_one_s_own_anew(api: Api) -> None:
    for name in ("team-a.x", "team-b.x"):
        await api.register(name, "1")
    for who, name in ((TEAM_A, "team-a.x"), (TEAM_B, "team-b.x")):
        async with listening(api, "/events", last_id="1-1", **who) as source:
            reset = await source.event()
            assert reset.name == "reset"
            assert [one["name"] for one in reset.json["instances"]] == [name]


async def test_a_fault_of_the_node_is_told_to_everybody(api: Api) -> None:
    async with listening(api, "/events", **TEAM_A) as source:
        await source.block()
        api.daemon.follower.trouble("feed_gap", "a gap in the change stream, loading anew")
        assert (await source.event()).name == "registry:error"


async def test_a_watch_is_that_of_a_registry_of_one_s_own(api: Api) -> None:
    for name in ("team-a.x", "team-b.x"):
        await api.register(name, "1", zone="z1")
    for path in ("/watch", "/watch?zone=z1"):
        async with (
            listening(api, path, **TEAM_A) as ours,
            listening(api, path, **TEAM_B) as theirs,
            listening(api, path) as whole,
        ):
            copy = Copy()
            copy.take(await ours.event())
            assert copy.instances.keys() == {"team-a.x/1"}
            assert [one["name"] for one in (await theirs.event()).json["instances"]] == ["team-b.x"]
            assert len((await whole.event()).json["instances"]) == 2
            await api.register("team-b.x", "2", zone="z1")
            await api.delete("/services/team-b.x/instances/2")
            await api.register("team-a.x", "2", zone="z1")
            copy.take(await ours.event())
            assert copy.instances.keys() == {"team-a.x/1", "team-a.x/2"}
            assert len((await theirs.event()).json["added"]) == 1
        async with listening(api, path, last_id=copy.revision, **TEAM_A) as ours:
            await api.register("team-b.x", "1", zone="z1", weight=api.seen.rev % 1000 + 2)
            await api.delete("/services/team-a.x/instances/2")
            copy.take(await ours.event())
        assert copy.instances.keys() == {"team-a.x/1"}


async def history_of(api: Api, query: str = "", **headers: str) -> list[dict[str, Any]]:
    answer = await api("GET", f"/history{query}", headers=headers)
    assert answer.status == 200, answer.body
    entries: list[dict[str, Any]] = answer.json["history"]
    return entries


async def test_history_leaves_out_others_and_what_is_about_no_service(api: Api) -> None:
    for name in ("team-a.x", "team-b.x", "team-a.y"):
        await api.register(name, "1")
    hook = {"url": "http://127.0.0.1:9/", "types": ["service:expired"]}
    assert (await api.post("/api/v1/webhooks", hook)).status == 201
    whole = await history_of(api)
    assert {one["service"] for one in whole} == {"team-a.x", "team-b.x", "team-a.y", None}
    own = await history_of(api, **TEAM_A)
    assert [one["service"] for one in own] == ["team-a.y", "team-a.x"]
    assert await history_of(api, "?service=team-a.x", **TEAM_A) == own[1:]
    [newest] = await history_of(api, "?limit=1", **TEAM_A)
    assert newest["service"] == "team-a.y"


async def test_a_mistyped_name_is_explained_by_one_s_own_alone(api: Api) -> None:
    await api.register("team-a.checkout", "1")
    await api.register("team-b.checkin", "1")
    path = "/explain?service=team-a.checkin"
    assert "team-b.checkin" in (await api.get(path)).json["summary"]
    answer = await api("GET", path, headers=TEAM_A)
    assert "team-a.checkout" in answer.json["summary"]
    assert "team-b" not in answer.body.decode()
