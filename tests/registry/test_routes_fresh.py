"""How fresh an answer is: revisions, ETags, waiting; one daemon and two over one store."""

import asyncio
from typing import Any

import pytest
from daemons import Answer, Api, eventually

BODY = {"name": "chat", "endpoint": "http://10.0.0.1:8080", "instanceId": "a"}
A = "/services/chat/instances/a"
READS = (
    "/services",
    "/services?view=instances&tags=ai",
    "/services/chat",
    "/services/chat/instances",
    A,
    "/services/chat/health",
    f"{A}/health",
    "/discover/chat",
    "/stats",
    "/capabilities",
)


def later(revision: str, by: int = 1) -> str:
    epoch, _, rev = revision.partition("-")
    return f"{epoch}-{int(rev) + by}"


def of_epoch(revision: str, by: int) -> str:
    epoch, _, rev = revision.partition("-")
    return f"{int(epoch) + by}-{rev}"


# --- revision and ETag


@pytest.mark.parametrize("path", [*READS, "/services/chat/url"])
async def test_every_read_says_which_revision_it_stands_at(api: Api, path: str) -> None:
    await api.register()
    answer = await api.get(path)
    assert answer.status == 200
    assert answer.revision == str(api.seen)
    assert "X-Registry-Stale-Ms" not in answer.headers


@pytest.mark.parametrize("path", READS)
async def test_a_copy_that_still_holds_is_not_sent_again_whichever_node_is_asked(
    api: Api, other: Api, path: str
) -> None:
    last = (await api.post("/services", {**BODY, "metadata": {"tags": ["ai"]}})).revision
    tag = (await api.get(path)).etag
    assert tag.startswith('W/"')
    join = "&" if "?" in path else "?"
    for node in (api, other):
        answer = await node.get(f"{path}{join}minRevision={last}", If_None_Match=tag)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["ETag"]
        assert answer.revision == last


@pytest.mark.parametrize("path", READS)
async def test_a_copy_that_holds_no_more_is_sent_again(api: Api, path: str) -> None:
    await api.register(metadata={"tags": ["ai"]})
    tag = (await api.get(path)).etag
    await api.put(f"{A}/heartbeat", {"status": "healthy"})
    answer = await api.get(path, If_None_Match=tag)
    assert answer.status == 200
    assert (await api.get(path, If_None_Match=f'"junk", {tag}, {answer.etag}')).status == 304


@pytest.mark.parametrize(
    "path",
    ["/services?tags=ai", "/services?capability=x", "/services/chat", "/discover/chat", A],
)
async def test_changes_elsewhere_leave_a_copy_valid(api: Api, path: str) -> None:
    await api.register()
    tag = (await api.get(path)).etag
    await api.register("other", "z", metadata={"tags": ["db"]})
    assert (await api.get(path, If_None_Match=tag)).status == 304


async def test_a_write_answers_with_a_revision_that_the_same_node_shows_at_once(api: Api) -> None:
    for number in range(30):
        answer = await api.post("/services", {**BODY, "version": str(number)})
        assert (await api.instance())["version"] == str(number)
        assert (await api.get("/services")).revision == answer.revision


async def test_all_that_writes_answers_with_a_revision(api: Api) -> None:
    legacy = {"service_name": "old", "service_url": "http://a:1"}
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/services", BODY),
        ("PUT", A, {**BODY, "version": "2"}),
        ("PATCH", A, {"zone": "eu"}),
        ("PUT", "/services/chat", {"zone": "us"}),
        ("PUT", f"{A}/maintenance", {"enabled": True}),
        ("PUT", "/services/chat/maintenance", {"enabled": False}),
        ("PUT", f"{A}/drain", {"seconds": 60}),
        ("DELETE", "/services/chat?drainSeconds=60", None),
        ("DELETE", A, None),
        ("POST", "/register", legacy),
        ("POST", "/deregister?service_name=old&instance_id=a-1", None),
        ("POST", "/cleanup", None),
    ]
    for method, path, body in calls:
        answer = await api(method, path, body)
        assert answer.status < 300, answer.body
        assert answer.revision == str(await api.head()), path


# --- waiting for a revision


async def test_a_node_that_is_ahead_of_min_revision_answers_at_once(api: Api) -> None:
    first = await api.register()
    await api.register(version="2")
    assert (await api.get(f"{A}?minRevision={first['revision']}")).json["version"] == "2"


async def test_a_revision_that_does_not_come_is_answered_with_not_ready(api: Api) -> None:
    await api.register()
    answer = await api.get(f"{A}?minRevision={later(str(api.seen))}")
    assert (answer.status, answer.problem["code"]) == (503, "not_ready")
    assert answer.headers["Retry-After"]
    assert str(api.seen) in answer.problem["detail"]


async def test_a_revision_of_an_older_epoch_fails_the_precondition(api: Api) -> None:
    await api.register()
    answer = await api.get(f"{A}?minRevision={of_epoch(str(api.seen), -1)}")
    assert (answer.status, answer.problem["code"]) == (412, "precondition_failed")


# --- two nodes


