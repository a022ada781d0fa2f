"""Broken, absurd and slow requests against the real server: refused cleanly, nothing echoed."""

import asyncio
import gzip
import logging
import re

import pytest
import structlog
from wired import echo, get, put, request, route, serving

from registryd.web.codec import BodyLimits
from registryd.web.reply import Reply

CANARY = "canary-value"


async def search(request):
    return Reply(body=str(dict(request.query)).encode())


ROUTES = (
    route("GET", "/livez"),
    route("PUT", "/echo", echo),
    route("POST", "/ignore"),
    route("GET", "/things/{id}", segments={"id": re.compile(r"[A-Za-z0-9._-]+")}),
    route("GET", "/search", search),
)


async def asked(data, **settings):
    async with serving(ROUTES, **settings) as served, served.line() as line:
        return await line.ask(data)


BROKEN = {
    "no http": b"\x16\x03\x01 hello " + CANARY.encode() + b"\r\n\r\n",
    "method": b"B@D /%b HTTP/1.1\r\nHost: a\r\n\r\n" % CANARY.encode(),
    "header of 9 KiB": get("/livez", "X: " + CANARY * 800),
    "line of 9 KiB": get("/livez?" + CANARY * 800),
    "20,000 headers": get("/livez", *[f"X-{n}: {CANARY}" for n in range(20_000)]),
    "content length and chunks": get(
        "/livez", "Content-Length: 5", "Transfer-Encoding: chunked", f"X: {CANARY}"
    ),
    "two content lengths": get("/livez", "Content-Length: 5", "Content-Length: 6"),
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: a\nX: %b\n\n" % CANARY.encode(),
    "nul in a header": get("/livez", f"X: {CANARY}\0"),
    "no host": b"GET /livez HTTP/1.1\r\nX: %b\r\n\r\n" % CANARY.encode(),
    "two hosts": get("/livez", f"Host: {CANARY}"),
    "space before the colon": get("/livez", f"X : {CANARY}"),
    "malformed authorization": get("/livez", f"Authorization: Bearer {CANARY}\x01"),
    "unknown transfer encoding": get("/livez", "Transfer-Encoding: gzip"),
    "old websocket key": get("/livez", f"Sec-WebSocket-Key1: {CANARY}"),
    "double slash authority": get(f"//{CANARY}:port/"),
    "absolute form without host": get(f"http:///{CANARY}"),
    "unclosed bracket": get(f"http://[{CANARY}/"),
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
async def test_broken_http_is_refused_and_neither_echoed_nor_logged(data, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as lines:
        answer = await asked(data)
    assert answer.status in (400, 404)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["code"] in ("malformed", "not_found")
    said = f"{answer.headers} {answer.body!r} {lines} {caplog.text} {capsys.readouterr()}"
    assert CANARY not in said
    assert "Traceback" not in said


async def test_broken_http_closes_the_connection():
    async with serving(ROUTES) as served, served.line() as line:
        answer = await line.ask(get("/livez", "X : y"))
        assert answer.headers["Connection"] == "close"
        assert await line.rest() == b""


async def test_broken_http_after_a_good_request_is_refused():
    async with serving(ROUTES) as served, served.line() as line:
        assert (await line.ask(get("/livez"))).status == 204
        assert (await line.ask(b"junk\r\n\r\n")).status == 400


async def test_broken_http_is_counted():
    async with serving(ROUTES) as served, served.line() as line:
        await line.ask(b"junk\r\n\r\n")
        sample = served.metrics.registry.get_sample_value(
            "registryd_http_requests_total",
            {"method": "other", "route": "unmatched", "status": "400"},
        )
    assert sample == 1


@pytest.mark.parametrize(
    "segment", ["%2f", "%2e%2e", "%00", "%0d%0a", "%ff", "%zz", "a%2Fb", "..%2f..%2fadmin"]
)
async def test_a_hostile_path_segment_is_malformed(segment):
    answer = await asked(get(f"/things/{segment}"))
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert "'id'" in answer.json["detail"]


async def test_dots_in_the_path_are_not_resolved():
    assert (await asked(get("/things/../livez"))).status == 404


async def test_the_absolute_form_finds_the_same_routes():
    assert (await asked(get("http://other.test/things/a%2fb"))).status == 400
    assert (await asked(get("http://other.test/things/ab?x=1"))).status == 204


async def test_connect_is_refused():
    assert (await asked(request("CONNECT", "evil.test:443"))).status == 404


async def test_a_bad_query_names_the_parameter():
    answer = await asked(get("/search?name=%ff"))
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert "'name'" in answer.json["detail"]


JSON = {
    "depth": b"[" * 100_000,
    "nan": b'{"a":NaN}',
    "infinity": b"1e999",
    "duplicate": b'{"a":1,"a":2}',
    "digits": b"1" * 5000,
    "surrogate": b'"\\ud800"',
    "latin-1": b'"\xe9"',
    "mark": b"\xef\xbb\xbf1",
    "empty": b" ",
}


@pytest.mark.parametrize("body", JSON.values(), ids=JSON.keys())
async def test_absurd_json_is_malformed_and_never_an_internal_error(body):
    answer = await asked(put("/echo", body))
    assert (answer.status, answer.json["code"]) == (400, "malformed")


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: application/json; charset=latin-1",
        "Content-Type: text/json+xml",
    ],
)
async def test_another_media_type_is_refused_with_the_header_to_send(header):
    answer = await asked(request("PUT", "/echo", header, body=b"{}"))
    assert answer.status == 415
    assert "json" in answer.json["detail"].lower()


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Content-Type: application/json",),
        ("Content-Type: application/json; charset=UTF-8",),
        ("Content-Type: application/merge-patch+json",),
        ("Content-Type: application/cloudevents+json",),
    ],
)
async def test_json_is_read_under_its_names_and_without_one(headers):
    assert (await asked(request("PUT", "/echo", *headers, body=b"[1]"))).json == [1]


