"""Every route of a real daemon against every credential that does not hold, from its own route table."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from credentials import AUDIENCE, ISSUER, claims, forged, jwk, jwks, pem, rsa_key, token
from daemons import Answer, Api, eventually, running

from registryd.auth import apikey
from registryd.auth.store import AuthStore
from registryd.auth.types import ROLES
from registryd.kit.clock import SystemClock
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.web.caller import Permission
from registryd.web.router import template
from registryd.web.routing import Route

PREFIX = "access"
LIFE = timedelta(hours=1)
VALUES = ("chat-1", "wh_0123456789abcdef", "7")
"""Each parameter of a path takes one of these."""


async def new_key(store: AuthStore, role: str = "writer", life: timedelta | None = LIFE) -> str:
    now = SystemClock().now()
    text, key = apikey.make(
        ROLES[role], (), name="", now=now, expires_at=None if life is None else now + life
    )
    await store.put(key, now)
    return text


@pytest.fixture
def auth_store(connection: Connection) -> AuthStore:
    return AuthStore(connection, Keys(PREFIX))


@pytest.fixture
async def guarded(connection: Connection, store_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    """A daemon that demands credentials, and accepts keys and tokens."""
    keys = tmp_path / "jwks.json"
    keys.write_text(jwks(jwk(rsa_key(), kid="one")))
    auth = {
        "mode": "required",
        "jwt": {"jwksFile": keys, "issuer": ISSUER, "audience": AUDIENCE, "algorithms": ["RS256"]},
    }
    async with running(store_url, PREFIX, tmp_path, auth=auth) as api:
        yield api


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def path_of(route: Route) -> str:
    """Its path with a value in the place of each parameter."""

    def value(part: str) -> str:
        pattern = route.segments.get(part[1:-1])
        return next(one for one in VALUES if pattern is None or pattern.fullmatch(one))

    parts = template(route).split("/")
    return "/".join(value(part) if part.startswith("{") else part for part in parts)


async def ask(api: Api, route: Route, headers: dict[str, str]) -> Answer:
    body: object = {} if route.body is not None else None
    return await api(route.method, path_of(route), body, headers=headers)


Credential = Callable[[AuthStore], Any]


async def expired_key(store: AuthStore) -> dict[str, str]:
    return bearer(await new_key(store, "admin", -LIFE))


async def revoked_key(store: AuthStore) -> dict[str, str]:
    text = await new_key(store, "admin")
    await store.revoke(text.split("_")[1], SystemClock().now())
    return bearer(text)


async def unknown_key(store: AuthStore) -> dict[str, str]:
    text, _ = apikey.make(Permission.ADMIN, (), name="", now=SystemClock().now(), expires_at=None)
    return bearer(text)


def given(headers: dict[str, str]) -> Credential:
    async def made(store: AuthStore) -> dict[str, str]:
        return headers

    return made


ADMIN = {"role": "admin"}
REFUSED: dict[str, Credential] = {
    "no key": given({}),
    "wrong key": unknown_key,
    "expired key": expired_key,
    "revoked key": revoked_key,
    "alg none": given(bearer(forged(claims(**ADMIN), {"alg": "none", "kid": "one"}))),
    "HS256 with the public key": given(
        bearer(forged(claims(**ADMIN), {"alg": "HS256", "kid": "one"}, pem(rsa_key()).encode()))
    ),
    "wrong aud": given(bearer(token(claims(**ADMIN, aud="other")))),
    "wrong iss": given(bearer(token(claims(**ADMIN, iss="https://evil.example")))),
    "expired token": given(bearer(token(claims(**ADMIN, exp=time.time() - 3600)))),
    "other key": given(bearer(token(claims(**ADMIN), rsa_key(1)))),
    "kid with a path": given(bearer(token(claims(**ADMIN), kid="../../../../dev/null"))),
    "malformed": given({"Authorization": "hunter2"}),
    "basic": given({"Authorization": "Basic aHVudGVyMg=="}),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", REFUSED)
async def test_no_route_but_the_open_ones_answers_to_what_does_not_hold(
    guarded: Api, auth_store: AuthStore, name: str
) -> None:
    headers = await REFUSED[name](auth_store)
    routes = [one for one in guarded.daemon.table if one.permission is not Permission.OPEN]
    answers = await asyncio.gather(*(ask(guarded, route, headers) for route in routes))
    for route, answer in zip(routes, answers, strict=True):
        where = f"{route.method} {path_of(route)}"
        assert answer.status == 401, f"{where}: {answer.body!r}"
        assert answer.problem["code"] == "unauthenticated", where
        assert answer.headers["WWW-Authenticate"].startswith("Bearer"), where
        for value in headers.values():
            assert value not in answer.body.decode(), where
    assert len(routes) > 30


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["key", "token"])
@pytest.mark.parametrize("role", ["reader", "writer"])
async def test_no_route_answers_to_a_lower_role_than_its_own(
    guarded: Api, auth_store: AuthStore, role: str, kind: str
) -> None:
    text = await new_key(auth_store, role) if kind == "key" else token(claims(role=role))
    asked = 0
    for route in guarded.daemon.table:
        if route.permission > ROLES[role]:
            answer = await ask(guarded, route, bearer(text))
            assert answer.status == 403, f"{route.method} {path_of(route)}: {answer.body!r}"
            asked += 1
    assert asked >= 3


@pytest.mark.parametrize("kind", ["key", "token"])
async def test_each_role_does_what_it_is_for(
    guarded: Api, auth_store: AuthStore, kind: str
) -> None:
    async def of(role: str) -> dict[str, str]:
        return bearer(
            await new_key(auth_store, role) if kind == "key" else token(claims(role=role))
        )

    body = {"name": "chat", "endpoint": "http://10.0.0.1:1", "instanceId": "a"}
    assert (await guarded("POST", "/services", body, headers=await of("writer"))).status == 201
    assert (await guarded("GET", "/services", headers=await of("reader"))).status == 200
    assert (await guarded("GET", "/audit", headers=await of("admin"))).status == 200


@pytest.mark.parametrize(
    "line", [b"Authorization: Bearer \xff", b"Authorization: Bearer a.b.\xff", b"X-API-Key: \xff"]
)
async def test_a_credential_of_bytes_that_are_no_text_is_refused(guarded: Api, line: bytes) -> None:
    reader, writer = await asyncio.open_connection(*guarded.daemon.addresses[0])
    writer.write(
        b"GET /services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n\r\n" % line
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_the_open_routes_ask_nobody(guarded: Api) -> None:
    for path in ("/health", "/livez", "/readyz"):
        assert (await guarded("GET", path, headers={"Authorization": "hunter2"})).status == 200


async def test_a_key_works_at_once_and_a_revoked_one_stops_within_a_second(
    guarded: Api, auth_store: AuthStore
) -> None:
    text = await new_key(auth_store)
    assert (await guarded("GET", "/services", headers=bearer(text))).status == 200
    await auth_store.revoke(text.split("_")[1], SystemClock().now())

    async def refused() -> bool:
        return (await guarded("GET", "/services", headers=bearer(text))).status == 401

    await eventually(refused, within=1.0)


async def test_a_heartbeat_with_a_key_makes_no_call_but_the_renewal(
    guarded: Api, auth_store: AuthStore, connection: Connection
) -> None:
    headers = bearer(await new_key(auth_store))
    body = {"name": "chat", "endpoint": "http://10.0.0.1:1", "instanceId": "a"}
    await guarded("POST", "/services", body, headers=headers)
    reader, writer = await asyncio.open_connection(*guarded.daemon.addresses[0])
    beat = (
        "PUT /services/chat/instances/a/heartbeat HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: {headers['Authorization']}\r\n\r\n"
    ).encode()

    async def commands() -> dict[str, int]:
        stats = await connection.call("INFO", "commandstats")
        return {name: told["calls"] for name, told in stats.items()}

    await guarded.daemon.supervisor.stop()  # the loops have calls of their own
    before = await commands()
    for _ in range(50):
        writer.write(beat)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
    after = await commands()
    writer.close()
    await writer.wait_closed()
    made = {name: after[name] - before.get(name, 0) for name in after}
    assert made["cmdstat_evalsha"] == 50
    # What the script does is counted beside it: of keys nothing is read, and all of it is the script's.
    assert made.get("cmdstat_hget", 0) == made.get("cmdstat_hgetall", 0) == 0, made
    tally = guarded.daemon.metrics.http.of("/services/{name}/instances/{id}/heartbeat")
    assert tally.answers["PUT", 200] == 50


async def test_a_credential_in_the_url_is_refused_and_a_hash_key_is_none(
    guarded: Api, auth_store: AuthStore, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = bearer(await new_key(auth_store))
    for name in ("access_token", "api_key", "apikey", "token", "TOKEN"):
        for path in ("/services", "/services/chat/url", "/audit"):
            answer = await guarded("GET", f"{path}?{name}=hunter2", headers=headers)
            assert answer.status == 400
            assert "Authorization" in answer.problem["detail"]
            assert b"hunter2" not in answer.body
    body = {"name": "chat", "endpoint": "http://10.0.0.1:1", "health": {"status": "healthy"}}
    await guarded("POST", "/services", body, headers=headers)
    chosen = await guarded(
        "GET", "/services/chat/url?strategy=consistent&key=user-7", headers=headers
    )
    assert chosen.status == 200
    assert "hunter2" not in "".join(capsys.readouterr())


async def test_no_secret_comes_back_or_into_the_log(
    guarded: Api, auth_store: AuthStore, capsys: pytest.CaptureFixture[str]
) -> None:
    text, strange = await new_key(auth_store), token(claims(), rsa_key(1))
    await guarded("GET", "/audit", headers=bearer(text))
    for value in (f"Bearer {strange}", "Bearer hunter2 hunter2", "hunter2", f"Basic {text}"):
        answer = await guarded("GET", "/services", headers={"Authorization": value})
        assert answer.status == 401
        assert value.split()[-1] not in answer.body.decode()
    reader, writer = await asyncio.open_connection(*guarded.daemon.addresses[0])
    writer.write(
        b"GET /services HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer hunter2\x01\x00\r\n\r\n"
    )
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert said.startswith(b"HTTP/1.1 400")
    await guarded.daemon.journal.turn()
    recorded = str(await auth_store.recorded(100))
    logged = "".join(capsys.readouterr())
    assert "access denied" in logged
    for secret in (text, text.split("_")[2], strange, "hunter2"):
        assert secret not in said.decode() + logged + recorded


async def test_an_admin_reads_who_was_refused_and_what_admins_did(
    guarded: Api, auth_store: AuthStore
) -> None:
    admin, reader = await new_key(auth_store, "admin"), await new_key(auth_store, "reader")
    await guarded("GET", "/services")
    await guarded("POST", "/cleanup", headers=bearer(reader))
    assert (await guarded("POST", "/cleanup", headers=bearer(admin))).status == 200

    async def told() -> list[tuple[str, str, str]]:
        answer = await guarded("GET", "/api/v1/registry/audit?limit=1000", headers=bearer(admin))
        return [(one["outcome"], one["by"], one["path"]) for one in answer.json["entries"]]

    async def complete() -> bool:
        return {
            ("unauthenticated", "anonymous@127.0.0.1", "/services"),
            ("forbidden", f"key:{reader.split('_')[1]}@127.0.0.1", "/cleanup"),
            ("done", f"key:{admin.split('_')[1]}@127.0.0.1", "/cleanup"),
        } <= set(await told())

    await eventually(complete)
    newest = await guarded("GET", "/audit?limit=1", headers=bearer(admin))
    assert len(newest.json["entries"]) == 1
    for limit in ("0", "1001", "x"):
        answer = await guarded("GET", f"/audit?limit={limit}", headers=bearer(admin))
        assert answer.status == 400


async def test_denials_are_counted_by_reason(guarded: Api, auth_store: AuthStore) -> None:
    reader = await new_key(auth_store, "reader")
    await guarded("GET", "/services")
    await guarded("POST", "/cleanup", headers=bearer(reader))
    figures = (await guarded("GET", "/metrics", headers=bearer(reader))).body.decode()
    assert 'registryd_access_denied_total{reason="missing"} 1.0' in figures
    assert 'registryd_access_denied_total{reason="forbidden"} 1.0' in figures


async def test_what_was_noted_last_is_written_when_the_daemon_stops(
    connection: Connection, auth_store: AuthStore, store_url: str, tmp_path: Path
) -> None:
    text = await new_key(auth_store)
    async with running(store_url, PREFIX, tmp_path, auth={"mode": "required"}) as api:
        assert (await api("GET", "/services", headers=bearer(text))).status == 200
        await api("GET", "/services")
    assert [one["outcome"] for one in await auth_store.recorded(10)] == ["unauthenticated"]
    assert (await auth_store.last_used()).keys() == {text.split("_")[1]}


async def test_who_guesses_keys_at_an_address_shuts_no_holder_of_a_key_out(
    connection: Connection, auth_store: AuthStore, store_url: str, tmp_path: Path
) -> None:
    limits = {"perAddress": {"deniedPerMinute": 1}}
    async with running(
        store_url, PREFIX, tmp_path, auth={"mode": "required"}, limits=limits
    ) as api:
        headers = bearer(await new_key(auth_store))
        body = {"name": "chat", "endpoint": "http://10.0.0.1:1", "instanceId": "a"}
        assert (await api("POST", "/services", body, headers=headers)).status == 201
        guesses = [(await api("GET", "/services")).status for _ in range(3)]
        assert guesses[-1] == 429
        # Another key is made: every caller is verified anew.
        late = bearer(await new_key(auth_store))
        await api.daemon.keyring.turn()
        for known in (headers, late):
            beat = await api("PUT", "/services/chat/instances/a/heartbeat", headers=known)
            assert beat.status == 200
        assert (await api("GET", "/services")).status == 429
