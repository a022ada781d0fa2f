"""What is known, doubted and kept, without a network; and the whole of it with a daemon that goes away."""

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from daemons import running
from servers import Clock, faulty, http

from registryd.client import Found, RegistryClient, Unreachable
from registryd.client.known import Known
from registryd.client.shelf import Shelf
from registryd.client.types import Removed
from registryd.registry.types import InstanceShown


def shown(instance_id: str, name: str = "chat", **fields: Any) -> InstanceShown:
    return InstanceShown.model_validate(
        {
            "name": name, "instanceId": instance_id, "endpoint": f"http://{instance_id}:1",
            "weight": 1, "capabilities": [], "metadata": {}, "incarnation": "1", "revision": "1-1",
            "health": {"status": "healthy", "since": ""}, "registeredAt": "", "updatedAt": "",
            "lease": {"ttlSeconds": 30, "renewIntervalSeconds": 10, "state": "live"}, **fields,
        }
    )  # fmt: skip


def several(*ids: str) -> list[InstanceShown]:
    return [shown(one) for one in ids]


def ids(found: Found) -> list[str]:
    return [one.instance_id for one in found]


def known(clock: Clock, *instance_ids: str) -> Known:
    one = Known(clock=clock, doubt_for=30)
    one.take(several(*instance_ids), "5-1", interrupted=False)
    return one


@pytest.mark.parametrize("left", [(), ("a",)])
def test_a_sudden_shrink_after_an_interruption_is_doubted_for_a_while(left: Sequence[str]) -> None:
    clock = Clock()
    one = known(clock, "a", "b", "c")
    one.take(several(*left), "5-2", interrupted=True)
    assert sorted(ids(one.found())) == ["a", "b", "c"]
    assert "where there were 3" in one.found().doubt
    clock.time += 29.9
    one.take(several(*left), "5-2", interrupted=False)
    assert sorted(ids(one.found())) == ["a", "b", "c"]
    clock.time += 0.1
    assert ids(one.found()) == list(left)
    assert one.found().doubt == ""


def test_another_history_is_an_interruption_too() -> None:
    one = known(Clock(), "a", "b", "c")
    one.take([], "6-1", interrupted=False)
    assert len(one.found()) == 3
    assert one.found().doubt


def test_a_shrink_without_an_interruption_is_believed_at_once() -> None:
    one = known(Clock(), "a", "b", "c")
    one.take([], "5-2", interrupted=False)
    assert (ids(one.found()), one.found().doubt) == ([], "")


def test_who_comes_back_ends_the_doubt() -> None:
    one = known(Clock(), "a", "b", "c")
    one.take([], "5-2", interrupted=True)
    one.change("5-3", several("a"), [])
    assert one.doubted
    one.change("5-4", several("b"), [])
    assert not one.doubted
    assert ids(one.found()) == ["a", "b"]


def test_who_is_reported_gone_by_name_is_gone_also_in_doubt() -> None:
    one = known(Clock(), "a", "b", "c", "d")
    one.take(several("a"), "5-2", interrupted=True)
    one.change("5-3", [], [Removed("chat", "c", "deregistered")])
    assert sorted(ids(one.found())) == ["a", "b", "d"]


def test_what_is_new_shows_also_in_doubt() -> None:
    one = known(Clock(), "a", "b", "c")
    one.take([shown("a", weight=7)], "5-2", interrupted=True)
    assert next(i for i in one.found() if i.instance_id == "a").weight == 7


def test_staleness_grows_until_the_registry_agrees_again() -> None:
    clock = Clock()
    one = known(clock, "a")
    clock.time += 8
    assert one.found("last-known-good").stale_for == 8
    one.confirm()
    assert one.found().stale_for == 0


@pytest.mark.parametrize(("age", "left"), [(599, ["a", "b", "c"]), (601, [])])
def test_only_what_is_recent_is_a_reason_to_doubt(age: float, left: list[str]) -> None:
    one = Known(clock=Clock(), doubt_for=30)
    one.recall(several("a", "b", "c"), "5-1", age=age)
    one.take([], "5-2", interrupted=True)
    assert ids(one.found()) == left


def test_what_is_kept_is_private_whole_and_found_again(tmp_path: Path) -> None:
    clock = Clock()
    shelf = Shelf(tmp_path / "cache", ["http://r", ""], now=clock)
    shelf.keep("q", Found(tuple(several("a")), "5-1", stale_for=2.0))
    path = shelf.path("q")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    clock.time += 10
    kept = shelf.recall("q")
    assert kept is not None
    assert (list(kept.instances), kept.revision, kept.age) == (several("a"), "5-1", 12.0)


def test_other_urls_keys_and_queries_have_their_own(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, ["http://r", "key"])
    shelf.keep("q", Found(tuple(several("a")), "5-1"))
    assert shelf.recall("p") is None
    assert Shelf(tmp_path, ["http://r", "other"]).recall("q") is None
    assert Shelf(tmp_path, ["http://s", "key"]).recall("q") is None
    assert b"key" not in b"".join(one.read_bytes() for one in tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"at": 1}', b'{"at":1,"revision":"","instances":[{}]}']
)
def test_a_damaged_file_is_as_none(tmp_path: Path, damage: bytes) -> None:
    shelf = Shelf(tmp_path, ["r"])
    shelf.path("q").write_bytes(damage)
    assert shelf.recall("q") is None


def test_a_disk_that_takes_nothing_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    Shelf(tmp_path / "file", ["r"]).keep("q", Found((), "5-1"))
    assert "cannot keep" in caplog.text


async def test_discovery_goes_on_from_the_disk_while_the_registry_is_away(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    async with running(store_url, prefix, tmp_path) as api:
        await api.register("chat", "a")
        async with RegistryClient(api.base, cache_dir=cache, environ={}) as client:
            assert ids(await client.discover("chat")) == ["a"]
            assert ids(await client.instances(zone="z")) == []
    async with RegistryClient(api.base, cache_dir=cache, patience=0, environ={}) as client:
        found = await client.discover("chat")
        assert (ids(found), found.source) == (["a"], "last-known-good")
        assert found.stale_for > 0
        assert ids(await client.instances(zone="z")) == []
        with pytest.raises(Unreachable):
            await client.discover("other")


async def test_an_answer_that_the_daemon_calls_stale_is_called_so() -> None:
    body = json.dumps([shown("a").model_dump(mode="json", by_alias=True, exclude_none=True)])
    stale = http(200, body.encode(), X_Registry_Revision="5-1", X_Registry_Stale_Ms="2500")
    async with faulty(stale) as server, RegistryClient(server.url, environ={}) as client:
        found = await client.discover("chat")
    assert (found.stale_for, found.revision, found.source) == (2.5, "5-1", "registry")


async def test_a_registry_that_comes_back_empty_is_doubted() -> None:
    body = json.dumps([shown("a").model_dump(mode="json", by_alias=True, exclude_none=True)])
    whole = http(200, body.encode(), X_Registry_Revision="5-1")
    empty = http(200, b"[]", X_Registry_Revision="5-1")
    # aiohttp sends an idempotent request that was cut off once more, by itself.
    async with (
        faulty(whole, b"", b"", empty) as server,
        RegistryClient(server.url, patience=0, environ={}) as client,
    ):
        await client.discover("chat")
        away = await client.discover("chat")
        assert (ids(away), away.source) == (["a"], "last-known-good")
        back = await client.discover("chat")
    assert (ids(back), back.source) == (["a"], "registry")
    assert back.doubt
