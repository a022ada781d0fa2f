"""What every answer looks like on the wire, connections, streams, stopping, addresses."""

import asyncio
import json
import re
import socket

import aiohttp
import pytest
import structlog
from wired import echo, get, numbers, put, request, route, serving

from registryd.errors import Forbidden, NotFound, StartupRefused, StorageUnavailable
from registryd.metrics import Metrics
from registryd.web.access import OpenAccess
from registryd.web.caller import Caller, Permission, Scope
from registryd.web.pipeline import Pipeline
from registryd.web.reply import Reply, Stream, frame
from registryd.web.router import Router
from registryd.web.server import HttpServer

BIG = bytes(range(256)) * 4096


async def hello(request):
    return Reply(body=b'"hello"', headers=[("X-Extra", "yes")])


async def big(request):
    return Reply(body=BIG, content_type="application/octet-stream")


async def fails(request):
    raise RuntimeError("boom")


async def unavailable(request):
    raise StorageUnavailable("the store does not answer")


async def unchanged(request):
    return Reply(304, headers=[("ETag", 'W/"1"')])


async def splits(request):
    return Reply(headers=[("X-Bad", "a\r\nX-Injected: b")])


async def whoami(request):
    return Reply(body=json.dumps([request.actor, request.id, request.params]).encode())


async def optional(request):
    return Reply(body=json.dumps(await request.optional_json()).encode())


async def breaks(request):
    async def produce(outlet):
        await outlet.send(b"some")
        raise RuntimeError("boom")

    return Stream(produce)


ROUTES = (
    route("GET", "/hello", hello),
    route("GET", "/big", big),
    route("GET", "/fails", fails),
    route("GET", "/unavailable", unavailable),
    route("GET", "/unchanged", unchanged),
    route("GET", "/splits", splits),
    route("GET", "/numbers", numbers),
    route("GET", "/breaks", breaks),
    route("GET", "/who/{name}", whoami, permission=Permission.WRITER),
    route("PUT", "/echo", echo),
    route("PUT", "/optional", optional),
    route("DELETE", "/thing"),
)


async def asked(data, **settings):
    async with serving(ROUTES, **settings) as served, served.line() as line:
        return await line.ask(data)


async def test_an_answer_carries_what_every_answer_carries():
    answer = await asked(get("/hello"))
    assert answer.status == 200
    assert answer.body == b'"hello"'
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers.pop("Date"))
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers.pop("X-Request-ID"))
    assert answer.headers == {
        "Server": "registryd",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Content-Type": "application/json",
        "Content-Length": "7",
        "X-Extra": "yes",
    }


async def test_a_request_id_is_taken_from_the_client():
    assert (await asked(get("/hello", "X-Request-ID: a.B-9_"))).headers["X-Request-ID"] == "a.B-9_"


@pytest.mark.parametrize("given", ["has space", "x" * 65, "a;b", "é"])
async def test_an_odd_request_id_is_replaced(given):
    answer = await asked(get("/hello", f"X-Request-ID: {given}"))
    assert answer.headers["X-Request-ID"] != given


