"""The one way out: what is never dialled, however it is spelt, and what comes back from the rest."""

import asyncio
import contextlib
import socket
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from hypothesis import given
from hypothesis import strategies as st
from peers import answer, answering, authority, certified, listening, silent, trusting

from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.outbound import (
    EgressPolicy,
    Outbound,
    OutboundLimits,
    embedded,
    not_after,
    refusal,
)

PUBLIC = EgressPolicy()
LOCAL = EgressPolicy(loopback=True)
SECOND = timedelta(seconds=1)


@contextlib.asynccontextmanager
async def out(policy=LOCAL, **options):
    outbound = Outbound(policy, **options)
    try:
        yield outbound
    finally:
        await outbound.close()


def named(**names):
    """A lookup that knows `names` (dots as underscores) and nothing else."""

    def lookup(host):
        try:
            return names[host.replace(".", "_")]
        except KeyError:
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None

    return lookup


# What may be dialled


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("0.0.0.0", "unspecified"),  # noqa: S104  judged, not bound
        ("0.1.2.3", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "link-local"),
        ("169.254.0.1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "broadcast"),
        ("100.100.100.200", "a cloud metadata address"),
        ("168.63.129.16", "a cloud metadata address"),
        ("192.0.0.192", "a cloud metadata address"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("febf::1", "link-local"),
        ("ff02::1", "multicast"),
        ("fd00:ec2::254", "a cloud metadata address"),
        ("fd20:ce::254", "a cloud metadata address"),
        ("64:ff9b:1::7f00:1", "a local translation address"),
        # IPv4 inside IPv6, in every form
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("::127.0.0.1", "loopback"),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::169.254.169.254", "link-local"),
        ("2002:7f00:1::", "loopback"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "loopback"),  # Teredo, client 127.0.0.1
        ("2001:0:7f00:1:8000:63bf:3fff:fdd2", "loopback"),  # Teredo, server 127.0.0.1
        ("2001:db8::5efe:127.0.0.1", "loopback"),
        ("2001:db8::200:5efe:169.254.169.254", "link-local"),
        # and what may be dialled
        ("10.0.0.1", None),
        ("172.16.0.1", None),
        ("192.168.1.1", None),
        ("100.64.0.1", None),
        ("8.8.8.8", None),
        ("fd00::1", None),
        ("2606:4700::1111", None),
        ("::ffff:10.0.0.1", None),
        ("64:ff9b::8.8.8.8", None),
        ("2002:0808:0808::1", None),
    ],
)
def test_an_address_is_judged_by_where_it_leads(address, why):
    assert refusal(ip_address(address), PUBLIC) == why


def test_loopback_is_open_to_those_it_is_opened_to():
    for address in ("127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1"):
        assert refusal(ip_address(address), LOCAL) is None


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1"])  # noqa: S104
def test_no_setting_opens_what_is_never_dialled(address):
    everything = EgressPolicy(allowed=(ip_network(address.split("%")[0]),), loopback=True)
    assert refusal(ip_address(address), everything) is not None


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.1.2.3", None),
        ("::ffff:10.1.2.3", None),
        ("11.1.2.3", "in no allowed network"),
        ("2606:4700::1111", "in no allowed network"),
        ("127.0.0.1", None),
    ],
)
def test_only_allowed_networks_may_be_dialled(address, why):
    policy = EgressPolicy(allowed=(ip_network("10.0.0.0/8"),), loopback=True)
    assert refusal(ip_address(address), policy) == why


@given(st.ip_addresses(v=4))
def test_every_form_of_an_ipv4_address_is_judged_like_itself(address):
    why = refusal(address, PUBLIC)
    value = int(address)
    for form in (
        0xFFFF << 32 | value,
        0xFFFF_0000 << 32 | value,
        0x64FF9B << 96 | value,
        0x2002 << 112 | value << 80,
    ):
        assert embedded(IPv6Address(form)) == (address,)
        assert refusal(IPv6Address(form), PUBLIC) == why


@given(st.ip_addresses(v=6))
def test_every_ipv6_address_is_judged(address):
    refusal(address, PUBLIC)


# What is really dialled

SPELLINGS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "0.0.0.0",  # noqa: S104
    "0",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_of_loopback_is_reached(spelling):
    async with listening(silent) as peer, out(PUBLIC) as outbound:
        with pytest.raises((EgressDenied, OutboundFailed)):
            await outbound.request("GET", f"http://{spelling}:{peer.port}/", timeout=SECOND)
        with pytest.raises((EgressDenied, OutboundFailed)):
            async with outbound.connect(spelling.strip("[]"), peer.port, timeout=SECOND):
                pass
        assert peer.accepted == 0


