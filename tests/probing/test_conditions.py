"""Conditions: Gatus' own examples, what values are compared as, and how mistakes are told."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.probing.conditions import (
    MAX_LENGTH,
    MAX_OPTIONS,
    MAX_STEPS,
    Facts,
    Glob,
    evaluate,
    parse,
)
from registryd.probing.http import json_or_none


def facts(body: str | None = None, **known) -> Facts:
    document = None if body is None else json_or_none(body.encode())
    return Facts(
        **{"response_time_ms": 10.0, "connected": True, "text": body, "document": document, **known}
    )


def holds(condition: str, body: str | None = None, **known) -> bool:
    return parse(condition).holds(facts(body, **known))


def refusal(condition: str) -> str:
    with pytest.raises(ValueError, match=r"^position \d+: ") as caught:
        parse(condition)
    return str(caught.value)


# The table of Gatus' README: condition, passing and failing values.


@pytest.mark.parametrize(
    ("condition", "passing", "failing"),
    [
        ("[STATUS] == 200", [200], [201, 404]),
        ("[STATUS] < 300", [200, 201, 299], [301, 302, 300]),
        ("[STATUS] <= 299", [200, 201, 299], [301, 302, 300]),
        ("[STATUS] > 400", [401, 402, 403, 404], [400, 200]),
        ("[STATUS] >= 400", [400, 401], [399]),
        ("[STATUS] != 200", [201, 404], [200]),
        ("[STATUS] == any(200, 429)", [200, 429], [201, 400]),
        ("[STATUS] != any(200, 429)", [201, 400], [200, 429]),
        ("[STATUS] == pat(2*)", [200, 204], [302, 120]),
        ("[STATUS] != pat(2*)", [302, 120], [200]),
        ("200 == [STATUS]", [200], [201]),
        ("300 > [STATUS]", [200, 299], [300, 404]),
        ("any(200, 201) == [STATUS]", [200, 201], [202]),
        ("pat(20*) == [STATUS]", [200, 201], [210]),
    ],
)
def test_conditions_on_the_status(condition, passing, failing):
    assert [holds(condition, status=one) for one in passing] == [True] * len(passing)
    assert [holds(condition, status=one) for one in failing] == [False] * len(failing)


@pytest.mark.parametrize(
    ("condition", "passing", "failing"),
    [
        ("[BODY] == 1", "1", "{}"),
        ("[BODY] == 1", "1", "2"),
        ("[BODY].user.name == john", '{"user":{"name":"john"}}', '{"user":{"name":"jane"}}'),
        ("[BODY].data[0].id == 1", '{"data":[{"id":1}]}', '{"data":[{"id":2},{"id":1}]}'),
        ("[BODY].age == [BODY].id", '{"age":1,"id":1}', '{"age":1,"id":2}'),
        ("len([BODY].data) < 5", '{"data":[{"id":1}]}', '{"data":[1,2,3,4,5]}'),
        ("len([BODY].name) == 8", '{"name":"john.doe"}', '{"name":"bob"}'),
        ("has([BODY].errors) == false", '{"name":"john.doe"}', '{"errors":[]}'),
        ("has([BODY].users) == true", '{"users":[]}', "{}"),
        ("[BODY].name == pat(john*)", '{"name":"john.doe"}', '{"name":"bob"}'),
        ("[BODY].id == any(1, 2)", '{"id":1}', '{"id":3}'),
        ("[BODY].ip == any(127.0.0.1, ::1)", '{"ip":"::1"}', '{"ip":"10.0.0.1"}'),
        ("[BODY].status == UP", '{"status":"UP"}', '{"status":"DOWN"}'),
        (
            "[BODY] == pat(*<h1>Example Domain</h1>*)",
            "<html>\n<h1>Example Domain</h1>\n</html>",
            "<h1>Example</h1>",
        ),
        ("len([BODY].username) > 8", '{"username":"john.doe.2"}', '{"username":"john.doe"}'),
        ("[BODY].price == 24.99", '{"price":24.99}', '{"price":24.98}'),
        # and beyond the table
        ("[BODY][0].id == 1", '[{"id":1}]', '[{"id":2}]'),
        ("[BODY][1][0] == x", '[[],["x"]]', '[["x"],[]]'),
        ("len([BODY]) == 3", "[1,2,3]", "[1,2]"),
        ("len([BODY]) == 5", "hello", "hi"),
        ("len([BODY]) == 9", '{"a": 1 }', '{"a":1}'),
        ("len([BODY].o) == 7", '{"o": {"a": 1}}', '{"o": {"a": 10}}'),
        ("len([BODY].n) == 3", '{"n":100}', '{"n":1000}'),
        ("[BODY].ok == true", '{"ok":true}', '{"ok":false}'),
        ("[BODY].ok != true", '{"ok":false}', '{"ok":true}'),
        ("[BODY].error == null", '{"error":null}', '{"error":"x"}'),
        ("has([BODY].error) == false", '{"error":null}', '{"error":0}'),
        ("has([BODY].a.b) == true", '{"a":{"b":""}}', '{"a":{}}'),
        ("has([BODY]) == true", "x", ""),
        ("[BODY].a-b == x y", '{"a-b":"x y"}', '{"a-b":"x"}'),
        ("[BODY].tags == pat(*gpu*)", '{"tags":["cpu","gpu"]}', '{"tags":["cpu"]}'),
        ("[BODY].load < 0.9", '{"load":0.5}', '{"load":0.91}'),
        ("[BODY].load >= 0.9", '{"load":"0.9"}', '{"load":"0.89"}'),
        ("[BODY].uptime > 1h", '{"uptime":"90m"}', '{"uptime":"59m"}'),
        ("[BODY].n == 1", '{"n":1.0}', '{"n":1.5}'),
        ("[BODY].n == 07", '{"n":"7"}', '{"n":"70"}'),
        ("[BODY].n == 7", '{"n":7}', '{"n":"7.0"}'),
        ("[BODY].big == 123456789012345678", '{"big":123456789012345678}', '{"big":123456789012345679}'),
        ("[body].a == 1", '{"a":1}', '{"A":1}'),
        ("  [BODY].a   ==   1  ", '{"a":1}', '{"a":2}'),
        ("[BODY].a == b == c", '{"a":"b == c"}', '{"a":"b"}'),
        ("[BODY] == any([a], b)", "[a]", "[b]"),
    ],
)  # fmt: skip
def test_conditions_on_the_body(condition, passing, failing):
    assert holds(condition, passing)
    assert not holds(condition, failing)


@pytest.mark.parametrize(
    ("condition", "passing", "failing"),
    [
        ("[CONNECTED] == true", {"connected": True}, {"connected": False}),
        ("[RESPONSE_TIME] < 500", {"response_time_ms": 499.9}, {"response_time_ms": 500.0}),
        ("[RESPONSE_TIME] < 500ms", {"response_time_ms": 499.9}, {"response_time_ms": 501.0}),
        ("[RESPONSE_TIME] <= 1.5s", {"response_time_ms": 1500.0}, {"response_time_ms": 1501.0}),
        ("[IP] == 127.0.0.1", {"ip": "127.0.0.1"}, {"ip": "0.0.0.1"}),
        ("[IP] == pat(192.168.*)", {"ip": "192.168.3.4"}, {"ip": "10.192.168.1"}),
        (
            "[CERTIFICATE_EXPIRATION] > 48h",
            {"certificate_expires_in": timedelta(hours=49)},
            {"certificate_expires_in": timedelta(hours=1)},
        ),
        ("[CERTIFICATE_EXPIRATION] == 0", {}, {"certificate_expires_in": timedelta(hours=1)}),
        (
            "[CERTIFICATE_EXPIRATION] >= 0",
            {"certificate_expires_in": timedelta()},
            {"certificate_expires_in": timedelta(seconds=-1)},
        ),
        ("[DNS_RCODE] == NOERROR", {"dns_rcode": "NOERROR"}, {"dns_rcode": "NXDOMAIN"}),
    ],
)
def test_conditions_on_the_rest(condition, passing, failing):
    assert holds(condition, **passing)
    assert not holds(condition, **failing)


@pytest.mark.parametrize("op", ["==", "!="])
@pytest.mark.parametrize(
    "operand", ["[BODY].gone", "[BODY].a.b", "[BODY].list[3]", "[BODY].list.a", "[BODY][0]", "[STATUS]", "[IP]", "[DNS_RCODE]", "len([BODY].gone)"]
)  # fmt: skip
def test_what_is_not_there_fulfils_nothing(operand, op):
    assert not holds(f"{operand} {op} 1", '{"a":1,"list":[1]}')
    assert not holds(f"{operand} {op} pat(*)", '{"a":1,"list":[1]}')


def test_a_body_that_is_no_json_has_no_paths_but_is_text():
    assert holds("[BODY] == pat(*all good*)", "<p>all good</p>")
    assert holds("has([BODY].status) == false", "<p>all good</p>")
    assert not holds("[BODY].status != DOWN", "<p>all good</p>")


def test_versions_are_not_numbers():
    assert not holds("[BODY].version == 1.1", '{"version":"1.10"}')
    assert holds("[BODY].version == 1.10", '{"version":"1.10"}')


@pytest.mark.parametrize(
    ("condition", "position", "about"),
    [
        ("", 1, "operator"),
        ("[STATUS]", 1, "operator"),
        ("[STATUS]==200", 1, "space"),
        ("[STATUS] = 200", 1, "operator"),
        ("[STATUS] == ", 13, "operand is missing"),
        (" == 200", 1, "operand is missing"),
        ("STATUS == 200", 1, "placeholder"),
        ("200 == 200", 1, "placeholder"),
        ("pat(*) == any(a)", 1, "placeholder"),
        ("[STATSU] == 200", 1, "did you mean [STATUS]?"),
        ("200 == [STATSU]", 8, "did you mean [STATUS]?"),
        ("[DOMAIN_EXPIRATION] > 720h", 1, "not supported"),
        ("[STATUS == 200", 1, "lacks its ]"),
        ("[STATUS].x == 200", 9, "nothing can follow [STATUS]"),
        ("[BODY]. == 200", 7, "expected .name or [number]"),
        ("[BODY].a..b == 200", 9, "expected .name or [number]"),
        ("[BODY].a[-1] == 200", 9, "expected .name or [number]"),
        ("[BODY].a[*] == 200", 9, "expected .name or [number]"),
        ("[BODY]a == 200", 7, "expected .name or [number]"),
        ("len([STATUS]) == 3", 5, "works with [BODY] only"),
        ("has(name) == true", 5, "works with [BODY] only"),
        ("len(has([BODY].a)) == 3", 5, "works with [BODY] only"),
        ("len([BODY].a == 3", 1, "operator"),
        ("[BODY].a == pat(x", 18, "lacks its )"),
        ("[BODY].a == any(x", 18, "lacks its )"),
        ("[BODY].a == any(x,,y)", 17, "option"),
        ("[BODY].a == any()", 17, "option"),
        ("[STATUS] < any(1, 2)", 10, "== and != only"),
        ("[STATUS] >= pat(2*)", 10, "== and != only"),
        ("[STATUS] < fast", 10, "which fast is not"),
        ("[BODY].a > 1x", 10, "which 1x is not"),
        ("has([BODY].a) == yes", 15, "true or false"),
        ("[BODY].a == x\ny", 14, "control characters"),
        ("[BODY].a == \0", 13, "control characters"),
        ("[BODY].a == \ud800", 13, "control characters"),
    ],
)
def test_a_mistake_is_told_with_its_position(condition, position, about):
    detail = refusal(condition)
    assert detail.startswith(f"position {position}: ")
    assert about in detail


def test_everything_is_bounded():
    assert holds("[BODY].a == " + "x" * (MAX_LENGTH - 12), '{"a":"y"}') is False
    assert refusal("[BODY].a == " + "x" * (MAX_LENGTH - 11)).startswith(
        f"position {MAX_LENGTH + 1}"
    )
    parse("[BODY]" + ".a" * MAX_STEPS + " == 1")
    assert "steps" in refusal("[BODY]" + ".a" * (MAX_STEPS + 1) + " == 1")
    parse("[STATUS] == any(" + ",".join("1" * MAX_OPTIONS) + ")")
    assert "options" in refusal("[STATUS] == any(" + ",".join("1" * (MAX_OPTIONS + 1)) + ")")


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("", "", True),
        ("", "a", False),
        ("*", "", True),
        ("*", "anything / at\nall", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("ab*ba", "aba", False),
        ("**", "x", True),
        ("a?c", "abc", False),
        ("[a]", "[a]", True),
        ("*bc*c", "abc", False),
    ],
)
def test_a_glob_knows_stars_alone(pattern, text, matches):
    assert Glob(tuple(pattern.split("*"))).matches(text) == matches


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_a_glob_agrees_with_a_naive_matcher(pattern, text):
    def naive(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return naive(pattern[1:], text) or (bool(text) and naive(pattern, text[1:]))
        return text[:1] == pattern[0] and naive(pattern[1:], text[1:])

    assert Glob(tuple(pattern.split("*"))).matches(text) == naive(pattern, text)


def test_a_hostile_glob_takes_no_time_to_speak_of():
    condition = parse("[BODY] == pat(" + "*a" * 240 + "*b)")
    found = facts("a" * 65536)
    assert not condition.holds(found)  # backtracking would take longer than any time limit


def test_a_condition_tells_what_it_is_about():
    assert parse("200 == [STATUS]").names("STATUS")
    assert not parse("[BODY].STATUS == 200").names("STATUS")
    assert parse("[BODY].status == UP").reads("status")
    assert parse("has([BODY].status) == true").reads("status")
    assert not parse("[BODY].status.code == UP").reads("status")


def test_outcomes_come_in_order_and_nonsense_does_not_hold():
    asked = ["[STATUS] == 1", "nonsense", "[STATUS] == 2"]
    assert evaluate(asked, facts(status=2)) == (
        ("[STATUS] == 1", False),
        ("nonsense", False),
        ("[STATUS] == 2", True),
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=8,
)
PARTS = ["[BODY]", "[STATUS]", ".a", "[0]", "len(", "has(", "pat(", "any(", ")", "*", ",", " == ", " < ", " != ", "1", "x", "5s", "true", " "]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join), JSON)
def test_any_text_is_refused_or_evaluated(text, document):
    found = Facts(response_time_ms=1, text="x", document=document)
    try:
        outcome = parse(text).holds(found)
    except ValueError as error:
        outcome = str(error)
    assert isinstance(outcome, bool) or outcome.startswith("position ")
