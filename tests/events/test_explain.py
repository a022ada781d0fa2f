"""Why an instance is offered or not: the words for every state, and the facts behind them."""

import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running

from registryd.events.explain import Facts, Past, Present, explain, near_misses, whole
from registryd.registry.store import Report
from registryd.registry.types import HealthStatus
from registryd.storage.embedded import EmbeddedStore

SINCE = "2026-01-01T12:00:00.000Z"
FINE = Present(
    health=HealthStatus.HEALTHY,
    since=SINCE,
    error=None,
    draining=False,
    suspect=False,
    admin_reason=None,
    admin_by=None,
    admin_until=None,
    weight=1,
    checked=True,
    ttl=timedelta(seconds=300),
)


def facts(present: Present | None = FINE, **more: Any) -> Facts:
    return Facts(service="chat", instance_id="a", present=present, **more)


@pytest.mark.parametrize(
    ("change", "offered", "code", "words"),
    [
        ({}, True, "healthy", "chat/a is offered: healthy since 2026"),
        ({"health": HealthStatus.DEGRADED}, True, "degraded", "when no healthy instance"),
        ({"health": HealthStatus.UNKNOWN}, True, "unknown", "no probe has found out yet"),
        (
            {"health": HealthStatus.UNHEALTHY, "error": "HTTP 503"},
            False,
            "unhealthy",
            "chat/a is not offered: unhealthy since 2026-01-01T12:00:00.000Z, the last probe said: HTTP 503",
        ),
        (
            {
                "health": HealthStatus.MAINTENANCE,
                "admin_by": "ann",
                "admin_reason": "new disks",
                "admin_until": "2026-01-02T00:00:00.000Z",
            },
            False,
            "maintenance",
            "by ann until 2026-01-02T00:00:00.000Z (new disks)",
        ),
        ({"draining": True}, False, "draining", "renewals do not extend it"),
        ({"suspect": True}, True, "suspect", "offered: healthy"),
        ({"weight": 0}, True, "weight_zero", "offered"),
        ({"checked": False}, True, "not_checked", "offered"),
    ],
)
def test_a_registered_instance_is_explained(
    change: Any, offered: bool, code: str, words: str
) -> None:
    told = explain(facts(replace(FINE, **change)))
    assert told.offered is offered
    assert code in [reason.code for reason in told.reasons]
    assert words in told.summary


@pytest.mark.parametrize(("left", "ending"), [(300, False), (101, False), (100, True), (3, True)])
def test_a_lease_is_about_to_end_when_two_heartbeats_are_missing(left: int, ending: bool) -> None:
    told = explain(facts(lease_left=timedelta(seconds=left)))
    assert ("lease_ending" in [reason.code for reason in told.reasons]) is ending
    assert told.offered


def test_paused_checks_are_named() -> None:
    told = explain(facts(checks_paused=True))
    assert [reason.code for reason in told.reasons] == ["healthy", "checks_paused"]
    assert told.advice is not None
    assert "PUT /monitoring" in told.advice


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (
            {"past": Past(type="service:expired", time=SINCE, reason="lease ended", by="registry")},
            "expired",
            f"chat/a is not offered: its lease ended at {SINCE}",
        ),
        (
            {"past": Past(type="service:unregistered", time=SINCE, reason="drained", by="ann@h")},
            "deregistered",
            f"deregistered at {SINCE} by ann@h (drained)",
        ),
        ({"removed_at": SINCE}, "removed", "no longer recorded"),
        ({}, "never_registered", "nothing of that name is registered"),
        ({"near": ("chat/b", "chat/c")}, "never_registered", "did you mean chat/b or chat/c?"),
    ],
)
def test_an_instance_that_is_not_there_is_explained(more: Any, code: str, words: str) -> None:
    told = explain(facts(None, **more))
    assert (told.offered, [reason.code for reason in told.reasons]) == (False, [code])
    assert words in told.summary
    assert told.advice


def test_a_service_is_offered_while_one_of_its_instances_is() -> None:
    sick = explain(facts(replace(FINE, health=HealthStatus.UNHEALTHY)))
    fine = explain(facts())
    both = whole("chat", [sick, fine])
    assert (both.offered, both.advice) == (True, None)
    assert both.summary == "chat is offered: 1 of 2 instances can be chosen"
    assert whole("chat", [sick]).advice == sick.advice


def test_near_misses_differ_by_case_or_a_few_letters() -> None:
    names = ["chat", "payments", "payment-gateway", "search"]
    assert near_misses("Chat", names) == ("chat",)
    assert near_misses("paymets", names) == ("payments",)
    assert near_misses("zzz", names) == ()
    assert near_misses("cat", [f"x{n}" for n in range(5000)] + ["chat"]) == ("chat",)


# --- through the API


async def told(api: Api, query: str) -> Any:
    answer = await api.get(f"/explain?{query}")
    assert answer.status == 200, answer.body
    return answer.json


