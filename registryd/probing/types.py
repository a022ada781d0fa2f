"""What a probe is given and what it finds. A failed probe is a value, never an exception."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Verdict = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing to probe, and how. `url` is absolute; what of it counts depends on `type`:
    http(s) all of it, tcp and grpc host and port (`tls` from the scheme), dns the host alone."""

    type: str
    url: str
    timeout_ms: int
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    expected_statuses: frozenset[int] = frozenset()
    """Empty: 200 to 299."""
    conditions: tuple[str, ...] = ()
    """Gatus' syntax; one that fails makes the target unhealthy. They replace `expected_statuses` only where
    they name [STATUS]."""
    degraded_conditions: tuple[str, ...] = ()
    verify_tls: bool = True
    server_name: str | None = None
    """The name that TLS verifies, where it is not the URL's host."""
    grpc_service: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one probe found.

    `error` is one sentence without secrets or line ends, such as `HTTP 503`, `connection refused`,
    `timed out after 500 ms`, `egress_denied: 169.254.169.254 is link-local`. `body` is the parsed JSON
    object a healthy or degraded http target answered with, if it did: from it the caller reads versions,
    features, models and limits. `conditions` has the outcome of every condition, in order.
    """

    verdict: Verdict
    response_time_ms: float
    error: str | None = None
    body: Mapping[str, Any] | None = None
    conditions: tuple[tuple[str, bool], ...] = ()


class Probe(Protocol):
    """One kind of probe. Ends within the target's timeout whatever the peer does; raises nothing but
    CancelledError."""

    async def probe(self, target: Target) -> Finding: ...
