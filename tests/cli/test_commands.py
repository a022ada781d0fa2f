"""The commands that ask a registry, as processes beside a daemon."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from commands import registryd, started
from daemons import Api, eventually, running
from ruamel.yaml import YAML

from registryd.storage.embedded import EmbeddedStore

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]


async def two(api: Api) -> dict[str, str]:
    """A healthy and an unhealthy instance of `chat`, one of `audio`; the environment to find them."""
    await api.register("chat", "a", version="1.2.0", health={"status": "healthy"})
    await api.register("chat", "b", health={"status": "unhealthy"}, metadata={"tags": ["old"]})
    await api.register("audio", "c", capabilities=["asr"], metadata={"tags": ["old"]})
    return {"REGISTRYD_URL": api.base}


async def test_a_list_is_aligned_columns_names_or_what_the_api_gave(api: Api) -> None:
    env = await two(api)
    plain, names, instances, document, yaml = await asyncio.gather(
        registryd("services", "list", **env),
        registryd("services", "list", "-o", "name", **env),
        registryd("services", "list", "-i", "-o", "name", "--tags", "old", **env),
        registryd("services", "list", "-o", "json", **env),
        registryd("services", "list", "-o", "yaml", "--name", "^au", **env),
    )
    heading, audio, chat = plain.out.splitlines()
    assert heading.split()[:3] == ["NAME", "HEALTH", "INSTANCES"]
    assert (audio.split()[:3], chat.split()[:3]) == (
        ["audio", "unknown", "0/1"],
        ["chat", "healthy", "1/2"],
    )
    assert heading.index("HEALTH") == chat.index("healthy")
    assert names.out.splitlines() == ["audio", "chat"]
    assert instances.out.splitlines() == ["audio/c", "chat/b"]
    assert json.loads(document.out) == (await api.get("/services")).json
    assert YAML(typ="safe").load(yaml.out) == (await api.get("/services?name=^au")).json


async def test_a_list_of_several_pages_is_one_document(api: Api) -> None:
    batch = [api.register("many", f"i{number}") for number in range(1001)]
    await asyncio.gather(*batch)
    result = await registryd("services", "list", "-i", "-o", "json", REGISTRYD_URL=api.base)
    document = json.loads(result.out)
    assert len(document["instances"]) == document["total"] == 1001
    assert document["next"] is None


async def test_what_there_is_to_know_is_shown(api: Api) -> None:
    env = await two(api)
    calls = (
        ("services", "get", "chat"),
        ("services", "get", "chat", "b", "-o", "wide"),
        ("services", "url", "chat"),
        ("stats",),
        ("capabilities",),
        ("health", "chat", "b"),
        ("explain", "chat"),
        ("history", "chat", "-n", "2"),
        ("monitoring",),
        ("health",),
    )
    one, b, url, stats, able, health, why, past, probed, alive = await asyncio.gather(
        *(registryd(*call, **env) for call in calls)
    )
    assert [line.split()[1] for line in one.out.splitlines()] == ["INSTANCE", "a", "b"]
    assert "old" in b.out.splitlines()[1]
    assert url.out == "http://10.0.0.1:8080\n"
    assert ["total", "instances", "3"] in [line.split() for line in stats.out.splitlines()]
    assert able.out.splitlines()[1].split() == ["asr", "1.0.0", "audio"]
    assert health.out.splitlines()[1].split()[:2] == ["b", "unhealthy"]
    assert "1 of 2 instances can be chosen" in why.out
    assert len(past.out.splitlines()) == 3
    assert probed.out.splitlines()[1].split() == ["monitoring", "on"]
    assert alive.out.splitlines()[1].split() == ["status", "healthy"]
    assert {result.code for result in (one, b, url, stats, able, health, why, past, alive)} == {0}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("services", "get", "nobody"), 3, "no service 'nobody'"),
        (("services", "list", "--filter", "weight =="), 2, "position"),
        (("services", "list", "--health", "fine"), 2, "health"),
        (("services", "list", "-o", "xml"), 2, "xml"),
        (("services", "register", "chat", "nowhere"), 2, "/endpoint"),
        (("services", "register", "chat"), 2, "NAME and ENDPOINT"),
        (("services", "deregister", "chat"), 2, "2 instances (chat/a, chat/b); add --yes"),
        (("services", "deregister"), 2, "name a service, or give filters"),
        (("services", "deregister", "--tags", "new"), 3, "nothing matches"),
        (("heartbeat", "chat"), 2, "`registryd services get NAME`"),
        (("heartbeat", "chat", "z"), 3, "no lease"),
        (("services", "url", "chat", "--health", "degraded"), 3, "`registryd explain NAME`"),
        (("stats", "--url", "http://127.0.0.1:1"), 4, "did not answer"),
        (("events", "--url", "http://127.0.0.1:1"), 4, "did not answer"),
        (("services", "watch", "--url", "http://127.0.0.1:1"), 4, "did not answer"),
        (("health", "--url", "http://127.0.0.1:1"), 1, "did not answer"),
        (("stats", "--url", "ftp://nowhere"), 2, "no usable base URL"),
        (("stats", "--api-key-file", "/nowhere/key"), 2, "cannot be read"),
    ],
)
async def test_what_goes_wrong_is_told_in_two_lines_and_a_code(
    api: Api, arguments: tuple[str, ...], code: int, said: str
) -> None:
    env = await two(api)
    result = await registryd(*arguments, TERM="dumb", COLUMNS="300", **env)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 2 or "Usage:" in result.err


async def test_a_key_is_taken_from_a_file_and_missing_ones_are_told(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    auth = {"mode": "required"}
    made = await registryd(
        "keys", "create", "--role", "reader", "--redis-url", store_url,
        REGISTRYD_REDIS__KEY_PREFIX=prefix,
    )  # fmt: skip
    file = tmp_path / "key"
    file.write_text(made.out)
    async with running(store_url, prefix, tmp_path, auth=auth) as api:
        env = {"REGISTRYD_URL": api.base}
        without, forbidden, good, wrong = await asyncio.gather(
            registryd("stats", **env),
            registryd("services", "register", "a", "http://b:1", "--api-key-file", file, **env),
            registryd("stats", "--api-key-file", file, REGISTRYD_API_KEY="no", **env),
            registryd("stats", REGISTRYD_API_KEY="rgd_0000_no", **env),
        )
    assert (without.code, forbidden.code, good.code, wrong.code) == (1, 1, 0, 1)
    assert "Set REGISTRYD_API_KEY, or give --api-key-file." in without.err
    assert "role writer" in forbidden.err


async def test_a_file_registers_several_and_flags_override_it(api: Api, tmp_path: Path) -> None:
    env = {"REGISTRYD_URL": api.base}
    file = tmp_path / "services.yaml"
    file.write_text(
        "- {name: asr, endpoint: 'http://10.0.0.2:80', metadata: {owner: us}}\n"
        "- {name: tts, endpoint: 'http://10.0.0.3:80'}\n"
    )
    tried = await registryd("services", "register", "-f", file, "--dry-run", "-o", "json", **env)
    assert len(json.loads(tried.out)) == 2
    assert (await api.get("/services")).json["total"] == 0
    made = await registryd("services", "register", "-f", file, "--tag", "ai", "-o", "json", **env)
    assert (made.code, [one["name"] for one in json.loads(made.out)]) == (0, ["asr", "tts"])
    assert (await api.instance("asr", "10.0.0.2-80"))["metadata"] == {"owner": "us", "tags": ["ai"]}
    body = {"name": "asr", "endpoint": "http://10.0.0.2:80"}
    again = await registryd("services", "register", "-f", "-", given=json.dumps(body), **env)
    assert "asr/10.0.0.2-80 was registered, renewed" in again.err
    flags = ("--capability", "chat@2.1.0", "--no-health-check", "--instance-id", "x", "--ttl", "60")
    await registryd("services", "register", "chat", "http://10.0.0.9:1", *flags, **env)
    chat = await api.instance("chat", "x")
    assert [(one["name"], one["version"]) for one in chat["capabilities"]] == [("chat", "2.1.0")]
    assert (chat["lease"]["ttlSeconds"], chat.get("healthCheck")) == (60, None)


async def test_instances_are_kept_hidden_drained_and_let_go(api: Api) -> None:
    env = await two(api)
    beat = await registryd("heartbeat", "chat", "a", "-o", "json", **env)
    assert json.loads(beat.out)["ttlSeconds"] == 300
    await registryd("maintenance", "chat", "a", "--for", "2h", "--reason", "upgrade", **env)
    admin = (await api.instance("chat", "a"))["admin"]
    assert (admin["state"], admin["reason"]) == ("maintenance", "upgrade")
    assert "until" in admin
    await registryd("maintenance", "chat", "a", "--off", **env)
    assert "admin" not in await api.instance("chat", "a")
    drained = await registryd("drain", "audio", "c", "--seconds", "60", **env)
    assert drained.out.splitlines()[1].split()[2] == "draining"
    paused = await registryd("monitoring", "off", "-o", "name", **env)
    assert (paused.out, (await api.get("/monitoring")).json) == ("off\n", {"enabled": False})
    tried = await registryd("services", "deregister", "--tags", "old", "--dry-run", **env)
    assert "would be deregistered: 2 instances" in tried.err
    assert (await api.get("/services?view=instances")).json["total"] == 3
    gone = await registryd("services", "deregister", "--tags", "old", "--yes", "-o", "name", **env)
    assert gone.out.splitlines() == ["audio/c", "chat/b"]
    assert await api.listed("view=instances") == ["chat/a"]


async def test_webhooks_are_made_listed_tried_and_deleted(api: Api) -> None:
    env = {"REGISTRYD_URL": api.base}
    made = await registryd("webhooks", "create", "http://127.0.0.1:9/x", "-o", "json", **env)
    webhook = json.loads(made.out)
    assert webhook["types"] == ["service:*"]
    assert webhook["secret"].startswith("whsec_")
    listed, tried, letters, replayed = await asyncio.gather(
        registryd("webhooks", "list", **env),
        registryd("webhooks", "test", webhook["id"], **env),
        registryd("webhooks", "dead-letters", webhook["id"], "-o", "json", **env),
        registryd("webhooks", "replay", webhook["id"], "-o", "name", **env),
    )
    assert listed.out.splitlines()[1].split()[:4] == [
        webhook["id"], "http://127.0.0.1:9/x", "service:*", "enabled",
    ]  # fmt: skip
    assert tried.code == 1
    assert "did not take it" in tried.err
    assert json.loads(letters.out)["deadLetters"] == []
    assert replayed.out == "0\n"
    assert (await registryd("webhooks", "delete", webhook["id"], **env)).code == 0
    assert (await registryd("webhooks", "list", "-o", "name", **env)).out == ""


async def test_streams_are_lines_until_ctrl_c_which_is_no_failure(api: Api) -> None:
    env = await two(api)
    watch = await started("services", "watch", "chat", **env)
    events = await started("events", "service:*", "-o", "json", **env)
    assert watch.stdout is not None
    assert events.stdout is not None
    present = {(await watch.stdout.readline()).decode().split()[1] for _ in range(2)}
    assert present == {"chat/a", "chat/b"}

    async def listening() -> bool:
        return b'registryd_watchers{kind="events"} 1.0' in (await api.get("/metrics")).body

    await eventually(listening, within=20)
    await api.delete("/services/chat/instances/b")
    assert (await watch.stdout.readline()).decode() == "removed  chat/b  deregistered\n"
    event = json.loads(await events.stdout.readline())
    assert (event["specversion"], event["subject"]) == ("1.0", "chat/b")
    for process in (watch, events):
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0


async def test_a_reader_that_has_enough_is_no_failure(api: Api) -> None:
    env = await two(api)
    process = await started("services", "list", "-o", "json", **env)
    assert process.stdout is not None
    transport = process.stdout._transport  # type: ignore[attr-defined]
    transport.close()
    assert process.stderr is not None
    assert await process.stderr.read() == b""
    assert await process.wait() == 0


async def test_an_old_answer_is_told_on_standard_error(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "data", runtime_dir=tmp_path)
    url = await store.start()
    async with running(url, "ossa", tmp_path / "daemon") as api:
        await two(api)
        os.kill(store.pid, signal.SIGSTOP)
        try:

            async def stale() -> bool:
                return "X-Registry-Stale-Ms" in (await api.get("/services")).headers

            await eventually(stale, within=30)
            result = await registryd("services", "list", REGISTRYD_URL=api.base)
        finally:
            os.kill(store.pid, signal.SIGCONT)
    await store.stop()
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    assert "this answer is as of then" in result.err
