"""S7, S8, S9 and S14: secrets, credentials that do not hold, and other people's services."""

import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from credentials import AUDIENCE, ISSUER, claims, jwk, jwks, rsa_key, token
from guarded import Guarded, request, routes
from processes import Machine
from redis.asyncio import Redis
from tally import Tally
from test_every_route import REFUSED, path_of
from test_security_http import CALM, in_turn

from registryd.auth import apikey
from registryd.auth.apikey import KeySet
from registryd.auth.store import AuthStore
from registryd.kit.clock import SystemClock
from registryd.metrics import Metrics
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.web.caller import Permission, Scope

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

Begin = Callable[[str, str], Tally]


def token_settings(machine: Machine) -> dict[str, str]:
    """The environment of a daemon that believes our issuer's tokens."""
    keys = machine.write("jwks.json", jwks(jwk(rsa_key(), kid="one")))
    return {
        **CALM,
        "REGISTRYD_AUTH__JWT__JWKS_FILE": keys,
        "REGISTRYD_AUTH__JWT__ISSUER": ISSUER,
        "REGISTRYD_AUTH__JWT__AUDIENCE": AUDIENCE,
    }


async def everything(guarded: Guarded) -> dict[str, str]:
    """All that this daemon shows, says and keeps, by where."""
    found = {}
    pages = ("/audit?limit=1000", "/history?limit=1000", "/metrics", "/services?view=instances", "/stats",
             "/health", "/openapi.json", "/readyz?verbose", "/api/v1/webhooks", "/api/v1/registry/health")  # fmt: skip
    for page in pages:
        said = await guarded.ask("GET", page)
        assert said.status == 200, page
        found[page] = said.head + said.body.decode()
    found["log and stdout"] = "\n".join(guarded.daemon.lines)
    proc = Path(f"/proc/{guarded.daemon.process.pid}")
    found["command line"] = (proc / "cmdline").read_text()
    store = Path(f"/proc/{guarded.daemon.store_pid}")
    found["command line of the store"] = (store / "cmdline").read_text()
    for file in guarded.daemon.data_dir.rglob("*"):
        if file.is_file() and not file.is_symlink():
            found[f"file {file.name}"] = file.read_bytes().decode("latin-1")
    async with guarded.daemon.store() as client:
        kept = [f"{key} {await held(client, key)}" async for key in client.scan_iter(count=1000)]
    found["dump of the store"] = "\n".join(kept)
    return found


async def held(client: Redis, key: str) -> object:
    """What the store holds under a key, whatever its type."""
    match await client.type(key):
        case "hash":
            return await client.hgetall(key)
        case "zset":
            return await client.zrange(key, 0, -1)
        case "set":
            return await client.smembers(key)
        case "stream":
            return await client.xrange(key)
        case "list":
            return await client.lrange(key, 0, -1)
        case _:
            return await client.get(key)


