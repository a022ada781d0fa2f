"""Keys of tokens that are fetched: how often, and what a failure changes."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from credentials import AUDIENCE, ISSUER, MovedClock, claims, jwk, jwks, rsa_key, token
from peers import answer, answering

from registryd.auth import jwt
from registryd.auth.jwks import FileKeys, RemoteKeys, Tokens
from registryd.auth.types import Rejected
from registryd.auth.watched import WatchedFile
from registryd.errors import OutboundFailed
from registryd.kit.outbound import EgressPolicy, Outbound, OutboundReply
from registryd.metrics import Metrics

ONE = jwks(jwk(rsa_key(), kid="one")).encode()
BOTH = jwks(jwk(rsa_key(), kid="one"), jwk(rsa_key(1), kid="two")).encode()
RULES = jwt.JwtRules(issuer=ISSUER, audience=(AUDIENCE,), algorithms=("RS256",))


class Issuer:
    """Answers with each of `bodies` in turn, the last one again and again; fails for an exception."""

    def __init__(self, *bodies: bytes | Exception, status: int = 200) -> None:
        self.bodies: Sequence[bytes | Exception] = bodies
        self.status = status
        self.asked = 0

    async def request(self, method: str, url: str, **_: Any) -> OutboundReply:
        body = self.bodies[min(self.asked, len(self.bodies) - 1)]
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(body, Exception):
            raise body
        return OutboundReply(
            status=self.status, headers=None, body=body, truncated=len(body) > 100_000, address=""
        )


class Wired:
    def __init__(self, issuer: Any, url: str = "https://id.example/keys") -> None:
        self.clock = MovedClock()
        self.metrics = Metrics()
        self.source = RemoteKeys(
            issuer, url, self.metrics, self.clock, interval=timedelta(minutes=5)
        )
        self.changes = 0
        self.source.changed = self.count
        self.tokens = Tokens(self.source, RULES, self.clock)

    def count(self) -> None:
        self.changes += 1

    async def holds(self, kid: str, key: Any = None) -> bool:
        try:
            await self.tokens.verify(token(claims(self.clock.now()), key, kid=kid))
        except Rejected:
            return False
        return True


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    issuer = Issuer(ONE, BOTH)
    wired = Wired(issuer)
    await wired.source.load()
    assert await wired.holds("one")
    wired.clock.move(timedelta(seconds=30))
    assert await wired.holds("two", rsa_key(1))
    assert (issuer.asked, wired.changes) == (2, 2)


async def test_no_token_has_the_keys_fetched_twice_in_thirty_seconds() -> None:
    issuer = Issuer(ONE)
    wired = Wired(issuer)
    await wired.source.load()
    wired.clock.move(timedelta(seconds=29))
    for number in range(50):
        assert not await wired.holds(f"strange-{number}")
    assert issuer.asked == 1
    wired.clock.move(timedelta(seconds=1))
    await asyncio.gather(*(wired.holds(f"other-{number}") for number in range(50)))
    assert issuer.asked == 2, "one fetch for all who wait"


async def test_a_key_that_a_fetch_did_not_bring_is_not_asked_for_again_soon() -> None:
    issuer = Issuer(ONE)
    wired = Wired(issuer)
    await wired.source.load()
    for passed, asked in ((30, 2), (30, 2), (200, 2), (70, 3)):
        wired.clock.move(timedelta(seconds=passed))
        assert not await wired.holds("../../etc/passwd")
        assert issuer.asked == asked


async def test_keys_are_fetched_at_their_interval_and_a_withdrawn_one_is_forgotten() -> None:
    issuer = Issuer(BOTH, ONE)
    wired = Wired(issuer)
    await wired.source.load()
    wired.clock.move(timedelta(minutes=4))
    await wired.source.turn()
    assert issuer.asked == 1
    assert await wired.holds("two", rsa_key(1))
    wired.clock.move(timedelta(minutes=1))
    await wired.source.turn()
    assert issuer.asked == 2
    assert not await wired.holds("two", rsa_key(1))
    wired.clock.move(timedelta(minutes=5))
    await wired.source.turn()
    assert wired.changes == 2, "the same keys again are no change"


@pytest.mark.parametrize(
    "failure", [OutboundFailed("refused"), b"nonsense", b"{}", b"\xff", b" " * 100_001]
)
async def test_a_failed_fetch_keeps_what_is_known_and_is_tried_sooner(
    failure: bytes | Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    issuer = Issuer(ONE, failure, failure, BOTH)
    wired = Wired(issuer)
    await wired.source.load()
    for passed in (300, 29, 1, 29, 1):
        wired.clock.move(timedelta(seconds=passed))
        await wired.source.turn()
        assert await wired.holds("one")
    assert issuer.asked == 4
    assert await wired.holds("two", rsa_key(1))
    assert capsys.readouterr().out.count("not fetched") == 1
    value = wired.metrics.registry.get_sample_value
    assert value("registryd_jwks_fetches_total", {"result": "failed"}) == 2
    assert value("registryd_jwks_fetches_total", {"result": "ok"}) == 2


async def test_an_answer_that_is_no_success_brings_no_keys() -> None:
    wired = Wired(Issuer(ONE, status=404))
    await wired.source.load()
    assert not await wired.holds("one")


async def test_an_issuer_on_this_machine_is_asked_over_the_network() -> None:
    async with answering(answer(ONE)) as peer:
        outbound = Outbound(EgressPolicy(loopback=True))
        wired = Wired(outbound, f"http://{peer.authority}/keys")
        await wired.source.load()
        await outbound.close()
    assert await wired.holds("one")


async def test_a_redirect_is_not_followed() -> None:
    async with answering(answer(ONE)) as other:
        to = f"Location: http://{other.authority}/keys\r\n"
        async with answering(answer(status="302 Found", headers=to)) as peer:
            outbound = Outbound(EgressPolicy(loopback=True))
            wired = Wired(outbound, f"http://{peer.authority}/keys")
            await wired.source.load()
            await outbound.close()
        assert other.accepted == 0
    assert not await wired.holds("one")


async def test_a_file_of_keys_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(ONE)
    source = FileKeys(WatchedFile(path, jwt.of_jwks))
    await source.load()
    changes: list[int] = []
    source.changed = lambda: changes.append(len(source.keys))
    path.write_bytes(BOTH)
    clock = MovedClock()
    tokens = Tokens(source, RULES, clock)
    await tokens.verify(token(claims(clock.now()), rsa_key(1), kid="two"))
    path.write_text("nonsense")
    await source.turn()
    assert (len(source.keys), changes) == (2, [2])
