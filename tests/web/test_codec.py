"""Strict decoding of query strings and JSON, and pydantic's findings as pointers."""

import json
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from registryd.errors import Malformed
from registryd.web import codec

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=30,
)


@settings(deadline=None)
@given(documents)
def test_ordinary_json_reads_as_the_standard_library_reads_it(document):
    body = json.dumps(document).encode()
    assert codec.loads(body) == json.loads(body)


@settings(deadline=None)
@given(documents)
def test_what_is_written_reads_back(document):
    assert codec.loads(codec.dumps(document)) == document


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_malformed(body):
    try:
        codec.loads(body)
    except Malformed:
        pass


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b" 2}', "line 2, column 6"),
        (b'{"a": 1} x', "line 1, column 10"),
        (b'{"a":1,"a":2}', "duplicate key 'a'"),
        (b'[{"a":{"b":1,"b":1}}]', "duplicate key 'b'"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"1e999", "out of range"),
        (b"-1e999", "out of range"),
        (b"9" * 301, "300 digits"),
        (b"9" * 5000, "300 digits"),
        (b"0." + b"1" * 400, "300 digits"),
        (b"[" * 65 + b"]" * 65, "64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "64 levels"),
        (b"[" * 100_000, "64 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "64 levels"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{\n"a": "\xff"}', "line 2, byte 7"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'"a\nb"', "line 1, column 3"),
        (b"'a'", "line 1, column 1"),
        (b"[1,]", "not JSON"),
        (b"01", "not JSON"),
    ],
)
def test_json_that_is_absurd_or_ambiguous_is_malformed(body, says):
    with pytest.raises(Malformed, match=says):
        codec.loads(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[" * 64 + b"]" * 64, 64),
        (b"[" + b",".join([b"{}"] * 500) + b"]", 500),
    ],
)
def test_nesting_up_to_the_limit_and_many_brackets_are_read(body, value):
    assert codec.loads(body)
    assert value


def test_a_whole_surrogate_pair_is_one_character():
    assert codec.loads(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_nul_in_a_string_is_left_to_the_fields():
    assert codec.loads(b'"\\u0000"') == "\0"


def test_a_long_key_is_cut_in_the_message():
    key = b'"' + b"k" * 5000 + b'"'
    with pytest.raises(Malformed) as caught:
        codec.loads(b"{" + key + b":1," + key + b":2}")
    assert len(caught.value.detail) < 200


def test_nan_is_never_written():
    with pytest.raises(ValueError, match="JSON"):
        codec.dumps(float("nan"))


def test_json_is_written_compact_and_as_utf_8():
    assert codec.dumps({"a": [1, "é"]}) == '{"a":[1,"é"]}'.encode()


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("a=1&b=2", [("a", "1"), ("b", "2")]),
        ("a=1&a=2", [("a", "1"), ("a", "2")]),
        ("a", [("a", "")]),
        ("&&a=1&", [("a", "1")]),
        ("q=a+b%2Bc", [("q", "a b+c")]),
        ("q=x@>=2;<3", [("q", "x@>=2;<3")]),
        ("q=a=b", [("q", "a=b")]),
        ("q=%C3%A9\udcc3\udca9", [("q", "éé")]),
    ],
)
def test_a_query_is_read_in_order(text, pairs):
    assert list(codec.decode_query(text).items()) == pairs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name=%zz", "'name'.*position 1"),
        ("name=ab%2", "'name'.*position 3"),
        ("name=%ff", "'name'.*UTF-8"),
        ("name=\udcff", "'name'.*UTF-8"),
        ("name=a%00", r"'name'.*U\+0000 at position 2"),
        ("name=%0d%0aX", r"'name'.*U\+000D"),
        ("na%00me=1", "name of a query parameter"),
        ("=1", "no name"),
        ("&".join(["a=1"] * 101), "more than 100"),
    ],
)
def test_a_bad_query_is_malformed_and_names_the_parameter(text, says):
    with pytest.raises(Malformed, match=says):
        codec.decode_query(text)


def test_one_value_of_a_parameter():
    assert codec.single(codec.decode_query("a=1"), "a") == "1"


def test_no_value_of_a_parameter():
    assert codec.single(codec.decode_query("a=1"), "b") is None


def test_two_values_where_one_is_meant_are_malformed():
    with pytest.raises(Malformed, match="'a' is given 2 times"):
        codec.single(codec.decode_query("a=1&a=2"), "a")


class Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class HttpCheck(Wire):
    type: Literal["http"]
    path: str
    timeout_ms: int = 5


class TcpCheck(Wire):
    type: Literal["tcp"]
    port: int


class Thing(Wire):
    name: str
    ttl_seconds: int = Field(300, ge=2, le=86400)
    weight: int | list[int] = 1
    check: Annotated[HttpCheck | TcpCheck, Field(discriminator="type")] | None = None
    tags: list[str] = []
    metadata: dict[str, int] = {}

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 5:
            raise ValueError("is too long")
        return name


def findings(body: dict[str, Any]) -> dict[str, str]:
    try:
        Thing.model_validate(body)
    except ValidationError as error:
        return {one.pointer: one.detail for one in codec.invalid(error, body).errors}
    return {}


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "/name", "is required"),
        ({"name": "toolong"}, "/name", "is too long"),
        ({"name": "a", "ttlSeconds": 1}, "/ttlSeconds", "should be greater than or equal to 2"),
        ({"name": "a", "ttl_seconds": 1}, "/ttl_seconds", "should be greater than or equal to 2"),
        ({"name": "a", "nope": 1}, "/nope", "is not a known field"),
        ({"name": "a", "tags": ["x", 1]}, "/tags/1", "should be a valid string"),
        ({"name": "a", "check": {"type": "http"}}, "/check/path", "is required"),
        (
            {"name": "a", "check": {"type": "http", "path": "/", "timeoutMs": "x"}},
            "/check/timeoutMs",
            "should be a valid integer, unable to parse string as an integer",
        ),
        ({"name": "a", "check": {"type": "ftp"}}, "/check/type", "should be one of 'http', 'tcp'"),
        ({"name": "a", "check": {}}, "/check/type", "is required"),
        (
            {"name": "a", "weight": "x"},
            "/weight",
            "should be a valid integer, unable to parse string as an integer"
            "; or should be a valid list",
        ),
        (
            {"name": "a", "metadata": {"a/b~c": "x"}},
            "/metadata/a~1b~0c",
            "should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_a_wrong_value_is_named_by_its_pointer(body, pointer, detail):
    assert findings(body) == {pointer: detail}


def test_every_wrong_value_is_named():
    assert findings({"ttlSeconds": 1, "nope": 1}).keys() == {"/name", "/ttlSeconds", "/nope"}


def test_the_summary_names_the_first_and_counts_the_others():
    with pytest.raises(ValidationError) as caught:
        Thing.model_validate({"ttlSeconds": 1})
    assert (
        codec.invalid(caught.value, {"ttlSeconds": 1}).detail == "/name: is required (and 1 more)"
    )


def test_long_values_and_many_errors_are_cut():
    body = {"name": "a", **{f"{number}{'x' * 5000}": 1 for number in range(500)}}
    fields = findings(body)
    assert len(fields) == codec.MAX_FIELD_ERRORS
    assert max(map(len, fields)) < 200


def test_a_body_of_the_wrong_kind_is_named_by_the_empty_pointer():
    with pytest.raises(ValidationError) as caught:
        Thing.model_validate([])
    invalid = codec.invalid(caught.value, [])
    assert invalid.errors[0].pointer == ""
    assert invalid.detail.startswith("the body: should be")
