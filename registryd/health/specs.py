"""What to probe for an instance, read from what it registered. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from pydantic_core import from_json

from registryd.probing.types import Target

HTTP_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Spec(NamedTuple):
    target: Target
    retries: int
    degraded_ms: int | None
    """Typically slower than this is degraded (`probing/latency.py`)."""


def spec_of(
    document: bytes, timeout_ms: int, sealed: Mapping[str, Any] = MappingProxyType({})
) -> Spec:
    """The target of an instance's document. `timeout_ms` and `sealed`, the values that the document has
    masks for, are what the store holds with the schedule."""
    fields: dict[str, Any] = from_json(document)
    check: dict[str, Any] | None = fields.get("healthCheck")
    endpoint: str = fields["endpoint"]
    scheme = urlsplit(endpoint).scheme.lower()
    # Who says nothing is asked in the manner of his endpoint.
    kind = check["type"] if check else _usual(scheme)
    check = check or {}
    url = check.get("url") or (_http_url(endpoint, check) if kind == "http" else endpoint)
    target = Target(
        type=kind,
        url=url,
        timeout_ms=timeout_ms,
        method=check.get("method", "GET"),
        headers=(check.get("headers") or {}) | sealed.get("headers", {}),
        body=sealed.get("body", check.get("body")),
        expected_statuses=frozenset(check.get("expectedStatusCodes") or ()),
        conditions=tuple(check.get("conditions") or ()),
        degraded_conditions=tuple(check.get("degradedConditions") or ()),
        verify_tls=not check.get("tlsSkipVerify", False),
        server_name=check.get("tlsServerName"),
        grpc_service=check.get("grpcService") or "",
    )
    return Spec(target, check.get("retries") or 0, check.get("degradedMs"))


def _usual(scheme: str) -> str:
    if scheme in HTTP_SCHEMES:
        return "http"
    return "grpc" if scheme in {"grpc", "grpcs"} else "tcp"


def _http_url(endpoint: str, check: dict[str, Any]) -> str:
    scheme, colon, rest = endpoint.partition(":")
    scheme = HTTP_SCHEMES.get(scheme.lower(), scheme)
    return f"{scheme}{colon}{rest.rstrip('/')}{check.get('path') or '/health'}"
