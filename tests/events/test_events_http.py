"""The event stream as its clients see it."""

import asyncio
import json
from pathlib import Path

import pytest
from daemons import Api, running
from sse import listening

from registryd.events.types import WHOLE


async def test_events_are_cloud_events_each_under_its_id(api: Api) -> None:
    async with listening(api, "/events") as source:
        assert source.header("Content-Type") == "text/event-stream"
        opening = await source.block()
        assert (opening.retry, opening.id) == ("1000", f"{api.seen}.{WHOLE}")
        instance = await api.register("chat", "a", capabilities=["tts"])
        registered, added = await source.event(), await source.event()
        assert (registered.name, registered.id) == ("service:registered", str(api.seen))
        assert (added.name, added.id) == ("capability:added", f"{api.seen}.1")
        for event in (registered, added):
            assert event.json["specversion"] == "1.0"
            assert (event.json["type"], event.json["id"]) == (event.name, event.id)
            assert event.json["subject"] == "chat/a"
        del instance["lease"]["expiresAt"]
        assert registered.json["data"] == {"service": "chat", "instance": instance}
        assert added.json["data"]["capability"] == {"name": "tts", "version": "1.0.0"}
        await api.put("/services/chat/heartbeat", {"status": "healthy"})
        changed = await source.event()
        assert changed.name == "service:health:changed"
        assert (changed.json["data"]["old"], changed.json["data"]["new"]) == ("unknown", "healthy")


async def test_types_and_services_choose(api: Api) -> None:
    path = "/events?types=service:*ed,capability:removed&service=chat,tts"
    async with listening(api, path) as source:
        await api.register("other", "a", capabilities=["x"])
        await api.register("chat", "a", capabilities=["x"])
        await api.put("/services/chat/heartbeat", {"status": "healthy"})
        await api.delete("/services/other")
        await api.delete("/services/chat")
        names = [(await source.event()).name for _ in range(4)]
        assert names == [
            "service:registered",
            "service:health:changed",
            "service:unregistered",
            "capability:removed",
        ]
        assert await source.quiet()


async def test_each_choice_gets_its_own_events_of_the_same_change(api: Api) -> None:
    async with (
        listening(api, "/events?types=service:registered") as services,
        listening(api, "/events?types=capability:*") as capabilities,
        listening(api, "/events?types=model:*") as models,
    ):
        await api.register("chat", "a", capabilities=["x", "y"])
        assert (await services.event()).name == "service:registered"
        assert [(await capabilities.event()).id[-2:] for _ in range(2)] == [".1", ".2"]
        for source in (services, capabilities, models):
            assert await source.quiet(0.05)


async def ids(api: Api, last_id: str, count: int, query: str = "") -> list[str]:
    async with listening(api, f"/events{query}", last_id=last_id) as source:
        found = [(await source.event()).id for _ in range(count)]
        assert await source.quiet(0.05)
        return found


async def history(api: Api) -> list[str]:
    """Some changes; answers with the ids of all their events."""
    async with listening(api, "/events") as source:
        await api.register("chat", "a", capabilities=["x", "y"])
        await api.register("tts", "a")
        await api.register("chat", "a", capabilities=["y", "z"])
        await api.delete("/services/chat")
        return [(await source.event()).id for _ in range(10)]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_stream_resumes_after_exactly_the_event_seen_last(
    api: Api, store_url: str, prefix: str, tmp_path: Path, restarted: bool
) -> None:
    known = await history(api)
    assert len(set(known)) == 10

    async def check(node: Api) -> None:
        for place, last_id in enumerate(known):
            assert await ids(node, last_id, 9 - place) == known[place + 1 :]

    if restarted:  # then memory knows nothing, and the store's stream is read
        async with running(store_url, prefix, tmp_path) as fresh:
            await check(fresh)
    else:
        await check(api)


async def test_since_in_the_address_serves_too_and_the_header_counts_before_it(api: Api) -> None:
    known = await history(api)
    assert await ids(api, "", 9, f"?since={known[0]}") == known[1:]
    assert await ids(api, known[-2], 1, f"?since={known[0]}") == known[-1:]


async def test_a_stream_goes_on_with_live_events_after_what_was_missed(api: Api) -> None:
    known = await history(api)
    async with listening(api, "/events", last_id=known[-2]) as source:
        assert (await source.event()).id == known[-1]
        await api.register("chat", "b")
        assert (await source.event()).json["subject"] == "chat/b"


