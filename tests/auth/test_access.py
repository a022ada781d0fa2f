"""Who is let in by which credential, and how it is remembered."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from credentials import AUDIENCE, ISSUER, MovedClock, claims, jwk, jwks, rsa_key, token
from multidict import CIMultiDict, CIMultiDictProxy

from registryd.auth import apikey, jwt
from registryd.auth.access import REMEMBERED_FOR, Anonymous, RequiredAccess
from registryd.auth.certificates import CertificateRule, subject
from registryd.auth.journal import MOST_LINES, MOST_WAITING, Journal
from registryd.auth.jwks import FixedKeys, Tokens
from registryd.auth.keyring import Keyring
from registryd.auth.store import AuthStore, Entry
from registryd.auth.types import ApiKey, Reason, Rejected
from registryd.errors import StorageUnavailable
from registryd.kit.outbound import networks
from registryd.metrics import Metrics
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.web.access import Attempt
from registryd.web.caller import Peer, Permission

HERE = Peer("10.0.0.7")
CERTIFICATE = {"subject": ((("commonName", "billing"),),), "notAfter": "Jan  2 00:00:00 2030 GMT"}


class Wired:
    """An access with its parts, over the store of the test."""

    def __init__(self, connection: Connection, keys: Keys, metrics: Metrics) -> None:
        self.clock = MovedClock()
        self.metrics = metrics
        self.store = AuthStore(connection, keys)
        self.keyring = Keyring(self.store, self.clock)
        self.journal = Journal(self.store, metrics, self.clock)
        rules = jwt.JwtRules(issuer=ISSUER, audience=(AUDIENCE,), algorithms=("RS256",))
        self.source = FixedKeys(jwt.of_jwks(jwks(jwk(rsa_key(), kid="one"))))
        self.access = RequiredAccess(
            self.keyring,
            self.journal,
            metrics,
            self.clock,
            tokens=Tokens(self.source, rules, self.clock),
            certificates=[CertificateRule(Permission.WRITER, subject("CN=billing"))],
            anonymous=Anonymous(Permission.READER, networks(["192.168.0.0/16", "::1/128"])),
        )
        self.keyring.changed = self.access.forget

    async def key(self, role: Permission = Permission.WRITER, **more: Any) -> tuple[str, ApiKey]:
        fields: dict[str, Any] = {"name": "", "now": self.clock.now(), "expires_at": None, **more}
        text, key = apikey.make(role, fields.pop("prefixes", ()), **fields)
        await self.store.put(key, self.clock.now())
        await self.keyring.turn()
        return text, key

    async def refused(self, headers: Mapping[str, str], peer: Peer = HERE) -> Reason:
        before = self.denied()
        with pytest.raises(Rejected) as caught:
            await self.access.identify(headers, peer)
        assert self.access.known(headers, peer) is None
        assert self.denied() == before + 1
        for word in " ".join(headers.values()).removeprefix("Bearer").split():
            assert word not in caught.value.detail
        return caught.value.reason

    def denied(self) -> float:
        [family] = self.metrics.access_denied.collect()
        return sum(one.value for one in family.samples if one.name.endswith("_total"))


@pytest.fixture
def wired(connection: Connection, keys: Keys, metrics: Metrics) -> Wired:
    return Wired(connection, keys, metrics)


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def test_a_key_is_taken_from_either_header_and_then_known(wired: Wired) -> None:
    text, key = await wired.key()
    for headers in (bearer(text), {"x-api-key": text}, {"authorization": f"bearer  {text}"}):
        caller = await wired.access.identify(headers, HERE)
        assert (caller.name, caller.role) == (f"key:{key.id}", Permission.WRITER)
        assert wired.access.known(headers, HERE) is caller
    assert wired.keyring.used == {key.id}


async def test_both_lanes_read_the_same_headers(wired: Wired) -> None:
    text, _ = await wired.key()
    long = CIMultiDictProxy(CIMultiDict([("Authorization", f"Bearer {text}"), ("Accept", "*/*")]))
    caller = await wired.access.identify(long, HERE)
    assert wired.access.known(bearer(text) | {"host": "x"}, HERE) is caller


async def test_a_header_that_stands_twice_is_refused(wired: Wired) -> None:
    text, _ = await wired.key()
    await wired.access.identify(bearer(text), HERE)
    twice = CIMultiDictProxy(CIMultiDict([("Authorization", f"Bearer {text}")] * 2))
    assert await wired.refused(twice) is Reason.MALFORMED


async def test_a_known_key_that_is_revoked_is_unknown_at_once(wired: Wired) -> None:
    text, key = await wired.key()
    await wired.access.identify(bearer(text), HERE)
    await wired.store.revoke(key.id, wired.clock.now())
    await wired.keyring.turn()
    assert wired.access.known(bearer(text), HERE) is None
    assert await wired.refused(bearer(text)) is Reason.REVOKED


async def test_a_key_revoked_while_it_is_looked_at_is_not_remembered(wired: Wired) -> None:
    text, key = apikey.make(Permission.READER, (), name="", now=wired.clock.now(), expires_at=None)
    await wired.store.put(key, wired.clock.now())
    await wired.keyring.load()

    class Revoking:
        async def verify(self, token: str) -> jwt.Verified:
            access.forget()
            return jwt.Verified(key.caller)

    access = RequiredAccess(
        wired.keyring, wired.journal, wired.metrics, wired.clock, tokens=Revoking()
    )
    headers = bearer("a.b.c") | {"x-api-key": text}
    await access.identify(headers, HERE)
    assert access.known(headers, HERE) is None


async def test_a_credential_is_known_no_longer_than_it_holds_and_never_for_long(
    wired: Wired,
) -> None:
    short, _ = await wired.key(expires_at=wired.clock.now() + timedelta(seconds=10))
    lasting = token(claims(wired.clock.now(), exp=wired.clock.now().timestamp() + 3600))
    for text in (short, lasting):
        await wired.access.identify(bearer(text), HERE)
    wired.clock.move(timedelta(seconds=10))
    assert wired.access.known(bearer(short), HERE) is None
    assert await wired.refused(bearer(short)) is Reason.EXPIRED
    assert wired.access.known(bearer(lasting), HERE) is not None
    wired.clock.move(REMEMBERED_FOR)
    assert wired.access.known(bearer(lasting), HERE) is None


async def test_a_key_in_memory_is_known_at_once_if_it_holds_and_comes_alone(wired: Wired) -> None:
    text, key = await wired.key(expires_at=wired.clock.now() + 2 * REMEMBERED_FOR)
    other, revoked = await wired.key()
    await wired.store.revoke(revoked.id, wired.clock.now())
    await wired.keyring.turn()
    for headers in (bearer(text), {"x-api-key": text}):
        caller = wired.access.known(headers, HERE)
        assert caller is not None
        assert caller.name == f"key:{key.id}"
        wired.clock.move(REMEMBERED_FOR / 2)
    assert wired.keyring.used == {key.id}
    for headers in ({}, bearer(other), bearer("x"), bearer(text) | {"x-api-key": other}):
        assert wired.access.known(headers, HERE) is None
    assert wired.access.known(bearer(text), Peer("10.0.0.7", CERTIFICATE)) is None
    wired.clock.move(REMEMBERED_FOR)
    assert wired.access.known(bearer(text), HERE) is None


async def test_a_key_made_a_moment_ago_is_found_without_waiting(wired: Wired) -> None:
    await wired.keyring.load()
    text, key = apikey.make(Permission.READER, (), name="", now=wired.clock.now(), expires_at=None)
    await wired.store.put(key, wired.clock.now())
    assert (await wired.access.identify(bearer(text), HERE)).name == f"key:{key.id}"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, Reason.MISSING),
        ({"authorization": "Bearer"}, Reason.MALFORMED),
        ({"authorization": "Bearer hunter2 hunter2"}, Reason.MALFORMED),
        ({"authorization": "Basic aHVudGVyMg=="}, Reason.MALFORMED),
        ({"authorization": "hunter2"}, Reason.MALFORMED),
        ({"authorization": "Bearer hunter2"}, Reason.UNKNOWN),
        ({"authorization": "Bearer rgd_hunter2"}, Reason.MALFORMED),
        ({"x-api-key": "hunter2"}, Reason.UNKNOWN),
        ({"x-api-key": token(claims())}, Reason.UNKNOWN),
    ],
)
async def test_what_does_not_hold_is_refused_counted_and_not_quoted(
    wired: Wired, headers: dict[str, str], reason: Reason
) -> None:
    assert await wired.refused(headers) is reason


async def test_a_token_is_known_until_it_expires_or_its_keys_change(wired: Wired) -> None:
    headers = bearer(token(claims(wired.clock.now(), exp=wired.clock.now().timestamp() - 20)))
    caller = await wired.access.identify(headers, HERE)
    assert wired.access.known(headers, HERE) is caller
    wired.clock.move(timedelta(seconds=10))
    assert wired.access.known(headers, HERE) is None
    assert await wired.refused(headers) is Reason.EXPIRED


async def test_a_certificate_is_a_credential_where_a_rule_names_it(wired: Wired) -> None:
    peer = Peer("10.0.0.7", CERTIFICATE)
    caller = await wired.access.identify({}, peer)
    assert (caller.name, caller.role) == ("cert:billing", Permission.WRITER)
    assert wired.access.known({}, Peer("10.0.0.8", dict(CERTIFICATE))) is caller
    other = Peer("10.0.0.7", {"subject": ((("commonName", "other"),),)})
    assert await wired.refused({}, other) is Reason.MISSING
    wired.clock.move(timedelta(days=1))
    assert await wired.refused({}, peer) is Reason.EXPIRED


async def test_two_credentials_have_to_agree_and_both_to_hold(wired: Wired) -> None:
    writer, key = await wired.key()
    admin, _ = await wired.key(Permission.ADMIN)
    limited, _ = await wired.key(prefixes=("a-",))
    both = bearer(writer) | {"x-api-key": writer}
    assert (await wired.access.identify(both, HERE)).name == f"key:{key.id}"
    peer = Peer("10.0.0.7", CERTIFICATE)
    assert (await wired.access.identify(bearer(writer), peer)).name == f"key:{key.id}"
    for other in (admin, limited):
        assert await wired.refused(bearer(writer) | {"x-api-key": other}) is Reason.CONFLICT
        assert await wired.refused(bearer(other), peer) is Reason.CONFLICT
    assert await wired.refused(bearer(writer) | {"x-api-key": "wrong"}) is Reason.UNKNOWN
    # A key that is known does not lend its place to a certificate, or to a wrong second one.
    await wired.access.identify(bearer(writer), HERE)
    assert wired.access.known(bearer(writer) | {"x-api-key": "wrong"}, HERE) is None


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("192.168.3.4", True),
        ("::ffff:192.168.3.4", True),
        ("::1", True),
        ("::1%lo", True),
        ("10.0.0.7", False),
        ("::2", False),
        ("unknown", False),
    ],
)
async def test_without_a_credential_the_network_decides(
    wired: Wired, address: str, inside: bool
) -> None:
    peer = Peer(address)
    if not inside:
        assert await wired.refused({}, peer) is Reason.MISSING
        return
    caller = await wired.access.identify({}, peer)
    assert (caller.name, caller.role) == ("anonymous", Permission.READER)
    assert wired.access.known({}, peer) is caller
    assert wired.access.known({}, HERE) is None, "others are not let in by it"
    assert await wired.refused(bearer("wrong"), peer) is Reason.UNKNOWN


async def test_without_tokens_switched_on_none_is_believed(wired: Wired) -> None:
    wired.access = RequiredAccess(wired.keyring, wired.journal, wired.metrics, wired.clock)
    assert await wired.refused(bearer(token(claims(wired.clock.now())))) is Reason.UNKNOWN


# --- the record


def attempt(number: int = 0, outcome: str = "forbidden", detail: str = "no") -> Attempt:
    return Attempt("key:a@10.0.0.7", f"r-{number}", "GET", "/services", outcome, detail)


async def test_denials_alike_become_one_entry_and_deeds_stay_apart(wired: Wired) -> None:
    for number in range(5):
        wired.access.note(attempt(number))
        wired.access.note(attempt(number, "done", ""))
    assert wired.denied() == 5
    await wired.journal.turn()
    found = await wired.store.recorded(100)
    denied = [one for one in found if one["outcome"] == "forbidden"]
    assert [(one["count"], one["requestId"], one["by"]) for one in denied] == [
        (5, "r-0", "key:a@10.0.0.7")
    ]
    assert sorted(one["requestId"] for one in found if one["outcome"] == "done") == [
        f"r-{number}" for number in range(5)
    ]


async def test_a_flood_of_denials_fills_neither_log_nor_memory(
    wired: Wired, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(MOST_WAITING + 10):
        wired.access.note(attempt(detail=str(number)))
    await wired.journal.turn()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == MOST_LINES + 1
    assert f"count={MOST_WAITING - MOST_LINES}" in lines[-1]
    assert wired.metrics.registry.get_sample_value("registryd_access_entries_lost_total") == 10


async def test_what_the_store_would_not_take_is_written_later(
    wired: Wired, connection: Connection, keys: Keys
) -> None:
    class Leaving(AuthStore):
        away = True

        async def record(self, entries: Iterable[Entry]) -> None:
            if self.away:
                raise StorageUnavailable("it is away")
            await super().record(entries)

    store = Leaving(connection, keys)
    journal = Journal(store, wired.metrics, wired.clock)
    journal.add(attempt())
    await journal.turn()
    store.away = False
    await journal.turn()
    await journal.turn()
    assert len(await store.recorded(10)) == 1
