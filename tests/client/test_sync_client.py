"""The SDK without an event loop. The daemon runs in a thread of its own here."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import running

from registryd import errors
from registryd.client import SyncRegistryClient

ENDPOINT = "http://10.0.0.1:8080"


@pytest.fixture
def url(store_url: str, prefix: str, tmp_path: Path) -> Iterator[str]:
    """A daemon's, which runs for as long as the test."""
    ready = threading.Event()
    found: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with running(store_url, prefix, tmp_path) as api:
            done = asyncio.Event()
            found.append((api.base, asyncio.get_running_loop(), done))
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(5)
    base, loop, done = found[0]
    yield base
    loop.call_soon_threadsafe(done.set)
    thread.join(5)


def test_a_program_without_a_loop_registers_and_finds(url: str) -> None:
    with SyncRegistryClient(url, environ={}) as client:
        with client.registration("chat", ENDPOINT, instance_id="a", ttl_seconds=3) as reg:
            due = reg.due
            assert [one.instance_id for one in client.discover("chat")] == ["a"]
            assert [one.name for one in client.services()] == ["chat"]
            assert client.pick("chat").url == ENDPOINT
            assert client.url("chat", strategy="random").instance_id == "a"
            assert client.stats().total_instances == 1
            end = time.monotonic() + 3
            while reg.due == due and time.monotonic() < end:
                time.sleep(0.01)
            assert reg.due != due  # a heartbeat went out while this thread slept
        assert len(client.discover("chat")) == 0


def test_a_watch_is_an_iteration_that_can_be_left(url: str) -> None:
    with SyncRegistryClient(url, environ={}) as client:
        client.register("chat", ENDPOINT, instance_id="a")
        for step in client.watch("chat"):
            assert list(step.instances) == [("chat", "a")]
            break
        assert client.deregister("chat", "a")


def test_errors_are_the_same(url: str) -> None:
    with SyncRegistryClient(url, environ={}) as client, pytest.raises(errors.NotFound):
        client.get("nobody")


def test_after_closing_no_thread_is_left() -> None:
    before = threading.active_count()
    client = SyncRegistryClient("http://127.0.0.1:1", environ={})
    assert threading.active_count() == before + 1
    client.close()
    client.close()
    assert threading.active_count() == before


def test_both_clients_offer_the_same_calls() -> None:
    from registryd.client import RegistryClient

    def calls(cls: type) -> set[str]:
        return {name for name in vars(cls) if not name.startswith("_")}

    inner = {"picker", "recall", "keep", "list_instances", "follow_watch"}
    assert calls(RegistryClient) - inner == calls(SyncRegistryClient)
