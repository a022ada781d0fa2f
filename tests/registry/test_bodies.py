"""Bodies: what comes back ignored, whose name it is, how patches merge."""

from typing import Any

import pytest

from registryd.errors import Invalid
from registryd.registry.bodies import canonical_names, merge, parse_registration

BODY = {"name": "chat", "endpoint": "http://h:1"}


@pytest.mark.parametrize("body", [None, [], "x", 1, True])
def test_a_body_is_an_object(body: Any) -> None:
    with pytest.raises(Invalid, match="expected a JSON object"):
        parse_registration(body)


def test_what_we_gave_out_may_come_back() -> None:
    shown = {
        **BODY,
        "registeredAt": "x",
        "updated_at": 1,
        "revision": None,
        "lease": {"ttlSeconds": "x"},
        "url": [],
        "instances": [1],
        "admin": {},
        "health": {"status": "healthy", "since": "x", "details": {}},
    }
    assert parse_registration(shown).claim == "healthy"


@pytest.mark.parametrize(
    "body", [{}, {"name": "chat"}, {"instanceId": "i"}, {"instance_id": "i"}, {"instanceId": None}]
)
def test_the_path_fills_in_what_the_body_leaves_out(body: dict[str, Any]) -> None:
    fields = {"endpoint": "http://h:1", **body}
    registration = parse_registration(fields, service="chat", instance_id="i")
    assert (registration.name, registration.instance_id) == ("chat", "i")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "draw"}, "/name"),
        ({"name": 5}, "/name"),
        ({"instanceId": "j"}, "/instanceId"),
        ({"instance_id": "j"}, "/instanceId"),
        ({"instanceId": ["i"]}, "/instanceId"),
    ],
)
def test_a_name_other_than_the_paths_is_refused(body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_registration({**BODY, **body}, service="chat", instance_id="i")
    assert [error.pointer for error in caught.value.errors] == [pointer]


def test_the_body_itself_is_left_alone() -> None:
    body = {**BODY, "instance_id": "i", "revision": "1-1"}
    parse_registration(body, service="chat", instance_id="i")
    assert body == {**BODY, "instance_id": "i", "revision": "1-1"}


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_is_that_of_rfc_7386(target: Any, patch: Any, result: Any) -> None:
    assert merge(target, patch) == result


def test_a_patch_speaks_both_styles_but_its_free_form_parts_are_left_alone() -> None:
    patch = {
        "ttl_seconds": 5,
        "apiVersion": "1",
        "metadata": {"ttl_seconds": 1},
        "health_check": {"interval_ms": 5, "headers": {"interval_ms": "x"}},
    }
    assert canonical_names(patch) == {
        "ttlSeconds": 5,
        "apiVersion": "1",
        "metadata": {"ttl_seconds": 1},
        "healthCheck": {"intervalMs": 5, "headers": {"interval_ms": "x"}},
    }
    assert canonical_names({"health_check": None}) == {"healthCheck": None}
