"""The grpc probe: `grpc.health.v1.Health/Check`, over one HTTP/2 stream of its own.

A unary call of two tiny messages needs no gRPC library: h2 does HTTP/2 and header compression, and the
messages are read and written here. [BODY] is `{"status": "SERVING"}`, so that conditions can name it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from registryd import __version__
from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.clock import Clock
from registryd.kit.outbound import Outbound, OutboundConnection
from registryd.probing.conditions import Facts
from registryd.probing.endpoint import Endpoint, endpoint_of
from registryd.probing.types import Finding, Target
from registryd.probing.verdict import judge

METHOD: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""HealthCheckResponse.ServingStatus, by number."""
STATUSES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""gRPC's own status codes, by number."""
MAX_RECEIVED: Final = 64 * 1024
"""Bytes on the connection, of which a health answer takes some 200."""


@dataclass(slots=True)
class Exchange:
    """What has come back on the stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)


class GrpcProbe:
    def __init__(self, outbound: Outbound, clock: Clock) -> None:
        self._outbound = outbound
        self._clock = clock

    async def probe(self, target: Target) -> Finding:
        started = self._clock.monotonic()
        try:
            endpoint = endpoint_of(target.url)
            async with self._outbound.connect(
                endpoint.host,
                endpoint.port,
                timeout=timedelta(milliseconds=target.timeout_ms),
                tls=endpoint.tls,
                verify_tls=target.verify_tls,
                server_name=target.server_name,
                alpn=("h2",),
            ) as line:
                exchange = await _call(line, endpoint, target)
                address, expires_at = line.address, line.certificate_expires_at
        except (EgressDenied, OutboundFailed, ValueError) as error:
            spent = (self._clock.monotonic() - started) * 1000
            return judge(target, Facts(response_time_ms=spent), fault=str(error))
        return self._judge(target, exchange, address, expires_at, started)

    def _judge(
        self,
        target: Target,
        exchange: Exchange,
        address: str,
        expires_at: datetime | None,
        started: float,
    ) -> Finding:
        status, fault = None, None
        try:
            status = serving(exchange)
            if status != "SERVING":
                fault = f"gRPC health is {status}"
        except OutboundFailed as error:
            fault = error.detail
        facts = Facts(
            response_time_ms=(self._clock.monotonic() - started) * 1000,
            connected=True,
            ip=address,
            certificate_expires_in=None if expires_at is None else expires_at - self._clock.now(),
            text=None if status is None else f'{{"status":"{status}"}}',
            document=None if status is None else {"status": status},
        )
        return judge(target, facts, fault=fault)


def serving(exchange: Exchange) -> str:
    """The health that the answer tells, a word of SERVING. Raises OutboundFailed."""
    status = exchange.headers.get(":status", "")
    if status != "200":
        raise OutboundFailed(f"HTTP {status[:3]} where gRPC was expected")
    if not exchange.headers.get("content-type", "").startswith("application/grpc"):
        raise OutboundFailed("the answer is not gRPC")
    # An answer without a message has its trailers for headers.
    code = exchange.trailers.get("grpc-status", exchange.headers.get("grpc-status", ""))
    if code != "0":
        known = code.isdecimal() and len(code) <= 2 and int(code) < len(STATUSES)
        raise OutboundFailed(f"gRPC status {STATUSES[int(code)] if known else 'missing'}")
    data = bytes(exchange.data)
    if len(data) < 5 or data[0] != 0 or int.from_bytes(data[1:5], "big") != len(data) - 5:
        raise OutboundFailed("the gRPC answer cannot be read")
    number = first_enum(data[5:])
    return SERVING[number] if 0 <= number < len(SERVING) else f"UNKNOWN ({number})"


def first_enum(message: bytes) -> int:
    """Field 1 of a protobuf message, a varint; 0 where it is left out. Raises OutboundFailed."""
    found = at = 0
    try:
        while at < len(message):
            tag, at = _varint(message, at)
            match tag & 7:
                case 0:
                    value, at = _varint(message, at)
                    if tag >> 3 == 1:
                        found = value
                case 1:
                    at += 8
                case 2:
                    length, at = _varint(message, at)
                    at += length
                case 5:
                    at += 4
                case _:
                    raise OutboundFailed("the gRPC answer cannot be read")
    except IndexError:
        raise OutboundFailed("the gRPC answer cannot be read") from None
    return found


def health_request(service: str) -> bytes:
    """HealthCheckRequest{service} in gRPC's frame."""
    name = service.encode("utf-8", "replace")
    message = b"\x0a" + _encoded(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


async def _call(line: OutboundConnection, endpoint: Endpoint, target: Target) -> Exchange:
    """Sends the request and reads until the stream has ended."""
    http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    exchange = Exchange()
    received = 0
    try:
        http.initiate_connection()
        stream = http.get_next_available_stream_id()
        http.send_headers(stream, _headers(endpoint, target))
        http.send_data(stream, health_request(target.grpc_service), end_stream=True)
        while True:
            line.writer.write(http.data_to_send())
            data = await line.reader.read(16 * 1024)
            received += len(data)
            if not data:
                raise OutboundFailed("the connection was closed before an answer")
            if received > MAX_RECEIVED:
                raise OutboundFailed("the answer is too large")
            for event in http.receive_data(data):
                match event:
                    case ResponseReceived(headers=headers) if headers:
                        exchange.headers.update(_text(headers))
                    case TrailersReceived(headers=headers) if headers:
                        exchange.trailers.update(_text(headers))
                    case DataReceived(data=part) if part:
                        exchange.data += part
                        http.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                    case StreamEnded():
                        return exchange
                    case StreamReset() | ConnectionTerminated():
                        raise OutboundFailed("the other side broke the call off")
                    case _:
                        pass  # settings, pings, window updates: h2 answers them
    except (H2Error, ValueError) as error:  # ValueError: headers that are no UTF-8
        raise OutboundFailed("the other side does not speak HTTP/2") from error


def _headers(endpoint: Endpoint, target: Target) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "https" if endpoint.tls else "http"),
        (":path", METHOD),
        (":authority", endpoint.authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", f"registryd/{__version__}"),
        ("grpc-timeout", f"{min(target.timeout_ms, 99_999_999)}m"),
        *((name.lower(), value) for name, value in target.headers.items()),
    ]


def _text(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    return {
        name if isinstance(name, str) else name.decode(): (
            value if isinstance(value, str) else value.decode()
        )
        for name, value in headers
    }


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends. Raises IndexError where the data ends within it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise OutboundFailed("the gRPC answer cannot be read")


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
