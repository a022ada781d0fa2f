"""The documents and requests of the benches: the same instances, told to every server in its own words.

11 000 instances in 110 services. One has a capability of 11, a tag of 10, a feature of 300 and a zone
of 2, so that a capability with a tag finds 100, a capability alone 1 000, a feature in a zone 18 or 19,
and the tag `bulk` 10 000.
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

DOCUMENT_BYTES: Final = 560
INSTANCES: Final = 11_000
SERVICES: Final = 110
CAPABILITIES: Final = 11
TAGS: Final = 10
FEATURES: Final = 300
ZONES: Final = 2
BULK: Final = 10_000

TTL_SECONDS: Final = 86_400
"""No lease runs out while a bench runs."""


@dataclass(frozen=True, slots=True)
class Ring:
    """Requests that are sent in turn, again and again."""

    requests: tuple[bytes, ...]

    def render(self, number: int) -> bytes:
        return self.requests[number % len(self.requests)]


@dataclass(frozen=True, slots=True)
class Field:
    """A number inside a counted request: (n // divisor) % modulus + offset."""

    divisor: int = 1
    modulus: int = 1_000_000_000
    offset: int = 0

    def value(self, number: int) -> int:
        return number // self.divisor % self.modulus + self.offset


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests no two of which are alike: templates with %d directives, taken in turn.

    Request number i is template i % len(templates), filled with the fields at i // len(templates).
    """

    templates: tuple[tuple[str, tuple[Field, ...]], ...]

    def render(self, number: int) -> bytes:
        turn, which = divmod(number, len(self.templates))
        template, fields = self.templates[which]
        return (template % tuple(field.value(turn) for field in fields)).encode()


Requests = Ring | Counted


def request(
    method: str,
    target: str,
    body: str | None = None,
    headers: str = "",
    sample: tuple[int, ...] | None = None,
) -> str:
    """One HTTP/1.1 request as text; `headers` are further lines, each with its CRLF.

    With a `sample` of its fields the body is a template, all of whose fillings have one length.
    """
    if body is None:
        return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
    length = len(body if sample is None else body % sample)
    return (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{headers}\r\n{body}"
    )


def service_of(number: int) -> str:
    return f"svc-{number % SERVICES:03d}"


def instance_id_of(number: int) -> str:
    return f"i-{number:06d}"


def document(number: int) -> dict[str, Any]:
    """The registration of one instance: DOCUMENT_BYTES of compact JSON."""
    tags = [f"tag-{number // CAPABILITIES % TAGS:02d}"]
    tags.append("bulk" if number % INSTANCES < BULK else "rest")
    shown: dict[str, Any] = {
        "name": service_of(number),
        "endpoint": f"http://10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:8080",
        "version": "2.1.0",
        "instanceId": instance_id_of(number),
        "zone": f"zone-{number // FEATURES % ZONES}",
        "weight": 100,
        "ttlSeconds": TTL_SECONDS,
        "capabilities": [
            {"name": f"cap-{number % CAPABILITIES:02d}", "version": "2.0.0"},
            {"name": f"feature-{number % FEATURES:03d}", "version": "1.0.0"},
        ],
        "metadata": {
            "tags": tags,
            "environment": "production",
            "owner": "team-platform",
            "note": "",
        },
        "healthCheck": None,
        "health": {"status": "healthy"},
    }
    shown["metadata"]["note"] = "x" * (DOCUMENT_BYTES - len(encode(shown)))
    return shown


def encode(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- what is asked of registryd (and, where the path is the same, of the bare handler)


def registrations(first: int, count: int) -> Iterable[bytes]:
    for number in range(first, first + count):
        yield request("POST", "/services", encode(document(number))).encode()


def checked_registrations(count: int, port: int, every: int) -> Iterable[bytes]:
    """Instances that are all probed at one server, every so many seconds."""
    for number in range(count):
        body = document(number) | {
            "healthCheck": {
                "url": f"http://127.0.0.1:{port}/gzip",
                "intervalMs": every * 1000,
                "timeoutMs": 2000,
            }
        }
        yield request("POST", "/services", encode(body)).encode()


def new_registrations() -> Counted:
    """Registrations of instances that are not there yet, of one service after the other."""
    body = encode(document(0)).replace("svc-000", "svc-%03d").replace('"i-000000"', '"n-%08d"')
    # The id is two digits longer than that of the template, so the padding gives two up.
    body = body.replace('"note":"xx', '"note":"')
    text = request("POST", "/services", body, sample=(0, 0))
    assert f"Content-Length: {DOCUMENT_BYTES}" in text
    return Counted(((text, (Field(1, SERVICES), Field())),))


def heartbeats(count: int, headers: str = "") -> Ring:
    return Ring(
        tuple(
            request(
                "PUT",
                f"/services/{service_of(n)}/instances/{instance_id_of(n)}/heartbeat",
                headers=headers,
            ).encode()
            for n in range(count)
        )
    )


def batches(size: int, among: int) -> Ring:
    """Batches of `size` heartbeats, going round `among` instances with a stride, so that neighbours
    in a batch are none in the store."""
    stride = 7919  # a prime that divides no population used here: every instance has its turn
    order = [n * stride % among for n in range(among)]
    made = []
    for start in range(0, among - size + 1, size):
        beats = [
            {"name": service_of(n), "instanceId": instance_id_of(n)}
            for n in order[start : start + size]
        ]
        made.append(request("PUT", "/heartbeats", encode({"heartbeats": beats})).encode())
    return Ring(tuple(made))


FILTERED: Final = (
    "/services?capability=cap-%02d&tags=tag-%02d&environment=production&view=instances&limit=%d"
)
BROAD: Final = "/services?capability=cap-%02d&environment=production&view=instances&limit=1001"
WHOLE: Final = f"/services?tags=bulk&view=instances&limit={BULK}"


def repeated_queries(results: int, headers: str = "") -> Ring:
    """The queries with 100 or with 1 000 results, always the same ones."""
    if results == 100:
        targets = [FILTERED % (c, t, 101) for t in range(TAGS) for c in range(CAPABILITIES)]
    else:
        targets = [BROAD % c for c in range(CAPABILITIES)]
    return Ring(tuple(request("GET", target, headers=headers).encode() for target in targets))


def instance_reads(count: int) -> Ring:
    return Ring(
        tuple(
            request("GET", f"/services/{service_of(n)}/instances/{instance_id_of(n)}").encode()
            for n in range(count)
        )
    )


# --- what is asked of etcd


def etcd_key(number: int) -> bytes:
    """Sorted so that a prefix finds what the queries above find."""
    return (
        f"/svc/cap-{number % CAPABILITIES:02d}/tag-{number // CAPABILITIES % TAGS:02d}/"
        f"{instance_id_of(number)}"
    ).encode()


def etcd_prefixes(results: int) -> list[bytes]:
    if results == 100:
        return [
            b"/svc/cap-%02d/tag-%02d/" % (c, t) for t in range(TAGS) for c in range(CAPABILITIES)
        ]
    if results == 1000:
        return [b"/svc/cap-%02d/" % c for c in range(CAPABILITIES)]
    return [b"/svc/"]


def etcd_puts(count: int) -> Iterable[bytes]:
    for number in range(count):
        body = encode(
            {
                "key": base64_of(etcd_key(number)),
                "value": base64_of(encode(document(number)).encode()),
            }
        )
        yield request("POST", "/v3/kv/put", body).encode()


def etcd_ranges(results: int) -> Ring:
    made = []
    for prefix in etcd_prefixes(results):
        body = {"key": base64_of(prefix), "range_end": base64_of(_after(prefix)), "limit": results}
        made.append(request("POST", "/v3/kv/range", encode(body)).encode())
    return Ring(tuple(made))


def etcd_grants(count: int) -> Iterable[bytes]:
    """Leases number 1 to `count`."""
    for number in range(1, count + 1):
        body = encode({"ID": number, "TTL": TTL_SECONDS})
        yield request("POST", "/v3/lease/grant", body).encode()


def etcd_keepalives(count: int) -> Ring:
    return Ring(
        tuple(
            request("POST", "/v3/lease/keepalive", encode({"ID": number})).encode()
            for number in range(1, count + 1)
        )
    )


ETCD_FIRST_LEASE: Final = 20_000_000  # of eight digits, without a leading zero
ETCD_LAG: Final = 256


def etcd_lagging_grants(first: int) -> Iterable[bytes]:
    """The leases that the first puts of `etcd_registrations` name, when it starts at that request."""
    turn = first // 2 + ETCD_FIRST_LEASE
    for number in range(turn - ETCD_LAG, turn):
        body = encode({"ID": number, "TTL": TTL_SECONDS})
        yield request("POST", "/v3/lease/grant", body).encode()


def etcd_registrations() -> Counted:
    """A lease of its own, then the key with it: two requests a registration.

    A put names the lease granted `ETCD_LAG` turns before, which has long been answered; the one
    granted just now may still be under way on another connection.
    """
    grant = request("POST", "/v3/lease/grant", '{"ID":%08d,"TTL":86400}', sample=(0,))
    value = base64_of(encode(document(0)).encode())
    # Any eight digits are base64 too: the keys differ without a base64 coder in the load generator.
    body = '{"key":"c3Zj%08d","value":"' + value + '","lease":%08d}'
    put = request("POST", "/v3/kv/put", body, sample=(0, 0))
    first = Field(1, 70_000_000, ETCD_FIRST_LEASE)
    lagging = Field(1, 70_000_000, ETCD_FIRST_LEASE - ETCD_LAG)
    return Counted(((grant, (first,)), (put, (first, lagging))))


def range_message(prefix: bytes, results: int) -> bytes:
    """etcdserverpb.RangeRequest, by hand: key = 1, range_end = 2, limit = 3."""
    end = _after(prefix)
    return (
        b"\x0a" + varint(len(prefix)) + prefix + b"\x12" + varint(len(end)) + end
        + b"\x18" + varint(results)
    )  # fmt: skip


def keepalive_message(lease: int) -> bytes:
    """etcdserverpb.LeaseKeepAliveRequest: ID = 1."""
    return b"\x08" + varint(lease)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _after(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])
