"""Health over HTTP, with real services that are probed."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running
from redis.asyncio import Redis
from targets import Service, service

QUICK = {"intervalMs": 100, "timeoutMs": 50}
RARE = {"intervalMs": 60_000, "timeoutMs": 200}


async def health(api: Api, path: str = "/services/chat/instances/a/health") -> Any:
    answer = await api.get(path)
    assert answer.status == 200, answer.body
    return answer.json


async def status(api: Api, name: str = "chat") -> str:
    return str((await health(api, f"/services/{name}/health"))["status"])


async def check(api: Api, path: str = "/services/chat/instances/a/check") -> Any:
    answer = await api.post(path)
    assert answer.status == 200, answer.body
    return answer.json


async def registered(api: Api, target: Service, name: str = "chat", **check: Any) -> None:
    await api.register(name, "a", endpoint=target.url, healthCheck=check)


async def test_of_three_services_the_one_that_stops_answering_becomes_unhealthy_and_recovers(
    api: Api, store_url: str
) -> None:
    async with AsyncExitStack() as stack, Redis.from_url(store_url, protocol=3) as redis:
        services = [await stack.enter_async_context(service()) for _ in range(3)]
        for number, one in enumerate(services):
            await registered(api, one, f"s{number}", **QUICK)
        for number in range(3):
            await eventually(lambda n=number: is_healthy(api, f"s{n}"))
        listener = await stack.enter_async_context(redis.pubsub())
        await listener.subscribe(f"{api.prefix}:events:service:health:changed")
        failing = services[1]
        failing.status, before = 503, len(failing.asked)
        event = await next_event(listener)
        assert len(failing.asked) - before in {3, 4}  # the first may have been under way
        assert event["subject"] == "s1/a"
        assert (event["data"]["old"], event["data"]["new"]) == ("healthy", "unhealthy")
        assert event["data"]["instance"]["health"]["error"] == "HTTP 503"
        failing.status = 200
        event = await next_event(listener)
        assert (event["data"]["old"], event["data"]["new"]) == ("unhealthy", "healthy")
        assert [await status(api, f"s{n}") for n in (0, 2)] == ["healthy", "healthy"]


async def is_healthy(api: Api, name: str) -> bool:
    return await status(api, name) == "healthy"


async def next_event(listener: Any) -> Any:
    async with asyncio.timeout(3):
        while True:
            message = await listener.get_message(ignore_subscribe_messages=True, timeout=0.1)
            if message is not None:
                return json.loads(message["data"])


async def test_health_changes_at_exactly_the_thresholds(api: Api, target: Service) -> None:
    await registered(api, target, **RARE)
    await eventually(lambda: target.asked)
    await eventually(lambda: counted(api, "successes", 1))
    statuses = [(await check(api))["status"]]
    for code in (500, 500, 500, 200, 200):
        target.status = code
        statuses.append((await check(api))["status"])
    assert statuses == ["healthy", "healthy", "healthy", "unhealthy", "unhealthy", "healthy"]
    assert len(target.asked) == 7


async def counted(api: Api, what: str, number: int, name: str = "chat") -> bool:
    return bool((await health(api, f"/services/{name}/instances/a/health"))[what] == number)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("500", "HTTP 500"), ("slow", "timed out after 100 ms"), ("gone", "connection refused")],
)
async def test_the_current_error_is_told_before_the_status_changes(
    api: Api, target: Service, fault: str, error: str
) -> None:
    await registered(api, target, intervalMs=60_000, timeoutMs=100)
    await eventually(lambda: counted(api, "successes", 1))
    assert (await check(api))["status"] == "healthy"
    if fault == "500":
        target.status = 500
    elif fault == "slow":
        target.delay = 0.3
    else:
        await target.stop()
    shown = await check(api)
    assert (shown["status"], shown["verdict"], shown["error"]) == ("healthy", "unhealthy", error)
    assert (shown["failures"], shown["successes"]) == (1, 0)
    assert shown["responseTime"] > 0
    assert "error" not in (await api.instance())["health"]


async def test_the_answer_tells_the_history_newest_first(api: Api, target: Service) -> None:
    await registered(api, target, **RARE, failureThreshold=1, successThreshold=1)
    await eventually(lambda: is_healthy(api, "chat"))
    target.status = 503
    await check(api)
    await api.put("/services/chat/instances/a/maintenance", {"enabled": True, "reason": "new disk"})
    shown = (await health(api))["transitions"]
    assert [(one["old"], one["new"], one["reason"], one.get("error")) for one in shown] == [
        ("unhealthy", "maintenance", "new disk", None),
        ("healthy", "unhealthy", "probed", "HTTP 503"),
        ("unknown", "healthy", "probed", None),
    ]


async def test_figures_are_current_on_every_daemon(api: Api, other: Api, target: Service) -> None:
    await registered(api, target, **RARE)
    shown = await check(api)
    assert (await health(other))["lastCheck"] == shown["lastCheck"]
    assert await check(other) != shown
    assert await health(api) == await health(other)


async def test_a_copy_holds_until_the_next_probe(api: Api, target: Service) -> None:
    await registered(api, target, **RARE)
    await check(api)
    path = "/services/chat/health"
    tag = (await api.get(path)).etag
    assert (await api.get(path, If_None_Match=tag)).status == 304
    await check(api)
    assert (await api.get(path, If_None_Match=tag)).status == 200


async def test_what_the_body_tells_is_shown_as_discovered(api: Api, target: Service) -> None:
    target.body = {"version": "2.1", "features": ["chat", "new"], "limits": {"rps": 5}}
    await registered(api, target, **RARE)
    shown = await check(api)
    assert shown["discovered"] == {
        "provenance": "discovered",
        "lastSeen": shown["lastCheck"],
        "version": "2.1",
        "features": ["chat", "new"],
        "limits": {"rps": 5},
        "capabilities": [{"name": "chat", "version": "1.0.0"}],
        "models": [],
    }
    assert "version" not in await api.instance()
    target.body = {"ok": True}
    found = ["discovered" in await check(api) for _ in range(3)]
    assert found == [True, True, False]


async def test_an_import_keeps_what_was_discovered(api: Api, target: Service) -> None:
    target.body = {"features": ["txt2img"]}
    await registered(api, target, **RARE)
    await check(api)
    assert await api.listed("capability=image_generation") == ["chat"]
    saved = (await api.get("/export")).json
    saved["services"]["chat"]["instances"][0]["zone"] = "eu"
    answer = await api.post("/import", saved)
    assert answer.json["counts"]["changed"] == 1
    shown = await api.instance("chat")
    assert (shown["zone"], shown["health"]["discovered"]["models"]) == ("eu", [])
    assert await api.listed("capability=image_generation") == ["chat"]


async def seen(listener: Any) -> tuple[str, str]:
    """The next event: its type, and the capability it is about or the reason."""
    event = await next_event(listener)
    data = event["data"]
    return event["type"], data["capability"]["name"] if "capability" in data else data["reason"]


async def test_an_instance_is_found_by_what_was_discovered_until_three_probes_do_not_name_it(
    api: Api, other: Api, target: Service, store_url: str
) -> None:
    target.body = {"features": ["txt2img", "chat", "loras"], "models": ["flux"]}
    declared = [{"name": "chat", "version": "2.0.0", "parameters": {"snake_case": [1.50, {}]}}]
    await api.register(
        "s", "a", endpoint=target.url, healthCheck=RARE, capabilities=declared, models=["own"]
    )
    path = "/services/s/instances/a/check"
    async with Redis.from_url(store_url, protocol=3) as redis, redis.pubsub() as listener:
        await eventually(lambda: counted(api, "successes", 1, "s"))
        await check(api, path)
        for channel in ("capability:*", "service:updated"):
            await listener.psubscribe(f"{api.prefix}:events:{channel}")
        shown = await api.instance("s")
        assert shown["capabilities"] == declared
        assert shown["models"] == ["own"]
        assert shown["health"]["discovered"] == {
            "capabilities": [
                {"name": "chat", "version": "1.0.0"},
                {"name": "image_generation", "version": "1.0.0"},
            ],
            "models": ["flux"],
        }
        for daemon in (api, other):
            for query in (
                "capability=image_generation@>=1.0",
                "capabilitiesAll=chat@2,image_generation",
                "model=flux",
                "model=own",
            ):
                await eventually(lambda d=daemon, q=query: d.listed(q))
        assert await api.listed("capability=chat@1") == []  # what it declares says more
        assert await api.listed("capability=loras") == []
        assert await api.offered("?capability=image_generation", name="s") == "a"
        claimed = (await api.get("/capabilities")).json["capabilities"]
        assert [(one["name"], one["versions"]) for one in claimed] == [
            ("chat", ["2.0.0"]),
            ("image_generation", ["1.0.0"]),
        ]
        index = f"{api.prefix}:index:capability:image_generation"
        assert await redis.smembers(index) == {b"s:a"}

        before = await api.head()
        await check(api, path)
        assert await api.head() == before  # the same again is no change
        assert (await api.put("/services/s/instances/a", shown)).status == 200
        assert await api.head() == before  # nor is what was read, sent back
        target.body = {"features": ["txt2vid"]}
        await check(api, path)
        target.body = {}
        for _ in range(3):
            await check(api, path)
        events = [await seen(listener) for _ in range(6)]
        assert events == [
            ("service:updated", "discovered"),
            ("capability:added", "video_generation"),
            ("service:updated", "discovered"),
            ("capability:removed", "image_generation"),
            ("service:updated", "discovered"),
            ("capability:removed", "video_generation"),
        ]
        assert await api.listed("capability=image_generation") == []
        assert await api.listed("capability=chat") == ["s"]
        assert await redis.exists(index) == 0


async def test_what_was_discovered_stays_with_a_new_body_and_a_new_daemon_and_goes_elsewhere(
    api: Api, target: Service, store_url: str, tmp_path: Path
) -> None:
    target.body = {"features": ["chat"]}
    await registered(api, target, **RARE)
    await eventually(lambda: api.listed("capability=chat"))
    await api.register("chat", "a", endpoint=target.url, healthCheck=RARE, zone="z")
    assert await api.listed("capability=chat&zone=z") == ["chat"]
    async with running(store_url, api.prefix, tmp_path / "later") as later:
        assert await later.listed("capability=chat&zone=z") == ["chat"]
        await later.daemon.auditor.audit()
        assert await later.listed("capability=chat") == ["chat"]
    await api.register("chat", "a", endpoint="http://127.0.0.1:1", healthCheck=RARE)
    assert await api.listed("capability=chat") == []


async def test_slow_answers_make_it_degraded_whichever_daemon_saw_them(
    api: Api, other: Api, target: Service
) -> None:
    await registered(api, target, **RARE, degradedMs=40, successThreshold=1)
    await eventually(lambda: counted(api, "successes", 1))
    target.delay = 0.06
    assert (await check(api))["status"] == "healthy"
    for daemon in (other, api, other):
        shown = await check(daemon)
    assert shown["status"] == "degraded"
    assert shown["error"].startswith("typically takes ")
    target.delay = 0
    assert (await check(api))["status"] == "degraded"  # two of the latest twenty


async def test_a_check_of_a_service_probes_all_its_instances(api: Api, target: Service) -> None:
    for instance in ("a", "b"):
        await api.register("chat", instance, endpoint=target.url, healthCheck=RARE)
    await eventually(lambda: len(target.asked) == 2)
    shown = await check(api, "/services/chat/check")
    assert len(target.asked) == 4
    assert [one["status"] for one in shown["instances"]] == ["healthy", "healthy"]


async def test_what_has_no_check_cannot_be_probed(api: Api) -> None:
    await api.register(healthCheck=None)
    answer = await api.post("/services/chat/instances/a/check")
    assert (answer.status, answer.problem["code"]) == (409, "conflict")
    assert (await api.post("/services/nope/check")).status == 404
    assert (await api.post("/services/chat/instances/nope/check")).status == 404


async def test_paused_no_request_arrives_on_any_daemon_until_it_is_resumed(
    api: Api, other: Api, target: Service
) -> None:
    await registered(api, target, **QUICK)
    await eventually(lambda: target.asked)
    assert (await api.put("/monitoring", {"enabled": False})).json == {"enabled": False}
    assert (await other.get("/monitoring")).json == {"enabled": False}
    await asyncio.sleep(0.1)  # what was under way
    target.asked.clear()
    await asyncio.sleep(0.4)
    assert target.asked == []
    await check(api)
    assert len(target.asked) == 1  # asked for by name it is probed all the same
    assert (await other.put("/monitoring", {"enabled": True})).json == {"enabled": True}
    await eventually(lambda: len(target.asked) > 1)


async def test_an_instance_that_stops_beating_becomes_unhealthy_before_its_lease_ends(
    api: Api,
) -> None:
    await api.register(
        ttlSeconds=60,
        healthCheck={
            "type": "ttl",
            "intervalMs": 200,
            "failureThreshold": 2,
            "successThreshold": 1,
        },
    )
    await eventually(lambda: is_healthy(api, "chat"))
    for _ in range(6):
        await asyncio.sleep(0.1)
        assert (await api.put("/services/chat/instances/a/heartbeat")).status == 200
    assert (await health(api))["failures"] == 0
    await eventually(lambda: is_unhealthy(api))
    assert (await health(api))["error"].startswith("no heartbeat for ")
    await api.put("/services/chat/instances/a/heartbeat")
    await eventually(lambda: is_healthy(api, "chat"))


async def is_unhealthy(api: Api) -> bool:
    return await status(api) == "unhealthy"


async def test_two_daemons_probe_each_target_once(api: Api, other: Api, target: Service) -> None:
    await registered(api, target, intervalMs=300, timeoutMs=50)
    await eventually(lambda: len(target.asked) >= 4)
    gaps = [later - earlier for earlier, later in zip(target.asked, target.asked[1:], strict=False)]
    assert min(gaps) > 0.2


async def test_checks_are_counted_by_type_and_result(api: Api, target: Service) -> None:
    await registered(api, target, **RARE)
    await check(api)
    text = (await api.get("/metrics")).body.decode()
    assert 'registryd_checks_total{result="healthy",type="http"}' in text
    assert "registryd_checks_in_flight 0.0" in text
    assert "registryd_check_lateness_seconds_count" in text
