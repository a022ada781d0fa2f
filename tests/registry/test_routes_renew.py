"""Heartbeats over HTTP, one at a time and in batches."""

from typing import Any

import pytest
from daemons import Api

A = "/services/chat/instances/a"


@pytest.mark.parametrize("path", [A, "/services/chat"])
async def test_a_heartbeat_answers_with_the_lease_and_emits_nothing(api: Api, path: str) -> None:
    shown = await api.register(ttlSeconds=30)
    before = await api.head()
    answer = await api.put(f"{path}/heartbeat")
    assert answer.status == 200
    assert answer.json.keys() == {"ttlSeconds", "expiresAt", "renewIntervalSeconds"}
    assert (answer.json["ttlSeconds"], answer.json["renewIntervalSeconds"]) == (30, 10)
    assert answer.json["expiresAt"] >= shown["lease"]["expiresAt"]
    assert await api.head() == before


@pytest.mark.parametrize("path", [A, "/services/chat"])
async def test_an_unknown_lease_is_told_to_register_again(api: Api, path: str) -> None:
    answer = await api.put(f"{path}/heartbeat")
    assert (answer.status, answer.problem["code"]) == (404, "instance_unknown")
    assert "register again" in answer.problem["detail"]


async def test_a_heartbeat_for_several_instances_is_ambiguous_until_one_is_named(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    answer = await api.put("/services/chat/heartbeat")
    assert (answer.status, answer.problem["code"]) == (409, "ambiguous_instance")
    assert (await api.put("/services/chat/heartbeat?instanceId=b")).status == 200
    assert (await api.put("/services/chat/heartbeat", {"instanceId": "b"})).status == 200
    assert (await api.put("/services/chat/heartbeat", {"instance_id": "a"})).status == 200


async def test_a_heartbeat_of_a_predecessor_is_superseded(api: Api) -> None:
    await api.register(incarnation="new")
    answer = await api.put(f"{A}/heartbeat", {"incarnation": "old"})
    assert (answer.status, answer.problem["code"]) == (409, "superseded")
    assert answer.problem["incarnation"] == "new"
    assert (await api.put(f"{A}/heartbeat", {"incarnation": "new"})).status == 200


@pytest.mark.parametrize(("said", "shown"), [("degraded", "degraded"), ("down", "unhealthy")])
async def test_a_heartbeat_may_report_a_status_with_details(
    api: Api, said: str, shown: str
) -> None:
    await api.register()
    answer = await api.put(f"{A}/heartbeat", {"status": said, "details": {"queue_length": 9}})
    assert answer.status == 200
    health = (await api.instance())["health"]
    assert (health["status"], health["details"]) == (shown, {"queue_length": 9})


async def test_the_same_status_again_emits_nothing(api: Api) -> None:
    await api.register()
    await api.put(f"{A}/heartbeat", {"status": "healthy"})
    before = await api.head()
    await api.put(f"{A}/heartbeat", {"status": "healthy"})
    assert await api.head() == before


async def test_a_heartbeat_does_not_lift_maintenance(api: Api) -> None:
    await api.register()
    await api.put(f"{A}/maintenance", {"enabled": True})
    await api.put(f"{A}/heartbeat", {"status": "healthy"})
    assert (await api.instance())["health"]["status"] == "maintenance"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"status": "good"}, "/status"),
        ({"details": 5}, "/details"),
        ({"incarnation": "a b"}, "/incarnation"),
        ({"instanceId": "b"}, "/instanceId"),
        ({"beat": 1}, "/beat"),
        ({"status": "healthy", "details": {"text": "x" * 70_000}}, "/details"),
    ],
)
async def test_a_wrong_heartbeat_is_refused_by_field(
    api: Api, body: dict[str, Any], pointer: str
) -> None:
    await api.register()
    answer = await api.put(f"{A}/heartbeat", body)
    assert answer.status == 422
    assert answer.pointers == [pointer]


async def test_a_batch_answers_in_order(api: Api) -> None:
    await api.register("chat", "a", incarnation="one")
    await api.register("chat", "b")
    beats = [
        {"name": "chat", "instanceId": "b"},
        {"name": "nope", "instanceId": "b"},
        {"name": "chat", "instanceId": "a", "incarnation": "two"},
        {"name": "chat", "instance_id": "a", "incarnation": "one"},
    ]
    answer = await api.put("/heartbeats", {"heartbeats": beats})
    assert answer.json == {"results": ["renewed", "unknown", "superseded", "renewed"]}


async def test_a_batch_of_thousands_is_renewed_in_one_call(api: Api) -> None:
    await api.register()
    beats = [{"name": "chat", "instanceId": "a"}, {"name": "x", "instanceId": "y"}] * 2000
    answer = await api.put("/heartbeats", {"heartbeats": beats})
    assert answer.json["results"] == ["renewed", "unknown"] * 2000


async def test_an_empty_batch_is_fine(api: Api) -> None:
    assert (await api.put("/heartbeats", {"heartbeats": []})).json == {"results": []}


async def test_one_wrong_item_refuses_the_whole_batch_by_position(api: Api) -> None:
    beats = [{"name": "chat", "instanceId": "a"}, {"name": "a b", "instanceId": "a"}]
    answer = await api.put("/heartbeats", {"heartbeats": beats})
    assert answer.pointers == ["/heartbeats/1/name"]


async def test_renewals_are_counted_by_outcome_also_those_of_a_batch(api: Api) -> None:
    await api.register()
    await api.put(f"{A}/heartbeat")
    await api.put("/services/chat/instances/nobody/heartbeat")
    await api.put(
        "/heartbeats",
        {"heartbeats": [{"name": "chat", "instanceId": one} for one in ("a", "a", "nobody")]},
    )
    metrics = (await api.get("/metrics")).body.decode()
    assert 'registryd_renewals_total{outcome="renewed"} 3.0' in metrics
    assert 'registryd_renewals_total{outcome="unknown"} 2.0' in metrics
