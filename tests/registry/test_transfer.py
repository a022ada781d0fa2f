"""Export and import over HTTP, with the real daemon and store."""

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running
from sse import listening

from registryd.registry.store import Importing
from registryd.registry.transfer import Mode, plan


async def exported(api: Api) -> Any:
    answer = await api.get("/export")
    assert answer.status == 200, answer.body
    return answer.json


async def imported(api: Api, file: object, query: str = "") -> Any:
    answer = await api.post(f"/import{query}", file)
    assert answer.status == 200, answer.body
    return answer.json


def instance(name: str = "chat", **fields: Any) -> dict[str, Any]:
    return {"instanceId": f"{name}-1", "endpoint": "http://10.0.0.1:80", **fields}


def file(*names: str, **fields: Any) -> dict[str, Any]:
    services = {name: {"instances": [instance(name, **fields)]} for name in names}
    return {"version": "1.0", "services": services, "llm_models": {}}


async def test_an_export_is_json_with_an_indent_of_two_and_the_named_parts(api: Api) -> None:
    await api.register("chat", "a", metadata={"note": 'ä\n{"x": [1]}'}, ttlSeconds=77)
    await api.register("chat", "b")
    await api.register("zip", "a")
    answer = await api.get("/export")
    text, parsed = answer.body.decode(), answer.json
    assert list(parsed) == ["version", "timestamp", "services", "llm_models"]
    assert (parsed["version"], parsed["llm_models"]) == ("1.0", {})
    assert [*parsed["services"]] == ["chat", "zip"]
    assert text == json.dumps(parsed, indent=2, ensure_ascii=False) + "\n"
    shown = parsed["services"]["chat"]["instances"][0]
    assert (shown["instanceId"], shown["lease"]) == ("a", {"ttlSeconds": 77})
    assert "revision" not in shown
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="registryd-')
    assert (await api("HEAD", "/export")).status == 200


async def test_an_export_of_nothing_is_a_file_too(api: Api) -> None:
    empty = await exported(api)
    assert empty["services"] == {}
    assert (await imported(api, empty))["counts"]["added"] == 0


