"""How reads are answered over HTTP: freshness, long polls, 304, compression, what is cached."""

import asyncio
import gzip
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
import zstandard
from changes import FakeStream, History, contents_of
from yarl import URL

from registryd.feed.follower import Follower
from registryd.feed.revision import Revision
from registryd.feed.stream import Change
from registryd.metrics import Metrics
from registryd.registry.reads import Reads, best_encoding
from registryd.registry.view import View
from registryd.web.access import OpenAccess
from registryd.web.caller import Permission, Scope
from registryd.web.pipeline import Pipeline
from registryd.web.reply import Reply
from registryd.web.request import Request
from registryd.web.router import Router
from registryd.web.routing import Mount, Route
from registryd.web.server import HttpServer


class Node:
    """Reads over a history in memory, behind a real server; `turn` takes in what was written."""

    def __init__(self, catch_up: timedelta) -> None:
        self.history = History()
        self.view = View()
        self.metrics = Metrics()
        self.closing = asyncio.Event()
        self.stream = FakeStream(self.history)
        self.follower = Follower(self.stream, self, self.metrics)
        self.reads = Reads(
            self.view,
            self.follower,
            self.metrics,
            cache_bytes=1 << 20,
            closing=self.closing,
            catch_up=catch_up,
        )
        self.asked = asyncio.Event()

    async def load(self) -> Revision:
        self.view.replace(contents_of(self.history.held), self.history.at, self.history.at)
        return self.history.at

    def apply(self, change: Change) -> bool:
        self.view.apply(change)
        return True

    async def turn(self) -> None:
        await self.follower.turn()

    async def list(self, request: Request) -> Reply:
        self.asked.set()
        return await self.reads.list(request)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"registryd_{name}_total", labels) or 0.0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Client"]:
        route = Route(
            method="GET",
            path="/services",
            handler=self.list,
            permission=Permission.OPEN,
            scope=Scope.NONE,
            mount=Mount.ROOT,
            operation_id="list",
            summary="list",
            tag="test",
        )
        server = HttpServer(Pipeline(Router([route]), self.metrics, OpenAccess()))
        [(host, port)] = await server.start([("127.0.0.1", 0)])
        try:
            async with aiohttp.ClientSession(
                f"http://{host}:{port}",
                auto_decompress=False,
                skip_auto_headers=["Accept-Encoding"],
            ) as session:
                yield Client(session)
        finally:
            await server.stop(0)


class Client:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, query: str = "", **headers: str) -> aiohttp.ClientResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self._session.get(f"/services?{query}", headers=named)
        await response.read()
        return response


@pytest.fixture
async def node() -> Node:
    node = Node(timedelta(milliseconds=50))
    node.history.register("chat", metadata={"tags": ["a"]})
    await node.turn()
    return node


@pytest.fixture
async def client(node: Node) -> AsyncIterator[Client]:
    async with node.serving() as client:
        yield client


async def problem(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    document = await response.json(content_type=None)
    return response.status, document["code"], document["detail"]


def etag_of(node: Node) -> str:
    return f'W/"{node.view.revision}"'


# --- what every answer carries


async def test_a_list_carries_revision_etag_and_how_it_varies(node: Node, client: Client) -> None:
    response = await client.get()
    assert response.headers["X-Registry-Revision"] == str(node.view.revision)
    assert response.headers["ETag"] == etag_of(node)
    assert response.headers["Vary"] == "Accept-Encoding"
    assert "X-Registry-Stale-Ms" not in response.headers
    document = await response.json()
    assert document["revision"] == str(node.view.revision)


async def test_before_the_first_load_nothing_is_answered() -> None:
    node = Node(timedelta())
    async with node.serving() as client:
        assert (await problem(await client.get()))[:2] == (503, "not_ready")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("nmae=x", "unknown query parameter 'nmae'; known are capabilitiesAll, .*, name, .*, zone"),
        ("name=a&name=b", "name"),
        ("since=x", "since: "),
        ("since=1", "since: "),
        ("since=1-1&wait=soon", "wait: "),
        ("minRevision=1", "minRevision: "),
        ("maxStaleMs=-1", "maxStaleMs: "),
        ("consistency=weak", "consistency: "),
        ("filter=(", "filter: "),
    ],
)
async def test_a_bad_parameter_is_malformed_and_named(
    client: Client, query: str, sentence: str
) -> None:
    status, code, detail = await problem(await client.get(query))
    assert (status, code) == (400, "malformed")
    assert re.search(sentence, detail)


async def test_empty_parameters_are_none(client: Client) -> None:
    empty = "name=&tags=&limit=&cursor=&since=&wait=&minRevision=&maxStaleMs=&consistency="
    assert (await client.get(empty)).status == 200


# --- 304


