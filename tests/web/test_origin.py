"""Hosts, pages of others and what they are told: the same in both lanes."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from wired import get, nothing, request, route, serving

from registryd.errors import Forbidden
from registryd.web.caller import Permission
from registryd.web.origin import Origins, host_of
from registryd.web.reply import Reply
from registryd.web.shortcut import Exchange

PAGE = "https://ui.example"
OURS = Origins(frozenset({"registry.test", "[::1]"}), frozenset({PAGE}))


def headers(**fields: str) -> CIMultiDictProxy[str]:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return CIMultiDictProxy(CIMultiDict({"Host": "registry.test:8082"} | named))


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("localhost", "localhost"),
        ("LocalHost.:80", "localhost"),
        ("127.0.0.1:8082", "127.0.0.1"),
        ("[::1]:8082", "[::1]"),
        ("[::1]", "[::1]"),
        ("[::1", ""),
        ("", ""),
        ("[::1]evil", "[::1]"),
    ],
)
def test_a_host_is_compared_without_port_and_case(value: str, host: str) -> None:
    assert host_of(value) == host


@pytest.mark.parametrize("host", ["evil.example", "registry.test.evil.example", "::1", "", "x:y"])
def test_a_foreign_host_is_refused(host: str) -> None:
    with pytest.raises(Forbidden, match=r"server\.allowedHosts"):
        OURS.check(headers(Host=host), "GET", public=True)
    assert not OURS.unremarkable({"host": host})


@pytest.mark.parametrize("host", ["registry.test", "Registry.Test.:1", "[::1]:8082"])
def test_our_own_hosts_are_let_in(host: str) -> None:
    OURS.check(headers(Host=host), "PUT", public=False)
    assert OURS.unremarkable({"host": host})


def test_without_a_list_every_host_is_let_in() -> None:
    Origins().check(headers(Host="whatever"), "PUT", public=False)
    assert Origins().unremarkable({"host": "whatever"})


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://registry.test"},  # another port than the request's own
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "https://registry.test:8082"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "script"},
]


@pytest.mark.parametrize("fields", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_a_foreign_page_neither_reads_nor_writes(fields: dict[str, str], method: str) -> None:
    with pytest.raises(Forbidden, match=r"server\.cors\.origins"):
        OURS.check(headers(**fields), method, public=False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Origin": "https://registry.test:8082"},
        {"Origin": "http://registry.test:8082", "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        {"Origin": PAGE},
        {"Origin": PAGE, "Sec_Fetch_Site": "cross-site"},
    ],
)
def test_programs_our_own_pages_and_listed_ones_write(fields: dict[str, str]) -> None:
    OURS.check(headers(**fields), "PUT", public=False)


def test_a_link_to_us_may_be_followed_but_posts_nothing() -> None:
    fields = {
        "Sec_Fetch_Site": "cross-site",
        "Sec_Fetch_Mode": "navigate",
        "Sec_Fetch_Dest": "document",
    }
    OURS.check(headers(**fields), "GET", public=False)
    with pytest.raises(Forbidden):
        OURS.check(headers(**fields), "POST", public=False)


def test_what_is_open_to_all_may_be_shown_by_any_page_but_not_written_to() -> None:
    fields = headers(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image")
    OURS.check(fields, "GET", public=True)
    with pytest.raises(Forbidden):
        OURS.check(fields, "POST", public=True)


# --- over the wire


class Thing:
    def __init__(self) -> None:
        self.taken = 0

    def short(self, exchange: Exchange) -> bool:
        self.taken += 1
        exchange.reply(Reply(204))
        return True

    def routes(self):
        return [
            route("PUT", "/thing", permission=Permission.WRITER, shortcut=self.short),
            route("GET", "/thing", permission=Permission.READER),
            route("GET", "/other"),
        ]


def to(host: str, *fields: str, method: str = "PUT") -> bytes:
    lines = [f"{method} /thing HTTP/1.1", f"Host: {host}", *fields, "", ""]
    return "\r\n".join(lines).encode()


async def test_both_lanes_let_in_and_refuse_the_same() -> None:
    thing = Thing()
    async with serving(thing.routes(), origins=OURS) as served, served.line() as line:
        await line.ask(get("/other"))
        for _ in range(2):  # the second time the headers are known
            assert (await line.ask(to("registry.test:1"))).status == 204
            refused = await line.ask(to("evil.example"))
            assert (refused.status, refused.json["code"]) == (403, "forbidden")
            assert (await line.ask(to("registry.test", f"Origin: {PAGE}"))).status == 204
            for fields in ("Origin: https://evil.example", "Sec-Fetch-Site: cross-site"):
                assert (await line.ask(to("registry.test", fields))).status == 403
                assert (await line.ask(to("registry.test", fields, method="GET"))).status == 403
    assert thing.taken == 2


async def test_a_listed_page_is_told_that_it_may_read_also_what_went_wrong() -> None:
    async with serving(Thing().routes(), origins=OURS) as served, served.line() as line:
        good = await line.ask(get("/thing", f"Origin: {PAGE}"))
        bad = await line.ask(get("/nowhere", f"Origin: {PAGE}"))
        plain = await line.ask(get("/thing"))
        other = await line.ask(get("/other", "Origin: https://evil.example"))
    assert (good.status, bad.status, other.status) == (204, 404, 204)
    for answer in (good, bad):
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "X-Registry-Revision" in answer.headers["Access-Control-Expose-Headers"]
    for answer in (plain, other):
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Vary"] == "Origin"


async def test_a_listed_page_is_told_what_it_may_send() -> None:
    asked = ("Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: x-api-key")
    async with serving(Thing().routes(), origins=OURS) as served, served.line() as line:
        answer = await line.ask(request("OPTIONS", "/thing", f"Origin: {PAGE}", *asked))
        foreign = await line.ask(
            request("OPTIONS", "/thing", "Origin: https://evil.example", *asked)
        )
        plain = await line.ask(request("OPTIONS", "/thing"))
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS, PUT"
    assert "X-API-Key" in answer.headers["Access-Control-Allow-Headers"]
    assert answer.headers["Access-Control-Max-Age"] == "600"
    for other in (foreign, plain):
        assert not any(name.startswith("Access-Control") for name in other.headers)
    assert plain.headers["Allow"] == "GET, HEAD, OPTIONS, PUT"


async def test_without_listed_pages_nothing_is_said_of_origins() -> None:
    async with serving([route("GET", "/thing", nothing)]) as served, served.line() as line:
        answer = await line.ask(get("/thing", "Origin: http://registry.test"))
    assert answer.status == 204
    assert "Vary" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_page_says_itself_what_it_may_load() -> None:
    async def page(request):
        own = [("Content-Security-Policy", "default-src 'self'")]
        return Reply(body=b"<p>", content_type="text/html", headers=own)

    async with serving([route("GET", "/page", page)]) as served, served.line() as line:
        await line.send(get("/page"))
        head = (await line.reader.readuntil(b"\r\n\r\n")).decode()
    assert head.count("Content-Security-Policy") == 1
    assert "Content-Security-Policy: default-src 'self'\r\n" in head
    assert "X-Content-Type-Options: nosniff\r\n" in head
