"""The grpc probe: what it sends, and what the health service's answers mean."""

import contextlib

import pytest
from grpc_peer import OK, Script, grpc_serving
from hypothesis import given
from hypothesis import strategies as st
from peers import answer, answering

from registryd.errors import OutboundFailed
from registryd.kit.outbound import EgressPolicy, Outbound
from registryd.probing.grpc import first_enum, health_request
from registryd.probing.table import probes
from registryd.probing.types import Target

GRPC = [(":status", "200"), ("content-type", "application/grpc+proto")]


@contextlib.asynccontextmanager
async def probing():
    outbound = Outbound(EgressPolicy(loopback=True))
    yield probes(outbound)["grpc"].probe
    await outbound.close()


async def found(script: Script, **fields):
    async with grpc_serving(script) as peer, probing() as probe:
        return await probe(
            Target(type="grpc", url=f"grpc://{peer.authority}", timeout_ms=1000, **fields)
        )


def message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4, "big") + payload


async def test_the_request_is_grpc_s():
    script = Script()
    await found(script, grpc_service="chat.v1.Chat", headers={"Authorization": "Bearer k"})
    [(headers, body)] = script.seen
    assert headers[":path"] == "/grpc.health.v1.Health/Check"
    assert (headers[":method"], headers[":scheme"]) == ("POST", "http")
    assert (headers["te"], headers["content-type"]) == ("trailers", "application/grpc")
    assert (headers["grpc-timeout"], headers["authorization"]) == ("1000m", "Bearer k")
    assert body == b"\0\0\0\0\x0e\x0a\x0cchat.v1.Chat"


def test_a_request_for_the_whole_server_is_empty():
    assert health_request("") == b"\0\0\0\0\0"
    assert health_request("x" * 200) == b"\0\0\0\0\xcb\x0a\xc8\x01" + b"x" * 200


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"\x08\x01", None),
        (b"\x12\x01x\x08\x01", None),  # with a field we do not know
        (b"\x08\x02\x08\x01", None),  # the last one counts
        (b"", "gRPC health is UNKNOWN"),
        (b"\x08\x00", "gRPC health is UNKNOWN"),
        (b"\x08\x02", "gRPC health is NOT_SERVING"),
        (b"\x08\x03", "gRPC health is SERVICE_UNKNOWN"),
        (b"\x08\x7f", "gRPC health is UNKNOWN (127)"),
        (b"\x08", "the gRPC answer cannot be read"),
        (b"\x08" + b"\xff" * 20, "the gRPC answer cannot be read"),
        (b"\x0f\x01", "the gRPC answer cannot be read"),
    ],
)
async def test_only_serving_is_healthy(payload, error):
    finding = await found(Script(data=message(payload)))
    assert finding.error == error
    assert finding.verdict == ("healthy" if error is None else "unhealthy")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(headers=[(":status", "404")]), "HTTP 404 where gRPC was expected"),
        (
            Script(headers=[(":status", "200"), ("content-type", "text/html")]),
            "the answer is not gRPC",
        ),
        (Script(GRPC, b"", [("grpc-status", "12")]), "gRPC status UNIMPLEMENTED"),
        (Script(GRPC, b"", [("grpc-status", "5")]), "gRPC status NOT_FOUND"),
        (Script(GRPC, OK, [("grpc-status", "99")]), "gRPC status missing"),
        (Script(GRPC, OK, [("grpc-status", "²")]), "gRPC status missing"),
        (Script(GRPC, OK, None), "gRPC status missing"),
        (Script(GRPC, b"\1\0\0\0\2\x08\1"), "the gRPC answer cannot be read"),
        (Script(GRPC, OK + b"x"), "the gRPC answer cannot be read"),
        (Script(GRPC, b"\0\0"), "the gRPC answer cannot be read"),
        (Script(GRPC, b"\0\0\0\xff\xff" + b"x" * 16_000), "the gRPC answer cannot be read"),
        (Script(GRPC, b"", [("x", "y")]), "gRPC status missing"),
    ],
)
async def test_every_other_answer_is_unhealthy(script, error):
    finding = await found(script)
    assert (finding.verdict, finding.error) == ("unhealthy", error)


async def test_conditions_see_the_health():
    finding = await found(Script(), conditions=("[BODY].status == SERVING",))
    assert (finding.verdict, finding.body) == ("healthy", None)


async def test_a_web_server_is_no_grpc_service():
    async with answering(answer(b"{}")) as peer, probing() as probe:
        finding = await probe(Target(type="grpc", url=f"grpc://{peer.authority}", timeout_ms=1000))
    assert finding.verdict == "unhealthy"


async def test_headers_that_http2_does_not_allow_are_not_sent():
    script = Script()
    finding = await found(script, headers={"X": "a\r\nb"})
    assert finding.verdict == "unhealthy"
    assert script.seen == []


@given(st.binary(max_size=40))
def test_any_message_is_read_or_refused(data):
    try:
        assert first_enum(data) >= 0
    except OutboundFailed as error:
        told = error.detail
        assert told == "the gRPC answer cannot be read"


async def test_a_real_grpc_server_is_understood():
    """Against gRPC's own server, where it is installed: it is no dependency of ours."""
    grpc = pytest.importorskip("grpc")
    server = grpc.aio.server()
    asked = []

    async def check(request: bytes, context: object) -> bytes:
        asked.append(request)
        return b"\x08\x01"

    methods = {"Check": grpc.unary_unary_rpc_method_handler(check)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with probing() as probe:
            url = f"grpc://127.0.0.1:{port}"
            target = Target(type="grpc", url=url, timeout_ms=2000, grpc_service="a")
            assert (await probe(target)).error is None
            assert asked == [b"\x0a\x01a"]
    finally:
        await server.stop(None)
