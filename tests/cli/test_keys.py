"""The commands for API keys, as processes: with a daemon beside them, and without one."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import registryd
from daemons import Api, running

from registryd.cli.on_store import Listed, table
from registryd.kit.clock import SystemClock

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]


@asynccontextmanager
async def embedded(data_dir: Path) -> AsyncIterator[Api]:
    async with running("embedded", "ossa", data_dir, auth={"mode": "required"}) as api:
        yield api


async def made(*arguments: object, **more: str) -> Any:
    code, out, err = await registryd("keys", "create", "-o", "json", *arguments, **more)
    assert code == 0, err
    assert err == ""
    return json.loads(out)


async def test_a_key_made_before_the_first_start_opens_the_daemon(tmp_path: Path) -> None:
    data = tmp_path / "data"
    admin = await made("--role", "admin", "--data-dir", data)
    assert {"id", "key", "role", "prefixes"} <= admin.keys()
    assert (admin["role"], admin["prefixes"]) == ("admin", [])
    async with embedded(data) as api:
        answer = await api("GET", "/audit", headers={"X-API-Key": admin["key"]})
        assert answer.status == 200
        assert [(one["path"], one["detail"]) for one in answer.json["entries"]] == [
            ("keys create", admin["id"])
        ]


async def test_keys_are_made_listed_and_revoked_while_the_daemon_runs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with embedded(data) as api:
        key = await made(
            "--role", "writer", "--prefix", "a-", "--prefix", "b-", "--expires", "90d",
            "--name", "ci", "--data-dir", data,
        )  # fmt: skip
        headers = {"Authorization": f"Bearer {key['key']}"}
        assert (await api("GET", "/services", headers=headers)).status == 200
        await api.daemon.keyring.write_uses()
        code, out, _ = await registryd("keys", "list", "-o", "json", REGISTRYD_DATA_DIR=str(data))
        [row] = json.loads(out)
        assert code == 0
        assert key["key"] not in out
        assert (row["id"], row["state"], row["prefixes"]) == (key["id"], "valid", ["a-", "b-"])
        assert row["lastUsedAt"] is not None
        assert (await registryd("keys", "revoke", key["id"], "--data-dir", data))[0] == 0
        await api.daemon.keyring.turn()
        assert (await api("GET", "/services", headers=headers)).status == 401
        _, out, _ = await registryd("keys", "list", "--data-dir", data)
        assert out.splitlines()[0].split()[:4] == ["ID", "ROLE", "PREFIXES", "STATE"]
        assert out.splitlines()[1].split()[:4] == [key["id"], "writer", "a-,b-", "revoked"]
        assert (await api("GET", "/health")).status == 200, "the daemon has its store still"


async def test_the_store_of_a_url_is_worked_on_where_it_is(store_url: str) -> None:
    key = await made(
        "--role", "reader", "--redis-url", store_url, REGISTRYD_REDIS__KEY_PREFIX="cli"
    )
    _, out, _ = await registryd(
        "keys", "list", "--redis-url", store_url, REGISTRYD_REDIS__KEY_PREFIX="cli"
    )
    assert key["id"] in out


async def test_the_key_alone_goes_to_standard_output(tmp_path: Path) -> None:
    code, out, err = await registryd(
        "keys", "create", "--role", "writer", "--prefix", "a-", "--data-dir", tmp_path / "data"
    )
    assert code == 0
    assert out.startswith("rgd_")
    assert out.count("\n") == 1
    assert "names beginning with a-" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("create",), 2, "--role"),
        (("create", "--role", "root"), 2, "root"),
        (("create", "--role", "reader", "--prefix", "a*"), 2, "without *"),
        (("create", "--role", "reader", "--prefix", ""), 2, "without *"),
        (("create", "--role", "reader", "--expires", "soon"), 2, "not a duration"),
        (("create", "--role", "reader", "--expires", "0s"), 2, "longer than zero"),
        (("revoke", "nobody"), 3, "there is no API key 'nobody'"),
        (("list", "--redis-url", "nonsense"), 1, "redis.url"),
    ],
)
async def test_what_goes_wrong_is_told_in_a_line_and_a_code(
    store_url: str, arguments: tuple[str, ...], code: int, said: str
) -> None:
    environment = {"REGISTRYD_REDIS__URL": store_url, "TERM": "dumb", "COLUMNS": "200"}
    found, out, err = await registryd("keys", *arguments, **environment)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


async def test_a_store_that_is_not_there_is_told_apart(tmp_path: Path) -> None:
    code, _, err = await registryd("keys", "list", "--redis-url", f"unix://{tmp_path}/none")
    assert code == 4
    assert "cannot be reached" in err


def test_a_list_without_keys_is_its_heading() -> None:
    rows: list[Listed] = []
    assert table(rows, SystemClock().now()).splitlines()[1:] == []
