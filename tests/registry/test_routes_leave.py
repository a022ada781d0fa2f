"""Unregistering, draining and maintenance over HTTP."""

from datetime import UTC, datetime, timedelta

import pytest
from daemons import Api, eventually

A = "/services/chat/instances/a"


async def test_an_instance_is_unregistered(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    answer = await api.delete(A)
    assert (answer.status, answer.body) == (204, b"")
    assert await api.listed("view=instances") == ["chat/b"]


async def test_a_service_is_unregistered_with_all_its_instances(api: Api) -> None:
    for name in "abc":
        await api.register("chat", name)
    await api.register("other")
    assert (await api.delete("/services/chat")).status == 204
    assert await api.listed("") == ["other"]
    assert (await api.get("/services/chat")).status == 404


@pytest.mark.parametrize("path", [A, "/services/nope", f"{A}?drainSeconds=1"])
async def test_what_is_not_there_cannot_be_unregistered(api: Api, path: str) -> None:
    answer = await api.delete(path)
    assert (answer.status, answer.problem["code"]) == (404, "not_found")


@pytest.mark.parametrize("query", ["incarnation=old", "incarnation=old&drainSeconds=30"])
async def test_a_predecessor_cannot_take_its_successor_away(api: Api, query: str) -> None:
    await api.register(incarnation="new")
    before = await api.head()
    answer = await api.delete(f"{A}?{query}")
    assert (answer.status, answer.problem["code"]) == (409, "superseded")
    assert await api.head() == before


async def test_the_present_incarnation_may_leave(api: Api) -> None:
    await api.register(incarnation="new")
    assert (await api.delete(f"{A}?incarnation=new")).status == 204


# --- draining


async def test_a_draining_instance_is_out_of_every_choice_at_once_and_still_shown(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    answer = await api.delete(f"{A}?drainSeconds=30")
    assert answer.status == 202
    assert answer.json["admin"]["state"] == "draining"
    assert {await api.offered() for _ in range(20)} == {"b"}
    assert [one["instanceId"] for one in (await api.get("/discover/chat")).json] == ["b"]
    assert (await api.instance())["admin"]["until"].endswith("Z")


async def test_a_service_drains_with_all_its_instances(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    answer = await api.delete("/services/chat?drainSeconds=30")
    assert answer.status == 202
    assert [one["admin"]["state"] for one in answer.json["instances"]] == ["draining", "draining"]
    refusal = await api.get("/services/chat/url")
    assert refusal.status == 404
    assert refusal.problem["reasons"] == {"draining": 2}


async def test_renewals_do_not_extend_a_drain(api: Api) -> None:
    await api.register(ttlSeconds=300)
    end = (await api.put(f"{A}/drain", {"seconds": 30})).json["lease"]["expiresAt"]
    assert (await api.put(f"{A}/heartbeat")).json["expiresAt"] == end
    assert (await api.register(ttlSeconds=300))["lease"]["expiresAt"] == end


async def test_a_drained_instance_is_gone_afterwards_as_unregistered(api: Api) -> None:
    await api.register()
    assert (await api.put(f"{A}/drain", {"seconds": 0})).status == 200
    await eventually(lambda: len(api.daemon.view) == 0)
    assert (await api.put(f"{A}/heartbeat")).problem["code"] == "instance_unknown"


async def test_a_drain_without_a_body_takes_30_seconds(api: Api) -> None:
    shown = await api.register(ttlSeconds=3600)
    end = (await api.put(f"{A}/drain")).json["lease"]["expiresAt"]
    registered = datetime.fromisoformat(shown["registeredAt"])
    assert timedelta(seconds=29) < datetime.fromisoformat(end) - registered < timedelta(seconds=35)


# --- maintenance


async def test_maintenance_shows_who_and_why_and_hides_the_health(api: Api) -> None:
    await api.register(health={"status": "healthy"})
    answer = await api.put(f"{A}/maintenance", {"enabled": True, "reason": "new disks"})
    assert answer.status == 200
    assert answer.json["admin"] == {
        "state": "maintenance",
        "reason": "new disks",
        "by": "anonymous",
    }
    assert answer.json["health"]["status"] == "maintenance"
    assert (await api.get("/services/chat/url")).problem["reasons"] == {"maintenance": 1}
    assert await api.listed("health=maintenance") == ["chat"]
    assert await api.listed("health=healthy") == []


async def test_maintenance_survives_a_registration_with_another_body(api: Api) -> None:
    await api.register(health={"status": "healthy"})
    await api.put(f"{A}/maintenance", {"enabled": True})
    again = await api.register(version="2", health={"status": "healthy"})
    assert again["health"]["status"] == "maintenance"
    assert again["admin"]["state"] == "maintenance"


async def test_the_end_of_maintenance_brings_the_health_back(api: Api) -> None:
    await api.register(health={"status": "healthy"})
    await api.put(f"{A}/maintenance", {"enabled": True})
    answer = await api.put(f"{A}/maintenance", {"enabled": False})
    assert "admin" not in answer.json
    assert answer.json["health"]["status"] == "healthy"
    assert await api.offered() == "a"


async def test_maintenance_ends_by_itself_at_its_time(api: Api) -> None:
    await api.register(health={"status": "healthy"})
    until = (datetime.now(UTC) + timedelta(milliseconds=300)).isoformat()
    answer = await api.put(f"{A}/maintenance", {"enabled": True, "until": until})
    assert answer.json["admin"]["until"].endswith("Z")

    async def over() -> bool:
        return "admin" not in await api.instance()

    await eventually(over)
    assert (await api.instance())["health"]["status"] == "healthy"


async def test_maintenance_of_a_service_is_that_of_all_its_instances(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    answer = await api.put("/services/chat/maintenance", {"enabled": True})
    assert [one["health"]["status"] for one in answer.json["instances"]] == ["maintenance"] * 2
    answer = await api.put("/services/chat/maintenance", {"enabled": False})
    assert [one["health"]["status"] for one in answer.json["instances"]] == ["unknown"] * 2


async def test_a_draining_instance_does_not_stop_the_maintenance_of_the_others(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    await api.put("/services/chat/instances/b/drain", {"seconds": 60})
    answer = await api.put("/services/chat/maintenance", {"enabled": True})
    states = {one["instanceId"]: one["admin"]["state"] for one in answer.json["instances"]}
    assert states == {"a": "maintenance", "b": "draining"}


@pytest.mark.parametrize("path", [A, "/services/chat"])
async def test_a_draining_instance_cannot_be_maintained(api: Api, path: str) -> None:
    await api.register()
    await api.put(f"{A}/drain", {"seconds": 60})
    answer = await api.put(f"{path}/maintenance", {"enabled": True})
    assert (answer.status, answer.problem["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    "until", ["2020-01-01T00:00:00Z", "2030-01-01T00:00:00", "tomorrow", 1_900_000_000]
)
async def test_an_end_that_is_past_naive_or_no_time_is_refused(api: Api, until: object) -> None:
    await api.register()
    answer = await api.put(f"{A}/maintenance", {"enabled": True, "until": until})
    assert answer.status == 422
    assert answer.pointers == ["/until"]


@pytest.mark.parametrize("path", ["/services/nope", "/services/chat/instances/nope"])
@pytest.mark.parametrize("what", ["maintenance", "drain"])
async def test_what_is_not_there_is_neither_maintained_nor_drained(
    api: Api, path: str, what: str
) -> None:
    if path == "/services/nope" and what == "drain":
        path += "/instances/a"
    body = {"enabled": True} if what == "maintenance" else {"seconds": 1}
    answer = await api.put(f"{path}/{what}", body)
    assert (answer.status, answer.problem["code"]) == (404, "not_found")
