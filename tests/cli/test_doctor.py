"""`registryd doctor`: what facts amount to, and real faults beside a real daemon, named by the command."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, registryd
from daemons import Api, eventually, running

from registryd.cli.diagnosis import (
    Answered,
    Dialled,
    Facts,
    InstanceFacts,
    RegistryFacts,
    Wanted,
    diagnose,
)
from registryd.cli.doctor import line

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
URL = "http://registry:8082"
system = [pytest.mark.system, pytest.mark.timeout(60)]

# --- facts


def codes(facts: Facts, mark: str = "fault") -> list[str]:
    return [one.code for one in diagnose(facts) if one.mark == mark]


def of(*instances: InstanceFacts, offered: bool = True, **more: Any) -> Facts:
    explanation = {"offered": offered, "summary": "as it is", "reasons": []}
    return Facts(
        name="chat", now=NOW, instances=instances, explanation=explanation,
        **{"registry": RegistryFacts(URL), **more},
    )  # fmt: skip


def instance(instance_id: str = "a", **more: Any) -> InstanceFacts:
    endpoint = more.pop("endpoint", "http://10.0.0.1:80")
    return InstanceFacts(instance_id=instance_id, endpoint=endpoint, updated_at=NOW, **more)


def explained(code: str) -> dict[str, Any]:
    return {"reasons": [{"code": code, "text": "so it is"}]}


def test_nothing_wrong_is_no_fault() -> None:
    well = instance(
        explanation=explained("healthy"),
        dialled=Dialled("ok"),
        answered=Answered("http://10.0.0.1/health", 200),
    )
    assert {one.mark for one in diagnose(of(well))} == {"ok"}


@pytest.mark.parametrize("code", ["unreachable", "no_registry", "unauthenticated", "forbidden"])
def test_a_registry_that_cannot_be_asked_is_all_there_is_to_say(code: str) -> None:
    facts = Facts(name="chat", now=NOW, registry=RegistryFacts(URL, code, "why"))
    [only] = diagnose(facts)
    assert (only.code, only.mark) == (code, "fault")
    assert only.advice


@pytest.mark.parametrize(
    "code",
    [
        "unhealthy", "maintenance", "draining", "lease_ending", "expired", "deregistered",
        "removed", "never_registered",
    ],
)  # fmt: skip
def test_reasons_that_hide_are_faults_with_advice(code: str) -> None:
    [fault] = [
        one for one in diagnose(of(instance(explanation=explained(code)))) if one.mark != "ok"
    ]
    assert (fault.code, fault.mark, fault.about) == (code, "fault", "chat/a")
    assert fault.advice


@pytest.mark.parametrize("code", ["degraded", "unknown", "suspect", "checks_paused", "weight_zero"])
def test_reasons_that_do_not_hide_are_notes(code: str) -> None:
    assert codes(of(instance(explanation=explained(code))), "note") == [code]


@pytest.mark.parametrize(
    ("dialled", "code"),
    [("dns", "dns"), ("refused", "port_closed"), ("timeout", "port_filtered"), ("failed", "port_failed")],
)  # fmt: skip
def test_what_dialling_found_is_named(dialled: Any, code: str) -> None:
    assert codes(of(instance(dialled=Dialled(dialled, "x")))) == [code]


@pytest.mark.parametrize(
    ("answered", "code"),
    [
        (Answered("u", 503), "health_status"),
        (Answered("u", 302, location="/login"), "health_redirects"),
        (Answered("u", 200, timedelta(seconds=6)), "health_slow"),
        (Answered("u", error="broke off"), "health_failed"),
        (Answered("u", 200, expected=[204]), "health_status"),
    ],
)
def test_what_the_health_endpoint_answered_is_named(answered: Answered, code: str) -> None:
    facts = of(instance(answered=answered, timeout=timedelta(seconds=5)))
    assert codes(facts) == [code]


def test_a_status_that_the_check_expects_is_well() -> None:
    assert codes(of(instance(answered=Answered("u", 302, expected=[302])))) == []


@pytest.mark.parametrize(
    ("host", "registry", "mark", "code"),
    [
        ("127.0.0.1", URL, "fault", "loopback"),
        ("localhost", URL, "fault", "loopback"),
        ("[::1]", URL, "fault", "loopback"),
        ("127.0.0.1", "http://127.0.0.1:8082", "fault", None),
        ("0.0.0.0", "http://127.0.0.1:8082", "fault", "wildcard"),  # noqa: S104
        ("[::]", URL, "fault", "wildcard"),
        ("3f2a9c81d0e7", URL, "note", "container_id"),
        ("chat.internal", URL, "note", None),
    ],
)
def test_addresses_that_others_cannot_use_are_told(
    host: str, registry: str, mark: str, code: str | None
) -> None:
    facts = of(instance(endpoint=f"http://{host}:80"), registry=RegistryFacts(registry))
    assert codes(facts, mark) == ([code] if code else [])


@pytest.mark.parametrize("seconds", [-60, 60])
def test_clocks_apart_are_told(seconds: int) -> None:
    registry = RegistryFacts(URL, ahead=timedelta(seconds=seconds))
    told = [one for one in diagnose(of(registry=registry)) if one.code == "daemon_clock"]
    assert [("ahead" in one.text, "60 s" in one.text) for one in told] == [(seconds > 0, True)]


def test_a_registration_from_the_future_tells_of_the_stores_clock() -> None:
    late = InstanceFacts(
        instance_id="a", endpoint="http://10.0.0.1", updated_at=NOW + timedelta(minutes=1)
    )
    assert codes(of(late), "note") == ["store_clock"]
    ahead = RegistryFacts(URL, ahead=timedelta(minutes=1))
    assert codes(of(late, registry=ahead), "note") == ["daemon_clock"]


def test_one_id_taken_by_turns_is_told_and_one_changed_by_its_owner_is_not() -> None:
    def at(*names: str, ago: int = 0) -> InstanceFacts:
        times = [NOW - timedelta(seconds=ago + 10 * n) for n in range(len(names))]
        return instance(registered_by=list(zip(times, names, strict=True)))

    assert codes(of(at("x@10.0.0.1", "x@10.0.0.2", "x@10.0.0.1"))) == ["same_id"]
    assert codes(of(at("x@10.0.0.1", "x@10.0.0.1", "x@10.0.0.1"))) == []
    assert codes(of(at("x@10.0.0.1", "x@10.0.0.2"))) == []
    assert codes(of(at("x@1", "x@2", "x@1", ago=3600))) == []
    assert codes(of(instance("a"), instance("a~1a2b3c4d")), "note") == ["same_id"]


@pytest.mark.parametrize(
    ("wanted", "code", "said"),
    [
        (Wanted(capability="text-procesing"), "capability", "did you mean 'text-processing'?"),
        (Wanted(capability="Text-Processing@>=1"), "capability", "did you mean 'text-processing'?"),
        (Wanted(capability="zzz"), "capability", "only text-processing"),
        (Wanted(capability="text-processing@>=3"), "version", "the versions are 2.0.0"),
        (Wanted(version="^9"), "version", "the versions are 1.5"),
        (Wanted(version="^1", matching=frozenset("a")), None, ""),
    ],
)
def test_what_is_asked_for_and_spelled_otherwise_is_told(
    wanted: Wanted, code: str | None, said: str
) -> None:
    one = instance(capabilities={"text-processing": ["2.0.0"]}, version="1.5")
    faults = [each for each in diagnose(of(one, wanted=wanted)) if each.mark == "fault"]
    assert [each.code for each in faults] == ([code] if code else [])
    assert all(said in each.text for each in faults)


def test_a_line_has_a_sign_what_was_found_and_what_to_do() -> None:
    [only] = diagnose(Facts(name="x", now=NOW, registry=RegistryFacts(URL, "unreachable", "away")))
    assert line(only).startswith("✗ registry: http://registry:8082: away → check that it runs")


# --- real faults


@asynccontextmanager
async def answering(answer: bytes, *, pause: float = 0.0) -> AsyncIterator[str]:
    """A service that gives every request this answer; where it is."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(pause)
            writer.write(answer + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def api(store_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    health = {"enabled": True}
    async with running(store_url, f"doc-{tmp_path.name}", tmp_path, health=health) as api:
        yield api


async def found(api: Api, *arguments: str, code: int = 1) -> dict[str, str]:
    """What the command found that is not well: texts by code."""
    left, out, err = await registryd("doctor", *arguments, "-o", "json", "--url", api.base)
    assert (left, err) == (code, ""), out
    return {one["code"]: one["text"] for one in json.loads(out) if one["mark"] != "ok"}


class TestCommand:
    pytestmark = system

    async def test_a_service_that_fares_well_has_no_fault(self, api: Api) -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n") as url:
            await api.register("chat", "a", endpoint=url, health={"status": "healthy"})
            code, out, err = await registryd("doctor", "chat", "--url", api.base)
        assert (code, err) == (0, "")
        assert "✗" not in out
        assert f"✓ chat/a: GET {url}/health answers 200" in out

    async def test_a_name_that_does_not_resolve(self, api: Api) -> None:
        await api.register("chat", "a", endpoint="http://nobody.invalid:80")
        assert "nobody.invalid does not resolve" in (await found(api, "chat"))["dns"]

    async def test_a_port_that_is_closed(self, api: Api) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        await api.register("chat", "a", endpoint=f"http://127.0.0.1:{port}")
        assert "refuses connections" in (await found(api, "chat"))["port_closed"]

    async def test_a_health_endpoint_that_does_not_answer_200(self, api: Api) -> None:
        async with answering(b"HTTP/1.1 503 Busy\r\n") as url:
            check = {"intervalMs": 100, "failureThreshold": 1}
            await api.register("chat", "a", endpoint=url, healthCheck=check)

            async def unhealthy() -> bool:
                return bool((await api.instance("chat", "a"))["health"]["status"] == "unhealthy")

            await eventually(unhealthy)
            told = await found(api, "chat")
        assert "answers 503" in told["health_status"]
        assert "HTTP 503" in told["unhealthy"]
        assert "not offered" in told["not_offered"]

    async def test_a_health_endpoint_that_redirects_or_is_slow(self, api: Api) -> None:
        async with (
            answering(b"HTTP/1.1 302 Found\r\nLocation: /login\r\n") as moved,
            answering(b"HTTP/1.1 200 OK\r\n", pause=0.5) as slow,
        ):
            await api.register("chat", "a", endpoint=moved)
            check = {"timeoutMs": 200}
            await api.register("chat", "b", endpoint=slow, healthCheck=check)
            told = await found(api, "chat")
        assert "sends on to /login" in told["health_redirects"]
        assert "waits 0.2 s" in told["health_slow"]

    async def test_a_lease_that_nobody_renewed(self, api: Api) -> None:
        check = {"type": "tcp", "intervalMs": 60_000}
        async with answering(b"") as url:
            await api.register("chat", "a", endpoint=url, ttlSeconds=2, healthCheck=None)
            await api.register("late", "a", endpoint=url, ttlSeconds=60, healthCheck=check)
            await eventually(lambda: api.daemon.view.get("chat:a") is None, within=8)
            told = await found(api, "chat")
        assert "no heartbeat had come in time" in told["expired"]

    async def test_maintenance_and_a_drain(self, api: Api) -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n") as url:
            await api.register("chat", "a", endpoint=url)
            await api.register("chat", "b", endpoint=url)
            maintenance = {"enabled": True, "reason": "disk"}
            await api.put("/services/chat/instances/a/maintenance", maintenance)
            await api.put("/services/chat/instances/b/drain", {"seconds": 60})
            told = await found(api, "chat")
        assert "(disk)" in told["maintenance"]
        assert "draining" in told

    async def test_a_name_and_a_capability_spelled_otherwise(self, api: Api) -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n") as url:
            await api.register(
                "chat-service", "a", endpoint=url, capabilities=["text"], version="1.0"
            )
            told = await found(api, "chat-servce")
            assert "did you mean chat-service?" in told["never_registered"]
            told = await found(api, "chat-service", "--capability", "txt")
            assert "did you mean 'text'?" in told["capability"]
            told = await found(api, "chat-service", "--version", ">=2")
            assert "the versions are 1.0" in told["version"]
            await found(api, "chat-service", "--capability", "text", "--version", "1", code=0)

    async def test_two_processes_with_one_id(self, api: Api) -> None:
        body = {"service_metadata": {"instance_id": "chat-1"}, "service_name": "chat"}
        async with answering(b"HTTP/1.1 200 OK\r\n") as one, answering(b"") as two:
            for url in (one, two):
                await api.post("/register", {**body, "service_url": url})
            code, out, _ = await registryd("doctor", "chat", "--url", api.base)
        assert code in {0, 1}
        assert "it wanted the id chat-1, which another instance has" in out

    async def test_a_registry_that_is_not_there_or_something_else(self, api: Api) -> None:
        for url, word in (("http://127.0.0.1:1", "unreachable"), (None, "no_registry")):
            async with answering(b"HTTP/1.1 200 OK\r\n") as other:
                arguments = ("doctor", "chat", "-o", "json", "--url", url or other)
                code, out, _ = await registryd(*arguments)
            assert code == 1
            assert [one["code"] for one in json.loads(out)] == [word]

    async def test_a_wrong_key(self, store_url: str, tmp_path: Path) -> None:
        prefix = f"key-{tmp_path.name}"
        async with running(store_url, prefix, tmp_path, auth={"mode": "required"}) as api:
            wrong = "rgd_aaaaaaaa_wrong"
            code, out, _ = await registryd(
                "doctor", "chat", "--url", api.base, REGISTRYD_API_KEY=wrong
            )
            assert code == 1
            assert "REGISTRYD_API_KEY" in out
            assert wrong not in out


def test_the_lines_in_the_readme_are_such_lines() -> None:
    text = (ROOT / "README.md").read_text()
    shown = text.split("## Doctor")[1].split("```")[1].strip().splitlines()
    reason = {
        "code": "unhealthy",
        "text": "unhealthy since 2026-01-31T12:00:00.123Z, the last probe said: HTTP 503",
    }
    summary = "chat is not offered: 0 of 1 instances can be chosen"
    facts = Facts(
        name="chat",
        now=NOW,
        registry=RegistryFacts("http://127.0.0.1:8082"),
        explanation={"offered": False, "summary": summary, "reasons": []},
        instances=[instance(explanation={"reasons": [reason]})],
    )
    assert [line(one) for one in diagnose(facts)] == shown
