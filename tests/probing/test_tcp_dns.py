"""The tcp and dns probes: what their conditions may excuse, and where a target listens."""

import contextlib
import socket

import pytest
from peers import listening, silent

from registryd.kit.outbound import EgressPolicy, Outbound
from registryd.probing.endpoint import Endpoint, endpoint_of, host_of
from registryd.probing.table import probes
from registryd.probing.types import Target


def lookup(host):
    match host:
        case "good.example":
            return ["127.0.0.1", "127.0.0.2"]
        case "empty.example":
            raise socket.gaierror(socket.EAI_NODATA, "")
        case "broken.example":
            raise socket.gaierror(socket.EAI_AGAIN, "")
        case _:
            raise socket.gaierror(socket.EAI_NONAME, "")


@contextlib.asynccontextmanager
async def probing():
    outbound = Outbound(EgressPolicy(loopback=True), lookup=lookup)
    table = probes(outbound)
    yield lambda target: table[target.type].probe(target)
    await outbound.close()


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("tcp://db:5432", Endpoint("db", 5432, tls=False)),
        ("tls://db:5432/x?y", Endpoint("db", 5432, tls=True)),
        ("http://web", Endpoint("web", 80, tls=False)),
        ("https://web/health", Endpoint("web", 443, tls=True)),
        ("https://web:8443/", Endpoint("web", 8443, tls=True)),
        ("grpc://[::1]:50051", Endpoint("::1", 50051, tls=False)),
        ("grpcs://a.b:50051", Endpoint("a.b", 50051, tls=True)),
        ("http://user:pw@web:1/", Endpoint("web", 1, tls=False)),
    ],
)
def test_a_target_s_endpoint_is_read_from_its_url(url, endpoint):
    assert endpoint_of(url) == endpoint


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("tcp://db", "the target names no port"),
        ("tcp://db:0", "the target names no port"),
        ("tcp://:5432", "the target names no host"),
        ("db:5432", "the target names no host"),
        ("tcp://db:x", "the target cannot be read as a URL"),
        ("tcp://db:70000", "the target cannot be read as a URL"),
    ],
)
def test_what_names_no_endpoint_is_told(url, detail):
    with pytest.raises(ValueError, match=detail):
        endpoint_of(url)


def test_an_authority_puts_ipv6_into_brackets():
    assert endpoint_of("grpc://[::1]:1").authority == "[::1]:1"
    assert endpoint_of("grpc://a:1").authority == "a:1"
    assert host_of("dns://a.example") == "a.example"


@pytest.mark.parametrize(
    ("host", "rcode", "error"),
    [
        ("good", "NOERROR", None),
        ("gone", "NXDOMAIN", "the name gone.example does not exist"),
        ("empty", "NOERROR", "the name empty.example has no address"),
        ("broken", "SERVFAIL", "the name broken.example could not be looked up"),
    ],
)
async def test_dns_finds_addresses_or_says_why_not(host, rcode, error):
    one = {"type": "dns", "url": f"http://{host}.example:80/", "timeout_ms": 1000}
    async with probing() as probe:
        finding = await probe(Target(**one))
        assert finding.verdict == ("healthy" if error is None else "unhealthy")
        assert finding.error == error
        # A condition on the code replaces the rule that there has to be an address.
        finding = await probe(Target(**one, conditions=(f"[DNS_RCODE] == {rcode}",)))
        assert (finding.verdict, finding.error) == ("healthy", None)
        finding = await probe(Target(**one, conditions=("[DNS_RCODE] == REFUSED",)))
        assert finding.error == "condition failed: [DNS_RCODE] == REFUSED"


async def test_dns_has_the_first_address():
    async with probing() as probe:
        finding = await probe(
            Target(
                type="dns",
                url="dns://good.example",
                timeout_ms=1000,
                conditions=("[IP] == 127.0.0.1", "[CONNECTED] == true"),
            )
        )
    assert finding.verdict == "healthy"


async def test_a_port_can_be_wanted_closed():
    async with listening(silent) as peer:
        pass
    target = Target(
        type="tcp",
        url=f"tcp://{peer.authority}",
        timeout_ms=1000,
        conditions=("[CONNECTED] == false",),
    )
    async with probing() as probe:
        finding = await probe(target)
    assert (finding.verdict, finding.conditions) == ("healthy", (("[CONNECTED] == false", True),))