async def test_s7_no_secret_is_anywhere(machine: Machine, tally: Begin) -> None:
    row = tally("S7", "secrets in logs, answers, records, store")
    guarded = await Guarded.start(machine, env=token_settings(machine))
    planted = {
        "a malformed header": "hunter2Q7z",
        "a token of ours": token(claims(role="writer")),
        "a token of another": token(claims(), rsa_key(1)),
        **{f"the {role}'s key": key for role, key in guarded.keys.items()},
        **{f"the {role}'s secret": key.split("_")[2] for role, key in guarded.keys.items()},
    }
    heads = [
        "Authorization: {}", "Authorization: Basic {}", "Authorization: Bearer {} {}", "Authorization: Bearer\t{}",
        "Authorization:  Bearer  {}\x01", "Authorization: Bearer {}\0", "Authorization : Bearer {}",
        "X-API-Key: {}", "X-API-Key: {}\x7f", "x-api-key: {}\r\nX-API-Key: {}", "Authorization: Bearer rgd_{}",
        "Authorization: Bearer rgd_aaaaaaaaaa_{}", "Authorization: Bearer {}.{}.{}", "Authorization: Digest {}",
        "Cookie: session={}", "Proxy-Authorization: Basic {}", "X-Consul-Token: {}", "Authorization: \u00e9{}",
        "Authorization: Bearer " + "a" * 9000 + "{}", "Transfer-Encoding: {}", "Content-Length: {}",
    ]  # fmt: skip
    sent = [
        request(method, target, head.replace("{}", value))
        for value in planted.values()
        for head in heads
        for method, target in (
            ("GET", "/services"),
            ("PUT", "/services/chat/instances/a/heartbeat"),
        )
    ]
    sent += [
        request(
            "GET", f"/services?{name}={value}", f"Authorization: Bearer {guarded.keys['reader']}"
        )
        for name in ("access_token", "token", "api_key", "apikey")
        for value in planted.values()
    ]
    said = await in_turn(guarded, sent)
    registered = {"name": "chat", "endpoint": "http://10.0.0.1", "instanceId": "a"}
    for key in ("writer", "admin"):
        await guarded.ask("POST", "/services", registered, key=key)
    made = await guarded.ask(
        "POST", "/api/v1/webhooks", {"url": "http://10.0.0.1/", "types": ["*"]}
    )
    hook = made.json["secret"]
    await guarded.ask("POST", "/cleanup", key="reader")
    await guarded.ask("POST", "/cleanup")
    await asyncio.sleep(1)  # the record is written twice a second
    places = await everything(guarded)
    places["answers to what was refused"] = "".join(
        one.head + one.body.decode("latin-1") for one in said if one.status >= 400
    )
    assert sum(one.status >= 400 for one in said) > 200
    for what, value in planted.items():
        for where, text in places.items():
            row.judge(value not in text, 200, f"{what} in {where}")
    for where, text in places.items():
        # The store, and its files, have to hold it: it signs.
        allowed = where == "dump of the store" or where.startswith("file ")
        row.judge(hook not in text or allowed, 200, f"a webhook's secret in {where}")
    row.measured |= {"requests": len(sent), "places": len(places)}
    row.measured["deeper"] = "make drill NAME=fuzz"
    row.crashed += len(guarded.tracebacks()) + sum(one.status in {0, 500} for one in said)
    row.check()


async def test_s8_no_route_opens_to_what_does_not_hold(machine: Machine, tally: Begin) -> None:
    row = tally("S8", "every route x every credential")
    env = {**token_settings(machine), "REGISTRYD_LIMITS__ENABLED": "false"}
    kinds = ("reader", "writer", "admin", "admin other-")
    guarded = await Guarded.start(machine, env=env, keys=kinds)
    connection = Connection(guarded.daemon.store_url, Metrics())
    try:
        store = AuthStore(connection, Keys())
        refused = {name: await make(store) for name, make in REFUSED.items()}
    finally:
        await connection.close()
    columns: dict[str, tuple[list[str], int]] = {
        name: ([f"{field}: {value}" for field, value in headers.items()], 401)
        for name, headers in refused.items()
    }
    for kind in kinds[:2]:
        columns[f"{kind}'s key"] = ([f"X-API-Key: {guarded.keys[kind]}"], 403)
        columns[f"{kind}'s token"] = ([f"Authorization: Bearer {token(claims(role=kind))}"], 403)
    columns["token without a role"] = ([f"Authorization: Bearer {token(claims(role=None))}"], 401)
    columns["two that disagree"] = (
        [f"X-API-Key: {guarded.keys['reader']}", f"Authorization: Bearer {guarded.keys['admin']}"], 401,
    )  # fmt: skip
    columns["admin of others"] = ([f"X-API-Key: {guarded.keys['admin other-']}"], 403)
    wanted = []
    for route in routes():
        for name, (lines, status) in columns.items():
            if route.permission is Permission.OPEN:
                continue
            role = name.partition("'")[0].upper()
            if role in {"READER", "WRITER"} and route.permission <= Permission[role]:
                continue
            if name == "admin of others" and route.scope not in {Scope.NAMED, Scope.WHOLE}:
                continue  # what narrows: tests/registry/test_scopes_everywhere.py
            wanted.append((route, name, lines, status))
    said = await in_turn(
        guarded,
        [
            request(
                route.method, path_of(route), *lines, body=b"{}" if route.body is not None else b""
            )
            for route, _, lines, _ in wanted
        ],
    )
    for (route, name, _, status), answer in zip(wanted, said, strict=True):
        # A token that may do nothing is known and not allowed, or not known: both refuse.
        right = answer.status == status or (name == "token without a role" and answer.status == 403)
        row.judge(right, answer.status, f"{name}: {route.method} {route.path}")
    row.measured |= {
        "routes": len({route.operation_id for route, *_ in wanted}),
        "credentials": len(columns),
        **{str(status): count for status, count in sorted(Counter(s.status for s in said).items())},
    }
    row.crashed += len(guarded.tracebacks())
    row.check()


