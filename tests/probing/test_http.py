"""The http probe: what statuses and bodies mean, and what hostile answers cost."""

import asyncio
import contextlib
import gzip
import json
from datetime import UTC, datetime

import pytest
from peers import answer, answering, certified, listening, trusting

from registryd.kit.outbound import EgressPolicy, Outbound
from registryd.probing.http import MAX_BODY, json_or_none
from registryd.probing.table import probes
from registryd.probing.types import Finding, Target


@contextlib.asynccontextmanager
async def probing():
    outbound = Outbound(EgressPolicy(loopback=True), trust=trusting)
    yield probes(outbound)["http"].probe
    await outbound.close()


def target(peer, path="/health", **fields) -> Target:
    return Target(
        **{"type": "http", "url": f"http://{peer.authority}{path}", "timeout_ms": 2000, **fields}
    )


async def found(*parts: bytes, pause: float = 0.0, **fields) -> Finding:
    """What the probe finds of a server that answers with `parts`."""
    async with answering(*parts, pause=pause) as peer, probing() as probe:
        return await probe(target(peer, **fields))


def status(code: int, body: bytes = b"{}") -> bytes:
    return answer(body, status=f"{code} Word")


# The status


@pytest.mark.parametrize("code", [200, 201, 204, 299])
async def test_any_success_is_healthy(code):
    assert (await found(status(code, b""))).verdict == "healthy"


@pytest.mark.parametrize("code", [301, 302, 304, 400, 401, 404, 429, 500, 503, 599])
async def test_any_other_status_is_unhealthy_and_told(code):
    finding = await found(status(code, b""))
    assert (finding.verdict, finding.error) == ("unhealthy", f"HTTP {code}")


async def test_expected_statuses_replace_the_usual_ones():
    expects = {"expected_statuses": frozenset({401, 302})}
    assert (await found(status(401), **expects)).verdict == "healthy"
    assert (await found(status(302), **expects)).verdict == "healthy"
    assert (await found(status(200), **expects)).error == "HTTP 200"


async def test_a_condition_on_the_status_replaces_the_rule_others_do_not():
    finding = await found(status(503), conditions=("[STATUS] == any(200, 503)",))
    assert (finding.verdict, finding.error) == ("healthy", None)
    finding = await found(status(503), conditions=("[STATUS] == 200",))
    assert finding.error == "condition failed: [STATUS] == 200"
    finding = await found(status(503), conditions=("[RESPONSE_TIME] < 1h",))
    assert finding.error == "HTTP 503"
    finding = await found(status(503), degraded_conditions=("[STATUS] == 200",))
    assert (finding.verdict, finding.error) == ("degraded", "condition failed: [STATUS] == 200")


async def test_a_redirect_is_not_followed():
    async with answering(answer(b"{}")) as inner:
        moved = answer(status="302 Found", headers=f"Location: http://{inner.authority}/\r\n")
        assert (await found(moved)).error == "HTTP 302"
        assert inner.accepted == 0


# The request


async def test_the_request_is_as_the_target_says():
    async with answering(answer()) as peer, probing() as probe:
        await probe(
            target(
                peer,
                "/a%20b?x=1&y=%2F",
                method="POST",
                headers={"X-Key": "k", "Content-Type": "application/json"},
                body='{"ü":1}',
            )
        )
        lines = peer.heads[0].split("\r\n")
    assert lines[0] == "POST /a%20b?x=1&y=%2F HTTP/1.1"
    assert {"X-Key: k", "Content-Type: application/json", "Content-Length: 8"} <= set(lines)


@pytest.mark.parametrize("fields", [{"method": "GE T"}, {"headers": {"X": "a\r\nY: b"}}])
async def test_a_request_that_http_does_not_allow_is_not_sent(fields):
    async with answering(answer()) as peer, probing() as probe:
        finding = await probe(target(peer, **fields))
        assert finding.error == "the request holds what HTTP does not allow"
        assert peer.heads == []


async def test_errors_hold_no_secrets():
    async with answering(b"HTTP/1.1 pw-in-answer\r\n\r\n") as peer, probing() as probe:
        url = f"http://user:pw-in-url@{peer.authority}/?token=pw-in-query"
        for one in (
            target(peer, url=url, headers={"Authorization": "Bearer pw-in-header"}),
            target(peer, url=url.replace(peer.authority, "127.0.0.1:1")),
            target(peer, url=url.replace("http://", "ftp://")),
        ):
            finding = await probe(one)
            assert finding.error
            assert "pw-in" not in finding.error


# The body


@pytest.mark.parametrize(
    ("word", "verdict"),
    [
        *((word, "healthy") for word in ("healthy", "ok", "OK", "up", "UP", "pass", "passing")),
        *((word, "degraded") for word in ("degraded", "DEGRADED", "warn", "warning")),
        *(
            (word, "unhealthy")
            for word in ("unhealthy", "down", "DOWN", "fail", "failing", "critical", "error")
        ),
        *((word, "healthy") for word in ("starting", "", "¿", "x" * 1000)),
        *((other, "healthy") for other in (None, 0, False, [], {"status": "down"}, ["down"])),
    ],
)
async def test_the_body_s_own_status_counts(word, verdict):
    body = {"status": word, "version": "1.2.0"}
    finding = await found(answer(json.dumps(body).encode()))
    assert finding.verdict == verdict
    assert finding.body == (None if verdict == "unhealthy" else body)
    if verdict == "healthy":
        assert finding.error is None
    else:
        assert finding.error == f"the body says {word.lower()}"