async def test_a_copy_holds_while_no_term_of_the_query_changed(node: Node, client: Client) -> None:
    tag = (await client.get("tags=a")).headers["ETag"]
    node.history.register("draw", metadata={"tags": ["b"]})
    await node.turn()
    response = await client.get("tags=a", If_None_Match=tag)
    assert (response.status, await response.read()) == (304, b"")
    assert response.headers["ETag"] == tag
    assert response.headers["Vary"] == "Accept-Encoding"
    assert response.headers["X-Registry-Revision"] == str(node.view.revision)
    assert (await client.get("tags=b", If_None_Match=tag)).status == 200
    assert (await client.get(If_None_Match=tag)).status == 200


@pytest.mark.parametrize("form", ["{0}", 'W/"1-1", {0}', '"x",{0}', "{1}"])
async def test_etags_compare_weakly_and_come_in_lists(
    node: Node, client: Client, form: str
) -> None:
    weak = etag_of(node)
    condition = form.format(weak, weak.removeprefix("W/"))
    assert (await client.get(If_None_Match=condition)).status == 304


@pytest.mark.parametrize(
    "condition", ["", "x", '"', 'W/"x-y"', 'W/"{epoch}-99"', 'W/"1-1"', 'w/"é"']
)
async def test_an_etag_of_no_state_this_node_knows_is_answered_in_full(
    node: Node, client: Client, condition: str
) -> None:
    condition = condition.replace("{epoch}", str(node.history.epoch))
    assert (await client.get(If_None_Match=condition)).status == 200


async def test_a_copy_from_before_a_reload_is_answered_in_full(node: Node, client: Client) -> None:
    tag = etag_of(node)
    node.history.register("draw")
    node.history.register("echo")
    node.stream.log = node.history.changes[2:]
    await node.turn()
    await node.turn()
    assert (await client.get("tags=a", If_None_Match=tag)).status == 200


# --- freshness


async def test_a_revision_that_comes_in_time_is_waited_for() -> None:
    node = Node(timedelta(seconds=4))
    await node.turn()
    node.history.register("draw")
    async with node.serving() as client:
        asking = asyncio.ensure_future(client.get(f"minRevision={node.history.at}"))
        await node.asked.wait()
        await node.turn()
        assert (await (await asking).json())["total"] == 1


async def test_a_revision_that_does_not_come_is_not_ready(node: Node, client: Client) -> None:
    response = await client.get(f"minRevision={node.history.epoch}-99")
    status, code, detail = await problem(response)
    assert (status, code) == (503, "not_ready")
    assert str(node.view.revision) in detail


async def test_a_revision_of_an_older_epoch_is_a_failed_precondition(
    node: Node, client: Client
) -> None:
    response = await client.get(f"minRevision={node.history.epoch - 1}-1")
    assert (await problem(response))[:2] == (412, "precondition_failed")
    assert (await client.get("minRevision=0-0")).status == 200


async def test_a_strong_read_waits_for_what_the_store_holds(node: Node, client: Client) -> None:
    node.history.register("draw")
    assert (await problem(await client.get("consistency=strong")))[1] == "not_ready"
    await node.turn()
    assert (await (await client.get("consistency=strong")).json())["total"] == 2


async def test_while_the_store_is_away_reads_say_how_stale_they_are(
    node: Node, client: Client
) -> None:
    assert (await client.get("maxStaleMs=0")).status == 200
    node.stream.away = True
    await node.turn()
    while node.reads.stale_ms < 2:  # noqa: ASYNC110  a clock has no event
        await asyncio.sleep(0)
    response = await client.get()
    assert (response.status, int(response.headers["X-Registry-Stale-Ms"]) >= 2) == (200, True)
    assert (await client.get("maxStaleMs=60000")).status == 200
    assert (await problem(await client.get("maxStaleMs=1")))[:2] == (503, "not_ready")
    assert (await problem(await client.get("consistency=strong")))[1] == "storage_unavailable"


# --- long polls


async def polling(node: Node, client: Client, query: str, **headers: str) -> asyncio.Task[Any]:
    """A request that has reached the node and waits there."""
    asking = asyncio.ensure_future(client.get(query, **headers))
    await node.asked.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not asking.done()
    return asking


async def test_a_long_poll_answers_when_its_own_result_may_have_changed(
    node: Node, client: Client
) -> None:
    asking = await polling(node, client, f"tags=b&since={node.view.revision}&wait=4s")
    node.history.register("echo", metadata={"tags": ["c"]})
    await node.turn()
    await asyncio.sleep(0)
    assert not asking.done()
    node.history.register("draw", metadata={"tags": ["b"]})
    await node.turn()
    assert (await (await asking).json())["total"] == 1


async def test_a_long_poll_without_a_change_answers_the_same_after_its_wait(
    node: Node, client: Client
) -> None:
    since = f"since={node.view.revision}"
    response = await client.get(f"{since}&wait=10ms")
    assert (response.status, (await response.json())["total"]) == (200, 1)
    assert (await client.get(f"{since}&wait=10ms", If_None_Match=etag_of(node))).status == 304