async def test_a_refusal_says_where_and_why():
    async with out(PUBLIC) as outbound:
        with pytest.raises(EgressDenied) as caught:
            await outbound.request("GET", "http://169.254.169.254/latest", timeout=SECOND)
        assert str(caught.value) == "egress_denied: 169.254.169.254 is link-local"
        with pytest.raises(EgressDenied) as caught:
            async with outbound.connect("::1", 80, timeout=SECOND):
                pass
        assert str(caught.value) == "egress_denied: ::1 is loopback"


async def test_a_name_is_judged_by_its_addresses():
    lookup = named(metadata_example=["169.254.169.254"])
    async with out(PUBLIC, lookup=lookup) as outbound:
        with pytest.raises(EgressDenied) as caught:
            await outbound.request("GET", "http://metadata.example/", timeout=SECOND)
        assert str(caught.value) == (
            "egress_denied: metadata.example (169.254.169.254) is link-local"
        )
        with pytest.raises(EgressDenied, match=r"metadata\.example"):
            await outbound.resolve("metadata.example", timeout=SECOND)


async def test_a_name_that_changes_its_mind_is_dialled_where_it_was_judged():
    answers = [["127.0.0.1"], ["169.254.169.254"], ["169.254.169.254"]]
    asked = []

    def rebinding(host):
        asked.append(host)
        return answers[len(asked) - 1]

    async with answering(answer(b"ok")) as peer, out(lookup=rebinding) as outbound:
        url = f"http://twofaced.example:{peer.port}/"
        reply = await outbound.request("GET", url, timeout=SECOND)
        assert (reply.address, asked) == ("127.0.0.1", ["twofaced.example"])
        with pytest.raises(EgressDenied):
            await outbound.request("GET", url, timeout=SECOND)


async def test_of_a_name_with_several_addresses_only_permitted_ones_are_dialled():
    lookup = named(mixed_example=["169.254.169.254", "fe80::1", "127.0.0.1"])
    async with answering(answer(b"ok")) as peer, out(lookup=lookup) as outbound:
        url = f"http://mixed.example:{peer.port}/"
        assert (await outbound.request("GET", url, timeout=SECOND)).address == "127.0.0.1"
        async with outbound.connect("mixed.example", peer.port, timeout=SECOND) as line:
            assert line.address == "127.0.0.1"


async def test_a_name_with_many_addresses_is_cut():
    lookup = named(many_example=[f"10.0.{n // 256}.{n % 256}" for n in range(10_000)])
    async with out(lookup=lookup, limits=OutboundLimits(addresses=3)) as outbound:
        found = await outbound.resolve("many.example", timeout=SECOND)
        assert [str(one) for one in found] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]


async def test_a_redirect_is_an_answer_and_is_not_followed():
    async with (
        listening(silent) as inner,
        answering(
            answer(status="302 Found", headers=f"Location: http://{inner.authority}/\r\n")
        ) as peer,
        out() as outbound,
    ):
        reply = await outbound.request("GET", f"http://{peer.authority}/", timeout=SECOND)
        assert (reply.status, inner.accepted) == (302, 0)


async def test_the_environment_names_no_proxy(monkeypatch):
    async with listening(silent) as proxy, answering(answer(b"ok")) as peer, out() as outbound:
        monkeypatch.setenv("http_proxy", f"http://{proxy.authority}")
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.authority}")
        reply = await outbound.request("GET", f"http://{peer.authority}/", timeout=SECOND)
        assert (reply.status, proxy.accepted) == (200, 0)


# HTTP


async def test_a_request_goes_out_as_it_was_given():
    async with answering(answer(b"done", status="202 Accepted")) as peer, out() as outbound:
        reply = await outbound.request(
            "POST",
            f"http://{peer.authority}/hook?a=1",
            headers={"X-Sign": "v1", "Content-Type": "application/json"},
            body=b"{}",
            timeout=SECOND,
        )
        assert (reply.status, reply.body, reply.truncated) == (202, b"done", False)
        assert reply.headers["content-length"] == "4"
        assert reply.certificate_expires_at is None
        lines = peer.heads[0].split("\r\n")
        assert lines[0] == "POST /hook?a=1 HTTP/1.1"
        assert {"X-Sign: v1", "Content-Type: application/json", "Content-Length: 2"} <= set(lines)
        assert "Accept-Encoding: identity" in lines
        assert any(line.startswith("User-Agent: registryd/") for line in lines)


async def test_cookies_are_not_kept():
    async with answering(answer(headers="Set-Cookie: a=b; Path=/\r\n")) as peer, out() as outbound:
        for _ in range(2):
            await outbound.request("GET", f"http://{peer.authority}/", timeout=SECOND)
        assert peer.accepted == 2
        assert not any("cookie" in head.lower() for head in peer.heads)


