"""What holds for every route: methods, mounts, request ids, and what becomes of hostile input."""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from daemons import Api

from registryd.app import openapi_document

BIG = b'{"name":"' + b"x" * (257 * 1024) + b'"}'
HUGE = BytesIO(b"x" * (1024 * 1024 + 1))
MALFORMED: dict[str, bytes] = {
    "truncated": b'{"name": "chat',
    "words": b"hello",
    "blank": b" ",
    "nan": b'{"weight": NaN}',
    "infinity": b'{"weight": -Infinity}',
    "out of range": b'{"weight": 1e999}',
    "duplicate keys": b'{"name": "a", "name": "b"}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"weight": ' + b"9" * 5_000 + b"}",
    "not utf-8": b'{"name": "\xff"}',
    "half a pair": b'{"name": "\\ud800"}',
    "byte order mark": b"\xef\xbb\xbf{}",
}
WRONG: dict[str, bytes] = {
    "null": b"null",
    "list": b"[]",
    "number": b"5",
    "text": b'"chat"',
    "unknown field": b'{"canary": 1}',
    "types": b'{"name": 5, "endpoint": [], "weight": "1", "enabled": "on", "seconds": "x", '
    b'"heartbeats": {}, "status": 5, "service_name": {}, "service_url": 7, "metadata": 1}',
}
NAMES = (
    "a%0Ab", "a%22b", "a%3Ab", "a%7Bb", "a%7Db", "%00", "a%2Fb", "%2e%2e", "-a", "a%20b", "a%2Ab",
    "a" * 129, "%C3%A4", "%ff", "%zz", "%25", "a%0D%0AX-A:b",
)  # fmt: skip


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each operation with its path as it is mounted."""
    document = openapi_document()
    for path, item in document["paths"].items():
        for method in ("get", "put", "post", "patch", "delete"):
            if method in item:
                yield method.upper(), path, item[method]


STREAMS = {"/events", "/watch"}
"""Their answers have no end; tests/events/ reads them."""
OPERATIONS = [(method, path) for method, path, _ in operations()]
WITH_BODY = [(method, path) for method, path, one in operations() if "requestBody" in one]
WITH_PARAMETER = [(method, path) for method, path in OPERATIONS if "{" in path]
QUERIES = {
    (method, path): [one["name"] for one in operation.get("parameters", []) if one["in"] == "query"]
    for method, path, operation in operations()
}


def filled(path: str, **values: str) -> str:
    known = "wh_0123456789abcdef" if "/webhooks/" in path else "a"
    return path.format(**{"name": "chat", "id": known, **values})


def test_every_operation_that_takes_a_body_says_so() -> None:
    assert {path for method, path in WITH_BODY if method == "PATCH"} == {
        path for method, path in OPERATIONS if method == "PATCH"
    }
    assert len(WITH_BODY) >= 11


# --- bodies


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_body_that_is_no_json_is_malformed_and_changes_nothing(
    api: Api, method: str, path: str
) -> None:
    await api.register()
    before = await api.head()
    for what, body in MALFORMED.items():
        answer = await api(method, filled(path), raw=body)
        assert (answer.status, answer.problem["code"]) == (400, "malformed"), what
    assert await api.head() == before


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_body_of_wrong_values_is_refused_by_field_and_changes_nothing(
    api: Api, method: str, path: str
) -> None:
    await api.register()
    before = await api.head()
    for what, body in WRONG.items():
        if path.endswith(("heartbeat", "drain", "replay")) and what == "null":
            continue  # as good as no body, which they allow
        if path == "/register" and what == "unknown field":
            continue  # ignored there; what is missing is told
        answer = await api(method, filled(path), raw=body)
        assert (answer.status, answer.problem["code"]) == (422, "validation"), what
        assert answer.problem["errors"], what
        for error in answer.problem["errors"]:
            assert re.fullmatch("(/[^/]+)*", error["pointer"]), what
            assert error["detail"], what
        if what == "unknown field":
            assert "/canary" in answer.pointers
    assert await api.head() == before


@pytest.mark.parametrize(("method", "path"), WITH_BODY)
async def test_a_body_that_is_too_large_or_of_another_kind_is_refused(
    api: Api, method: str, path: str
) -> None:
    await api.register()
    before = await api.head()
    if path != "/import":  # which takes more than anybody would send here
        answer = await api(method, filled(path), raw=HUGE if path == "/heartbeats" else BIG)
        assert (answer.status, answer.problem["code"]) == (413, "payload_too_large")
    for kind in ("text/plain", "application/xml", "application/x-www-form-urlencoded"):
        answer = await api(method, filled(path), raw=b"{}", headers={"Content-Type": kind})
        assert (answer.status, answer.problem["code"]) == (415, "unsupported_media_type")
        assert "application/json" in answer.problem["detail"]
    assert await api.head() == before


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", ["", "a b", "a:b", "a/b", "a{b", 'a"b', "a\nb", "a\0b", "-a", "a" * 129, "ä", None]),
        ("instanceId", ["", "a b", "a/b", ":a", "a\n", "a" * 129, 5]),
        ("endpoint", ["", "chat:80", "//x", "http://", "http://u:p@x", "http://x:99999", "http://[::1",
                      "javascript:alert(1)", "http://a b", "http://x/\n", "http://x/é", "x" * 3000]),
        ("version", ["", " 1", "1\n", 1, "v" * 200]),
        ("zone", ["a b", 5]),
        ("weight", [-1, 65_536, 1.5, "1", True, None]),
        ("ttlSeconds", [0, 1, 86_401, 2.5, "300", True, -5, 10**20]),
        ("capabilities", [5, [5], [{}], [{"name": "a b"}], ["x", "x"], ["x"] * 200, [{"name": "x", "v": 1}]]),
        ("models", ["x", [5], ["a b"]]),
        ("dependsOn", ["x", ["a:b"]]),
        ("metadata", [5, [], {"tags": "x"}, {"tags": ["a b"]}, {"environment": "a b"}, {"tags": ["x"] * 65}]),
        ("healthCheck", [5, {"intervalMs": 99}, {"intervalMs": 1000, "timeoutMs": 1000}, {"type": "magic"},
                         {"path": "health"}, {"path": "/a\r\nb"}, {"headers": {"a b": "c"}}, {"timeout": 5},
                         {"headers": {"a": "b\r\nc"}}, {"expectedStatusCodes": []}, {"url": "/x"}]),
        ("health", [5, {"status": "great"}, "healthy"]),
        ("incarnation", ["", "a b", "x" * 65, 5]),
        ("resourceLimits", [5, []]),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_refused_by_its_name(
    api: Api, field: str, values: list[object]
) -> None:
    before = await api.head()
    for value in values:
        body = {"name": "chat", "endpoint": "http://10.0.0.1:8080", field: value}
        answer = await api.post("/services", body)
        assert (answer.status, answer.problem["code"]) == (422, "validation"), value
        assert answer.pointers[0].startswith(f"/{field}"), value
    assert await api.head() == before


# --- paths and queries


@pytest.mark.parametrize(("method", "path"), WITH_PARAMETER)
async def test_an_illegal_path_segment_is_malformed_by_its_name(
    api: Api, method: str, path: str
) -> None:
    await api.register()
    before = await api.head()
    for parameter in re.findall(r"\{(\w+)\}", path):
        for name in NAMES:
            if parameter == "id" and name == "a%3Ab":
                continue  # legal there
            answer = await api(method, filled(path, **{parameter: name}))
            assert (answer.status, answer.problem["code"]) == (400, "malformed"), name
            assert f"'{parameter}'" in answer.problem["detail"], name
    assert await api.head() == before


@pytest.mark.parametrize(
    ("method", "path"), [one for one in OPERATIONS if one[0] == "GET" and QUERIES[one]]
)
async def test_each_parameter_is_refused_when_repeated_broken_or_unknown(
    api: Api, method: str, path: str
) -> None:
    await api.register()
    for name in QUERIES[method, path]:
        answer = await api.get(f"{filled(path)}?{name}=a&{name}=b")
        assert (answer.status, answer.problem["code"]) == (400, "malformed"), name
        for broken in ("%zz", "%ff", "%00", "%0a"):
            answer = await api.get(f"{filled(path)}?{name}={broken}")
            assert (answer.status, answer.problem["code"]) == (400, "malformed"), name
            assert f"'{name}'" in answer.problem["detail"]
    answer = await api.get(f"{filled(path)}?canary=1")
    assert (answer.status, answer.problem["code"]) == (400, "malformed")
    assert "'canary'" in answer.problem["detail"]


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "86401", "9" * 5000, "%2B1"])
async def test_a_drain_time_that_is_none_is_refused_and_nothing_leaves(api: Api, text: str) -> None:
    await api.register()
    for path in ("/services/chat", "/services/chat/instances/a"):
        answer = await api.delete(f"{path}?drainSeconds={text}")
        assert (answer.status, answer.problem["code"]) == (400, "malformed")
        assert "drainSeconds" in answer.problem["detail"]
    assert await api.offered() == "a"


# --- methods, mounts, ids


@pytest.mark.parametrize("path", sorted({path for _, path in OPERATIONS}))
async def test_another_method_is_405_with_allow_and_options_tells_the_same(
    api: Api, path: str
) -> None:
    answer = await api("OPTIONS", filled(path))
    assert (answer.status, answer.body) == (204, b"")
    allowed = set(answer.headers["Allow"].split(", "))
    assert allowed >= {method for method, other in OPERATIONS if other == path} | {"OPTIONS"}
    assert ("HEAD" in allowed) == ("GET" in allowed)
    for method in {"GET", "PUT", "POST", "PATCH", "DELETE", "TRACE"} - allowed:
        answer = await api(method, filled(path))
        assert (answer.status, answer.problem["code"]) == (405, "method_not_allowed")
        assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path", sorted({path for method, path in OPERATIONS if method == "GET"} - STREAMS)
)
async def test_head_is_get_without_the_body(api: Api, path: str) -> None:
    await api.register()
    get, head = await api.get(filled(path)), await api("HEAD", filled(path))
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert head.headers.get("ETag") == get.headers.get("ETag")
    if path not in {
        "/metrics",
        "/readyz",
        "/export",
    }:  # figures move in between; made while it is sent
        assert head.headers["Content-Length"] == get.headers["Content-Length"]


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for m, p in OPERATIONS
        # The one has two meanings, the other does not go without a parameter.
        if m == "GET" and not p.startswith("/api/") and p not in {"/health", "/explain", *STREAMS}
    ),
)
async def test_the_long_and_the_short_path_answer_alike(api: Api, path: str) -> None:
    await api.register()
    short, long = await api.get(filled(path)), await api.get(f"/api/v1/registry{filled(path)}")
    assert (short.status, long.status) == (200, 200)
    if path not in {"/metrics", "/export"}:  # which hold the moment
        assert short.body == long.body


@pytest.mark.parametrize(("sent", "kept"), [("trace-1_a.B", True), ("x" * 64, True), ("x" * 65, False),
                                            ("a b", False), ("a/b", False)])  # fmt: skip
async def test_a_request_id_is_kept_when_it_is_legal(api: Api, sent: str, kept: bool) -> None:
    for path in ("/services", "/services/nope", "/nothing"):
        answer = await api.get(path, X_Request_ID=sent)
        assert (answer.headers["X-Request-ID"] == sent) == kept
        assert answer.headers["X-Request-ID"]
    assert (await api("OPTIONS", "/services")).headers["X-Request-ID"]


async def test_every_answer_names_our_server_and_no_other(api: Api) -> None:
    for path in ("/services", "/nothing", "/livez"):
        assert (await api.get(path)).headers["Server"].startswith("registryd")


async def test_cors_is_off(api: Api) -> None:
    answer = await api.get("/services", Origin="http://evil.test")
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_path_that_leads_nowhere_is_not_found(api: Api) -> None:
    for path in ("/nothing", "/api/v1/registry/nothing", "/services/a/b/c/d", "//services"):
        answer = await api.get(path)
        assert (answer.status, answer.problem["code"]) == (404, "not_found")


async def test_the_case_of_foreign_keys_is_never_changed(api: Api) -> None:
    odd = {"snake_case": 1, "camelCase": 2, "Kebab-Case": {"in_side": [{"a_b": 1}]}}
    capability = {"name": "x", "inputs": odd, "outputs": odd, "parameters": odd, "constraints": odd}
    await api.register(metadata=odd, capabilities=[capability])
    shown = await api.instance()
    assert json.loads(json.dumps(shown["metadata"])) == odd
    assert [shown["capabilities"][0][key] for key in ("inputs", "outputs", "parameters")] == [
        odd
    ] * 3
