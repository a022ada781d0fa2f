"""Functions that are called when things happen."""

import asyncio
import logging
from typing import Any

import pytest
from daemons import Api

from registryd.client import RegistryClient, SyncRegistryClient
from registryd.client.listeners import Listeners
from registryd.client.types import Event
from registryd.errors import Malformed

ENDPOINT = "http://10.0.0.1:8080"
CHAT, TTS = {"name": "chat", "version": "1.0.0"}, {"name": "tts", "version": "1.0.0"}


class Heard:
    """Remembers what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._news = asyncio.Event()

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        self._news.set()

    async def until(self, count: int) -> list[tuple[Any, ...]]:
        async with asyncio.timeout(4):
            while len(self.calls) < count:
                self._news.clear()
                await self._news.wait()
        return self.calls


async def test_each_kind_of_event_calls_its_function(client: RegistryClient) -> None:
    heard: dict[str, Heard] = {
        name: Heard()
        for name in (
            "on_service_registered",
            "on_service_updated",
            "on_service_unregistered",
            "on_health_changed",
            "on_capability_added",
            "on_capability_removed",
        )
    }

    async def also_a_coroutine(*arguments: Any) -> None:
        await asyncio.sleep(0)
        heard["on_service_updated"](*arguments)

    first = await client.register("before", ENDPOINT)
    called = {**heard, "on_service_updated": also_a_coroutine}
    async with client.listening(since=first.revision, **called):
        await client.register("chat", ENDPOINT, instance_id="a", capabilities=["chat"])
        await client.update("chat", "a", capabilities=["tts"])
        await client.maintenance("chat", "a", reason="test")
        await client.deregister("chat", "a")
        [(service, instance)] = await heard["on_service_registered"].until(1)
        assert (service, instance.instance_id, instance.endpoint) == ("chat", "a", ENDPOINT)
        [(service, instance)] = await heard["on_service_updated"].until(1)
        assert [one.name for one in instance.capabilities] == ["tts"]
        assert await heard["on_service_unregistered"].until(1) == [("chat", "a", "deregistered")]
        assert await heard["on_health_changed"].until(1) == [
            ("chat", "a", "unknown", "maintenance")
        ]
        added = await heard["on_capability_added"].until(2)
        assert [(service, found.model_dump()) for service, found in added] == [
            ("chat", CHAT),
            ("chat", TTS),
        ]
        removed = await heard["on_capability_removed"].until(2)
        assert [found.name for _, found in removed] == ["chat", "tts"]


async def test_only_what_has_a_function_is_asked_for(client: RegistryClient) -> None:
    heard = Heard()
    assert Listeners(on_capability_added=heard).types == ("capability:added",)
    first = await client.register("chat", ENDPOINT, instance_id="a", capabilities=["chat"])
    async with client.listening(service="tts", since=first.revision, on_service_registered=heard):
        await client.register("chat", ENDPOINT, instance_id="b")
        await client.register("tts", ENDPOINT, instance_id="c")
        [(_, instance)] = await heard.until(1)
    assert instance.instance_id == "c"


async def test_what_the_registry_refuses_is_raised_at_the_end(client: RegistryClient) -> None:
    with pytest.raises(Malformed):
        async with client.listening(service="no/name", on_reset=print):
            await asyncio.sleep(0.2)


async def test_a_function_that_raises_is_called_again(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fails(service: str, instance_id: str, reason: str) -> None:
        calls.append(instance_id)
        raise RuntimeError("not mine")

    listeners = Listeners(on_service_unregistered=fails)
    for name in ("a", "b"):
        gone = {"service": "chat", "instance": {"instanceId": name}}
        with caplog.at_level(logging.ERROR):
            await listeners.tell(Event("1-1", "service:expired", f"chat/{name}", "", gone))
    assert calls == ["a", "b"]
    assert "not mine" in caplog.text


async def test_what_cannot_be_understood_is_said_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard = Heard()
    listeners = Listeners(on_service_registered=heard, on_health_changed=heard, on_reset=heard)
    for kind, data in (
        ("service:registered", {"service": "chat"}),
        ("service:registered", {"service": "chat", "instance": {"name": 7}}),
        ("service:health:changed", {"service": "chat", "instance": []}),
    ):
        await listeners.tell(Event("1-1", kind, "chat/a", "", data))
    assert heard.calls == []
    assert caplog.text.count("is left out") == 3
    await listeners.tell(Event("1-1", "reset", "", "", {"instances": []}))
    assert heard.calls == [()]


async def test_a_program_without_a_loop_listens_too(api: Api) -> None:
    heard = Heard()
    loop = asyncio.get_running_loop()

    def use() -> None:
        with SyncRegistryClient(api.base, environ={}) as client:
            first = client.register("before", ENDPOINT)
            with client.listening(
                since=first.revision,
                on_service_registered=lambda *told: loop.call_soon_threadsafe(heard, *told),
            ):
                client.register("chat", ENDPOINT, instance_id="a")
                asyncio.run_coroutine_threadsafe(heard.until(1), loop).result(4)

    await asyncio.to_thread(use)
    assert heard.calls[0][0] == "chat"
