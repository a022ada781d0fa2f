"""S2, S3, S6, S11 and S12: what arrives on a socket and is no honest request."""

import asyncio
import gzip
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
from authority import Authority
from guarded import Guarded, Said, request, routes
from processes import Machine
from tally import Tally
from test_every_route import path_of

from registryd.web.caller import Permission

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

Begin = Callable[[str, str], Tally]

SOCKETS = 2_000
CLOSED_WITHIN = 10.5
"""Seconds: ten, and half a one for a busy machine."""
CALM = {"REGISTRYD_LIMITS__PER_ADDRESS__DENIED_PER_MINUTE": "1000000"}
"""Else the refusals themselves would soon be refused with 429."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of all sockets, here and in the daemons that are started meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 16_384), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def slow_kinds(key: str) -> dict[str, tuple[bytes, bytes]]:
    """What each kind of slow client sends at first, and then every half second."""
    head = f"Host: localhost\r\nAuthorization: Bearer {key}\r\n"
    put = f"PUT /services/web/instances/slow HTTP/1.1\r\n{head}Content-Type: application/json\r\n"
    return {
        "silent": (b"", b""),
        "partial head": (b"GET /livez HTTP/1.1\r\nHost: loc", b""),
        "dripping head": (b"GET /livez HTTP/1.1\r\nX-A: ", b"a"),
        "dripping headers": (b"GET /livez HTTP/1.1\r\n", b"X-A: b\r\n"),
        "body missing": (f"{put}Content-Length: 900\r\n\r\n{{".encode(), b""),
        "dripping body": (f"{put}Content-Length: 900\r\n\r\n{{".encode(), b" "),
        "dripping chunks": (f"{put}Transfer-Encoding: chunked\r\n\r\n".encode(), b"1\r\n \r\n"),
        "too large a body, lingering": (f"{put}Content-Length: 9000000\r\n\r\n{{".encode(), b" "),
        "body without a key, lingering": (
            b"PUT /services/web/instances/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{",
            b" ",
        ),
        "body that nobody reads": (
            f"GET /livez HTTP/1.1\r\n{head}Content-Length: 900\r\n\r\n{{".encode(),
            b" ",
        ),
    }


async def held(guarded: Guarded, sent: bytes, more: bytes, source: str) -> float:
    """Seconds until the daemon closed a connection, as its client sees it, from when it is open."""
    reader, writer = await asyncio.open_connection(
        guarded.host, guarded.port, local_addr=(source, 0), ssl=guarded.tls
    )
    began = time.monotonic()
    ended = asyncio.create_task(reader.read())
    try:
        writer.write(sent)
        while not ended.done() and time.monotonic() - began < 30:
            await asyncio.wait([ended], timeout=0.5 if more else 30)
            if not ended.done() and more:
                writer.write(more)
        if not ended.done():
            return float("inf")
        ended.exception()
        return time.monotonic() - began
    except ConnectionError:
        return time.monotonic() - began
    finally:
        ended.cancel()
        writer.close()


async def good_client(guarded: Guarded, until: asyncio.Event) -> list[float]:
    """Seconds that each of a good client's requests took, one after the other on one connection."""
    taken = []
    reader, writer = await asyncio.open_connection(guarded.host, guarded.port, ssl=guarded.tls)
    ask = f"GET /services?limit=5 HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {guarded.keys['reader']}\r\n\r\n"
    try:
        while not until.is_set():
            began = time.monotonic()
            writer.write(ask.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(
                int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            )
            taken.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
    finally:
        writer.close()
    return taken


def p99(seconds: list[float]) -> float:
    """Milliseconds."""
    return statistics.quantiles(seconds, n=100)[98] * 1000


async def test_s2_two_thousand_slow_clients_are_closed_within_ten_seconds(
    machine: Machine, tally: Begin, many_files: None
) -> None:
    row = tally("S2", "slow clients")
    attacked = await Guarded.start(machine)
    calm = await Guarded.start(machine, data="calm")
    over = asyncio.Event()
    good = [
        asyncio.create_task(good_client(one, over)) for one in (attacked, calm) for _ in range(5)
    ]
    kinds = slow_kinds(attacked.keys["writer"])
    each = SOCKETS // len(kinds)
    opened = {
        # An address may hold 1 000 connections: these come from four.
        kind: [
            asyncio.create_task(held(attacked, *sent, f"127.0.0.{2 + number % 4}"))
            for number in range(each)
        ]
        for kind, sent in kinds.items()
    }
    await asyncio.sleep(2)
    row.measured["open after 2 s"] = sum(not one.done() for them in opened.values() for one in them)
    longest: dict[str, float] = {}
    for kind, them in opened.items():
        ended = await asyncio.gather(*them)
        longest[kind] = round(max(ended), 2)
        for seconds in ended:
            row.judge(seconds <= CLOSED_WITHIN, 400, f"{kind}: open for {seconds:.1f} s")
    over.set()
    taken = await asyncio.gather(*good)
    stressed, quiet = (p99([one for them in taken[at : at + 5] for one in them]) for at in (0, 5))
    row.measured |= {
        "longest open, s": max(longest.values()),
        "good p99 attacked, ms": round(stressed, 1),
        "beside, ms": round(quiet, 1),
        "ratio": round(stressed / quiet, 2),
    }
    row.crashed += len(attacked.tracebacks()) + (not attacked.alive())
    # All from one address: what is beyond its share is closed at once.
    began = time.monotonic()
    refused = [asyncio.create_task(held(attacked, b"", b"", "127.0.0.9")) for _ in range(1_200)]
    await asyncio.sleep(3)
    closed = sum(one.done() for one in refused)
    await asyncio.gather(*refused)
    row.measured["of 1 200 from one address closed at once"] = closed
    row.judge(closed == 200, 400, f"{closed} closed at once after {time.monotonic() - began:.1f} s")
    row.check()


async def test_s2_under_tls_too(machine: Machine, tally: Begin, many_files: None) -> None:
    row = tally("S2", "slow clients under TLS")
    authority = Authority(machine.home)
    files = authority.issue("server")
    env = {
        "REGISTRYD_SERVER__TLS__CERT_FILE": str(files.certificate),
        "REGISTRYD_SERVER__TLS__KEY_FILE": str(files.key),
    }
    guarded = await Guarded.start(machine, env=env, tls=authority.client())
    kinds = slow_kinds(guarded.keys["writer"])
    bare = Guarded(machine, guarded.daemon, guarded.host, guarded.port)
    hellos = {"no handshake": b"", "half a handshake": b"\x16\x03\x01\x02\x00\x01"}
    over = asyncio.Event()
    good = asyncio.create_task(good_client(guarded, over))
    waiting = [
        (kind, asyncio.create_task(held(one, *sent, "127.0.0.2")))
        for one, them in ((guarded, kinds), (bare, {k: (v, b"") for k, v in hellos.items()}))
        for kind, sent in them.items()
        for _ in range(20)
    ]
    longest: dict[str, float] = {}
    for kind, one in waiting:
        seconds = await one
        longest[kind] = max(longest.get(kind, 0.0), seconds)
        row.judge(seconds <= CLOSED_WITHIN, 400, f"{kind}: open for {seconds:.1f} s")
    over.set()
    row.measured |= {
        "longest open, s": round(max(longest.values()), 2),
        "good p99, ms": round(p99(await good), 1),
    }
    row.crashed += len(guarded.tracebacks())
    row.check()


SECOND = "GET /audit HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
"""A request that is hidden in the body of another."""


def hostile(key: str) -> dict[str, bytes]:
    """Requests that are broken, or that two readers would take for different ones."""
    auth = f"Authorization: Bearer {key}"

    def put(*headers: str, body: str = "", start: str = "PUT /heartbeats HTTP/1.1") -> bytes:
        lines = [
            start,
            "Host: localhost",
            auth,
            "Content-Type: application/json",
            *headers,
            "",
            body,
        ]
        return "\r\n".join(lines).encode("latin-1")

    hidden = f"0\r\n\r\n{SECOND}{auth}\r\n\r\n"
    return {
        "header of 9 KiB": put("X: " + "a" * 9216),
        "target of 9 KiB": put(start="GET /" + "a" * 9216 + " HTTP/1.1"),
        "20 000 headers": put(*(f"X-{n}: a" for n in range(20_000))),
        "body of 2 MiB": put(f"Content-Length: {2**21}", body="x" * 2**21),
        "CL and TE": put(
            f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked", body=hidden
        ),
        "TE and CL": put("Transfer-Encoding: chunked", "Content-Length: 4", body=hidden),
        "two CL": put("Content-Length: 0", f"Content-Length: {len(hidden)}", body=hidden),
        "two CL in one": put("Content-Length: 5, 5", body="{}   "),
        "CL with a sign": put("Content-Length: +2", body="{}"),
        "CL negative": put("Content-Length: -2", body="{}"),
        "CL in hex": put("Content-Length: 0x2", body="{}"),
        "CL with a space inside": put("Content-Length: 1 0", body=hidden),
        "CL of 30 digits": put("Content-Length: " + "9" * 30, body="{}"),
        "CL with odd digits": put("Content-Length: \xb2", body="{}"),
        "TE twice": put("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=hidden),
        "TE unknown": put("Transfer-Encoding: xchunked", body=hidden),
        "TE chunked, identity": put("Transfer-Encoding: chunked, identity", body=hidden),
        "TE with a tab": put("Transfer-Encoding:\x0bchunked", body=hidden),
        "TE folded": put("Transfer-Encoding:\r\n chunked", body=hidden),
        "space before the colon": put("Transfer-Encoding : chunked", body=hidden),
        "header before the first with a space": put(start="PUT /heartbeats HTTP/1.1\r\n X: y"),
        "chunk size with a sign": put("Transfer-Encoding: chunked", body=f"+1\r\n1\r\n{hidden}"),
        "chunk size in hex": put("Transfer-Encoding: chunked", body=f"0x1\r\n1\r\n{hidden}"),
        "chunk size of 40 digits": put("Transfer-Encoding: chunked", body="f" * 40 + "\r\n1\r\n"),
        "chunk extension of 1 MiB": put("Transfer-Encoding: chunked", body="1;" + "a" * 2**20),
        "chunks ended by LF": put("Transfer-Encoding: chunked", body="2\n{}\n0\n\n"),
        "trailers without end": put(
            "Transfer-Encoding: chunked", body="0\r\n" + "X: y\r\n" * 20_000
        ),
        "bare LF": put().replace(b"\r\n", b"\n"),
        "bare CR": put("X: a\rY: b"),
        "NUL in a header": put("X: a\0b"),
        "NUL in the target": put(start="GET /services\0 HTTP/1.1"),
        "no Host": put().replace(b"Host: localhost\r\n", b""),
        "two Hosts": put("Host: localhost"),
        "empty name": put(": x"),
        "name with brackets": put("X[a]: b"),
        "version 1.2.3": put(start="PUT /heartbeats HTTP/1.2.3"),
        "version 9.9": put(start="PUT /heartbeats HTTP/9.9"),
        "HTTP/0.9": b"GET /services\r\n\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "TLS to a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        + b"\0" * 100
        + b"\r\n\r\n",
        "two targets": put(start="PUT /heartbeats /audit HTTP/1.1"),
        "CONNECT": put(start="CONNECT 127.0.0.1:22 HTTP/1.1"),
        "TRACE": put(start="TRACE /services HTTP/1.1"),
        "absolute form of another": put(start="GET http://evil.example/audit HTTP/1.1").replace(
            b"Host: localhost", b"Host: evil.example"
        ),
        "upgrade to h2c": put("Upgrade: h2c", "HTTP2-Settings: AAMA", "Expect: 102-x", body="{"),
    }


async def test_s3_hostile_http_is_refused(machine: Machine, tally: Begin) -> None:
    row = tally("S3", "hostile HTTP")
    guarded = await Guarded.start(machine, env=CALM)
    sent = hostile(guarded.keys["admin"])
    said = await asyncio.gather(*(guarded.tell(data) for data in sent.values()))
    statuses: dict[int, int] = {}
    for what, answer in zip(sent, said, strict=True):
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        row.judge(400 <= answer.status < 500 and answer.answers == 1, answer.status, what)
        assert guarded.keys["admin"].encode() not in answer.head.encode() + answer.body
    row.measured |= {str(status): count for status, count in sorted(statuses.items())}
    row.crashed += len(guarded.tracebacks()) + (not guarded.alive())
    row.check()


SEGMENTS = (
    "%2f", "%2F..%2F..%2Faudit", "%2e%2e", "%2e%2e%2faudit", "..", ".", "%00", "a%00", "%0d%0aX:%20y", "%0a", "%ff",
    "%c0%af", "%e0%80%af", "%c0%ae%c0%ae", "%zz", "%", "%u002f", "..%5caudit", "%5c", "%09", "%20",
    "%E2%80%AE", "%EF%BC%8F", "%ed%a0%80", "a;b", "*", "?%00", "a%3ab%2fc", "'", '"', "<script>",
    "{name}", "%7bname%7d", "a" * 129, "%61" * 200, "-a", "_a", "~", "a\x7f", "a%7f", "%EF%BB%BFa",
)  # fmt: skip


async def test_s6_no_path_leads_elsewhere(machine: Machine, tally: Begin) -> None:
    row = tally("S6", "paths")
    guarded = await Guarded.start(machine, env=CALM)
    wanted = [
        (route.method, template, segment)
        for route in routes()
        if route.segments and route.permission is not Permission.OPEN
        for template in [route.path]
        for segment in SEGMENTS
    ]
    lines = [f"Authorization: Bearer {guarded.keys['writer']}"]

    def target(template: str, segment: str) -> str:
        parts = [segment if part.startswith("{") else part for part in template.split("/")]
        return "/api/v1/registry" + "/".join(parts)

    said = await in_turn(
        guarded,
        [request(method, target(t, segment), *lines) for method, t, segment in wanted],
    )
    for (method, template, segment), answer in zip(wanted, said, strict=True):
        # `.` and the like are looked for as they are: 404 is a refusal too.
        refused = answer.status in {400, 403, 404, 405} and answer.answers == 1
        row.judge(refused, answer.status, f"{method} {template} {segment!r}")
    elsewhere = (
        "/services/../audit",
        "//audit",
        "/services/%2e%2e/audit",
        "/./audit",
        "/audit/..;/x",
    )
    for path in elsewhere:
        answer = await guarded.tell(request("GET", path, *lines))
        row.judge(answer.status in {400, 403, 404}, answer.status, path)
    row.crashed += len(guarded.tracebacks())
    row.check()


async def in_turn(guarded: Guarded, requests: list[bytes]) -> list[Said]:
    """The answers to requests, fifty under way at a time."""
    return [
        said
        for start in range(0, len(requests), 50)
        for said in await asyncio.gather(*map(guarded.tell, requests[start : start + 50]))
    ]


FOREIGN = {
    "host": ("evil.example",),
    "host with our port": ("evil.example:8082",),
    "host like ours": ("localhost.evil.example",),
    "host of a public DNS trick": ("127.0.0.1.nip.io",),
    "host with user": ("localhost@evil.example",),
    "origin": ("localhost", "Origin: https://evil.example"),
    "origin null": ("localhost", "Origin: null"),
    "origin like ours": ("localhost", "Origin: http://localhost.evil.example"),
    "origin of another port": ("localhost", "Origin: http://localhost:1"),
    "cross-site": ("localhost", "Sec-Fetch-Site: cross-site"),
    "same-site": ("localhost", "Sec-Fetch-Site: same-site"),
    "form of a foreign page": (
        "localhost",
        "Origin: https://evil.example",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Mode: navigate",
        "Content-Type: text/plain",
    ),
}


async def test_s11_no_foreign_page_gets_anything(machine: Machine, tally: Begin) -> None:
    row = tally("S11", "foreign Host, Origin, Sec-Fetch-Site")
    guarded = await Guarded.start(machine, env=CALM)
    key = f"Authorization: Bearer {guarded.keys['admin']}"
    await guarded.ask("POST", "/services", {"name": "chat-1", "endpoint": "http://10.0.0.1"})
    wanted = [
        (route, what) for route in routes() for what in FOREIGN if not route.path.endswith("drain")
    ]
    asked = []
    for route, what in wanted:
        host, *lines = FOREIGN[what]
        body = b"{}" if route.body is not None else b""
        asked.append(request(route.method, path_of(route), key, *lines, host=host, body=body))
    said = await in_turn(guarded, asked)
    for (route, what), answer in zip(wanted, said, strict=True):
        # Everybody may show whether the registry lives, but under its own name.
        shown = route.permission is Permission.OPEN and not what.startswith("host")
        # And anybody may follow a link here: the page it stood on learns nothing of the answer.
        shown = shown or (what == "form of a foreign page" and route.method == "GET")
        if shown and route.method == "GET":
            row.judge(answer.status < 500, answer.status, f"{what}: {route.method} {route.path}")
            continue
        row.judge(answer.status == 403, answer.status, f"{what}: {route.method} {route.path}")
        assert "access-control-allow-origin" not in answer.head.lower()
    row.measured["service still there"] = (
        await guarded.ask("GET", "/services/chat-1")
    ).status == 200
    row.check()


ABSURD = {
    "depth 100 000": b"[" * 100_000,
    "depth 100 000 of objects": b'{"a":' * 40_000,
    "closed depth": b"[" * 30_000 + b"]" * 30_000,
    "NaN": b'{"ttlSeconds":NaN}',
    "-Infinity": b'{"ttlSeconds":-Infinity}',
    "1e999": b'{"ttlSeconds":1e999}',
    "duplicate keys": b'{"name":"a","name":"b"}',
    "5 000 digits": b'{"ttlSeconds":' + b"1" * 5_000 + b"}",
    "5 000 digits of a fraction": b'{"weight":0.' + b"1" * 5_000 + b"}",
    "half a surrogate pair": b'{"name":"\\ud800"}',
    "latin-1": b'{"name":"\xe9"}',
    "UTF-16": '{"name":"a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "NUL": b'{"name":"a\0b"}',
    "comment": b'{"name":"a"/*x*/}',
    "trailing comma": b'{"name":"a",}',
    "single quotes": b"{'name':'a'}",
    "two documents": b"{}{}",
    "no JSON": b"<xml/>",
    "a number": b"7",
    "100 000 keys": json.dumps({f"k{n}": 0 for n in range(18_000)}).encode(),
    "__proto__": b'{"__proto__":{"role":"admin"},"constructor":{},"__class__":1}',
    "null": b"null",
    "gzip bomb": b"",  # filled in below
}


async def test_s12_absurd_json_is_refused_on_every_route(machine: Machine, tally: Begin) -> None:
    row = tally("S12", "JSON")
    bomb = gzip.compress(b"[" + b" " * 2**27 + b"]")
    guarded = await Guarded.start(machine, env=CALM)
    key = f"Authorization: Bearer {guarded.keys['admin']}"
    wanted = [(route, what) for route in routes() if route.body is not None for what in ABSURD]
    asked = [
        request(route.method, path_of(route), key, "Content-Encoding: gzip", body=bomb)
        if what == "gzip bomb"
        else request(route.method, path_of(route), key, body=ABSURD[what])
        for route, what in wanted
    ]
    before = guarded.resident_kib()
    said = await in_turn(guarded, asked)
    for (route, what), answer in zip(wanted, said, strict=True):
        # A body that may be left out may be null; and nothing lives under the names that are asked for.
        refused = 400 <= answer.status < 500 or (what == "null" and answer.status < 500)
        row.judge(refused, answer.status, f"{what}: {route.method} {route.path}")
    row.measured |= {
        "routes": len(wanted) // len(ABSURD),
        "memory grown, MiB": round((guarded.resident_kib() - before) / 1024, 1),
        "deeper": "make drill NAME=fuzz",
    }
    row.crashed += len(guarded.tracebacks())
    row.check()
