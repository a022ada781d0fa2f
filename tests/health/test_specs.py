"""What is probed for an instance."""

import json
from typing import Any

import pytest

from registryd.health.specs import spec_of
from registryd.registry.document import encode
from registryd.registry.types import InstanceFields


def document(endpoint: str, **check: Any) -> bytes:
    fields: dict[str, Any] = {"name": "a", "instanceId": "1", "endpoint": endpoint}
    if check:
        fields["healthCheck"] = check
    return encode(InstanceFields.model_validate(fields))


@pytest.mark.parametrize(
    ("endpoint", "check", "kind", "url"),
    [
        ("http://h:1", {}, "http", "http://h:1/health"),
        ("http://h:1/api/", {}, "http", "http://h:1/api/health"),
        ("wss://h", {}, "http", "https://h/health"),
        ("http://h:1", {"path": "/ok"}, "http", "http://h:1/ok"),
        ("http://h:1", {"url": "https://other/x"}, "http", "https://other/x"),
        ("grpc://h:1", {}, "grpc", "grpc://h:1"),
        ("redis://h:1", {}, "tcp", "redis://h:1"),
        ("http://h:1", {"type": "tcp"}, "tcp", "http://h:1"),
        ("http://h:1", {"type": "dns", "url": "http://name"}, "dns", "http://name"),
    ],
)
def test_the_target_follows_from_check_and_endpoint(
    endpoint: str, check: dict[str, Any], kind: str, url: str
) -> None:
    target = spec_of(document(endpoint, **check), 700).target
    assert (target.type, target.url, target.timeout_ms) == (kind, url, 700)


def test_everything_that_a_check_says_arrives() -> None:
    check = {
        "method": "POST",
        "headers": {"X-A": "b"},
        "body": "ping",
        "expectedStatusCodes": [204],
        "retries": 3,
        "conditions": ["[STATUS] == 204"],
        "degradedConditions": ["[RESPONSE_TIME] < 50"],
        "degradedMs": 200,
        "tlsSkipVerify": True,
        "tlsServerName": "inner",
        "grpcService": "svc",
    }
    spec = spec_of(document("https://h", **check), 1000)
    target = spec.target
    assert (spec.retries, spec.degraded_ms) == (3, 200)
    assert (target.method, target.headers, target.body) == ("POST", {"X-A": "b"}, "ping")
    assert target.expected_statuses == {204}
    assert target.conditions == ("[STATUS] == 204",)
    assert target.degraded_conditions == ("[RESPONSE_TIME] < 50",)
    assert (target.verify_tls, target.server_name) == (False, "inner")
    assert target.grpc_service == "svc"


def test_what_a_check_does_not_say_is_not_stored() -> None:
    stored = json.loads(document("http://h", intervalMs=1000))["healthCheck"]
    assert stored.keys() == {
        "type",
        "method",
        "intervalMs",
        "timeoutMs",
        "failureThreshold",
        "successThreshold",
    }
