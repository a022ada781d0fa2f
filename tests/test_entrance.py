"""What the settings of the entrance make of a whole daemon."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest
from authority import Authority
from daemons import running

from registryd.app import origins_of
from registryd.config import Settings
from registryd.web.origin import LOCAL_HOSTS


def hosts(**sections: object) -> frozenset[str] | None:
    return origins_of(Settings.model_validate(sections)).hosts


def test_on_loopback_only_names_of_this_machine_are_answered() -> None:
    assert hosts() == LOCAL_HOSTS
    assert hosts(server={"listen": ["127.0.0.5:80", "[::1]:80"]}) == LOCAL_HOSTS | {"127.0.0.5"}
    assert hosts(server={"allowedHosts": ["*"]}) is None


def test_elsewhere_every_host_is_answered_until_some_are_listed() -> None:
    auth = {"insecure": True}
    assert hosts(server={"listen": ":80"}, auth=auth) is None
    listed = hosts(server={"listen": ":80", "allowedHosts": ["registry.example"]}, auth=auth)
    assert listed == LOCAL_HOSTS | {"registry.example"}


async def test_a_page_of_another_name_gets_nothing(store_url: str, tmp_path: Path) -> None:
    async with running(store_url, "entrance", tmp_path) as api:
        await api.register("web")
        for host in ("evil.example", "evil.example:8082"):
            for path in ("/services", "/health", "/watch", "/events"):
                refused = await api.get(path, Host=host)
                assert (refused.status, refused.problem["code"]) == (403, "forbidden")
        for path in ("/services", "/watch", "/events"):
            refused = await api.get(path, Origin="https://evil.example")
            assert (refused.status, refused.problem["code"]) == (403, "forbidden")
        assert (await api.delete("/services/web", Sec_Fetch_Site="cross-site")).status == 403
        assert (await api.get("/services", Host="localhost:1")).json["total"] == 1


async def test_limits_hold_for_long_polls_and_streams_and_never_for_renewals(
    store_url: str, tmp_path: Path
) -> None:
    limits = {
        "enabled": True,
        "burst": "1s",
        "perAddress": {"writes": 2, "streams": 1},
    }
    async with running(store_url, "entrance", tmp_path, limits=limits) as api:
        await api.register("web")
        for _ in range(10):
            assert (await api.put("/services/web/instances/a/heartbeat")).status == 200
            assert (await api.put("/services/web/heartbeat")).status == 200
        beats = {"heartbeats": [{"name": "web", "instanceId": "a"}]}
        for _ in range(10):
            assert (await api.put("/heartbeats", beats)).json == {"results": ["renewed"]}
        lost = [(await api.put("/services/web/instances/b/heartbeat")).status for _ in range(4)]
        assert lost[0] == 404
        assert lost[-1] == 429
        polling = asyncio.create_task(api.get(f"/services?since={api.seen}&wait=30s"))
        await asyncio.sleep(0.05)
        refused = await api.get(f"/services?since={api.seen}&wait=30s")
        assert (refused.status, refused.problem["code"]) == (429, "rate_limited")
        assert (await api.get("/watch")).status == 429
        polling.cancel()
        metrics = (await api.get("/metrics")).body.decode()
        assert 'registryd_limited_total{limit="address_streams"} 2.0' in metrics


async def test_a_daemon_speaks_https(store_url: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("server")
    tls = {"certFile": files.certificate, "keyFile": files.key}
    async with (
        running(store_url, "entrance", tmp_path, server={"tls": tls}) as api,
        aiohttp.ClientSession() as session,
    ):
        url = api.base.replace("http:", "https:") + "/health"
        async with session.get(url, ssl=authority.client()) as answer:
            assert json.loads(await answer.read())["status"] == "healthy"
            assert "Strict-Transport-Security" in answer.headers
        with pytest.raises(aiohttp.ClientError):
            await api.get("/health")