async def test_a_long_poll_may_be_asked_for_by_a_preference(node: Node, client: Client) -> None:
    asking = await polling(
        node, client, f"since={node.view.revision}", Prefer="respond-async, wait=4"
    )
    node.history.register("draw")
    await node.turn()
    assert (await asking).headers["Preference-Applied"] == "wait=4"


@pytest.mark.parametrize("since", ["{older}-7", "{epoch}-0"])
async def test_a_token_behind_the_result_answers_at_once(
    node: Node, client: Client, since: str
) -> None:
    epoch = node.history.epoch
    since = since.format(older=epoch - 1, epoch=epoch)
    assert (await client.get(f"since={since}&wait=5m")).status == 200


async def test_without_a_wait_an_answer_comes_at_once(node: Node, client: Client) -> None:
    assert (await client.get(f"since={node.history.epoch}-99")).status == 200


@pytest.mark.parametrize("since", ["{epoch}-99", "{newer}-0"])
async def test_a_token_of_the_future_waits(node: Node, client: Client, since: str) -> None:
    epoch = node.history.epoch
    asking = await polling(
        node, client, f"since={since.format(epoch=epoch, newer=epoch + 1)}&wait=5m"
    )
    node.closing.set()
    await asking


async def test_shutting_down_lets_waiting_readers_go(node: Node, client: Client) -> None:
    asking = await polling(node, client, f"since={node.view.revision}&wait=5m")
    node.closing.set()
    assert (await asking).status == 200


async def test_a_long_poll_ignores_a_cursor_and_its_next_page_is_no_long_poll(
    node: Node, client: Client
) -> None:
    for name in ("draw", "echo"):
        node.history.register(name)
    await node.turn()
    response = await client.get(f"cursor=x&limit=1&tags=&since={node.history.epoch}-0&wait=1")
    [chat] = (await response.json())["services"]
    link = URL(response.links["next"]["url"])
    assert chat["name"] == "chat"
    assert set(link.query) == {"limit", "tags", "cursor"}
    following = await client.get(link.raw_query_string)
    assert [one["name"] for one in (await following.json())["services"]] == ["draw"]


# --- the cache and compression


async def test_a_repeated_query_is_answered_from_the_cache_until_it_may_differ(
    node: Node, client: Client
) -> None:
    for query in ("tags=a", "tags=a", f"tags=a&minRevision={node.view.revision}", "tags=a&limit="):
        await client.get(query)
    hits = {"outcome": "hit"}
    assert node.count("result_cache_lookups", **hits) == 3
    node.history.register("draw", metadata={"tags": ["b"]})
    await node.turn()
    await client.get("tags=a")
    assert node.count("result_cache_lookups", **hits) == 4
    node.history.health("chat:i1", "healthy")
    await node.turn()
    document = await (await client.get("tags=a")).json()
    assert node.count("result_cache_lookups", **hits) == 4
    assert document["services"][0]["health"]["status"] == "healthy"


@pytest.mark.parametrize("instances", [5, 400])  # the larger is compressed in a thread
async def test_compressed_bodies_decode_to_the_plain_one_and_are_made_once(
    node: Node, client: Client, instances: int
) -> None:
    for number in range(instances):
        node.history.register("chat", f"n{number}", metadata={"note": "é" * 40})
    await node.turn()
    plain = await client.get("limit=10000")
    body = await plain.read()
    assert "Content-Encoding" not in plain.headers
    for encoding, decode in (("gzip", gzip.decompress), ("zstd", unzstd)):
        first = await client.get("limit=10000", Accept_Encoding=encoding)
        second = await client.get("limit=10000", Accept_Encoding=f"{encoding};q=0.5, br")
        assert first.headers["Content-Encoding"] == encoding
        assert first.headers["ETag"] == plain.headers["ETag"]
        assert decode(await first.read()) == body
        assert await first.read() == await second.read()
    # Nothing outside tells a form that was kept from one made again.
    [listing] = node.reads._cache._kept.values()
    assert listing.encoded.keys() == {"gzip", "zstd"}


async def test_small_bodies_are_not_compressed(client: Client) -> None:
    response = await client.get("tags=none", Accept_Encoding="gzip")
    assert "Content-Encoding" not in response.headers


def unzstd(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 24)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("GZIP ; Q=1.0", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("gzip;q=0.001", "gzip"),
        ("gzip; q = 0", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("*, zstd;q=0", "gzip"),
        ("identity", None),
        ("br, x-gzipped", None),
        (",;,=", None),
    ],
)
def test_an_encoding_is_chosen_of_those_the_client_takes(
    accepted: str | None, chosen: str | None
) -> None:
    assert best_encoding(accepted) == chosen