async def test_a_position_too_old_is_answered_with_a_reset(api: Api) -> None:
    known = await history(api)
    await api.register("chat", "b")
    epoch, rev = api.seen
    for unknown in (f"{epoch - 1}-{rev}", "what?", f"{epoch + 1}-1"):
        async with listening(
            api, "/events?service=chat&types=service:*", last_id=unknown
        ) as source:
            event = await source.event(within=4)
            assert event.name == "reset"
            assert event.json["revision"] == str(api.seen)
            assert [one["instanceId"] for one in event.json["instances"]] == ["b"]
            await api.register("chat", "c")
            assert (await source.event()).name == "service:registered"
            await api.delete("/services/chat/instances/c")
    assert known


async def test_a_trimmed_stream_is_a_gap(
    api: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    known = await history(api)
    async with running(store_url, prefix, tmp_path) as fresh:
        keys = fresh.daemon.store._keys
        await fresh.daemon.store._runner._connection.call("XTRIM", keys.stream, "MINID", known[3])
        async with listening(fresh, "/events", last_id=known[0]) as source:
            assert (await source.event()).name == "reset"
        assert await ids(fresh, known[3], 6) == known[4:]


async def test_an_error_of_this_node_is_told_here_alone_and_does_not_move_the_position(
    api: Api, other: Api
) -> None:
    await api.register("chat", "a")
    async with listening(api, "/events") as here, listening(other, "/events") as there:
        api.daemon.follower.trouble("storage_unavailable", "the store is away")
        event = await here.event()
        assert event.name == event.json["type"] == "registry:error"
        assert event.json["data"] == {"code": "storage_unavailable", "detail": "the store is away"}
        assert await there.quiet()
        await api.register("chat", "b")
        assert (await here.event()).json["subject"] == "chat/b"
        assert (await there.event()).json["subject"] == "chat/b"
    assert await ids(api, event.id, 1) == [str(api.seen)]


async def test_a_ping_says_how_far_a_quiet_stream_has_come(api: Api) -> None:
    async with listening(api, "/events?service=quiet") as source:
        await source.block()
        await api.register("chat", "a")
        await api.daemon.broadcast.ping()
        block = await source.block()
        assert block.comments == ["ping"]
        assert block.id == f"{api.seen}.{WHOLE}"


async def test_parameters_are_checked_before_the_stream_begins(api: Api) -> None:
    for query in ("nosuch=1", "types=a%20b", "types=;", "service=..", "since=1"):
        answer = await api.get(f"/events?{query}")
        assert answer.status == 400, query


async def test_too_many_streams_are_refused(store_url: str, prefix: str, tmp_path: Path) -> None:
    async with (
        running(store_url, prefix, tmp_path, events={"maxStreams": 2}) as api,
        listening(api, "/events"),
        listening(api, "/watch"),
    ):
        for path in ("/events", "/watch"):
            answer = await api.get(path)
            assert (answer.status, answer.problem["code"]) == (503, "not_ready")
            assert int(answer.headers["Retry-After"]) > 0
        assert (await api.get("/services")).status == 200


async def test_a_stream_ends_with_a_bye_when_the_node_does(api: Api) -> None:
    async with listening(api, "/events") as source, listening(api, "/watch") as watch:
        await api.register("chat", "a")
        api.daemon.drain()
        assert (await source.event()).name == "service:registered"
        for one in (source, watch):
            while (event := await one.event()).name != "bye":
                pass
            assert event.json == {"reason": "shutting down"}
            assert event.retry == "1000"
            with pytest.raises(EOFError):
                await one.event()
        answer = await api.get("/events")
        assert (answer.status, answer.problem["code"]) == (503, "not_ready")


async def test_streams_are_counted(api: Api) -> None:
    async with listening(api, "/events"), listening(api, "/watch") as watch:
        await watch.event()
        await api.register("chat", "a")
        await watch.event()
        text = (await api.get("/metrics")).body.decode()
    assert 'registryd_watchers{kind="events"} 1.0' in text
    assert 'registryd_watchers{kind="watch"} 1.0' in text
    assert 'registryd_propagation_seconds_count{kind="registered"} 1.0' in text
    assert "registryd_stream_writes_total 2.0" in text


async def test_an_http_1_0_client_gets_bare_data(api: Api) -> None:
    host, port = api.daemon.addresses[0]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /watch HTTP/1.0\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"chunked" not in head
    assert (await reader.readuntil(b"\n\n")).startswith(b"retry: 1000\n")
    assert (await reader.readuntil(b"\n\n")).startswith(b"id: ")
    await api.register("chat", "a")
    await api.register("chat", "b")
    for name in ("a", "b"):
        block = (await reader.readuntil(b"\n\n")).decode()
        assert json.loads(block.partition("data: ")[2])["added"][0]["instanceId"] == name
    writer.transport.abort()
