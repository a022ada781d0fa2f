"""What a check may say, and where its figures come from when it does not say them."""

from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running
from targets import Service

from registryd.registry.types import HealthCheck


@pytest.mark.parametrize(
    ("check", "pointer"),
    [
        ({"conditions": ["[STATUS] == 200", "[STATUS] = 200"]}, "/healthCheck/conditions/1"),
        ({"degradedConditions": ["[NOPE] == 1"]}, "/healthCheck/degradedConditions/0"),
        ({"conditions": []}, "/healthCheck/conditions"),
        ({"degradedMs": 5_000}, "/healthCheck"),
        ({"retries": 11}, "/healthCheck/retries"),
        ({"startupGraceMs": -1}, "/healthCheck/startupGraceMs"),
        ({"tlsServerName": "a b"}, "/healthCheck/tlsServerName"),
        ({"tlsSkipVerify": "yes"}, "/healthCheck/tlsSkipVerify"),
        ({"grpcService": "a\nb"}, "/healthCheck/grpcService"),
        ({"intervalMs": 99}, "/healthCheck/intervalMs"),
        ({"intervalMs": 1000, "timeoutMs": 1000}, "/healthCheck"),
    ],
)
async def test_a_wrong_check_is_refused_where_it_is_wrong(
    api: Api, check: dict[str, Any], pointer: str
) -> None:
    body = {"name": "chat", "endpoint": "http://h:1", "healthCheck": check}
    answer = await api.post("/services", body)
    assert (answer.status, answer.pointers) == (422, [pointer])


async def test_a_failed_condition_is_told(api: Api, target: Service) -> None:
    target.body = {"queue": 7}
    conditions = ["[STATUS] == 200", "[BODY].queue < 5"]
    await api.register(endpoint=target.url, healthCheck={"conditions": conditions})
    await eventually(lambda: target.asked)
    shown = (await api.post("/services/chat/instances/a/check")).json
    assert (shown["verdict"], shown["failures"]) == ("unhealthy", 2)
    assert [one["passed"] for one in shown["conditions"]] == [True, False]


async def test_a_target_that_may_not_be_dialled_says_so(api: Api) -> None:
    await api.register(endpoint="http://169.254.169.254:80")
    shown = (await api.post("/services/chat/instances/a/check")).json
    assert shown["error"].startswith("egress_denied")


async def test_only_the_networks_that_are_set_are_dialled(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    settings = {"health": {"enabled": True}, "egress": {"allowed": ["192.0.2.0/24"]}}
    async with running(store_url, prefix, tmp_path, **settings) as api:
        await api.register(endpoint="http://10.0.0.1:80")
        shown = (await api.post("/services/chat/instances/a/check")).json
        assert shown["error"] == "egress_denied: 10.0.0.1 is in no allowed network"


async def test_the_settings_are_what_a_check_leaves_open(
    store_url: str, prefix: str, tmp_path: Path, target: Service
) -> None:
    figures = {"intervalMs": 60_000, "timeoutMs": 700, "failureThreshold": 1, "successThreshold": 1}
    async with running(store_url, prefix, tmp_path, health={"enabled": True, **figures}) as api:
        shown = await api.register(endpoint=target.url, healthCheck={"failureThreshold": 2})
        assert shown["healthCheck"] == {
            "type": "http",
            "method": "GET",
            **figures,
            "failureThreshold": 2,
        }
        await api.register("plain", endpoint=target.url)
        await eventually(lambda: len(target.asked) == 2)
        for name in ("chat", "plain"):
            answer = await api.post(f"/services/{name}/check")
            assert answer.json["status"] == "healthy"
        target.status = 500
        assert (await api.post("/services/plain/check")).json["status"] == "unhealthy"
        assert (await api.post("/services/chat/check")).json["status"] == "healthy"


def figures_of(check: dict[str, int], **default: int) -> tuple[int, int]:
    made = HealthCheck.model_validate(check).over(HealthCheck.model_validate(default))
    return made.interval_ms, made.timeout_ms


def test_a_timeout_stays_below_its_interval_whoever_gave_them() -> None:
    assert figures_of({}, interval_ms=1000, timeout_ms=200) == (1000, 200)
    assert figures_of({"interval_ms": 100}, interval_ms=1000, timeout_ms=200) == (100, 50)
    assert figures_of({"timeout_ms": 5000}, interval_ms=1000, timeout_ms=200) == (10_000, 5000)
    assert figures_of({"interval_ms": 4000, "timeout_ms": 9}, interval_ms=1000) == (4000, 9)


async def test_a_daemon_that_is_not_to_probe_leaves_it_to_others(
    api: Api, store_url: str, prefix: str, tmp_path: Path, target: Service
) -> None:
    async with running(store_url, prefix, tmp_path, health={"enabled": False}) as idle:
        await idle.register(endpoint=target.url, healthCheck={"intervalMs": 100, "timeoutMs": 50})
        await eventually(lambda: len(target.asked) > 2)
        text = (await idle.get("/metrics")).body.decode()
        assert "registryd_checks_total{" not in text