async def test_a_body_declared_too_large_is_refused_before_it_is_sent():
    answer = await asked(request("PUT", "/echo", "Content-Length: 2097152"), lingering_time=0.01)
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
    assert answer.headers["Connection"] == "close"


async def test_a_body_of_2_mib_that_is_sent_all_the_same_is_refused():
    async with serving(ROUTES) as served, served.line() as line:
        sent = asyncio.create_task(line.send(put("/echo", b"x" * 2**21)))
        assert (await line.answer()).status == 413
        await sent


async def test_a_chunked_body_over_the_limit_is_refused():
    async with serving(ROUTES, lingering_time=0.01) as served, served.line() as line:
        await line.send(request("PUT", "/echo", "Transfer-Encoding: chunked"))
        for _ in range(5):
            await line.send(b"10000\r\n" + b"1" * 65536 + b"\r\n")
        assert (await line.answer()).status == 413


async def test_a_body_of_exactly_the_limit_is_read():
    body = b"[" + b" " * (256 * 1024 - 2) + b"]"
    assert (await asked(put("/echo", body))).status == 200


async def test_a_compressed_body_is_read():
    body = gzip.compress(b'{"a":1}')
    assert (await asked(put("/echo", body, "Content-Encoding: gzip"))).json == {"a": 1}


async def test_a_gzip_bomb_is_refused():
    bomb = gzip.compress(b"[" + b" " * 2**26 + b"]")
    answer = await asked(put("/echo", bomb, "Content-Encoding: gzip"), lingering_time=0.01)
    assert answer.status == 413


async def test_broken_compression_is_malformed():
    answer = await asked(put("/echo", b"not gzip at all", "Content-Encoding: gzip"))
    assert (answer.status, answer.json["code"]) == (400, "malformed")


async def test_an_unknown_compression_is_not_supported():
    assert (await asked(put("/echo", b"x", "Content-Encoding: compress"))).status == 415


async def test_a_slow_body_is_answered_408_and_closed():
    async with (
        serving(ROUTES, limits=BodyLimits(seconds=0.05), lingering_time=0.01) as served,
        served.line() as line,
    ):
        answer = await line.ask(request("PUT", "/echo", "Content-Length: 10") + b"[")
        assert (answer.status, answer.json["code"]) == (408, "request_timeout")
        assert answer.headers["Connection"] == "close"
        assert await line.rest() == b""


async def test_a_body_that_nobody_reads_does_not_hold_the_connection():
    async with serving(ROUTES, lingering_time=0.01) as served, served.line() as line:
        answer = await line.ask(request("POST", "/ignore", "Content-Length: 10") + b"[")
        assert answer.status == 204
        assert await line.rest() == b""


async def test_broken_chunks_are_malformed_at_once():
    with structlog.testing.capture_logs() as lines:
        async with serving(ROUTES) as served, served.line() as line:
            await line.send(
                request("PUT", "/echo", "Transfer-Encoding: chunked", "Expect: 100-continue")
            )
            assert (await line.head()).status == 100
            answer = await line.ask(b"2\r\n[1\r\nzz\r\n")
            assert (answer.status, answer.json["code"]) == (400, "malformed")
            assert "the body is broken" in answer.json["detail"]
            assert await line.rest() == b""
    assert lines == []


async def test_a_client_that_stops_within_its_body_is_no_internal_error():
    with structlog.testing.capture_logs() as lines:
        async with serving(ROUTES) as served, served.line() as line:
            await line.send(request("PUT", "/echo", "Content-Length: 10") + b"[")
            line.writer.write_eof()
            assert await line.rest() == b""
    assert lines == []


@pytest.mark.parametrize("start", [b"", b"GET /livez HTTP/1.1\r\nX-Slow: "])
async def test_a_head_that_does_not_come_closes_the_connection(start):
    async with serving(ROUTES, head_timeout=0.05) as served, served.line() as line:
        await line.send(start)
        assert await line.rest() == b""


async def test_a_head_that_drips_closes_the_connection_all_the_same():
    async with serving(ROUTES, head_timeout=0.1) as served, served.line() as line:
        closed = asyncio.create_task(line.rest())
        await line.send(b"GET /livez HTTP/1.1\r\n")
        while not closed.done():
            line.writer.write(b"X: y\r\n")
            await asyncio.wait([closed], timeout=0.01)
        assert closed.exception() is None or isinstance(closed.exception(), ConnectionError)


async def test_an_idle_connection_is_closed_after_its_time():
    async with serving(ROUTES, keepalive_timeout=0.05) as served, served.line() as line:
        assert (await line.ask(get("/livez"))).status == 204
        assert await line.rest() == b""


@pytest.mark.parametrize("first", ["GET /livez\r\n\r\n", "GET /livez HTTP/0.9\r\n\r\n"])
async def test_http_0_9_gets_no_service(first):
    assert (await asked(first.encode())).status == 400
