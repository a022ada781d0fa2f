"""The store does not answer: reads go on, writes say so, and all recovers."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from daemons import Api, eventually, running

from registryd.storage.embedded import EmbeddedStore

pytestmark = pytest.mark.timeout(30)

BODY = {"name": "chat", "endpoint": "http://10.0.0.1:8080", "instanceId": "a"}
A = "/services/chat/instances/a"

QUICK = {"commandTimeout": "300ms", "connectTimeout": "300ms"}


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    """A store of this test's own, which it may freeze."""
    server = EmbeddedStore(tmp_path / "store", runtime_dir=tmp_path)
    await server.start()
    yield server
    await server.stop()


@asynccontextmanager
async def frozen(server: EmbeddedStore) -> AsyncIterator[None]:
    """The server lives but answers nobody, as behind a broken network."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@asynccontextmanager
async def without_store(api: Api, server: EmbeddedStore) -> AsyncIterator[None]:
    async with frozen(server):
        await eventually(lambda: not api.daemon.follower.connected, within=6)
        yield


async def test_while_the_store_is_away_reads_go_on_and_writes_are_told_to_come_back(
    own: EmbeddedStore, tmp_path: Path
) -> None:
    async with running(own.url, "ossa", tmp_path, redis=QUICK) as api:
        await api.register(health={"status": "healthy"})
        async with without_store(api, own):
            for path in ("/services", "/services/chat", A, "/discover/chat", "/services/chat/url",
                         "/stats", "/capabilities", "/services/chat/health"):  # fmt: skip
                answer = await api.get(path)
                assert answer.status == 200, path
                assert int(answer.headers["X-Registry-Stale-Ms"]) > 0, path
                assert (await api.get(f"{path}?maxStaleMs=3600000")).status == 200
                refused = await api.get(f"{path}?maxStaleMs=1")
                assert (refused.status, refused.problem["code"]) == (503, "not_ready")
                assert "maxStaleMs" in refused.problem["detail"]

            live = await api.get("/livez")
            assert (live.status, live.json) == (200, {"status": "healthy"})
            assert (await api.get("/health")).status == 200
            ready = await api.get("/readyz?verbose")
            assert (ready.status, ready.json["status"]) == (200, "degraded")
            assert ready.json["checks"]["store"]["reachable"] is False
            assert ready.json["checks"]["store"]["staleMs"] > 0
            health = await api.get("/api/v1/registry/health")
            assert (health.status, health.json["status"]) == (200, "degraded")
            assert "registryd_store_up 0.0" in (await api.get("/metrics")).body.decode()

            for method, path, body in (
                ("POST", "/services", BODY),
                ("PUT", f"{A}/heartbeat", None),
                ("DELETE", A, None),
                ("GET", f"{A}?consistency=strong", None),
            ):
                answer = await api(method, path, body)
                assert (answer.status, answer.problem["code"]) == (503, "storage_unavailable")
                assert answer.headers["Retry-After"]
                assert "store" in answer.problem["detail"]
        await eventually(lambda: api.daemon.follower.connected, within=6)
        assert (await api.get("/readyz")).json == {"status": "ready"}
        assert (await api.put(f"{A}/heartbeat")).status == 200
        assert (await api.post("/services", {**BODY, "version": "2"})).status == 200
        answer = await api.get(A)
        assert answer.json["version"] == "2"
        assert "X-Registry-Stale-Ms" not in answer.headers


async def test_a_view_older_than_it_may_be_is_not_ready(own: EmbeddedStore, tmp_path: Path) -> None:
    async with (
        running(own.url, "ossa", tmp_path, redis=QUICK, view={"maxStale": "1ms"}) as api,
        without_store(api, own),
    ):
        ready = await api.get("/readyz")
        assert (ready.status, ready.json) == (503, {"status": "stale"})
        assert (await api.get("/livez")).status == 200


async def test_an_outage_expires_nobody(own: EmbeddedStore, tmp_path: Path) -> None:
    async with running(own.url, "ossa", tmp_path, redis=QUICK) as api:
        await api.register(ttlSeconds=2)
        async with without_store(api, own):
            await eventually(lambda: api.daemon.follower.stale_for > 2.5, within=6)
        await eventually(lambda: api.daemon.follower.connected, within=6)
        assert (await api.put(f"{A}/heartbeat")).status == 200
        assert await api.listed("") == ["chat"]