async def test_what_was_exported_comes_back_as_it_was(
    api: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    await api.register(
        "chat", "a", version="2.1.0", zone="eu", weight=0, apiVersion="1", ttlSeconds=77,
        capabilities=[{"name": "tts", "version": "2.0.0", "parameters": {"a": None, "n": 1e300}}],
        models=["m"], resourceLimits={"x": [1.5, 12345678901234567890]}, dependsOn=["db"],
        metadata={"tags": ["t"], "environment": "prod", "none": None, "text": "é\u2028\"\\\u0001"},
        healthCheck={"type": "tcp", "intervalMs": 700}, health={"status": "degraded"},
    )  # fmt: skip
    await api.register("chat", "plain", healthCheck=None)
    await api.register("db", "a")
    await api.put(
        "/services/db/maintenance",
        {"enabled": True, "reason": "moved", "until": "2099-01-01T00:00:00Z"},
    )
    before = await exported(api)
    async with running(store_url, f"{prefix}x", tmp_path) as other:
        told = await imported(other, before)
        assert told["counts"] == {
            "added": 3, "changed": 0, "removed": 0, "unchanged": 0, "newer": 0, "leaving": 0,
            "overtaken": 0,
        }  # fmt: skip
        after = await exported(other)
        for shown in (before, after):
            shown.pop("timestamp")
            for service in shown["services"].values():
                for one in service["instances"]:
                    one.pop("updatedAt")
        assert after == before
        # The lease began anew, and the process that held it then may renew it.
        [_, plain] = before["services"]["chat"]["instances"]
        beat = await other.put(
            "/services/chat/instances/plain/heartbeat", {"incarnation": plain["incarnation"]}
        )
        assert beat.status == 200
        # What the store holds for others is there too: keys, indexes, and the end of the maintenance.
        assert await other.daemon.auditor.audit() == 0
        again = await imported(other, before)
        assert again["counts"]["unchanged"] == 3
        maintained = (await other.get("/services/db")).json["admin"]
        assert maintained["reason"] == "moved"


async def test_a_draining_instance_is_not_exported_and_not_touched(api: Api) -> None:
    await api.register("chat", "chat-1")
    await api.put("/services/chat/instances/chat-1/drain", {"seconds": 60})
    assert (await exported(api))["services"] == {}
    told = await imported(api, file("chat", weight=9))
    assert (told["counts"]["leaving"], told["counts"]["added"]) == (1, 0)
    assert (await imported(api, file(), "?mode=replace"))["removed"] == []
    assert (await api.get("/services/chat/instances/chat-1")).json["weight"] == 1


async def test_a_dry_run_tells_all_differences_and_changes_nothing(api: Api) -> None:
    await api.register("same", "same-1", endpoint="http://10.0.0.1:80")
    await api.register("more", "more-1", endpoint="http://10.0.0.1:80", zone="eu")
    await api.register("gone", "gone-1")
    wanted = file("same", "new")
    wanted["services"]["more"] = {"instances": [instance("more", weight=5, ttlSeconds=60)]}
    at = await api.head()
    told = await imported(api, wanted, "?mode=replace&dryRun=true")
    assert (told["dryRun"], told["mode"], told["fileVersion"]) == (True, "replace", "1.0")
    assert told["added"] == ["new/new-1"]
    [changed] = told["changed"]
    assert changed["instance"] == "more/more-1"
    assert set(changed["fields"]) == {"zone", "weight", "ttlSeconds"}
    assert told["removed"] == ["gone/gone-1"]
    assert told["counts"]["unchanged"] == 1
    assert await api.head() == at
    merged = await imported(api, wanted, "?dryRun=true")
    assert (merged["removed"], merged["confirm"]) == ([], None)


async def test_replace_removes_only_what_was_confirmed_by_name(api: Api) -> None:
    await api.register("gone", "gone-1")
    at = await api.head()
    refused = await api.post("/import?mode=replace", file("new"))
    assert refused.status == 409
    confirm = refused.problem["confirm"]
    assert f"confirm={confirm}" in refused.problem["detail"]
    assert await api.head() == at
    await api.register("gone", "gone-2")
    assert (await api.post(f"/import?mode=replace&confirm={confirm}", file("new"))).status == 409
    dry = await imported(api, file("new"), "?mode=replace&dryRun=1")
    told = await imported(api, file("new"), f"?mode=replace&confirm={dry['confirm']}")
    assert told["removed"] == ["gone/gone-1", "gone/gone-2"]
    assert await api.listed("sort=name") == ["new"]
    history = (await api.get("/history?service=gone&types=service:unregistered")).json["history"]
    assert {one["reason"] for one in history} == {"not in the import"}


async def test_a_merge_keeps_incarnation_and_health_of_who_is_there(api: Api) -> None:
    await api.register("chat", "chat-1", health={"status": "degraded"}, incarnation="one")
    await imported(api, file("chat", weight=7, health={"status": "healthy"}))
    now = (await api.get("/services/chat/instances/chat-1")).json
    assert (now["weight"], now["incarnation"], now["health"]["status"]) == (7, "one", "degraded")


@pytest.mark.parametrize(("mode", "weight"), [("merge", 2), ("replace", 1)])
async def test_of_two_incarnations_the_later_stays_unless_all_is_replaced(
    api: Api, mode: str, weight: int
) -> None:
    await api.register("chat", "a", weight=1)
    backup = await exported(api)
    await asyncio.sleep(0.002)
    await api.register("chat", "a", weight=2)
    told = await imported(api, backup, f"?mode={mode}")
    assert told["newer"] == (["chat/a"] if mode == "merge" else [])
    assert (await api.get("/services/chat/instances/a")).json["weight"] == weight


@pytest.mark.parametrize(("mode", "state"), [("merge", "maintenance"), ("replace", None)])
async def test_a_file_without_maintenance_ends_one_only_where_all_is_replaced(
    api: Api, mode: str, state: str | None
) -> None:
    await api.register("chat", "a")
    backup = await exported(api)
    await api.put("/services/chat/maintenance", {"enabled": True})
    told = await imported(api, backup, f"?mode={mode}")
    assert [one["fields"] for one in told["changed"]] == ([["admin"]] if state is None else [])
    now = (await api.get("/services/chat/instances/a")).json
    assert now.get("admin", {}).get("state") == state


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({"version": "2.0", "services": {}}, 422, "/version"),
        ({"version": "0.1", "services": {}}, 422, "/version"),
        ([], 422, ""),
        ({"version": {}}, 422, "/version"),
        ({"services": None}, 422, "/services"),
        ({"llm_models": 1}, 422, "/llm_models"),
        ({"version": "1.0", "services": {"chat": {"instances": {}}}}, 422, "/services/chat/instances"),
        ({"version": "1.0", "services": {"a b": {"instances": []}}}, 422, "/services/a b"),
        ({"services": {"chat": {"capabilities": []}}}, 422, "/services/chat/endpoint"),
        ({"services": [{"endpoint": "http://a"}]}, 422, "/services/0/name"),
        (file("chat", weight=-1), 422, "/services/chat/instances/0/weight"),
        (file("chat", lease={"ttlSeconds": 1}), 422, "/services/chat/instances/0/lease/ttlSeconds"),
        (file("chat", admin={"state": "odd"}), 422, "/services/chat/instances/0/admin/state"),
        (file("chat", unknown=1), 422, "/services/chat/instances/0/unknown"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_and_nothing_of_the_file_is_taken(
    api: Api, body: Any, status: int, pointer: str
) -> None:
    if isinstance(body, dict) and isinstance(body.get("services"), dict):
        body["services"] = {**file("good")["services"], **body["services"]}
    answer = await api.post("/import", body)
    assert answer.status == status, answer.body
    assert pointer in answer.pointers
    if pointer == "/version" and isinstance(body["version"], str):
        assert repr(body["version"]) in answer.problem["detail"]
    assert await api.listed("") == []


async def test_an_id_that_stands_there_twice_is_refused(api: Api) -> None:
    wanted = file("chat")
    wanted["services"]["chat"]["instances"] *= 2
    answer = await api.post("/import", wanted)
    assert answer.pointers == ["/services/chat/instances/1/instanceId"]


async def test_the_limits_of_the_registry_hold_for_the_whole_file(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    limits = {"limits": {"services": 2, "instances": 3, "instancesPerService": 2}}
    async with running(store_url, prefix, tmp_path, registry=limits) as api:
        refused = await api.post("/import", file("a", "b", "c"))
        assert (refused.status, refused.problem["code"]) == (429, "rate_limited")
        assert "limits.services" in refused.problem["detail"]
        wanted = file("a")
        wanted["services"]["a"]["instances"] = [instance(str(n)) for n in range(3)]
        assert "instancesPerService" in (await api.post("/import", wanted)).problem["detail"]
        assert await api.listed("") == []
        await imported(api, file("a", "b"))
        dry = await imported(api, file("c", "d"), "?mode=replace&dryRun=true")
        await imported(api, file("c", "d"), f"?mode=replace&confirm={dry['confirm']}")
        assert await api.listed("") == ["c", "d"]


async def test_watchers_and_events_hear_of_every_imported_instance(api: Api) -> None:
    async with listening(api, "/events") as events, listening(api, "/watch?service=b") as watch:
        assert (await watch.event()).name == "snapshot"
        await imported(api, file("a", "b", capabilities=["x"]))
        names = [(await events.event(within=3)).name for _ in range(5)]
        assert sorted(names) == [
            "capability:added", "capability:added", "registry:imported", "service:registered",
            "service:registered",
        ]  # fmt: skip
        change = await watch.event(within=3)
        assert [one["name"] for one in change.json["added"]] == ["b"]


async def test_no_reader_sees_part_of_an_import_that_is_one_call(api: Api, other: Api) -> None:
    names = [f"s{number}" for number in range(150)]
    seen: set[int] = set()

    async def look(node: Api) -> None:
        while len(names) not in seen:
            seen.add(len(node.daemon.view))
            await asyncio.sleep(0)

    looking = [asyncio.create_task(look(node)) for node in (api, other)]
    await imported(api, file(*names))
    assert len(api.daemon.view) == len(names), "whoever imported sees it"
    await asyncio.gather(*looking)
    assert seen == {0, 150}


async def test_no_reader_sees_part_of_an_import_that_takes_many_calls(
    api: Api, other: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    await api.register("s1", "s1-1", weight=3)
    await api.register("gone", "gone-1")
    await eventually(lambda: len(other.daemon.view) == 2)
    api.daemon.importer.at_once = api.daemon.importer.part = 20
    names = [f"s{number}" for number in range(300)]
    seen: set[tuple[bool, int, bool]] = set()

    def state(node: Api) -> tuple[bool, int, bool]:
        view = node.daemon.view
        held = view.get("s1:s1-1")
        assert held is not None
        return held.weight == 3, len(view), view.get("gone:gone-1") is not None

    async def look(node: Api) -> None:
        while (found := state(node))[0:2] != (False, 300):
            seen.add(found)
            await asyncio.sleep(0)
        seen.add(found)

    looking = [asyncio.create_task(look(node)) for node in (api, other)]
    dry = await imported(api, file(*names), "?mode=replace&dryRun=true")
    told = await imported(api, file(*names), f"?mode=replace&confirm={dry['confirm']}")
    assert (told["counts"]["added"], told["counts"]["changed"]) == (299, 1)
    assert told["counts"]["overtaken"] in {0, None}
    assert state(api) == (False, 300, False)
    await asyncio.gather(*looking)
    assert seen == {(True, 2, True), (False, 300, False)}
    async with running(store_url, prefix, tmp_path) as late:
        assert state(late) == (False, 300, False)
        assert await late.daemon.auditor.audit() == 0


async def test_an_import_that_was_committed_is_completed_by_whoever_is_there(
    api: Api, other: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    await api.daemon.supervisor.stop()
    await other.daemon.supervisor.stop()
    made = await made_of(api, 30)
    await api.daemon.importer._commit(made, "import (merge)")
    await api.daemon.store.continue_import()  # and here it died
    async with running(store_url, prefix, tmp_path) as late:
        assert len(late.daemon.view) == 30, "completed before anything is shown"
        assert await late.daemon.auditor.audit() == 0
        assert await late.daemon.store.continue_import() is None


async def test_a_daemon_that_runs_goes_on_with_what_another_has_left(api: Api) -> None:
    await api.daemon.importer._commit(await made_of(api, 30), "import (merge)")
    await api.daemon.store.continue_import()
    await eventually(lambda: len(api.daemon.view) == 30)


async def test_what_was_laid_down_and_not_committed_is_nothing(
    api: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    made = await made_of(api, 3)
    store = api.daemon.store
    await store.stage_import("x", made, keep=timedelta(milliseconds=30))
    async with running(store_url, prefix, tmp_path) as late:
        assert len(late.daemon.view) == 0
    await asyncio.sleep(0.04)
    assert await store.commit_import("x", 1, reason="late") == "lost"
    assert await store.continue_import() is None


async def test_a_second_large_import_waits_for_the_first(api: Api) -> None:
    await api.daemon.supervisor.stop()
    await api.daemon.importer._commit(await made_of(api, 3), "import (merge)")
    store = api.daemon.store
    await store.stage_import("y", await made_of(api, 1), keep=timedelta(minutes=1))
    assert await store.commit_import("y", 1, reason="second") == "busy"


async def test_who_registers_during_a_large_import_keeps_what_he_registered(api: Api) -> None:
    made = await made_of(api, 30)
    await api.daemon.supervisor.stop()  # only the view is to go on
    api.daemon.supervisor.start("follower", api.daemon.follower.turn)
    await api.daemon.importer._commit(made, "import (merge)")
    await api.daemon.store.continue_import()
    shown = await api.register("s29", "s29-1", weight=9)
    assert (await api.get("/services/s29/instances/s29-1")).json["weight"] == 9
    assert len(api.daemon.view) == 1
    await api.daemon.importer.turn()
    await eventually(lambda: len(api.daemon.view) == 30)
    now = (await api.get("/services/s29/instances/s29-1")).json
    assert (now["weight"], now["incarnation"]) == (9, shown["incarnation"])


async def made_of(api: Api, count: int) -> Sequence[Importing]:
    """What an import of so many services consists of, in parts of seven."""
    api.daemon.importer.part = 7
    names = [f"s{number}" for number in range(count)]
    read = api.daemon.importer._read(json.dumps(file(*names)).encode(), {})
    return plan(read, {}, Mode.MERGE).items


OLD_001: dict[str, Any] = {
    "version": "1.0",  # the original wrote that, too
    "timestamp": "2025-01-01T00:00:00",
    "services": {
        "comfyui": {
            "name": "comfyui", "version": "1.2", "api_version": "1.0", "endpoint": "http://gpu:8188",
            "capabilities": [{"name": "image_generation", "version": "1.0", "parameters": {"loras": True}}],
            "models": ["sd-xl"], "resource_limits": {"max": 2}, "status": "healthy",
            "last_updated": "2025-01-01T00:00:00.5",
        },
        "rvc": {
            "url": "http://gpu:7000", "capabilities": {"voice_cloning": {"version": "1.0"}, "x": None},
            "status": "unknown", "version": None,
        },
    },
    "llm_models": {"gpt": {"provider": "openai"}},
}  # fmt: skip
OLD_002 = [
    {
        "name": "ai", "endpoint": "https://ai.example.com:8080", "version": "2.1.0",
        "capabilities": [{"name": "text", "version": "1.0.0", "inputs": {"a": 1}}],
        "metadata": {"tags": ["nlp"], "author": "me"},
        "health": {"status": "healthy", "lastCheck": "2025-01-01T00:00:00Z"},
        "registeredAt": "2025-01-01T00:00:00.000Z", "updatedAt": "2025-01-02T00:00:00.000Z",
    },
]  # fmt: skip


@pytest.mark.parametrize("given", [{}, {"version": "0.9"}, {"version": "1.0"}])
async def test_maps_of_metadata_become_instances(api: Api, given: dict[str, str]) -> None:
    old = {key: value for key, value in OLD_001.items() if key != "version"} | given
    told = await imported(api, old)
    assert (told["fileVersion"], told["modelsLeftOut"]) == ("0.9", 1)
    comfy = (await api.get("/services/comfyui")).json
    assert (comfy["endpoint"], comfy["health"]["status"]) == ("http://gpu:8188", "healthy")
    assert (comfy["instanceId"], comfy["apiVersion"]) == ("gpu-8188", "1.0")
    assert comfy["capabilities"][0]["parameters"] == {"loras": True}
    assert (comfy["models"], comfy["resourceLimits"]) == (["sd-xl"], {"max": 2})
    assert await api.listed("capability=voice_cloning&capabilitiesAll=x") == ["rvc"]
    assert (await imported(api, old))["counts"]["unchanged"] == 2


@pytest.mark.parametrize("given", [{}, {"version": "0.8"}])
async def test_lists_of_service_definitions_become_instances(
    api: Api, given: dict[str, str]
) -> None:
    told = await imported(api, {"services": OLD_002, **given})
    assert told["fileVersion"] == "0.8"
    found = (await api.get("/services/ai")).json
    assert (found["version"], found["registeredAt"]) == ("2.1.0", "2025-01-01T00:00:00.000Z")
    assert (found["metadata"], found["health"]["status"]) == (
        {"tags": ["nlp"], "author": "me"},
        "healthy",
    )


async def test_missing_parts_are_no_error(api: Api) -> None:
    for nothing in ({}, {"version": "1.0"}, {"services": {}}, {"version": "1.0", "services": {"a": {"instances": []}}}):  # fmt: skip
        assert (await imported(api, nothing))["counts"]["added"] == 0
    assert await api.listed("") == []


async def test_no_secret_of_a_webhook_is_exported(api: Api) -> None:
    await api.register("chat", "a")
    hook = {"url": "https://example.com/h", "types": ["service:*"]}
    answer = await api.post("/api/v1/webhooks", hook)
    assert answer.status == 201, answer.body
    text = (await api.get("/export")).body.decode()
    assert "chat" in text
    assert answer.json["secret"] not in text
    assert answer.json["id"] not in text


async def test_a_file_larger_than_other_bodies_is_read(api: Api) -> None:
    big = file(*(f"s{n}" for n in range(60)), metadata={"note": "x" * 6_000})
    assert len(json.dumps(big)) > 300_000
    assert (await imported(api, big))["counts"]["added"] == 60


async def test_an_export_needs_no_store(api: Api) -> None:
    await api.register("chat", "a")
    await api.daemon.supervisor.stop()
    calls = api.daemon.metrics.registry.get_sample_value
    name = "registryd_store_call_seconds_count"

    def made() -> float:
        return sum(calls(name, {"script": script}) or 0.0 for script in ("snapshot", "health"))

    before = made()
    assert list((await exported(api))["services"]) == ["chat"]
    assert made() == before


async def test_an_import_is_signed_and_in_the_history(api: Api) -> None:
    await imported(api, file("chat"))
    [entry] = (await api.get("/history?service=chat&types=service:registered")).json["history"]
    assert (entry["reason"], entry["by"]) == ("imported", "anonymous@127.0.0.1")
    [marker] = (await api.get("/history?types=registry:imported")).json["history"]
    assert (marker["reason"], marker["by"]) == ("import (merge)", "anonymous@127.0.0.1")


async def test_parts_are_signed_by_who_sent_the_file(api: Api) -> None:
    api.daemon.importer.at_once = api.daemon.importer.part = 2
    await imported(api, file("a", "b", "c"))
    found = (await api.get("/history?types=service:registered,registry:imported")).json["history"]
    assert {entry["by"] for entry in found} == {"anonymous@127.0.0.1"}
    assert len(found) == 4


@pytest.mark.parametrize("query", ["mode=odd", "dryRun=perhaps", "colour=red"])
async def test_a_wrong_parameter_is_refused(api: Api, query: str) -> None:
    assert (await api.post(f"/import?{query}", file())).status == 400


async def test_what_an_export_does_not_tell_is_kept_where_it_is_known_and_named_where_not(
    api: Api,
) -> None:
    secret = {"path": "/health", "headers": {"Authorization": "Bearer hunter2"}, "body": "hunter2"}
    for name in ("a", "b"):
        await api.register(
            "chat", name, endpoint=f"http://10.0.0.1:80{ord(name)}", healthCheck=secret
        )
    saved = await exported(api)
    assert "hunter2" not in json.dumps(saved)
    saved["services"]["chat"]["instances"][0]["zone"] = "eu"
    await api("DELETE", "/services/chat/instances/b")

    would = await imported(api, saved, "?dryRun=true")
    assert would["incomplete"] == ["chat/b"]
    done = await imported(api, saved)
    assert (done["counts"]["added"], done["counts"]["changed"]) == (1, 1)
    assert done["incomplete"] == ["chat/b"]
    store = api.daemon.store
    kept, lost = [json.loads(one.state) for one in await store.vitals(["chat:a", "chat:b"])]
    assert kept["sealed"] == {"headers": {"Authorization": "Bearer hunter2"}, "body": "hunter2"}
    assert "sealed" not in lost
    shown = (await api.get("/services/chat/instances/b")).json
    assert "headers" not in shown["healthCheck"]
    assert (await imported(api, saved, "?dryRun=true"))["counts"]["unchanged"] == 2
