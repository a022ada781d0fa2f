"""Secrets planted in every place where one can stand, and a search of everything that a daemon tells."""

import asyncio
import base64
import json
import socket
import string
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
import pytest
from processes import Machine, Registryd, until
from redis.asyncio import Redis
from redis.exceptions import RedisError

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

REDIS = "plantedRedisPassword0"
OTHER_REDIS = "plantedOtherRedisPassword1"
JWT_SECRET = "plantedJwtSecret2-" + string.ascii_letters
HOOK_SECRET = f"whsec_{base64.b64encode(b'plantedWebhookSecret3planted').decode()}"
CHECK_HEADER = "plantedCheckHeader4"
CHECK_BODY = "plantedCheckBody5"
BAD_AUTH = "plantedMalformed6"
IN_QUERY = "plantedInQuery7"
USERINFO = "plantedUserinfo8"
FILED_KEY = "plantedFiledKey9-0123456789"
COOKIE = "plantedCookie10"
IN_BROKEN_JSON = "plantedBrokenJson11"
IN_WRONG_FIELD = "plantedWrongField12"
STRANGE_KEY = "rgd_" + "a" * 10 + "_planted13" + "b" * 40
HEALTH_ANSWER = "plantedHealthAnswer14"
ISSUER = {"iss": "https://id.example", "aud": "registryd", "exp": 4_000_000_000}
HOOKS = "/api/v1/webhooks"

Places = dict[str, str]


def token(**claims: object) -> str:
    return jwt.encode({**ISSUER, **claims}, JWT_SECRET, algorithm="HS256")


@asynccontextmanager
async def heard(store: Redis) -> AsyncIterator[list[str]]:
    """All messages that are published meanwhile."""
    messages: list[str] = []
    channel = store.pubsub()
    await channel.psubscribe("*")

    async def listen() -> None:
        async for message in channel.listen():
            messages.append(str(message))  # noqa: PERF401  others look before the end

    task = asyncio.create_task(listen())
    yield messages
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await channel.aclose()


