"""Calls made up from the OpenAPI document, by callers of each kind: no answer is a fault of ours.

What answers beyond that have to be is held by tests/registry/test_openapi_conformance.py.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from daemons import running_beside
from hypothesis import HealthCheck, Phase, settings

from registryd.app import openapi_document

ROLES = ("reader", "writer", "admin", "limited")
CALLERS = ("nobody", "somebody", *ROLES)
"""Without a credential, with one that does not hold, and with keys of each role; `limited` is a writer
with prefixes."""
CASES = 5_000
MADE_UP = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}

schema = schemathesis.openapi.from_dict(openapi_document())
# Event streams have no end, so no answer to look at.
finite = schema.exclude(operation_id=["events", "watch"])
seen: Counter[tuple[str, int]] = Counter()


def key_of(role: str) -> str:
    return f"fuzzed-key-of-a-{role}"


@pytest.fixture(scope="module")
def base_url(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("fuzzed")
    rows: list[dict[str, Any]] = [
        {
            "id": role,
            "role": "writer" if role == "limited" else role,
            "sha256": hashlib.sha256(key_of(role).encode()).hexdigest(),
            "prefixes": ["chat"] if role == "limited" else [],
        }
        for role in ROLES
    ]
    (data / "keys.yaml").write_text(json.dumps(rows))
    with running_beside(
        store_url,
        "fuzzed",
        data,
        auth={"mode": "required", "keysFile": data / "keys.yaml"},
        limits={"enabled": False},
        webhooks={"enabled": False},
    ) as base:
        yield base


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def exercise(
    case: "schemathesis.Case[Any]", base_url: str, session: requests.Session
) -> list[tuple[str, int]]:
    """Makes the call once for each kind of caller: who, and the status of the answer."""
    name = (case.path_parameters or {}).get("name")
    if isinstance(name, str) and name.isalnum():
        # Half of the calls are for something that is there.
        case.path_parameters["name"] = "chat"
        if "id" in case.path_parameters:
            case.path_parameters["id"] = "a"
    admin = {"Authorization": f"Bearer {key_of('admin')}"}
    session.put(
        f"{base_url}/services/chat/instances/a", json={"endpoint": "http://10.0.0.1"}, headers=admin
    )
    if case.query and case.query.get("wait"):
        case.query["wait"] = "0s"  # a long poll would be just that
    permission = case.operation.definition.raw["x-registryd-permission"]
    answers = []
    for who in CALLERS:
        headers = {} if who == "nobody" else {"Authorization": f"Bearer {key_of(who)}"}
        answer = case.call(base_url=base_url, session=session, headers=headers)
        status = answer.status_code
        what = f"{who}: {case.method} {answer.request.url}: {status} {answer.text[:500]}"
        # A made-up minRevision or maxStaleMs asks for what no node can answer.
        assert status < 500 or (status, answer.json()["code"]) == (503, "not_ready"), what
        if who in {"nobody", "somebody"} and permission != "open" and case.method != "OPTIONS":
            assert status in {400, 401, 404, 405}, what
        answers.append((who, status))
    return answers


@finite.parametrize()
@settings(max_examples=2, derandomize=True, phases=[Phase.generate], **MADE_UP)
@pytest.mark.timeout(60)
def test_no_call_makes_a_fault(
    case: "schemathesis.Case[Any]", base_url: str, session: requests.Session
) -> None:
    exercise(case, base_url, session)


@finite.parametrize()
@settings(max_examples=3, phases=[Phase.explicit, Phase.generate], **MADE_UP)
@pytest.mark.drill
@pytest.mark.timeout(0)
def test_fuzz_thousands_of_calls_make_no_fault(
    case: "schemathesis.Case[Any]", base_url: str, session: requests.Session
) -> None:
    # Besides the few that are drawn, schemathesis tries the edges of every parameter and field.
    seen.update(exercise(case, base_url, session))


@pytest.mark.drill
def test_fuzz_there_were_thousands() -> None:
    """Comes last, and prints what the calls were answered with."""
    for who in CALLERS:
        statuses = {status: count for (one, status), count in sorted(seen.items()) if one == who}
        print(f"  {who:10} {statuses}")  # noqa: T201
    assert seen.total() >= CASES
    assert {status for who, status in seen if who == "admin"} >= {200, 400, 404, 422}
