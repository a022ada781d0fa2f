"""What every kind of probe promises, against real servers: it ends in time, raises nothing, leaves
nothing open, and says in one sentence what was wrong."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

import pytest
from grpc_peer import Script, grpc_serving
from peers import Peer, answer, answering, certified, listening, silent, trusting

from registryd.kit.clock import SystemClock
from registryd.kit.outbound import EgressPolicy, Outbound
from registryd.probing.table import probes
from registryd.probing.types import Finding, Target


@dataclass(frozen=True)
class Kind:
    """One kind of probe: how its targets are written, and a server that it finds healthy."""

    type: str
    plain: str
    secure: str
    healthy: Callable[..., AbstractAsyncContextManager[Peer]]

    def target(self, peer: Peer, *, tls: bool = False, **fields) -> Target:
        scheme = self.secure if tls else self.plain
        url = f"{scheme}://{'localhost' if tls else '127.0.0.1'}:{peer.port}/"
        return Target(**{"type": self.type, "url": url, "timeout_ms": 2000, **fields})


HTTP = Kind("http", "http", "https", lambda tls=None: answering(answer(b"{}"), tls=tls))
TCP = Kind("tcp", "tcp", "tls", lambda tls=None: listening(silent, tls=tls))
GRPC = Kind("grpc", "grpc", "grpcs", lambda tls=None: grpc_serving(Script(), tls=tls))
DNS = Kind("dns", "dns", "dns", lambda tls=None: listening(silent))

ALL = pytest.mark.parametrize("kind", [HTTP, TCP, GRPC, DNS], ids=lambda one: one.type)
DIALLING = pytest.mark.parametrize("kind", [HTTP, TCP, GRPC], ids=lambda one: one.type)
TALKING = pytest.mark.parametrize("kind", [HTTP, GRPC], ids=lambda one: one.type)
# A TLS handshake makes tcp wait for the other side too.
WAITING = pytest.mark.parametrize(
    ("kind", "tls"), [(HTTP, False), (GRPC, False), (HTTP, True), (TCP, True), (GRPC, True)]
)
SHORT = 80
LOCAL = EgressPolicy(loopback=True)


class SlowClock(SystemClock):
    """Every look at it is 400 ms after the last."""

    def __init__(self) -> None:
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        return 0.4 * self._looks


@contextlib.asynccontextmanager
async def probing(policy=LOCAL, clock=None, **options):
    outbound = Outbound(policy, trust=trusting, **options)
    table = probes(outbound, clock)
    try:
        yield lambda target: table[target.type].probe(target)
    finally:
        await outbound.close()


def failed(finding: Finding) -> str:
    """The error of an unhealthy finding, after checking that it is a clean sentence."""
    assert finding.verdict == "unhealthy"
    assert finding.error is not None
    assert finding.error.isprintable()
    assert 5 < len(finding.error) < 200
    assert "object at 0x" not in finding.error
    assert finding.body is None
    return finding.error


def test_the_table_has_every_kind_and_no_probe_for_heartbeats():
    assert sorted(probes(Outbound(EgressPolicy()))) == ["dns", "grpc", "http", "tcp"]


@ALL
async def test_who_answers_is_healthy(kind):
    async with kind.healthy() as peer, probing() as probe:
        finding = await probe(kind.target(peer))
    assert (finding.verdict, finding.error) == ("healthy", None)
    assert 0 < finding.response_time_ms < 2000


@DIALLING
async def test_who_answers_over_tls_is_healthy_and_its_certificate_is_known(kind):
    condition = "[CERTIFICATE_EXPIRATION] > 1h"
    async with kind.healthy(tls=secure("localhost")) as peer, probing() as probe:
        finding = await probe(kind.target(peer, tls=True, conditions=(condition,)))
    assert (finding.verdict, finding.error) == ("healthy", None)
    assert finding.conditions == ((condition, True),)


@DIALLING
async def test_who_refuses_connections_is_unhealthy(kind):
    async with listening(silent) as peer:
        pass
    async with probing() as probe:
        assert failed(await probe(kind.target(peer))) == "connection refused"


@WAITING
async def test_who_accepts_and_never_answers_costs_no_more_than_the_timeout(kind, tls):
    async with listening(silent) as peer, probing() as probe, asyncio.timeout(1):
        finding = await probe(kind.target(peer, tls=tls, timeout_ms=SHORT))
        assert failed(finding) == "timed out after 80 ms"
        assert finding.response_time_ms >= SHORT * 0.9
        await peer.idle.wait()


@WAITING
async def test_who_drips_costs_no_more_than_the_timeout(kind, tls):
    async def drip(reader, writer):
        while True:
            writer.write(b"H" if not tls else b"\x16")
            await writer.drain()
            await asyncio.sleep(0.3)

    async with listening(drip) as peer, probing() as probe, asyncio.timeout(1):
        assert failed(await probe(kind.target(peer, tls=tls, timeout_ms=SHORT))).startswith(
            "timed out"
        )
        await peer.idle.wait()


@WAITING
@pytest.mark.parametrize(
    "garbage", [b"\0" * 500, b"SSH-2.0-OpenSSH_9.2\r\n", b"\xff\xfe\r\n\r\n" * 50, b"\r\n" * 300]
)
async def test_who_talks_garbage_is_unhealthy(kind, tls, garbage):
    async def babble(reader, writer):
        writer.write(garbage)
        await reader.read(65536)

    async with listening(babble) as peer, probing() as probe:
        failed(await probe(kind.target(peer, tls=tls, timeout_ms=300)))


@TALKING
@pytest.mark.parametrize("reset", [False, True])
async def test_who_hangs_up_is_unhealthy(kind, reset):
    async def hang_up(reader, writer):
        await reader.read(10)
        if reset:
            writer.transport.abort()

    async with listening(hang_up) as peer, probing() as probe:
        assert "closed" in failed(await probe(kind.target(peer)))


@DIALLING
async def test_a_certificate_for_another_name_is_refused(kind):
    async with kind.healthy(tls=secure("other.example")) as peer, probing() as probe:
        error = failed(await probe(kind.target(peer, tls=True)))
        assert error.startswith("TLS certificate refused: Hostname mismatch")
        named = kind.target(peer, tls=True, server_name="other.example")
        assert (await probe(named)).verdict == "healthy"


@DIALLING
async def test_a_certificate_nobody_vouches_for_is_refused_unless_told_otherwise(kind):
    async with kind.healthy(tls=secure("localhost")) as peer, Strangers() as probe:
        target = kind.target(peer, tls=True)
        assert failed(await probe(target)).startswith("TLS certificate refused")
        assert (await probe(replace(target, verify_tls=False))).verdict == "healthy"


@ALL
async def test_a_target_that_is_out_of_bounds_is_never_dialled(kind):
    async with kind.healthy() as peer, probing(EgressPolicy()) as probe:
        assert failed(await probe(kind.target(peer))) == "egress_denied: 127.0.0.1 is loopback"
        assert peer.accepted == 0


@ALL
async def test_no_condition_excuses_a_target_that_is_out_of_bounds(kind):
    asked = ("[CONNECTED] == false", "[DNS_RCODE] == NXDOMAIN", "[STATUS] == 0")
    async with kind.healthy() as peer, probing(EgressPolicy()) as probe:
        error = failed(await probe(kind.target(peer, conditions=asked)))
        assert error.startswith("egress_denied: ")


@ALL
@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://:1/", "tcp://[::1/", "//\0/"])
async def test_a_target_that_cannot_be_read_is_unhealthy(kind, url):
    async with probing() as probe:
        failed(await probe(Target(type=kind.type, url=url, timeout_ms=500)))


@pytest.mark.parametrize("kind", [TCP, GRPC], ids=lambda one: one.type)
async def test_a_target_without_a_port_is_unhealthy(kind):
    async with probing() as probe:
        target = Target(type=kind.type, url=f"{kind.plain}://127.0.0.1/", timeout_ms=500)
        assert failed(await probe(target)) == "the target names no port"


@ALL
async def test_a_name_that_does_not_exist_is_told(kind):
    def nowhere(host):
        raise socket.gaierror(socket.EAI_NONAME, "platform's text")

    async with probing(lookup=nowhere) as probe:
        target = Target(type=kind.type, url="http://gone.example:80/", timeout_ms=500)
        assert failed(await probe(target)) == "the name gone.example does not exist"


@ALL
async def test_conditions_are_asked_and_reported_in_order(kind):
    asked = ("[RESPONSE_TIME] < 1h", "[CONNECTED] == true", "[IP] == 127.0.0.1")
    async with kind.healthy() as peer, probing() as probe:
        finding = await probe(kind.target(peer, conditions=asked))
        assert finding.conditions == tuple((one, True) for one in asked)
        assert finding.verdict == "healthy"
        finding = await probe(kind.target(peer, conditions=("[IP] == pat(10.*)", *asked)))
        assert failed(finding) == "condition failed: [IP] == pat(10.*)"
        assert [holds for _, holds in finding.conditions] == [False, True, True, True]


@ALL
async def test_degraded_conditions_degrade(kind):
    fails, holds = "[RESPONSE_TIME] < 0", "[RESPONSE_TIME] >= 0"
    async with kind.healthy() as peer, probing() as probe:
        finding = await probe(
            kind.target(peer, conditions=(holds,), degraded_conditions=(holds, fails))
        )
    assert (finding.verdict, finding.error) == ("degraded", f"condition failed: {fails}")
    assert finding.conditions == ((holds, True), (holds, True), (fails, False))


@ALL
async def test_it_tells_how_long_the_answer_took(kind):
    async with kind.healthy() as peer, probing(clock=SlowClock()) as probe:
        finding = await probe(kind.target(peer))
    assert finding.response_time_ms == pytest.approx(400)


@ALL
async def test_a_condition_that_cannot_be_parsed_does_not_hold(kind):
    async with kind.healthy() as peer, probing() as probe:
        finding = await probe(kind.target(peer, conditions=("[NONSENSE",)))
    assert failed(finding) == "condition failed: [NONSENSE"
    assert finding.conditions == (("[NONSENSE", False),)


@WAITING
async def test_cancelling_closes_the_connection(kind, tls):
    async with listening(silent) as peer, probing() as probe, asyncio.timeout(2):
        task = asyncio.create_task(probe(kind.target(peer, tls=tls)))
        await peer.busy.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await peer.idle.wait()


@ALL
async def test_nothing_is_left_open(kind):
    async def hang_up(reader, writer):
        await reader.read(10)

    async with probing() as probe:
        # The first one makes what is kept: threads for names, TLS settings.
        async with kind.healthy() as peer:
            await probe(kind.target(peer))
            await asyncio.sleep(0.01)
        tasks, files = asyncio.all_tasks(), len(os.listdir("/dev/fd"))
        async with kind.healthy() as peer, listening(hang_up) as rude, listening(silent) as dead:
            for _ in range(5):
                await probe(kind.target(peer))
                await probe(kind.target(rude))
                await probe(kind.target(dead, timeout_ms=20))
            await asyncio.gather(peer.idle.wait(), rude.idle.wait(), dead.idle.wait())
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == tasks
        assert len(os.listdir("/dev/fd")) == files


def secure(*names):
    """A server's TLS that also speaks HTTP/2, which a gRPC client asks for."""
    context = certified(*names)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class Strangers:
    """Probes that trust only the authorities of this machine."""

    async def __aenter__(self):
        self._outbound = Outbound(LOCAL)
        table = probes(self._outbound)
        return lambda target: table[target.type].probe(target)

    async def __aexit__(self, *_):
        await self._outbound.close()
