"""Clients behind proxies: whose word counts, and what is no address."""

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from wired import get, request, route, serving

from registryd.errors import Malformed
from registryd.web.access import OpenAccess
from registryd.web.caller import Caller, Peer, Permission
from registryd.web.forwarded import Proxies
from registryd.web.reply import Reply

PROXIES = Proxies([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")])
PROXY = Peer("10.0.0.1")


def fields(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def listed(*values: str) -> CIMultiDictProxy[str]:
    return fields(*(("X-Forwarded-For", value) for value in values))


def forwarded(*values: str) -> CIMultiDictProxy[str]:
    return fields(*(("Forwarded", value) for value in values))


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        (listed("203.0.113.7"), "203.0.113.7"),
        (listed("6.6.6.6, 203.0.113.7"), "203.0.113.7"),
        (listed("6.6.6.6, 203.0.113.7 , 10.9.9.9"), "203.0.113.7"),
        (listed("6.6.6.6", "203.0.113.7", "10.9.9.9,fd00::1"), "203.0.113.7"),
        (listed("10.0.0.5, 10.0.0.6"), "10.0.0.5"),
        (listed("203.0.113.7:4711"), "203.0.113.7"),
        (listed("[2001:db8::7]:4711"), "2001:db8::7"),
        (listed("2001:DB8:0::7"), "2001:db8::7"),
        (listed("203.0.113.7, ::ffff:10.0.0.3"), "203.0.113.7"),
        (forwarded("for=203.0.113.7"), "203.0.113.7"),
        (forwarded('For="[2001:db8::7]:80";proto=https;by=10.0.0.1'), "2001:db8::7"),
        (forwarded("for=6.6.6.6, for=203.0.113.7;host=x", "for=10.1.1.1"), "203.0.113.7"),
        (forwarded("proto=https"), "10.0.0.1"),
        (fields(("Forwarded", "for=1.2.3.4"), ("X-Forwarded-For", "1.2.3.4")), "1.2.3.4"),
        (fields(), "10.0.0.1"),
        ({"x-forwarded-for": "203.0.113.7"}, "203.0.113.7"),
        ({"forwarded": "for=203.0.113.7"}, "203.0.113.7"),
    ],
)
def test_the_client_is_the_last_one_that_is_no_proxy_of_ours(headers, address: str) -> None:
    assert PROXIES.client(PROXY, headers).address == address


@pytest.mark.parametrize("address", ["192.0.2.1", "unknown", "11.0.0.1", "::1"])
def test_whoever_is_no_proxy_of_ours_is_not_believed(address: str) -> None:
    peer = Peer(address)
    assert PROXIES.client(peer, listed("not even an address")) is peer


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::5"])
def test_proxies_are_known_by_their_networks(address: str) -> None:
    assert PROXIES.client(Peer(address), listed("203.0.113.7")).address == "203.0.113.7"


@pytest.mark.parametrize(
    "headers",
    [
        listed("unknown"),
        listed("203.0.113.7,"),
        listed("evil, 203.0.113.7"),
        listed("203.0.113.7:port"),
        listed("203.0.113.256"),
        listed("[203.0.113.7"),
        forwarded("for=unknown"),
        forwarded("for=_hidden"),
        forwarded("for"),
        forwarded("for=1.2.3.4;for=1.2.3.5"),
        forwarded("for=1.2.3.4 5.6.7.8"),
        forwarded('for="1.2.3.4'),
        forwarded("for=1.2.3.4,"),
        fields(("Forwarded", "for=6.6.6.6"), ("X-Forwarded-For", "203.0.113.7")),
    ],
)
def test_what_cannot_be_right_is_malformed(headers) -> None:
    with pytest.raises(Malformed):
        PROXIES.client(PROXY, headers)


def test_the_certificate_stays_that_of_the_connection() -> None:
    peer = Peer("10.0.0.1", {"subject": ()})
    assert PROXIES.client(peer, listed("203.0.113.7")) == Peer("203.0.113.7", {"subject": ()})


@given(st.text(max_size=60), st.sampled_from([listed, forwarded]))
def test_any_text_is_an_address_or_malformed(text: str, header) -> None:
    try:
        found = PROXIES.client(PROXY, header(text)).address
    except Malformed:
        return
    ipaddress.ip_address(found)


@given(st.lists(st.ip_addresses().filter(lambda ip: not PROXIES.trusts(str(ip))), min_size=1))
def test_both_headers_tell_the_same_story(hops) -> None:
    plain = ", ".join(map(str, hops))
    named = ", ".join(f"for={ip}" if ip.version == 4 else f'for="[{ip}]"' for ip in hops)
    client = PROXIES.client(PROXY, listed(plain))
    assert PROXIES.client(PROXY, forwarded(named)) == client


# --- over the wire


class Seen(OpenAccess):
    def __init__(self) -> None:
        self.addresses: list[str] = []

    def known(self, headers, peer: Peer) -> Caller:
        self.addresses.append(peer.address)
        return self.EVERYBODY


async def tell(request):
    return Reply(body=json.dumps(request.signature()).encode())


async def test_both_lanes_and_the_record_see_the_client() -> None:
    def short(exchange) -> bool:
        exchange.reply(Reply(204))
        return True

    seen = Seen()
    routes = [
        route("PUT", "/short", permission=Permission.WRITER, shortcut=short),
        route("GET", "/long", tell, permission=Permission.READER),
    ]
    loopback = Proxies([ipaddress.ip_network("127.0.0.0/8")])
    client = "X-Forwarded-For: 203.0.113.7"
    async with serving(routes, access=seen, proxies=loopback) as served, served.line() as line:
        assert (await line.ask(get("/long", client))).json == "anonymous@203.0.113.7"
        assert (await line.ask(request("PUT", "/short", client))).status == 204
        assert (
            await line.ask(request("PUT", "/short", "Forwarded: for=203.0.113.8"))
        ).status == 204
        assert (await line.ask(request("PUT", "/short"))).status == 204
        bad = await line.ask(request("PUT", "/short", "X-Forwarded-For: me"))
        assert (bad.status, bad.json["code"]) == (400, "malformed")
    assert seen.addresses == ["203.0.113.7", "203.0.113.7", "203.0.113.8", "127.0.0.1"]


async def test_without_trusted_proxies_the_headers_mean_nothing() -> None:
    async with serving([route("GET", "/long", tell)]) as served, served.line() as line:
        answer = await line.ask(get("/long", "X-Forwarded-For: me", "Forwarded: for=1.2.3.4"))
    assert answer.json == "anonymous@127.0.0.1"