async def codes(api: Api, query: str) -> list[str]:
    return [reason["code"] for reason in (await told(api, query))["reasons"]]


async def test_what_is_explained_is_what_url_does(hooked: Api) -> None:
    await hooked.register("chat", "a", health={"status": "healthy"})
    assert (await told(hooked, "service=chat&instance=a"))["offered"]
    await hooked.put("/services/chat/instances/a/maintenance", {"enabled": True, "reason": "disks"})
    explained = await told(hooked, "service=chat&instance=a")
    assert (explained["offered"], explained["reasons"][0]["code"]) == (False, "maintenance")
    assert "by anonymous (disks)" in explained["summary"]
    assert (await hooked.get("/services/chat/url")).status == 404
    await hooked.put("/services/chat/instances/a/maintenance", {"enabled": False})
    await hooked.register("chat", "a", health={"status": "unhealthy"})
    assert await codes(hooked, "service=chat&instance=a") == ["unhealthy"]
    await hooked.put("/services/chat/instances/a/drain", {"seconds": 100})
    assert "draining" in await codes(hooked, "service=chat&instance=a")


async def test_the_last_probes_error_is_quoted(hooked: Api) -> None:
    check = {"type": "http", "intervalMs": 100, "timeoutMs": 50, "failureThreshold": 1}
    await hooked.register("chat", "a", healthCheck=check)
    (claim,) = (await hooked.daemon.store.claim_checks(1)).claims
    report = Report(passed=False, status="unhealthy", finding=b'{"error":"HTTP 503"}')
    assert (await hooked.daemon.store.report_check(claim, report)).outcome == "changed"
    await eventually(lambda: hooked.daemon.view.get("chat:a").health == "unhealthy")
    explained = await told(hooked, "service=chat&instance=a")
    assert explained["summary"].endswith("the last probe said: HTTP 503")


async def test_the_gone_are_explained_by_their_history(hooked: Api) -> None:
    await hooked.register("chat", "a")
    await hooked.delete("/services/chat/instances/a")
    explained = await told(hooked, "service=chat&instance=a")
    assert explained["reasons"][0]["code"] == "deregistered"
    assert "by anonymous@127.0.0.1" in explained["summary"]
    # The service went with its last instance.
    assert await codes(hooked, "service=chat") == ["deregistered"]


async def test_an_expiry_is_explained(store_url: str, prefix: str, tmp_path: Path) -> None:
    unguarded = {"guard": {"enabled": False}}
    async with running(store_url, prefix, tmp_path, registry=unguarded) as api:
        await api.register("chat", "a", ttlSeconds=2)
        await eventually(lambda: api.daemon.view.get("chat:a") is None, within=4)
        explained = await told(api, "service=chat&instance=a")
    assert explained["reasons"][0]["code"] == "expired"
    assert explained["offered"] is False


async def test_a_name_that_was_never_there_gets_others_like_it(hooked: Api) -> None:
    await hooked.register("payments", "pay-1")
    assert "did you mean payments?" in (await told(hooked, "service=paymets"))["summary"]
    explained = await told(hooked, "service=payments&instance=pay-l")
    assert "did you mean payments/pay-1?" in explained["summary"]
    assert await codes(hooked, "service=%20odd%20&instance=%2F") == ["never_registered"]


async def test_a_whole_service_has_each_of_its_instances_explained(hooked: Api) -> None:
    await hooked.register("chat", "a", health={"status": "healthy"})
    await hooked.register("chat", "b", health={"status": "unhealthy"})
    explained = await told(hooked, "service=chat")
    assert [one["instance"] for one in explained["instances"]] == ["a", "b"]
    assert [one["offered"] for one in explained["instances"]] == [True, False]
    assert explained["offered"]


async def test_a_question_without_a_service_is_malformed(hooked: Api) -> None:
    assert (await hooked.get("/explain")).problem["code"] == "malformed"


@pytest.mark.timeout(30)
async def test_the_registered_are_explained_without_the_store(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path / "store", runtime_dir=tmp_path)
    url = await server.start()
    quick = {"commandTimeout": "300ms", "connectTimeout": "300ms"}
    try:
        async with running(url, "ossa", tmp_path, redis=quick) as api:
            await api.register("chat", "a", health={"status": "unhealthy"})
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await eventually(lambda: not api.daemon.follower.connected, within=6)
                assert await codes(api, "service=chat&instance=a") == ["unhealthy"]
                gone = await api.get("/explain?service=chat&instance=b")
                assert (gone.status, gone.problem["code"]) == (503, "storage_unavailable")
                assert (await api.get("/history")).status == 503
                assert (await api.get("/api/v1/webhooks")).status == 503
            finally:
                os.kill(server.pid, signal.SIGCONT)
            # And all goes on as if nothing had been.
            await eventually(lambda: _recorded(api), within=10)
    finally:
        await server.stop()


async def _recorded(api: Api) -> bool:
    answer = await api.get("/history?service=chat")
    return answer.status == 200 and len(answer.json["history"]) == 1
