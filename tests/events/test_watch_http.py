"""Watches as their clients see them."""

from daemons import Api, eventually
from sse import Copy, listening, open_source


async def test_a_watch_begins_with_the_result_and_tells_what_changes_in_it(api: Api) -> None:
    await api.register("chat", "a", metadata={"tags": ["ai"]})
    await api.register("other", "x")
    async with listening(api, "/watch?tags=ai") as source:
        opening = await source.block()
        assert (opening.retry, opening.id) == ("1000", str(api.seen))
        snapshot = await source.event()
        assert snapshot.name == "snapshot"
        assert [one["instanceId"] for one in snapshot.json["instances"]] == ["a"]
        assert snapshot.json["revision"] == snapshot.id == str(api.seen)

        added = await api.register("chat", "b", metadata={"tags": ["ai"]})
        event = await source.event()
        assert event.name == "change"
        assert event.id == event.json["revision"] == str(api.seen)
        del added["lease"]["expiresAt"]
        assert event.json == {
            "revision": event.id,
            "added": [added],
            "changed": [],
            "removed": [],
        }

        await api.register("chat", "b", metadata={"tags": ["ai", "nlp"]})
        event = await source.event()
        assert [one["metadata"] for one in event.json["changed"]] == [{"tags": ["ai", "nlp"]}]
        assert event.json["added"] == event.json["removed"] == []

        await api.register("chat", "b", metadata={"tags": ["nlp"]})
        event = await source.event()
        left = {"name": "chat", "instanceId": "b", "reason": "no longer matches"}
        assert event.json["removed"] == [left]

        await api.delete("/services/chat/instances/a")
        event = await source.event()
        left = {"name": "chat", "instanceId": "a", "reason": "deregistered"}
        assert event.json["removed"] == [left]


async def test_a_watch_does_not_wake_for_what_is_not_in_its_result(api: Api) -> None:
    await api.register("chat", "a")
    async with listening(api, "/watch?service=chat") as source:
        assert (await source.event()).name == "snapshot"
        await api.register("other", "a")
        await api.put("/services/chat/heartbeat")
        await api.delete("/services/other")
        assert await source.quiet()


async def test_one_watch_may_carry_many_services_also_ones_to_come(api: Api) -> None:
    async with listening(api, "/watch?service=one,two,three") as source:
        assert (await source.event()).json["instances"] == []
        for name in ("one", "four", "two"):
            await api.register(name, "a")
        found = [(await source.event()).json["added"][0]["name"] for _ in range(2)]
        assert found == ["one", "two"]
        assert await source.quiet()


async def test_a_watch_that_comes_back_gets_only_the_difference(api: Api) -> None:
    copy = Copy()
    for number in range(3):
        await api.register("chat", f"i{number}")
    async with listening(api, "/watch?service=chat") as source:
        copy.take(await source.event())
        last_id = source.last_id
    await api.delete("/services/chat/instances/i0")
    await api.register("chat", "i1", weight=7)
    await api.register("chat", "i3")
    await api.delete("/services/chat/instances/i3")
    await api.register("chat", "i4")
    await api.register("other", "a")
    async with listening(api, "/watch?service=chat", last_id=last_id) as source:
        event = await source.event()
        assert event.name == "change"
        assert [one["instanceId"] for one in event.json["added"]] == ["i4"]
        assert [one["instanceId"] for one in event.json["changed"]] == ["i1"]
        assert event.json["removed"] == [
            {"name": "chat", "instanceId": "i0", "reason": "deregistered"}
        ]
        assert await source.quiet()
    copy.take(event)
    assert sorted(copy.instances) == ["chat/i1", "chat/i2", "chat/i4"]


async def test_nothing_missed_is_nothing_told(api: Api) -> None:
    await api.register("chat", "a")
    async with listening(api, "/watch?service=chat", last_id=str(api.seen)) as source:
        assert (await source.block()).id == str(api.seen)
        assert await source.quiet()
        await api.register("chat", "b")
        assert (await source.event()).name == "change"


async def test_a_position_that_nobody_knows_is_answered_with_a_snapshot(api: Api) -> None:
    await api.register("chat", "a")
    epoch, rev = api.seen
    for unknown in (f"{epoch - 1}-{rev}", "1-1", "nonsense", "999999999999999-1"):
        async with listening(api, "/watch", last_id=unknown) as source:
            assert (await source.event()).name == "snapshot", unknown


async def test_parameters_are_checked_before_the_stream_begins(api: Api) -> None:
    for query in ("nosuch=1", "name=(", "since=x", "service=a%20b", "filter=weight"):
        answer = await api.get(f"/watch?{query}")
        assert answer.status == 400, query
        assert answer.problem["code"] == "malformed"


async def test_head_tells_what_get_would_send(api: Api) -> None:
    answer = await api("HEAD", "/watch")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    options = await api("OPTIONS", "/watch")
    assert (options.status, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_a_client_that_leaves_is_forgotten(api: Api) -> None:
    sources = [await open_source(api, "/watch?service=chat") for _ in range(3)]
    for source in sources:
        await source.event()
    assert len(api.daemon.broadcast) == 3
    for source in sources:
        source.writer.transport.abort()
    await eventually(lambda: len(api.daemon.broadcast) == 0)
    await api.register("chat", "a")