async def test_a_write_is_seen_at_the_other_node_soon_by_itself(api: Api, other: Api) -> None:
    await api.register()

    async def seen() -> bool:
        return (await other.get(A)).status == 200

    await eventually(seen)
    await other.delete(A)
    await eventually(lambda: len(api.daemon.view) == 0)


async def test_a_write_is_seen_at_the_other_node_always_with_its_revision(
    api: Api, other: Api
) -> None:
    nodes = [api, other]
    for number in range(40):
        here, there = nodes[number % 2], nodes[1 - number % 2]
        answer = await here.post("/services", {**BODY, "version": str(number)})
        read = await there.get(f"{A}?minRevision={answer.revision}")
        assert read.json["version"] == str(number)


async def test_strong_consistency_sees_every_write_acknowledged_before(
    api: Api, other: Api
) -> None:
    for number in range(40):
        await api.post("/services", {**BODY, "version": str(number)})
        assert (await other.get(f"{A}?consistency=strong")).json["version"] == str(number)


async def test_nodes_change_one_instance_one_after_the_other_without_loss(
    api: Api, other: Api
) -> None:
    await api.register()
    await other.get(f"{A}?consistency=strong")
    answers = await asyncio.gather(
        *(
            node.patch(A, {"metadata": {f"{name}{number}": number}})
            for number in range(3)
            for name, node in (("here", api), ("there", other))
        )
    )
    won = [answer for answer in answers if answer.status == 200]
    assert {answer.status for answer in answers} <= {200, 409}
    shown = (await other.get(f"{A}?consistency=strong")).json
    assert len(shown["metadata"]) == len(won) > 0


# --- long poll


async def held(api: Api, query: str, **headers: str) -> "asyncio.Task[Answer]":
    """A long poll that is under way."""
    task = asyncio.create_task(api.get(f"/services?{query}", **headers))
    await asyncio.sleep(0.1)  # that nothing comes cannot be awaited
    return task


async def test_a_poll_answers_when_its_result_changes_and_not_for_others(api: Api) -> None:
    since = (await api.post("/services", {**BODY, "metadata": {"tags": ["ai"]}})).revision
    poll = await held(api, f"tags=ai&since={since}&wait=20s")
    await api.register("other", "z", metadata={"tags": ["db"]})
    await asyncio.sleep(0.1)
    assert not poll.done()
    written = await api.put(f"{A}/maintenance", {"enabled": True})
    answer = await poll
    assert answer.json["services"][0]["health"]["status"] == "maintenance"
    assert answer.revision == written.revision


@pytest.mark.parametrize("path", ["/services/chat", "/services/chat/instances", "/discover/chat"])
async def test_one_service_can_be_polled_too(api: Api, path: str) -> None:
    await api.register()
    since = (await api.get(path)).revision
    poll = asyncio.create_task(api.get(f"{path}?since={since}&wait=20s"))
    await asyncio.sleep(0.1)
    await api.register("other")
    await asyncio.sleep(0.05)
    assert not poll.done()
    await api.register("chat", "b")
    assert b'"b"' in (await poll).body


async def test_a_change_that_came_before_the_poll_answers_at_once(api: Api) -> None:
    since = (await api.post("/services", BODY)).revision
    await api.register("chat", "b")
    assert (await api.get(f"/services?since={since}&wait=20s")).status == 200


async def test_the_end_of_the_wait_answers_with_the_same_body_or_304(api: Api) -> None:
    await api.register()
    first = await api.get("/services")
    query = f"since={first.revision}&wait=50ms"
    assert (await api.get(f"/services?{query}")).body == first.body
    assert (await api.get(f"/services?{query}", If_None_Match=first.etag)).status == 304


async def test_the_wait_may_stand_in_prefer_and_is_then_confirmed(api: Api) -> None:
    since = (await api.post("/services", BODY)).revision
    poll = await held(api, f"since={since}", Prefer="wait=20")
    assert not poll.done()
    await api.register("chat", "b")
    assert (await poll).headers["Preference-Applied"] == "wait=20"


async def test_without_a_wait_the_answer_comes_at_once(api: Api) -> None:
    since = (await api.post("/services", BODY)).revision
    assert (await api.get(f"/services?since={since}")).status == 200


async def test_a_poll_from_an_older_epoch_answers_at_once(api: Api) -> None:
    await api.register()
    since = of_epoch(str(api.seen), -1)
    assert (await api.get(f"/services?since={since}&wait=20s")).status == 200


@pytest.mark.parametrize("shift", [later, of_epoch])
async def test_a_poll_from_the_future_waits(api: Api, shift: Any) -> None:
    await api.register()
    poll = await held(api, f"since={shift(str(api.seen), 5)}&wait=300ms")
    assert not poll.done()
    assert (await poll).status == 200


async def test_a_poll_ignores_any_cursor(api: Api) -> None:
    await api.register()
    await api.register("other")
    cursor = (await api.get("/services?limit=1")).json["next"]
    answer = await api.get(f"/services?limit=1&cursor={cursor}&since={api.seen}&wait=10ms")
    assert [one["name"] for one in answer.json["services"]] == ["chat"]


async def test_a_poll_is_let_go_when_the_daemon_stops(api: Api) -> None:
    await api.register()
    poll = await held(api, f"since={api.seen}&wait=60s")
    api.daemon._closing.set()
    assert (await poll).status == 200