async def test_two_requests_have_two_ids():
    async with serving(ROUTES) as served, served.line() as line:
        ids = {(await line.ask(get("/hello"))).headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3


async def test_the_route_s_function_knows_actor_id_and_parameters():
    answer = await asked(get("/who/ann%20b", "X-Request-ID: r1"))
    assert answer.json == ["anonymous", "r1", {"name": "ann b"}]


async def test_head_is_get_without_the_body():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(request("HEAD", "/hello") + get("/hello"))
        head = await line.head()
        assert (head.headers["Content-Length"], head.headers["Content-Type"]) == (
            "7",
            "application/json",
        )
        assert (await line.answer()).body == b'"hello"'


async def test_no_content_has_neither_length_nor_type():
    answer = await asked(request("DELETE", "/thing"))
    assert answer.status == 204
    assert not {"Content-Length", "Content-Type"} & answer.headers.keys()


async def test_not_modified_has_neither_length_nor_type():
    answer = await asked(get("/unchanged"))
    assert (answer.status, answer.headers["ETag"]) == (304, 'W/"1"')
    assert not {"Content-Length", "Content-Type"} & answer.headers.keys()


async def test_options_lists_the_methods():
    answer = await asked(request("OPTIONS", "/hello"))
    assert (answer.status, answer.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


async def test_a_wrong_method_lists_the_right_ones():
    answer = await asked(request("PATCH", "/hello"))
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


async def test_an_unknown_path_is_a_problem_with_the_request_id():
    answer = await asked(get("/nothing", "X-Request-ID: r2"))
    assert (answer.status, answer.json["requestId"]) == (404, "r2")
    assert answer.headers["X-Request-ID"] == "r2"


async def test_an_unexpected_error_is_logged_once_and_reveals_nothing():
    with structlog.testing.capture_logs() as lines:
        answer = await asked(get("/fails"))
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert b"boom" not in answer.body
    [line] = lines
    assert (line["event"], line["route"]) == ("request failed", "/fails")
    assert isinstance(line["exc_info"], RuntimeError)


async def test_the_connection_survives_an_unexpected_error():
    async with serving(ROUTES) as served, served.line() as line:
        assert (await line.ask(get("/fails"))).status == 500
        assert (await line.ask(get("/hello"))).status == 200


async def test_an_unavailable_store_is_logged_and_asks_to_try_again():
    with structlog.testing.capture_logs() as lines:
        answer = await asked(get("/unavailable"))
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert [line["code"] for line in lines] == ["storage_unavailable"]


async def test_what_the_client_got_wrong_is_not_logged():
    with structlog.testing.capture_logs() as lines:
        await asked(get("/nothing"))
    assert lines == []


async def test_a_header_with_a_line_break_never_goes_out():
    answer = await asked(get("/splits"))
    assert answer.status == 500
    assert "X-Injected" not in answer.headers


async def test_log_lines_of_a_request_carry_its_id():
    async def noted(request):
        return Reply(body=json.dumps(structlog.contextvars.get_contextvars()).encode())

    async with serving([route("GET", "/noted", noted)]) as served, served.line() as line:
        answer = await line.ask(get("/noted", "X-Request-ID: r3"))
    assert answer.json == {"request_id": "r3"}


async def test_requests_are_counted_by_method_route_and_status():
    async with serving(ROUTES) as served, served.line() as line:
        for path in ("/who/a", "/who/b", "/nothing", "/nothing/more"):
            await line.ask(get(path))
        await line.ask(request("MKCOL", "/nothing"))
        samples = {
            tuple(sample.labels.values()): sample.value
            for metric in served.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "registryd_http_requests_total"
        }
    assert {frozenset(key): value for key, value in samples.items()} == {
        frozenset({"GET", "/who/{name}", "200"}): 1 + 1,
        frozenset({"GET", "unmatched", "404"}): 2,
        frozenset({"other", "unmatched", "404"}): 1,
    }


async def test_requests_under_way_are_counted():
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def waits(request):
        under_way.set()
        await go_on.wait()
        return Reply()

    async with serving([route("GET", "/waits", waits)]) as served, served.line() as line:
        value = served.metrics.registry.get_sample_value
        await line.send(get("/waits"))
        await under_way.wait()
        assert value("registryd_http_requests_in_flight") == 1
        go_on.set()
        await line.answer()
        assert value("registryd_http_requests_in_flight") == 0


async def test_a_refusal_of_access_comes_before_the_route_s_function():
    asked_for = []

    async def who(request):
        asked_for.append(request.params["name"])
        return Reply()

    class Readers(OpenAccess):
        EVERYBODY = Caller("guest", Permission.READER)

    rows = [
        route("GET", "/open", hello),
        route("PUT", "/{name}", who, permission=Permission.WRITER, scope=Scope.NAMED),
        route("GET", "/{name}", who, permission=Permission.READER, scope=Scope.NAMED),
    ]
    async with serving(rows, access=Readers()) as served, served.line() as line:
        refused = await line.ask(request("PUT", "/a"))
        assert (refused.status, refused.json["code"]) == (403, "forbidden")
        assert (await line.ask(get("/b"))).status == 200
        assert (await line.ask(get("/open"))).status == 200
    assert asked_for == ["b"]


@pytest.mark.parametrize(
    ("scope", "path", "allowed"),
    [
        (Scope.NAMED, "/s/team-a.one", True),
        (Scope.NAMED, "/s/team-b.one", False),
        (Scope.WHOLE, "/w", False),
        (Scope.NONE, "/w", True),
        (Scope.NARROWED, "/w", True),
    ],
)
async def test_callers_with_prefixes_get_what_the_route_s_scope_says(scope, path, allowed):
    class TeamA(OpenAccess):
        EVERYBODY = Caller("team", Permission.ADMIN, ("team-a.",))

    place = "/s/{name}" if scope is Scope.NAMED else "/w"
    rows = [route("GET", place, hello, permission=Permission.READER, scope=scope)]
    async with serving(rows, access=TeamA()) as served, served.line() as line:
        answer = await line.ask(get(path))
    assert answer.status == (200 if allowed else 403)
    if not allowed:
        assert "'team-a.'" in answer.json["detail"]


async def test_refusals_and_what_admins_do_are_noted():
    noted = []

    class Noting(OpenAccess):
        EVERYBODY = Caller("ann", Permission.ADMIN)

        def note(self, attempt):
            noted.append((attempt.path, attempt.outcome, attempt.request_id))
            assert attempt.signature == "ann@127.0.0.1"

    async def refuses(request):
        raise Forbidden("not this one")

    rows = [
        route("GET", "/read", hello, permission=Permission.READER),
        route("GET", "/admin", hello, permission=Permission.ADMIN),
        route("GET", "/no", refuses, permission=Permission.READER),
    ]
    async with serving(rows, access=Noting()) as served, served.line() as line:
        for path in ("/read", "/admin", "/no"):
            await line.ask(get(path, f"X-Request-ID: id{path[1:]}"))
    assert noted == [("/admin", "done", "idadmin"), ("/no", "forbidden", "idno")]


async def test_connections_are_kept():
    async with serving(ROUTES) as served, served.line() as line:
        for _ in range(3):
            assert "Connection" not in (await line.ask(get("/hello"))).headers


async def test_pipelined_requests_are_answered_in_order():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(b"".join(get("/hello", f"X-Request-ID: n{n}") for n in range(100)))
        ids = [(await line.answer()).headers["X-Request-ID"] for _ in range(100)]
    assert ids == [f"n{n}" for n in range(100)]


async def test_close_is_honoured():
    async with serving(ROUTES) as served, served.line() as line:
        answer = await line.ask(get("/hello", "Connection: close"))
        assert answer.headers["Connection"] == "close"
        assert await line.rest() == b""


async def test_http_1_0_is_answered_and_closed():
    async with serving(ROUTES) as served, served.line() as line:
        answer = await line.ask(b"GET /hello HTTP/1.0\r\n\r\n")
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert await line.rest() == b""


async def test_http_1_0_may_ask_to_be_kept():
    async with serving(ROUTES) as served, served.line() as line:
        for _ in range(2):
            answer = await line.ask(b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert answer.headers["Connection"] == "keep-alive"


async def test_a_declined_upgrade_is_an_ordinary_request():
    async with serving(ROUTES) as served, served.line() as line:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        await line.send(get("/hello", *upgrade) + get("/nothing"))
        assert [(await line.answer()).status, (await line.answer()).status] == [200, 404]


async def test_a_client_that_expects_to_be_told_is_told_to_continue():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(request("PUT", "/echo", "Content-Length: 3", "Expect: 100-continue"))
        assert (await line.head()).status == 100
        assert (await line.ask(b"[1]")).json == [1]


async def test_a_client_whose_body_is_not_wanted_is_not_told_to_continue():
    async with serving(ROUTES, lingering_time=0.01) as served, served.line() as line:
        answer = await line.ask(
            request("DELETE", "/thing", "Content-Length: 3", "Expect: 100-continue")
        )
        assert (answer.status, answer.headers["Connection"]) == (204, "close")


async def test_an_optional_body_may_be_missing():
    assert (await asked(request("PUT", "/optional"))).json is None


async def test_an_optional_body_may_be_there():
    assert (await asked(put("/optional", b"[2]"))).json == [2]


async def test_an_empty_chunked_body_is_a_missing_one():
    data = request("PUT", "/optional", "Transfer-Encoding: chunked") + b"0\r\n\r\n"
    assert (await asked(data)).json is None


async def test_a_body_in_pieces_is_put_together():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(request("PUT", "/echo", "Transfer-Encoding: chunked"))
        for piece in (b"1\r\n[\r\n", b"1\r\n4\r\n", b"1\r\n]\r\n", b"0\r\n\r\n"):
            await line.send(piece)
        assert (await line.answer()).json == [4]


async def test_a_large_answer_arrives_whole():
    async with serving(ROUTES) as served, served.line() as line:
        assert (await line.ask(get("/big"))).body == BIG


async def test_a_slow_reader_gets_large_answers_one_after_the_other():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(get("/big") * 20)
        for _ in range(20):
            assert (await line.answer()).body == BIG


async def test_a_client_that_takes_nothing_is_cut_off():
    asked = asyncio.Event()

    async def huge(request):
        asked.set()
        return Reply(body=bytes(2**26))

    pipeline = Pipeline(
        Router([route("GET", "/huge", huge)]), Metrics(), OpenAccess(), write_patience=0.02
    )
    server = HttpServer(pipeline)
    [address] = await server.start([("127.0.0.1", 0)])
    with socket.socket() as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, address)
        await asyncio.get_running_loop().sock_sendall(client, get("/huge"))
        await asked.wait()
        await server.stop(60)
    assert pipeline.in_flight == 0


async def test_an_ordinary_client_is_served():
    async with (
        serving(ROUTES) as served,
        aiohttp.ClientSession(served.url) as client,
        client.put("/echo", json={"é": 1}) as response,
    ):
        assert await response.json() == {"é": 1}


async def test_a_stream_comes_in_chunks_and_keeps_the_connection():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(get("/numbers"))
        head = await line.head()
        assert head.headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in head.headers
        body = await line.reader.readuntil(b"0\r\n\r\n")
        assert body == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
        assert (await line.ask(get("/hello"))).status == 200


async def test_a_stream_for_http_1_0_ends_with_the_connection():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(b"GET /numbers HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head = await line.head()
        assert head.headers["Connection"] == "close"
        assert "Transfer-Encoding" not in head.headers
        assert await line.rest() == b"onetwothree"


async def test_head_of_a_stream_is_its_head():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(request("HEAD", "/numbers"))
        assert (await line.head()).headers["Content-Type"] == "text/plain"
        assert (await line.ask(get("/hello"))).status == 200


async def test_a_stream_that_fails_is_cut_so_that_the_client_notices():
    with structlog.testing.capture_logs() as lines:
        async with (
            serving(ROUTES) as served,
            aiohttp.ClientSession(served.url) as client,
            client.get("/breaks") as response,
        ):
            with pytest.raises(aiohttp.ClientError):
                await response.read()
    assert [line["event"] for line in lines] == ["request failed"]


async def test_a_client_that_leaves_ends_its_stream():
    ended = asyncio.Event()

    async def endless(request):
        async def produce(outlet):
            try:
                await outlet.send(b"x")
                await asyncio.Event().wait()
            finally:
                ended.set()

        return Stream(produce)

    async with serving([route("GET", "/endless", endless)]) as served:
        async with served.line() as line:
            await line.send(get("/endless"))
            await line.head()
        await ended.wait()


async def test_stopping_closes_idle_connections_at_once():
    async with serving(ROUTES) as served, served.line() as line, served.line() as fresh:
        await line.ask(get("/hello"))
        await served.server.stop(60)
        assert await line.rest() == await fresh.rest() == b""


async def test_stopping_lets_a_request_finish_and_closes_its_connection():
    under_way, go_on = asyncio.Event(), asyncio.Event()

    async def waits(request):
        under_way.set()
        await go_on.wait()
        return Reply(body=b"done")

    async with serving([route("GET", "/waits", waits)]) as served, served.line() as line:
        await line.send(get("/waits"))
        await under_way.wait()
        stopping = asyncio.create_task(served.server.stop(60))
        await asyncio.wait([stopping], timeout=0.01)
        assert not stopping.done()
        go_on.set()
        answer = await line.answer()
        assert (answer.body, answer.headers["Connection"]) == (b"done", "close")
        await stopping


async def test_stopping_lets_a_body_under_way_arrive():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(request("PUT", "/echo", "Content-Length: 3", "Expect: 100-continue"))
        await line.head()
        stopping = asyncio.create_task(served.server.stop(60))
        await asyncio.wait([stopping], timeout=0.01)
        assert (await line.ask(b"[5]")).json == [5]
        await stopping


async def test_stopping_cancels_what_outlives_the_grace():
    under_way, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(request):
        under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving([route("GET", "/endless", endless)]) as served, served.line() as line:
        await line.send(get("/endless"))
        await under_way.wait()
        await served.server.stop(0.01)
        assert cancelled.is_set()


async def test_a_stopped_server_accepts_nobody():
    async with serving(ROUTES) as served:
        await served.server.stop(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*served.address)


def server():
    return HttpServer(Pipeline(Router(ROUTES), Metrics(), OpenAccess()))


async def test_an_address_in_use_is_refused_with_what_to_do():
    async with serving(ROUTES) as served:
        with pytest.raises(StartupRefused, match=r"already in use.*--port") as caught:
            await server().start([served.address])
    assert f"127.0.0.1:{served.address[1]}" in caught.value.detail


async def test_a_refused_start_leaves_nothing_bound():
    async with serving(ROUTES) as served:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()
        with pytest.raises(StartupRefused):
            await server().start([free, served.address])
        again = server()
        assert await again.start([free]) == [free]
        await again.stop(0)


async def test_several_addresses_are_served():
    both = server()
    addresses = await both.start([("127.0.0.1", 0), ("127.0.0.1", 0)])
    for host, port in addresses:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()
    await both.stop(0)
    assert len(addresses) == 2


async def test_every_address_of_a_name_is_served_on_the_same_port():
    one = server()
    addresses = await one.start([("localhost", 0)])
    await one.stop(0)
    assert len({port for _, port in addresses}) == 1


async def test_stopping_lets_a_slow_reader_take_the_last_answer():
    async with serving(ROUTES) as served, served.line() as line:
        await line.send(get("/big"))
        head = await line.head()
        stopping = asyncio.create_task(served.server.stop(60))
        assert await line.reader.readexactly(int(head.headers["Content-Length"])) == BIG
        await stopping


async def test_a_framed_chunk_fits_every_client():
    framed = frame(b"shared")

    async def shared(request):
        async def produce(outlet):
            outlet.write(framed)
            assert outlet.buffered >= 0

        return Stream(produce)

    async with serving([route("GET", "/shared", shared)]) as served:
        async with served.line() as line:
            await line.send(get("/shared"))
            await line.head()
            assert await line.reader.readuntil(b"0\r\n\r\n") == b"6\r\nshared\r\n0\r\n\r\n"
        async with served.line() as line:
            await line.send(b"GET /shared HTTP/1.0\r\n\r\n")
            await line.head()
            assert await line.rest() == b"shared"


async def test_two_servers_share_a_port_when_both_ask_for_it():
    first, second = server(), server()
    [address] = await first.start([("127.0.0.1", 0)], reuse_port=True)
    assert await second.start([address], reuse_port=True) == [address]
    await first.stop(0)
    await second.stop(0)


@pytest.mark.parametrize(
    ("host", "says"), [("192.0.2.1", "no such address"), ("no.such.invalid", "cannot be resolved")]
)
async def test_an_address_that_cannot_be_is_refused(host, says):
    with pytest.raises(StartupRefused, match=says):
        await server().start([(host, 0)])


async def test_a_refusal_of_our_own_is_answered_by_its_status():
    async def gone(request):
        raise NotFound("no such thing")

    async with serving([route("GET", "/gone", gone)]) as served, served.line() as line:
        assert (await line.ask(get("/gone"))).json["detail"] == "no such thing"


async def test_a_route_s_function_sees_method_headers_query_and_bare_body():
    async def seen(request):
        parts = [request.method, request.headers["X-Extra"], request.one("q"), request.one("none")]
        return Reply(body=json.dumps([*parts, (await request.body()).decode()]).encode())

    async with serving([route("PUT", "/seen", seen)]) as served, served.line() as line:
        answer = await line.ask(request("PUT", "/seen?q=a%20b", "X-Extra: x", body=b"<xml/>"))
    assert answer.json == ["PUT", "x", "a b", None, "<xml/>"]


async def test_a_repeated_parameter_where_one_is_meant_is_malformed():
    async def one(request):
        return Reply(body=repr(request.one("q")).encode())

    async with serving([route("GET", "/one", one)]) as served, served.line() as line:
        answer = await line.ask(get("/one?q=1&q=2"))
    assert (answer.status, answer.json["code"]) == (400, "malformed")


async def test_a_failure_does_not_end_with_a_body_where_none_may_be():
    async def chatty(request):
        return Reply(204, body=b"not allowed")

    async with serving([route("GET", "/chatty", chatty)]) as served, served.line() as line:
        assert (await line.ask(get("/chatty"))).status == 500