async def test_a_condition_on_the_body_s_status_replaces_the_rule():
    down = answer(b'{"status":"down"}')
    assert (await found(down, conditions=("[BODY].status == down",))).verdict == "healthy"
    assert (await found(down, conditions=("has([BODY].x) == false",))).verdict == "unhealthy"


async def test_a_good_word_does_not_heal_a_bad_status():
    assert (await found(status(500, b'{"status":"UP"}'))).error == "HTTP 500"


@pytest.mark.parametrize(
    "body", [b"", b"fine", b"[1]", b'"down"', b"{", b"\xff\xfe", b'{"status":NaN}', b"1e999"]
)
async def test_a_body_that_is_no_json_object_says_nothing(body):
    finding = await found(answer(body))
    assert (finding.verdict, finding.body) == ("healthy", None)


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b'{"a":1}', {"a": 1}),
        (b"\xef\xbb\xbf{}", {}),
        (b'{"a":Infinity}', None),
        (b'{"a":1e999}', None),
        (b'{"a":' + b"1" * 5000 + b"}", None),
        (b'{"a":"\\ud800"}', None),
        (b'{"a":"\\ud83d\\ude00 \\u00e9"}', {"a": "😀 é"}),
        (b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
        (b"[" * 65 + b"]" * 65, None),
        (b"[" * 60_000, None),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None),
        (b'["' + b"]" * 100 + b'"' + b",[" * 70 + b"]" * 71, None),
        (b'["' + b"[" * 100 + b'"]', ["[" * 100]),
        (b'["\\"' + b"[" * 100 + b'"]', ['"' + "[" * 100]),
        (b"[" * 70 + b'"' + b'\\"' * 32_000, None),  # at once: a string without an end
        (json.dumps([{"a": [n]} for n in range(100)]).encode(), [{"a": [n]} for n in range(100)]),
    ],
)
def test_json_that_others_could_not_take_is_none(body, document):
    assert json_or_none(body) == document


async def test_a_body_up_to_the_limit_is_json_and_a_longer_one_is_text():
    fits = b'{"status":"down","x":"' + b"x" * (MAX_BODY - 24) + b'"}'
    assert len(fits) == MAX_BODY
    assert (await found(answer(fits))).verdict == "unhealthy"
    finding = await found(
        answer(fits + b" "), conditions=('[BODY] == pat({"status":"down"*)', "len([BODY]) == 65536")
    )
    assert (finding.verdict, finding.body) == ("healthy", None)


async def test_of_ten_megabytes_the_rest_is_never_read():
    sent = 0

    async def flood(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        while sent < 10_000_000:
            writer.write(b"x" * 10_000)
            await writer.drain()
            sent += 10_000

    async with listening(flood) as peer, probing() as probe:
        finding = await probe(target(peer))
        await peer.idle.wait()
    assert (finding.verdict, finding.body) == ("healthy", None)
    assert sent < 10_000_000


async def test_a_body_without_an_end_costs_no_more_than_the_limit():
    async def endless(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            await writer.drain()

    async with listening(endless) as peer, probing() as probe:
        assert (await probe(target(peer))).verdict == "healthy"
        await peer.idle.wait()


async def test_a_compressed_bomb_is_not_unpacked():
    bomb = gzip.compress(b'{"status":"down","x":"' + b"0" * 50_000_000 + b'"}')
    finding = await found(
        answer(bomb, headers="Content-Encoding: gzip\r\nContent-Type: application/json\r\n")
    )
    assert (finding.verdict, finding.body) == ("healthy", None)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    ],
)
async def test_a_huge_header_is_refused(head):
    finding = await found(head, timeout_ms=1000)
    assert (finding.verdict, finding.error) == ("unhealthy", "the answer's header is too large")


async def test_header_after_header_ends_with_the_time():
    async def endless(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: y\r\n" * 10)
            await writer.drain()
            await asyncio.sleep(0.01)

    async with listening(endless) as peer, probing() as probe:
        finding = await probe(target(peer, timeout_ms=80))
        assert finding.error == "timed out after 80 ms"
        await peer.idle.wait()


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_an_answer_that_breaks_off_is_unhealthy(head):
    finding = await found(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + b"5\r\nhe")
    assert finding.error == "the connection was closed in the middle of the answer"


async def test_a_slow_body_ends_with_the_time():
    parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[b"x"] * 99]
    finding = await found(*parts, pause=0.03, timeout_ms=100)
    assert (finding.verdict, finding.error) == ("unhealthy", "timed out after 100 ms")


# TLS


async def test_an_expired_certificate_is_refused_and_its_age_is_known_without_verification():
    tls = certified("localhost", not_after=datetime(2021, 1, 1, tzinfo=UTC))
    async with answering(answer(b"{}"), tls=tls) as peer, probing() as probe:
        one = {"url": f"https://localhost:{peer.port}/"}
        finding = await probe(target(peer, **one))
        assert finding.error == "TLS certificate refused: certificate has expired"
        assert (await probe(target(peer, **one, verify_tls=False))).verdict == "healthy"
        asked = ("[CERTIFICATE_EXPIRATION] < 0",)
        finding = await probe(target(peer, **one, verify_tls=False, conditions=asked))
        assert finding.verdict == "healthy"


async def test_https_to_a_server_without_tls_is_unhealthy():
    async with answering(answer(b"{}")) as peer, probing() as probe:
        finding = await probe(target(peer, url=f"https://{peer.authority}/", timeout_ms=500))
    assert finding.verdict == "unhealthy"
    assert finding.error is not None
