"""The fast lane: it answers what the long way answers, in the same order, and takes only what it should."""

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from authority import Authority
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from wired import Served, get, put, request, route, serving

from registryd.errors import InstanceUnknown
from registryd.web.access import OpenAccess
from registryd.web.caller import Caller, Peer
from registryd.web.reply import Reply
from registryd.web.routing import Mount
from registryd.web.shortcut import Exchange, Framing, HeaderBlocks

NAME = {"name": re.compile(r"[a-z]{1,8}")}


def said(name: str, query: str, request_id: str) -> bytes:
    return json.dumps([name, query, request_id]).encode()


class Thing:
    """A route with both ways; `taken` counts the short one. With `later` it answers a turn later."""

    def __init__(self, *, later: bool = False) -> None:
        self.taken = 0
        self.begun = asyncio.Event()
        self._later = later

    async def long(self, request):
        await request.body()  # unread, it would end the connection
        name = request.params["name"]
        if name == "gone":
            raise InstanceUnknown("it is gone")
        return Reply(
            body=said(name, request.raw.rel_url.raw_query_string, ""), headers=[("X-A", "b")]
        )

    def short(self, exchange: Exchange) -> bool:
        if exchange.query == "no":
            return False
        self.taken += 1
        self.begun.set()
        if self._later:
            asyncio.get_running_loop().call_later(0.001, self._answer, exchange)
        else:
            self._answer(exchange)
        return True

    def _answer(self, exchange: Exchange) -> None:
        (name,) = exchange.params
        if name == "gone":
            exchange.fail(InstanceUnknown("it is gone"))
        else:
            exchange.reply(Reply(body=said(name, exchange.query, ""), headers=[("X-A", "b")]))

    def routes(self, *, shortcut: bool = True):
        return [
            route(
                "PUT",
                "/things/{name}",
                self.long,
                mount=Mount.REGISTRY,
                segments=NAME,
                shortcut=self.short if shortcut else None,
            ),
            route("GET", "/other"),
        ]


async def test_an_ordinary_request_takes_it() -> None:
    thing = Thing()
    async with serving(thing.routes()) as served, served.line() as line:
        # The first bytes of a connection come before aiohttp waits for them.
        await line.ask(get("/other"))
        answer = await line.ask(request("PUT", "/things/a?x=1", "Accept: */*"))
        long_form = await line.ask(request("PUT", "/api/v1/registry/things/b"))
    assert thing.taken == 2
    assert answer.status == 200
    assert answer.json == ["a", "x=1", ""]
    assert answer.headers["X-A"] == "b"
    assert answer.headers["Content-Type"] == "application/json"
    assert long_form.json == ["b", "", ""]


