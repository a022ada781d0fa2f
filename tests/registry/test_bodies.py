"""Bodies: what comes back ignored, whose name it is, how patches merge, batches of heartbeats."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.errors import Invalid, RegistrydError
from registryd.registry.bodies import (
    canonical_names,
    merge,
    parse,
    parse_beats,
    parse_registration,
)
from registryd.registry.types import HeartbeatBatch
from registryd.web import codec

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


# --- batches of heartbeats

ITEMS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["chat", "a.b-c_d", "A" * 128]),
        "instanceId": st.sampled_from(["i", "a:b~c", "1" * 128]),
    },
    optional={"incarnation": st.sampled_from(["1", "x~y.z-_", "z" * 64])},
)
ODD = st.sampled_from(
    [
        {"name": "chat", "instanceId": "i", "incarnation": None},
        {"name": "chat", "instanceId": "i", "incarnation": ""},
        {"instance_id": "i", "name": "chat"},
        {"name": "chat"},
        {"name": "a:b", "instanceId": "i"},
        {"name": "", "instanceId": "i"},
        {"name": "chat", "instanceId": "i", "more": 1},
        {"name": "ch\u00e9", "instanceId": "i"},
        {"name": "A" * 129, "instanceId": "i"},
        "chat",
        7,
    ]
)
STYLES = st.sampled_from([{"separators": (",", ":")}, {}, {"indent": 1}, {"ensure_ascii": False}])
EDITS = st.tuples(st.integers(0, 400), st.sampled_from(["", " ", ",", "]", "}", '"', "\\u0041"]))


def the_ordinary_way(body: bytes) -> list[tuple[str, str]]:
    batch = parse(HeartbeatBatch, codec.loads(body))
    return [(f"{one.name}:{one.instance_id}", one.incarnation or "") for one in batch.heartbeats]


def outcome(read: Any, body: bytes) -> Any:
    try:
        return read(body)
    except RegistrydError as error:
        return error.code, error.detail


@given(st.lists(ITEMS | ITEMS | ODD, max_size=5), STYLES, st.none() | EDITS)
def test_a_batch_reads_as_it_would_the_ordinary_way(
    items: list[Any], style: dict[str, Any], edit: tuple[int, str] | None
) -> None:
    text = json.dumps({"heartbeats": items}, **style)
    if edit is not None:
        at, put = edit
        text = text[:at] + put + text[at + (not put) :]
    body = text.encode("utf-8", "surrogatepass")
    assert outcome(parse_beats, body) == outcome(the_ordinary_way, body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"heartbeats":[{"name":"a","instanceId":"1"},]}',
        b'{"heartbeats":[{"name":"a","instanceId":"1"}]},',
        b'{"heartbeats":[{"name":"a","instanceId":"1"}]}{"name":"a","instanceId":"1"}]}',
        b'{"heartbeats":[{"name":"a","instanceId":"1"}{"name":"a","instanceId":"1"}]}',
        b'{"heartbeats":[x{"name":"a","instanceId":"1"}]}',
        b'{"heartbeats":[{"name":"a","name":"b","instanceId":"1"}]}',
    ],
)
def test_a_batch_that_is_not_json_is_refused(body: bytes) -> None:
    assert outcome(parse_beats, body)[0] == "malformed"


def test_a_batch_has_its_limit() -> None:
    many = [{"name": "a", "instanceId": "1"}] * 10_001
    text = json.dumps({"heartbeats": many}, separators=(",", ":")).encode()
    with pytest.raises(Invalid, match="10000"):
        parse_beats(text)
    assert len(parse_beats(text.replace(b'{"name":"a","instanceId":"1"},', b"", 1))) == 10_000