@asynccontextmanager
async def checked_service() -> AsyncIterator[tuple[int, list[str]]]:
    """A service that answers its checks with a secret of its own, and what it was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        asked.append((await reader.read(len(CHECK_BODY))).decode())
        body = json.dumps({"status": "healthy", "password": HEALTH_ANSWER}).encode()
        writer.write(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked


async def stored(store: Redis) -> Places:
    """Everything in the store, by key."""
    found = {}
    async for key in store.scan_iter(count=1000):
        match await store.type(key):
            case "string":
                value: Any = await store.get(key)
            case "hash":
                value = await store.hgetall(key)
            case "set":
                value = await store.smembers(key)
            case "zset":
                value = await store.zrange(key, 0, -1, withscores=True)
            case "stream":
                value = await store.xrange(key)
            case "list":
                value = await store.lrange(key, 0, -1)
            case other:
                raise AssertionError(f"{key} is a {other}")
        found[f"store {key}"] = f"{key} {value}"
    return found


async def raw(daemon: Registryd, data: bytes) -> str:
    parts = urlsplit(daemon.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def streamed(daemon: Registryd, path: str, headers: dict[str, str]) -> str:
    """What a stream tells within a moment."""
    got = b""
    assert daemon.session is not None
    async with daemon.session.get(path, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        try:
            async with asyncio.timeout(1):
                async for part in answer.content.iter_any():
                    got += part
        except TimeoutError:
            pass  # a stream has no end
    return got.decode()


async def told_to(daemon: Registryd, who: str, headers: dict[str, str], hook: str) -> Places:
    """The answer of every GET route, and the beginning of every stream."""
    _, _, document = await daemon.get("/openapi.json", headers=headers)
    values = {"name": "chat", "id": "a"}
    found: Places = {}
    for path, item in document["paths"].items():
        if "get" not in item:
            continue
        known = values | ({"id": hook} if "webhooks" in path else {})
        url = "".join(
            known[part[1:-1]] if part.startswith("{") else part
            for part in path.replace("{", "\0{").replace("}", "}\0").split("\0")
        )
        if item["get"]["operationId"] in {"events", "watch"}:
            # From a position too old: the stream begins with everything there is.
            since = "?since=0-1" if item["get"]["operationId"] == "events" else ""
            found[f"{who} {url}"] = await streamed(daemon, url + since, headers)
            assert '"chat"' in found[f"{who} {url}"]
            continue
        query = "?service=chat&instance=a" if "explain" in url else ""
        status, head, body = await daemon.get(url + query, headers=headers)
        assert status < 500, (url, body)
        found[f"{who} {url}"] = f"{status} {dict(head)} {json.dumps(body)}"
    assert len(found) > 20
    return found


def processes_of(machine: Machine) -> str:
    """The command lines of all processes that were started here."""
    sessions = {daemon.process.pid for daemon in machine.started}
    lines = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions:
                lines.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return "\n".join(lines)


async def test_no_secret_is_told_by_anything(machine: Machine) -> None:
    secrets = machine.home / "secrets"
    (secrets / "redis").mkdir(parents=True)
    (secrets / "redis" / "password").write_text(f"{REDIS}\n")
    keys_file = machine.write("keys.yaml", f"- {{id: filed, role: admin, key: {FILED_KEY}}}\n")
    async with machine.private_store(password=REDIS) as store, checked_service() as checked:
        url = f"redis://127.0.0.1:{store.port}"
        env = {
            "REGISTRYD_SECRETS_DIR": str(secrets),
            "REGISTRYD_AUTH__MODE": "required",
            "REGISTRYD_AUTH__KEYS_FILE": keys_file,
            "REGISTRYD_AUTH__JWT__SECRET": JWT_SECRET,
            "REGISTRYD_AUTH__JWT__ALGORITHMS": "HS256",
            "REGISTRYD_AUTH__JWT__ISSUER": str(ISSUER["iss"]),
            "REGISTRYD_AUTH__JWT__AUDIENCE": str(ISSUER["aud"]),
            "REGISTRYD_LOGGING__LEVEL": "debug",
            "REGISTRYD_LIMITS__ENABLED": "false",
        }
        async with heard(store) as messages:
            daemon = await machine.start("--redis-url", url, data="none", env=env)
            made = await machine.run(
                *("keys", "create", "--role", "reader", "-o", "json", "--redis-url", url), env=env
            )
            assert await made.exit_code() == 0, made.lines
            api_key = json.loads("".join(made.lines))["key"]
            admin = {"Authorization": f"Bearer {FILED_KEY}"}
            reader = {"X-API-Key": api_key}
            good, bad = token(sub="ci", role="writer"), token(sub="ci", role="writer", aud="other")
            planted = {
                name: value for name, value in globals().items() if str(value).startswith("planted")
            } | {
                "JWT_SECRET": JWT_SECRET[:20],
                "HOOK_SECRET": HOOK_SECRET[6:],
                "STRANGE_KEY": STRANGE_KEY[15:],
                "API_KEY": api_key.split("_")[2],
                "GOOD_TOKEN": good.rpartition(".")[2],
                "BAD_TOKEN": bad.rpartition(".")[2],
            }
            assert len(planted) >= 18
            answers = await _plant(daemon, admin, reader, good, bad, checked[0])
            hook = answers.pop("hook")

            async def probed() -> bool:
                return CHECK_HEADER in str(checked[1]) and CHECK_BODY in str(checked[1])

            await until(probed)
            await _outage(store, daemon, reader)
            places = {
                **answers,
                **await told_to(daemon, "admin", admin, hook),
                **await told_to(daemon, "reader", reader, hook),
                **await stored(store),
                "process list": processes_of(machine),
            }
            for command in (
                ("check-config", "--config", "/dev/null"),
                ("keys", "list", "--redis-url", url),
            ):
                shown = await machine.run(*command, env=env)
                assert await shown.exit_code() == 0, shown.lines
                places[" ".join(command[:2])] = "\n".join(shown.lines)
            daemon.process.terminate()
            assert await daemon.exit_code() == 0
            places["log"] = "\n".join(daemon.lines)
            places["messages"] = "\n".join(messages)
    assert len(messages) > 5
    assert "access denied" in places["log"]
    found = {
        (name, place)
        for place, text in places.items()
        for name, secret in planted.items()
        if secret in text
    }
    kept = {
        (name, f"store ossa:{key}")
        for name in ("CHECK_HEADER", "CHECK_BODY")
        for key in ("inst", "checkstate", "stream")
    } | {("HOOK_SECRET", "store ossa:webhooks")}
    operations = {one for one in found if one[1].startswith("store ossa:ops:")}
    assert {name for name, _ in operations} <= {"CHECK_HEADER", "CHECK_BODY"}
    assert found - operations == kept, sorted(found - operations - kept)


async def _plant(
    daemon: Registryd,
    admin: dict[str, str],
    reader: dict[str, str],
    good: str,
    bad: str,
    port: int,
) -> dict[str, Any]:
    """Sends every secret to where one can stand, right and wrong. The answers, but for the one that
    shows a webhook's secret once."""
    answers: dict[str, Any] = {}

    async def ask(
        expected: int, method: str, path: str, body: object = None, **headers: str
    ) -> Any:
        given = headers or admin
        status, head, told = await daemon.ask(method, path, body, headers=given)
        assert status == expected, (method, path, told)
        answers[f"{method} {path} {len(answers)}"] = f"{dict(head)} {json.dumps(told)}"
        return told

    check = {
        "method": "POST",
        "headers": {"Authorization": f"Bearer {CHECK_HEADER}", "X-Custom": CHECK_HEADER},
        "body": CHECK_BODY,
        "intervalMs": 200,
        "timeoutMs": 150,
        "failureThreshold": 1,
        "conditions": ["[BODY].password == open"],
    }
    instance = {"endpoint": f"http://127.0.0.1:{port}", "ttlSeconds": 60, "healthCheck": check}
    path = "/services/chat/instances/a"
    await ask(201, "PUT", path, instance, Authorization=f"Bearer {good}")
    await ask(200, "PATCH", path, {"weight": 3})
    await ask(200, "PUT", f"{path}/heartbeat", Authorization=f"Bearer {good}")
    await ask(200, "PUT", f"{path}/maintenance", {"enabled": True, "reason": "x"})
    await ask(200, "PUT", f"{path}/maintenance", {"enabled": False})
    await ask(200, "GET", f"{path}/health", **reader)
    await ask(403, "PUT", "/monitoring", {"enabled": True}, **reader)
    for wrong in (
        f"Bearer {BAD_AUTH} {BAD_AUTH}",
        f"Basic {BAD_AUTH}",
        BAD_AUTH,
        f"Bearer {bad}",
        f"Bearer {STRANGE_KEY}",
        f"Bearer {good}x",
    ):
        await ask(401, "GET", "/services", Authorization=wrong)
    await ask(401, "GET", "/services", **{"X-API-Key": STRANGE_KEY})
    await ask(200, "GET", "/services", **reader, Cookie=f"session={COOKIE}")
    for name in ("token", "api_key", "access_token"):
        await ask(400, "GET", f"/services?{name}={IN_QUERY}")
    for method, userinfo in (("PUT", f"u:{USERINFO}@"), ("PUT", f"u:{USERINFO}/x@")):
        endpoint = f"http://{userinfo}127.0.0.1:1"
        await ask(422, method, path, {**instance, "endpoint": endpoint})
        await ask(422, "POST", HOOKS, {"url": endpoint, "types": ["*"]})
    await ask(422, "PUT", path, {**instance, "password": IN_WRONG_FIELD})
    await ask(422, "POST", HOOKS, {"url": "https://h", "types": ["*"], "secret": IN_WRONG_FIELD})
    broken = b'{"endpoint": "http://h", "password": "%b" broken' % IN_BROKEN_JSON.encode()
    answers["broken JSON"] = await raw(
        daemon,
        b"PUT %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: %b\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%b"
        % (path.encode(), admin["Authorization"].encode(), len(broken), broken),
    )
    assert " 400 " in answers["broken JSON"]
    answers["broken HTTP"] = await raw(
        daemon,
        f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {BAD_AUTH}\x01\r\n\r\n".encode(),
    )
    assert " 400 " in answers["broken HTTP"]

    with socket.socket() as unused:  # nobody listens: each delivery fails
        unused.bind(("127.0.0.1", 0))
        receiver = f"http://127.0.0.1:{unused.getsockname()[1]}/hook"
    status, _, made = await daemon.ask(
        *("POST", HOOKS, {"url": receiver, "types": ["*"], "secret": HOOK_SECRET}), headers=admin
    )
    assert (status, made["secret"]) == (201, HOOK_SECRET)
    hook = made["id"]
    answers["hook"] = hook
    await ask(200, "POST", f"{HOOKS}/{hook}/test")
    await ask(200, "PATCH", f"{HOOKS}/{hook}", {"description": "y"})
    await ask(200, "PATCH", path, {"weight": 4})
    return answers


async def _outage(store: Redis, daemon: Registryd, reader: dict[str, str]) -> None:
    """The store changes its password for a moment, and says so of every command."""
    await store.execute_command("CONFIG", "SET", "requirepass", OTHER_REDIS)
    await store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def noticed() -> bool:
        try:
            status, _, _ = await daemon.ask(
                *("PUT", "/services/chat/instances/a/heartbeat"),
                headers={"Authorization": f"Bearer {FILED_KEY}"},
            )
        except aiohttp.ClientError:
            return False
        return status == 503

    await until(noticed)
    await store.execute_command("CONFIG", "SET", "requirepass", REDIS)

    async def back() -> bool:
        try:
            status, head, _ = await daemon.get("/services?consistency=strong", headers=reader)
        except (aiohttp.ClientError, RedisError):
            return False
        return status == 200 and "X-Registry-Stale-Ms" not in head

    await until(back)