@pytest.mark.parametrize(
    "data",
    [
        put("/things/a", b"{}"),
        request("PUT", "/things/a", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request("PUT", "/things/a", "Connection: close"),
        request("PUT", "/things/a", "Prefer: wait=1"),
        request("PUT", "/things/a", "Accept: a", "Accept: b"),
        request("PUT", "/things/%61"),
        request("PUT", "/things/a/"),
        request("PUT", "/things/a?no"),
        request("PUT", "/things/a", "X-Long: " + "a" * 5000),
        request("PUT", "/things/a", "X-Odd: \xe9"),
        b"PUT /things/a HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
        request("PUT", "http://registry.test/things/a"),
    ],
)
async def test_what_is_unusual_takes_the_long_way(data: bytes) -> None:
    thing = Thing()
    async with serving(thing.routes()) as served, served.line() as line:
        await line.ask(get("/other"))
        answer = await line.ask(data)
    assert answer.status == 200
    assert thing.taken == 0


async def test_a_request_without_a_host_or_with_two_is_what_the_parser_makes_of_it() -> None:
    thing = Thing()
    async with serving(thing.routes()) as served, served.line() as line:
        await line.ask(get("/other"))
        await line.ask(b"PUT /things/a HTTP/1.1\r\nAccept: */*\r\n\r\n")
    assert thing.taken == 0


async def test_request_ids_are_kept_and_bad_ones_replaced() -> None:
    thing = Thing()
    async with serving(thing.routes()) as served, served.line() as line:
        await line.ask(get("/other"))
        kept = await line.ask(request("PUT", "/things/a", "X-Request-Id: mine-1"))
        also = await line.ask(request("PUT", "/things/a", "X-Request-ID: mine-2"))
        bad = await line.ask(request("PUT", "/things/a", "X-Request-ID: <script>"))
        fresh = await line.ask(request("PUT", "/things/a"))
    assert thing.taken == 4
    assert kept.headers["X-Request-ID"] == "mine-1"
    assert also.headers["X-Request-ID"] == "mine-2"
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", bad.headers["X-Request-ID"])
    assert fresh.headers["X-Request-ID"] != bad.headers["X-Request-ID"]


async def test_it_is_counted_and_timed_like_the_rest() -> None:
    thing = Thing()
    async with serving(thing.routes()) as served, served.line() as line:
        await line.ask(get("/other"))
        await line.ask(request("PUT", "/things/a"))
        await line.ask(request("PUT", "/things/gone"))
        value = served.metrics.registry.get_sample_value
        labels = {"method": "PUT", "route": "/things/{name}"}
        assert value("registryd_http_requests_total", labels | {"status": "200"}) == 1
        assert value("registryd_http_requests_total", labels | {"status": "404"}) == 1
        took = {"route": "/things/{name}"}
        assert value("registryd_http_request_seconds_count", took) == 2
        assert value("registryd_http_request_seconds_bucket", took | {"le": "10.0"}) == 2


async def test_who_is_not_known_at_once_takes_the_long_way() -> None:
    class Slow(OpenAccess):
        def known(self, headers, peer: Peer) -> Caller | None:
            return self.EVERYBODY if "x-known" in headers else None

    thing = Thing()
    async with serving(thing.routes(), access=Slow()) as served, served.line() as line:
        await line.ask(get("/other"))
        assert (await line.ask(request("PUT", "/things/a"))).status == 200
        assert thing.taken == 0
        assert (await line.ask(request("PUT", "/things/a", "X-Known: yes"))).status == 200
        assert thing.taken == 1


async def test_stopping_waits_for_an_answer_that_is_outstanding() -> None:
    thing = Thing(later=True)
    async with serving(thing.routes()) as served, served.line() as line:
        await line.ask(get("/other"))
        await line.send(request("PUT", "/things/a"))
        await thing.begun.wait()
        await served.server.stop(2)
        assert (await line.answer()).json == ["a", "", ""]


async def test_a_client_that_leaves_early_harms_nobody() -> None:
    thing = Thing(later=True)
    async with serving(thing.routes()) as served:
        async with served.line() as line:
            await line.ask(get("/other"))
            await line.send(request("PUT", "/things/a"))
            await thing.begun.wait()
        async with served.line() as line:
            assert (await line.ask(request("PUT", "/things/b"))).json[0] == "b"


async def test_an_idle_connection_is_still_closed_in_time() -> None:
    thing = Thing()
    async with (
        serving(thing.routes(), keepalive_timeout=0.3) as served,
        served.line() as line,
    ):
        await line.ask(get("/other"))
        for _ in range(3):
            await asyncio.sleep(0.15)
            await line.ask(request("PUT", "/things/a"))
        assert thing.taken == 3
        assert await asyncio.wait_for(line.rest(), 2) == b""


# --- both ways answer the same, however the bytes are cut

REQUESTS = [
    request("PUT", "/things/abc"),
    request("PUT", "/things/abc?x=%20y", "Accept: */*", "Content-Length: 0"),
    request("PUT", "/things/gone"),
    request("PUT", "/things/NOT"),
    request("PUT", "/nothing/here"),
    request("PUT", "/things/a", "Connection: keep-alive"),
    put("/things/a", b'{"a": "PUT /things/b HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"}'),
    put("/things/a", b"PUT /things/evil HTTP/1.1\r\nHost: x\r\n\r\n"),
    request("PUT", "/things/a", "Transfer-Encoding: chunked")
    + b"26\r\nPUT /things/evil HTTP/1.1\r\nHost: x\r\n\r\n\r\n0\r\n\r\n",
    get("/other"),
    b"\r\n" + request("PUT", "/things/crlf"),
    request("HEAD", "/other"),
    request("OPTIONS", "/things/a"),
]

VARIES = re.compile(rb'(?:Date|X-Request-ID|Content-Length): [^\r]*\r\n|"requestId":"[^"]*"')


def _cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in pairwise(edges):
        yield data[start:end]


async def _talk(served: Served, pieces: list[bytes]) -> bytes:
    async with served.line() as line:
        first = await line.ask(get("/other"))
        assert first.status == 204
        for piece in pieces:
            await line.send(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        line.writer.write(request("PUT", "/things/last", "Connection: close"))
        return VARIES.sub(b"", await asyncio.wait_for(line.rest(), 3))


class Both:
    """Two servers, with and without the fast lane, on a loop of their own."""

    def __init__(self, runner: asyncio.Runner, *, later: bool, tls: Authority | None) -> None:
        self._runner = runner
        self.thing = thing = Thing(later=later)
        secure = {} if tls is None else {"tls": tls.certificates(), "client_tls": tls.client()}
        self._opened = [
            serving(thing.routes(), **secure),
            serving(thing.routes(shortcut=False), **secure),
        ]
        self._served = [runner.run(one.__aenter__()) for one in self._opened]

    def talk(self, pieces: list[bytes]) -> tuple[bytes, bytes]:
        short, long = (self._runner.run(_talk(served, pieces)) for served in self._served)
        return short, long

    def close(self) -> None:
        for one in self._opened:
            self._runner.run(one.__aexit__(None, None, None))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("later", [False, True], ids=["now", "later"])
def test_both_ways_say_the_same(later: bool, tls: bool, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        both = Both(runner, later=later, tls=Authority(tmp_path) if tls else None)

        @settings(max_examples=25, deadline=None, phases=[Phase.generate, Phase.shrink])
        @given(
            picked=st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=5),
            cuts=st.lists(st.integers(0, 600), max_size=8),
        )
        def compare(picked: list[bytes], cuts: list[int]) -> None:
            short, long = both.talk(list(_cut(b"".join(picked), cuts)))
            assert short == long

        compare()
        assert both.thing.taken
        both.close()


# --- the parts


def test_a_block_is_read_once_and_the_request_id_apart() -> None:
    blocks = HeaderBlocks()
    first, none = blocks.read(b"\r\nHost: x\r\nAccept:  a, b \r\n\r\n")
    assert first == {"host": "x", "accept": "a, b"}
    assert none == ""
    again, request_id = blocks.read(b"\r\nHost: x\r\nX-Request-Id: 7\r\nAccept:  a, b \r\n\r\n")
    assert again is first
    assert request_id == "7"
    two, _ = blocks.read(b"\r\nHost: x\r\nX-Request-Id: 7\r\nX-Request-Id: 8\r\n\r\n")
    assert two is None


@pytest.mark.parametrize(
    "block",
    [
        b"\r\n\r\n",
        b"\r\nHost: x\r\n Folded: y\r\n\r\n",
        b"\r\nHost : x\r\n\r\n",
        b"\r\nHost: x\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        b"\r\nHost: x\r\nContent-Length: 00\r\n\r\n",
        b"\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        b"\r\nHost: x\r\nConnection: keep-alive, upgrade\r\n\r\n",
        b"\r\nHost: x\r\nA: b\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_blocks_that_are_not_ordinary(block: bytes) -> None:
    assert HeaderBlocks().read(block)[0] is None


def test_known_blocks_are_bounded() -> None:
    blocks = HeaderBlocks()
    for number in range(5_000):
        blocks.read(b"\r\nHost: x\r\nA: %d\r\n\r\n" % number)
        blocks.body_length(b"\r\nHost: x\r\nA: %d\r\n\r\n" % number)
    assert len(blocks._known) <= 1024
    assert len(blocks._bodies) <= 1024


def test_framing_follows_bodies_and_gives_up_on_the_rest() -> None:
    framing = Framing(HeaderBlocks())
    framing.follow(put("/a", b"12345"))
    assert framing.clean
    framing.follow(put("/a", b"12345")[:-3])
    assert not framing.clean
    framing.follow(b"345")
    assert framing.clean
    framing.follow(get("/a") + get("/b"))
    assert not framing.clean
    framing.follow(get("/a"))
    assert not framing.clean, "once lost, lost for good"
    chunked = Framing(HeaderBlocks())
    chunked.follow(request("PUT", "/a", "Transfer-Encoding: chunked"))
    assert not chunked.clean