async def test_s9_keys_are_compared_in_constant_work(guarded: Guarded, tally: Begin) -> None:
    row = tally("S9", "comparison of keys")
    now = SystemClock().now()
    text, key = apikey.make(Permission.READER, (), name="", now=now, expires_at=None)
    other, _ = apikey.make(Permission.READER, (), name="", now=now, expires_at=None)
    body = text[:15] + other[15:58]  # an id that exists, with the secret of another
    near = body + apikey._check(body)
    known = KeySet({key.id: key})

    def compared(shown: str) -> list[tuple[str, bool]]:
        """Which comparisons and digests one look-up makes, by what Python tells a profiler."""
        seen: list[str] = []

        def watch(_frame: object, event: str, called: object) -> None:
            name = getattr(called, "__name__", "")
            if event == "c_call" and ("compare_digest" in name or "sha256" in name):
                seen.append(name)

        sys.setprofile(watch)
        try:
            found = known.find(shown)
        finally:
            sys.setprofile(None)
        return [(name, found is not None) for name in seen]

    made = {
        what: compared(shown)
        for what, shown in {"right": text, "unknown": other, "near": near}.items()
    }
    work = {what: [name for name, _ in calls] for what, calls in made.items()}
    for what in work:
        row.judge(
            work[what] == work["right"] and len(work[what]) == 2, 200, f"{what}: {work[what]}"
        )
    assert made["right"][0][1]
    row.judge(not made["unknown"][0][1] and not made["near"][0][1], 200, "a wrong key was found")
    # What can be seen from outside, for the record: no assertion.
    real = guarded.keys["reader"]
    body = real[:15] + other[15:58]
    shown = {"unknown id": other, "known id": body + apikey._check(body)}
    times: dict[str, list[float]] = {what: [] for what in shown}
    for _ in range(25):  # below the limit of refusals of an address
        for what, value in shown.items():
            began = time.perf_counter()
            said = await guarded.tell(request("GET", "/services", f"X-API-Key: {value}"))
            times[what].append((time.perf_counter() - began) * 1000)
            row.judge(said.status == 401, said.status, what)
    row.measured |= {
        f"{what}, median ms": round(statistics.median(t), 1) for what, t in times.items()
    }
    row.check()