@pytest.mark.parametrize(
    ("size", "limit", "truncated"), [(10, 10, False), (11, 10, True), (0, 0, False), (1, 0, True)]
)
async def test_a_body_is_read_up_to_the_limit(size, limit, truncated):
    async with answering(answer(b"x" * size)) as peer, out() as outbound:
        reply = await outbound.request(
            "GET", f"http://{peer.authority}/", timeout=SECOND, max_body=limit
        )
        assert (len(reply.body), reply.truncated) == (min(size, limit), truncated)


@pytest.mark.parametrize(
    "headers", [{"X-A": "1\r\nX-B: 2"}, {"X-A\r\nX-B": "2"}, {"X A": "2\n"}, {"X-A": "\0"}]
)
async def test_a_header_cannot_smuggle_another(headers):
    async with answering(answer()) as peer, out() as outbound:
        with pytest.raises(OutboundFailed):
            await outbound.request(
                "GET", f"http://{peer.authority}/", timeout=SECOND, headers=headers
            )
        assert peer.heads == []


@pytest.mark.parametrize("method", ["GET / HTTP/1.1\r\nX:", "GE T"])
async def test_a_method_cannot_smuggle_a_request(method):
    async with answering(answer()) as peer, out() as outbound:
        with pytest.raises(OutboundFailed):
            await outbound.request(method, f"http://{peer.authority}/", timeout=SECOND)
        assert peer.heads == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/health",
        "ftp://example.com/",
        "file:///etc/passwd",
        "unix:///run/x.sock",
        "http://",
        "http://:80/",
        "http://a:99999/",
        "http://a:0/",
        "http://[::1/",
        "http://a b/",
        "http://" + "a" * 70 + ".example/",
        "http://exa\0mple/",
    ],
)
async def test_what_is_no_http_url_fails_as_such(url):
    async with out(PUBLIC, lookup=named()) as outbound:
        with pytest.raises(OutboundFailed) as caught:
            await outbound.request("GET", url, timeout=SECOND)
        assert "\n" not in str(caught.value)


async def test_time_runs_out_whatever_is_waited_for():
    short = timedelta(milliseconds=60)
    async with listening(silent) as peer, out(limits=OutboundLimits(per_peer=1)) as outbound:
        first = asyncio.create_task(
            outbound.request("GET", f"http://{peer.authority}/", timeout=3 * short)
        )
        await asyncio.sleep(0.02)
        with pytest.raises(OutboundFailed) as caught:
            await outbound.request("GET", f"http://{peer.authority}/", timeout=short)
        assert str(caught.value) == "timed out after 60 ms waiting for a free connection"
        with pytest.raises(OutboundFailed) as caught:
            await first
        assert str(caught.value) == "timed out after 180 ms"
        assert peer.accepted == 1


async def test_connections_are_bounded_in_total_and_one_peer_does_not_starve_another():
    limits = OutboundLimits(connections=3, per_peer=2)
    quick = timedelta(milliseconds=300)
    async with (
        listening(silent) as dead,
        answering(answer()) as alive,
        out(limits=limits) as outbound,
    ):
        stuck = [
            asyncio.create_task(outbound.request("GET", f"http://{dead.authority}/", timeout=quick))
            for _ in range(10)
        ]
        await asyncio.sleep(0.05)
        assert dead.open == 2
        reply = await outbound.request("GET", f"http://{alive.authority}/", timeout=quick)
        assert reply.status == 200
        ended = await asyncio.gather(*stuck, return_exceptions=True)
        assert all(isinstance(one, OutboundFailed) for one in ended)


async def test_a_lookup_without_an_answer_ends_with_the_time():
    release = threading.Event()

    def slow(host):
        release.wait(3)
        return ["127.0.0.1"]

    try:
        async with out(lookup=slow) as outbound:
            with pytest.raises(OutboundFailed, match="timed out after 50 ms"):
                await outbound.request("GET", "http://slow.example/", timeout=SECOND / 20)
            with pytest.raises(OutboundFailed, match="timed out after 50 ms"):
                await outbound.resolve("slow.example", timeout=SECOND / 20)
    finally:
        release.set()


@pytest.mark.parametrize(
    ("code", "detail", "rcode"),
    [
        (socket.EAI_NONAME, "the name gone.example does not exist", "NXDOMAIN"),
        (socket.EAI_NODATA, "the name gone.example has no address", "NOERROR"),
        (socket.EAI_AGAIN, "the name gone.example could not be looked up", "SERVFAIL"),
    ],
)
async def test_a_name_without_an_address_says_what_is_wrong(code, detail, rcode):
    def failing(host):
        raise socket.gaierror(code, "text of the platform")

    async with out(lookup=failing) as outbound:
        for attempt in (
            outbound.request("GET", "http://gone.example/", timeout=SECOND),
            outbound.resolve("gone.example", timeout=SECOND),
        ):
            with pytest.raises(OutboundFailed) as caught:
                await attempt
            assert (str(caught.value), caught.value.members["rcode"]) == (detail, rcode)


