"""The record of access over the whole route table: who was refused, and all that admins asked for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Api, running
from test_every_route import ask, bearer, new_key

from registryd.auth.store import AuthStore
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.web.caller import Permission
from registryd.web.router import template
from registryd.web.routing import Route

PREFIX = "audited"


@pytest.fixture
def auth_store(connection: Connection) -> AuthStore:
    return AuthStore(connection, Keys(PREFIX))


@pytest.fixture
async def api(connection: Connection, store_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, PREFIX, tmp_path, auth={"mode": "required"}) as api:
        yield api


def for_admins(api: Api) -> list[Route]:
    routes = [one for one in api.daemon.table if one.permission is Permission.ADMIN]
    assert len(routes) >= 10
    return routes


async def recorded(api: Api, store: AuthStore) -> dict[str, dict[str, Any]]:
    """The entries by request id, once all that was noted has been written."""
    await api.daemon.journal.turn()
    return {one["requestId"]: one for one in await store.recorded(1000)}


@pytest.mark.timeout(30)
async def test_every_request_of_an_admin_is_on_record_whether_it_succeeds_or_fails(
    api: Api, auth_store: AuthStore
) -> None:
    key = await new_key(auth_store, "admin")
    statuses = {}
    for route in for_admins(api):
        name = f"admin-{route.operation_id}"
        answer = await ask(api, route, bearer(key) | {"X-Request-ID": name})
        statuses[name] = answer.status
    entries = await recorded(api, auth_store)
    for route in for_admins(api):
        entry = entries[f"admin-{route.operation_id}"]
        assert entry["by"] == f"key:{key.split('_')[1]}@127.0.0.1"
        assert (entry["method"], entry["path"]) == (route.method, template(route))
        succeeded = statuses[entry["requestId"]] < 400
        assert (entry["outcome"] == "done") is succeeded, entry
        assert entry["detail"] is None
        assert entry["time"]
    assert {one["outcome"] for one in entries.values()} >= {"done", "not_found", "validation"}


@pytest.mark.timeout(30)
async def test_every_refusal_of_a_route_for_admins_is_on_record(
    api: Api, auth_store: AuthStore
) -> None:
    writer = await new_key(auth_store, "writer")
    for route in for_admins(api):
        for name, headers in (("nobody", {}), ("writer", bearer(writer))):
            await ask(api, route, headers | {"X-Request-ID": f"{name}-{route.operation_id}"})
    entries = await recorded(api, auth_store)
    for route in for_admins(api):
        nobody = entries[f"nobody-{route.operation_id}"]
        assert (nobody["by"], nobody["outcome"]) == ("anonymous@127.0.0.1", "unauthenticated")
        refused = entries[f"writer-{route.operation_id}"]
        assert refused["by"] == f"key:{writer.split('_')[1]}@127.0.0.1"
        assert refused["outcome"] == "forbidden"
        assert "admin" in refused["detail"]


async def test_foreign_hosts_and_pages_are_on_record(api: Api, auth_store: AuthStore) -> None:
    foreign = {
        "host": {"Host": "rebound.example"},
        "page": {"Origin": "https://evil.example"},
        "site": {"Sec-Fetch-Site": "cross-site"},
    }
    for name, headers in foreign.items():
        answer = await api("POST", "/cleanup", headers=headers | {"X-Request-ID": name})
        assert answer.status == 403
    entries = await recorded(api, auth_store)
    assert {name: entries[name]["outcome"] for name in foreign} == dict.fromkeys(
        foreign, "forbidden"
    )


async def test_an_admins_request_that_fails_inside_is_no_refusal_in_the_log(
    api: Api, auth_store: AuthStore, capsys: pytest.CaptureFixture[str]
) -> None:
    key = await new_key(auth_store, "admin")
    path = "/api/v1/webhooks/wh_0123456789abcdef"
    calls = [api("DELETE", path, headers=bearer(key)) for _ in range(3)]
    assert {one.status for one in await asyncio.gather(*calls)} == {404}
    entries = await recorded(api, auth_store)
    failed = [one for one in entries.values() if one["outcome"] == "not_found"]
    assert [one["count"] for one in failed] == [1, 1, 1]
    assert "access denied" not in "".join(capsys.readouterr())