async def test_s14_nobody_touches_the_services_of_others(machine: Machine, tally: Begin) -> None:
    row = tally("S14", "tenants")
    kinds = ("writer team-a-", "writer team-b-", "admin team-a-", "admin")
    guarded = await Guarded.start(machine, env=CALM, keys=kinds)
    theirs = {
        "name": "team-b-shop",
        "endpoint": "http://10.0.0.2",
        "instanceId": "b",
        "incarnation": "first",
        "healthCheck": None,
    }
    assert (await guarded.ask("POST", "/services", theirs, key="writer team-b-")).status == 201
    before = (await guarded.ask("GET", "/services/team-b-shop/instances/b")).json
    at = "/services/team-b-shop"
    one = f"{at}/instances/b"
    changed = {**theirs, "endpoint": "http://10.6.6.6"}
    beat = {"name": "team-b-shop", "instanceId": "b"}
    legacy = {"service_name": "team-b-shop", "service_url": "http://10.6.6.6", "instance_id": "b"}
    tries: list[tuple[str, str, object]] = [
        ("POST", "/services", changed), ("PUT", one, changed), ("PATCH", one, {"weight": 2}),
        ("PUT", at, {"weight": 2}), ("DELETE", at, None), ("DELETE", one, None),
        ("DELETE", f"{one}?drainSeconds=1", None), ("DELETE", f"{one}?incarnation=first", None),
        ("PUT", f"{one}/heartbeat", None), ("PUT", f"{at}/heartbeat", None),
        ("PUT", f"{one}/heartbeat", {"status": "unhealthy"}), ("PUT", "/heartbeats", {"heartbeats": [beat]}),
        ("PUT", f"{one}/maintenance", {"enabled": True}), ("PUT", f"{at}/maintenance", {"enabled": True}),
        ("PUT", f"{one}/drain", {"seconds": 1}), ("POST", f"{at}/check", None), ("POST", f"{one}/check", None),
        ("POST", "/register", legacy),
        ("POST", "/deregister?service_name=team-b-shop&instance_id=b", None),
        ("GET", at, None), ("GET", one, None), ("GET", f"{at}/url", None), ("GET", f"{at}/health", None),
        ("GET", "/discover/team-b-shop", None), ("GET", "/history?service=team-b-shop", None),
        ("GET", "/explain?service=team-b-shop", None), ("GET", "/watch?service=team-b-shop", None),
        ("GET", "/events?service=team-b-shop", None), ("GET", "/audit", None), ("POST", "/cleanup?force=true", None),
        ("PUT", "/monitoring", {"enabled": False}),
        ("POST", "/api/v1/webhooks", {"url": "http://10.6.6.6/", "types": ["*"]}),
        # Names like, but not within, the prefix.
        ("POST", "/services", {"name": "team-a", "endpoint": "http://10.6.6.6"}),
        ("POST", "/services", {"name": "Team-A-x", "endpoint": "http://10.6.6.6"}),
        ("POST", "/services", {"name": "xteam-a-", "endpoint": "http://10.6.6.6"}),
        ("PUT", "/services/team-a-x/instances/b", {**changed, "name": "team-b-shop"}),
        ("PUT", "/services/team%2Da-x/instances/../../team-b-shop/instances/b", changed),
    ]  # fmt: skip
    for kind in ("writer team-a-", "admin team-a-"):
        for method, path, body in tries:
            said = await guarded.ask(method, path, body, key=kind)
            refused = said.status in ({403, 422} if "team-a" in path or "team%" in path else {403})
            refused = refused or ("%2D" in path and said.status == 404)
            row.judge(refused, said.status, f"{kind}: {method} {path}")
            assert b"10.0.0.2" not in said.body
    for path in (
        "/services?view=instances",
        "/services?name=shop",
        "/stats",
        "/capabilities",
        "/history",
    ):
        said = await guarded.ask("GET", path, key="writer team-a-")
        row.judge(b"team-b" not in said.body and said.status == 200, said.status, path)
    # Within one team a predecessor is fenced out by the incarnation.
    await guarded.ask("PUT", one, {**theirs, "incarnation": "second"}, key="writer team-b-")
    for method, path, body in (
        ("PUT", f"{one}/heartbeat", {"incarnation": "first"}),
        ("DELETE", f"{one}?incarnation=first", None),
    ):
        said = await guarded.ask(method, path, body, key="writer team-b-")
        row.judge(said.status == 409, said.status, f"a predecessor: {method} {path}")
    after = (await guarded.ask("GET", "/services/team-b-shop/instances/b")).json
    same = {
        field: after[field] == before[field]
        for field in ("endpoint", "registeredAt", "health", "weight")
    }
    row.judge(all(same.values()), 200, f"the instance has changed: {same}")
    row.measured["foreign keys"] = 2
    row.crashed += len(guarded.tracebacks())
    row.check()