async def test_cancelling_closes_the_connection():
    async with listening(silent) as peer, out() as outbound:
        task = asyncio.create_task(
            outbound.request("GET", f"http://{peer.authority}/", timeout=SECOND)
        )
        await peer.busy.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.idle.wait()


# Bare connections and TLS


async def test_a_bare_connection_talks_both_ways_and_closes():
    async def echo(reader, writer):
        writer.write(await reader.readline())
        await reader.read()

    async with listening(echo) as peer, out() as outbound:
        async with outbound.connect("127.0.0.1", peer.port, timeout=SECOND) as line:
            line.writer.write(b"hello\n")
            assert await line.reader.readline() == b"hello\n"
            assert (line.address, line.certificate_expires_at) == ("127.0.0.1", None)
        await peer.idle.wait()


async def test_the_block_of_a_bare_connection_ends_with_the_time():
    async with listening(silent) as peer, out() as outbound:
        with pytest.raises(OutboundFailed, match="timed out after 50 ms"):
            async with outbound.connect("127.0.0.1", peer.port, timeout=SECOND / 20) as line:
                await line.reader.read(1)
        await peer.idle.wait()


async def test_an_address_that_refuses_does_not_hide_the_next():
    lookup = named(two_example=["::1", "127.0.0.1"])
    async with answering(answer(b"ok")) as peer, out(lookup=lookup) as outbound:
        async with outbound.connect("two.example", peer.port, timeout=SECOND) as line:
            assert line.address == "127.0.0.1"
        url = f"http://two.example:{peer.port}/"
        assert (await outbound.request("GET", url, timeout=SECOND)).address == "127.0.0.1"


async def test_certificates_are_verified_for_the_name():
    lookup = named(good_example=["127.0.0.1"], other_example=["127.0.0.1"])
    async with (
        answering(answer(b"ok"), tls=certified("good.example")) as peer,
        out(lookup=lookup, trust=trusting) as outbound,
    ):
        good, other = (f"https://{host}.example:{peer.port}/" for host in ("good", "other"))
        reply = await outbound.request("GET", good, timeout=SECOND)
        assert reply.status == 200
        assert reply.certificate_expires_at is not None
        assert reply.certificate_expires_at > datetime.now(UTC)
        with pytest.raises(OutboundFailed, match=r"TLS certificate refused: Hostname mismatch"):
            await outbound.request("GET", other, timeout=SECOND)
        reply = await outbound.request("GET", other, timeout=SECOND, server_name="good.example")
        assert reply.status == 200
        reply = await outbound.request("GET", other, timeout=SECOND, verify_tls=False)
        assert reply.status == 200
        async with outbound.connect(
            "other.example", peer.port, timeout=SECOND, tls=True, server_name="good.example"
        ) as line:
            assert line.certificate_expires_at == reply.certificate_expires_at
        with pytest.raises(OutboundFailed, match="TLS certificate refused"):
            async with outbound.connect("other.example", peer.port, timeout=SECOND, tls=True):
                pass


async def test_a_stranger_s_certificate_is_refused_by_default():
    async with answering(answer(), tls=certified("localhost")) as peer, out() as outbound:
        with pytest.raises(OutboundFailed, match="TLS certificate refused"):
            await outbound.request("GET", f"https://localhost:{peer.port}/", timeout=SECOND)


async def test_an_expired_certificate_is_told_even_when_not_verified():
    past = datetime(2021, 3, 4, 5, 6, 7, tzinfo=UTC)
    tls = certified("localhost", not_after=past)
    async with answering(answer(), tls=tls) as peer, out(trust=trusting) as outbound:
        url = f"https://localhost:{peer.port}/"
        with pytest.raises(OutboundFailed, match="certificate has expired"):
            await outbound.request("GET", url, timeout=SECOND)
        reply = await outbound.request("GET", url, timeout=SECOND, verify_tls=False)
        assert reply.certificate_expires_at == past


@pytest.mark.parametrize("year", [1987, 2026, 2049, 2050, 2999])
def test_the_end_of_a_certificate_is_read_from_its_bytes(year):
    moment = datetime(year, 2, 3, 4, 5, 6, tzinfo=UTC)
    before = datetime(1980, 1, 1, tzinfo=UTC)
    issued = authority().issue_cert("a.example", not_before=before, not_after=moment)
    certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
    assert not_after(certificate.public_bytes(Encoding.DER)) == moment


@given(st.binary(max_size=200))
def test_what_is_no_certificate_has_no_end(data):
    not_after(data)
    assert not_after(data[:20]) is None
