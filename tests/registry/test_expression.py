"""The filter grammar: what is understood, what it means for a document, how faults are told."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.errors import Malformed
from registryd.registry.expression import (
    MAX_LENGTH,
    MAX_NESTING,
    MAX_PATTERNS,
    MAX_TERMS,
    And,
    Empty,
    Equal,
    Matches,
    Member,
    Not,
    Or,
    Selector,
    Value,
    parse,
)
from registryd.registry.patterns import compile_pattern

DOCUMENT: dict[str, object] = {
    "name": "ai-text-processor",
    "version": "2.1.0",
    "zone": "eu-1",
    "weight": 10,
    "ratio": 0.5,
    "capabilities": [
        {"name": "chat", "version": "2.0.0", "tags": ["a", "b"]},
        {"name": "embeddings", "version": "1.0.0", "description": ""},
    ],
    "models": ["flux-dev", "sd-3"],
    "ports": [80, 443],
    "dependsOn": [],
    "metadata": {"tags": ["ai", "nlp"], "a-b": {"c": "deep"}, "empty": "", "x/y": "slash", "": "e"},
    "health": {"status": "healthy", "checked": True, "error": None},
}

A = Equal(Selector(("a",)), Value("1"))
B = Equal(Selector(("b",)), Value("2"))
C = Equal(Selector(("c",)), Value("3"))


def refusal(text: str, roots: frozenset[str] | None = None) -> str:
    with pytest.raises(Malformed) as caught:
        parse(text, roots=roots)
    return caught.value.detail


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("foo == 3", Equal(Selector(("foo",)), Value("3"))),
        ("foo==3", Equal(Selector(("foo",)), Value("3"))),
        ("foo != xyz", Not(Equal(Selector(("foo",)), Value("xyz")))),
        ('foo == "bar"', Equal(Selector(("foo",)), Value("bar"))),
        ('foo == `a"b\\`', Equal(Selector(("foo",)), Value('a"b\\'))),
        (r'foo == "a\"\\\n\té\U0001F600"', Equal(Selector(("foo",)), Value('a"\\\n\té😀'))),
        ("foo == -0.2", Equal(Selector(("foo",)), Value("-0.2"))),
        ("foo == 2.1.0-rc.1", Equal(Selector(("foo",)), Value("2.1.0-rc.1"))),
        ("foo in bar", Member(Value("foo"), Selector(("bar",)))),
        ("bar contains foo", Member(Value("foo"), Selector(("bar",)))),
        ('"foo" not in bar', Not(Member(Value("foo"), Selector(("bar",))))),
        ("bar not contains `foo`", Not(Member(Value("foo"), Selector(("bar",))))),
        ("list is empty", Empty(Selector(("list",)))),
        ("list is not empty", Not(Empty(Selector(("list",))))),
        ("foo matches bar", Matches(Selector(("foo",)), compile_pattern("bar"))),
        ("foo not matches `^b`", Not(Matches(Selector(("foo",)), compile_pattern("^b")))),
        ('"/a-b/c.d/e~1f/ti~lde" is empty', Empty(Selector(("a-b", "c.d", "e/f", "ti~lde")))),
        ('x in "/a-b"', Member(Value("x"), Selector(("a-b",)))),
        ('"/a" in b', Member(Value("/a"), Selector(("b",)))),
        (
            '`environment` in foo.bar["meta"].tags[\t`ENV` ]',
            Member(Value("environment"), Selector(("foo", "bar", "meta", "tags", "ENV"))),
        ),
        ('a["b"].0.c is empty', Empty(Selector(("a", "b", "0", "c")))),
        ("in in in", Member(Value("in"), Selector(("in",)))),
        ("is is empty", Empty(Selector(("is",)))),
        ('"not" in empty', Member(Value("not"), Selector(("empty",)))),
        ("a == 1 or b == 2 and c == 3", Or((A, And((B, C))))),
        ("a == 1 and b == 2 or c == 3", Or((And((A, B)), C))),
        ("(a == 1 or b == 2) and c == 3", And((Or((A, B)), C))),
        ("not a == 1 and b == 2", And((Not(A), B))),
        ("not(a == 1 and b == 2)", Not(And((A, B)))),
        ("not not a == 1", Not(Not(A))),
        ("a == 1 or (b == 2 or c == 3)", Or((A, Or((B, C))))),
        ("\t\r\n ( \n((a\r==\t1 ) ) )", A),
    ],
)
def test_it_reads_the_grammar_of_go_bexpr(text: str, expression: object) -> None:
    assert parse(text) == expression


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a==1 and not(b!=2)", 'a == "1" and not b != "2"'),
        ('tags not contains `x"y`', r'"x\"y" not in tags'),
        ("(a==1 or b==2) and (c==3)", '(a == "1" or b == "2") and c == "3"'),
        ("not (a==1 or b==2)", 'not (a == "1" or b == "2")'),
        ('"/metadata/a-b/c/0" is not empty', 'metadata["a-b"].c.0 is not empty'),
        ('"/a-b/x~1y" is empty', '"/a-b/x~1y" is empty'),
        ('"/not" is empty', '"/not" is empty'),
        (r"a matches `^\d`", r'a matches "^\\d"'),
    ],
)
def test_the_canonical_text(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "name == ai-text-processor",
        "weight == 10",
        'weight == "10.0"',
        "ratio == 0.5",
        "health.checked == true",
        "health.status != unhealthy",
        "capabilities.name == chat",
        "capabilities.1.name == embeddings",
        "capabilities.tags.0 == nothing or b in capabilities.tags",
        "chat in capabilities",
        "ai in metadata.tags",
        "443 in ports",
        "text in name",
        "status in health",
        'metadata["a-b"].c == deep',
        '"/metadata/x~1y" == slash',
        "dependsOn is empty",
        "metadata.empty is empty",
        "metadata.tags is not empty",
        "weight is not empty",
        "capabilities.description is empty",
        "capabilities.name is not empty",
        "name matches `^ai-.*or$`",
        "models matches `^sd-`",
        "capabilities.version matches `^2`",
        "not (zone == us-1 or zone == us-2) and health.status == healthy",
    ],
)
def test_the_document_matches(text: str) -> None:
    assert parse(text).matches(DOCUMENT)


@pytest.mark.parametrize(
    "text",
    [
        "name == ai",
        "weight == ten",
        "weight == true",
        "health.checked == 1",
        "health.checked == True",
        "ratio == .5",
        "capabilities.name != chat",  # one of them is
        "capabilities.2.name == chat",
        "version in capabilities",
        "healthy in health",  # a value, and only keys are asked
        "1 in weight",
        "metadata.tags == ai",  # a whole list equals nothing
        "metadata == ai",
        "name matches TEXT",
        "weight matches 10",
        "name.first == a",
        "capabilities.name is empty",
        "weight is empty",
    ],
)
def test_the_document_does_not_match(text: str) -> None:
    assert not parse(text).matches(DOCUMENT)


@pytest.mark.parametrize(
    "selector", ["absent", "health.absent", "health.error", "name.x", "ports.9"]
)
def test_what_is_not_there_equals_and_holds_nothing_and_is_empty(selector: str) -> None:
    for text in (f"{selector} == a", f"a in {selector}", f"{selector} matches a"):
        assert not parse(text).matches(DOCUMENT)
    for text in (f"{selector} != a", f"a not in {selector}", f"{selector} not matches a"):
        assert parse(text).matches(DOCUMENT)
    assert parse(f"{selector} is empty").matches(DOCUMENT)
    assert not parse(f"{selector} is not empty").matches(DOCUMENT)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("metadata.owner==", 'position 17: expected a value after "=="'),
        ("a == )", 'position 6: expected a value after "==", found ")"'),
        ("foo == or", 'position 8: expected a value after "==", found "or"'),
        ("a = 1", 'position 3: "=" is no part of the grammar, write =='),
        ("a == 1 && b", 'position 8: "&" is no part of the grammar'),
        ("", 'position 1: expected a field, a value, "not" or "("'),
        ("a == 1 and ", 'position 12: expected a field, a value, "not" or "("'),
        ("a == 1 AND b", 'position 8: expected "and", "or" or the end, found "AND"'),
        ("x in foo abc", 'position 10: expected "and", "or" or the end, found "abc"'),
        ("(a == 1", 'position 8: expected "and", "or" or ")" for the "(" at position 1'),
        ("a == 1)", 'position 7: expected "and", "or" or the end, found ")"'),
        (
            "a > 1",
            'position 3: ">" is no part of the grammar',
        ),
        (
            "a like b",
            'position 3: expected "==", "!=", "in", "contains", "matches" or "is empty" '
            'after the field, found "like"',
        ),
        ("a is full", 'position 6: expected "empty" or "not empty", found "full"'),
        ("a is not full", 'position 10: expected "empty", found "full"'),
        (
            "a not like b",
            'position 7: expected "in", "contains" or "matches" after "not", found "like"',
        ),
        ("x in", 'position 5: expected a field after "in"'),
        (
            "x in a.b-c",
            'position 8: expected a name, found "b-c"; other names are written a["b-c"] or "/a/b-c"',
        ),
        (
            "32 == 32",
            'position 1: expected a name, found "32"; other names are written a["b-c"] or "/a/b-c"',
        ),
        (
            '"x" == 1',
            'position 1: expected a field; a text stands after its operator, or before "in"',
        ),
        ('"/a/" == 1', "position 1: a JSON pointer cannot hold an empty name"),
        ("foo[3] == abc", 'position 5: expected a quoted name after "[", found "3"'),
        ('foo["abc" == 3', 'position 11: expected "]", found "=="'),
        ('a == "x', 'position 6: expected a closing " for the text that begins here'),
        ("a == `x", "position 6: expected a closing ` for the text that begins here"),
        (
            r'a matches "^\d"',
            r"position 13: unknown escape \d, write \\ for a backslash or use `raw text`",
        ),
        (
            r'a == "\ud800"',
            r"position 7: unknown escape \ud800, write \\ for a backslash or use `raw text`",
        ),
        ("a == \ud800", "position 6: half a surrogate pair is no character"),
        ('a matches "("', "position 11: pattern: position 2: missing )"),
        ("a" * 4097, "position 4097: a filter may hold at most 4096 characters"),
    ],
)
def test_a_fault_is_told_with_its_position(text: str, sentence: str) -> None:
    assert refusal(text) == f"filter: {sentence}"


def test_an_unknown_root_is_refused_with_the_nearest_known_one() -> None:
    roots = frozenset({"metadata", "instanceId", "name"})
    assert not parse('"/metadata/x" == 1 and instanceId == 2', roots=roots).matches({})
    assert refusal("name == 1 or Metadata.x == 1", roots) == (
        'filter: position 14: no field "Metadata"; did you mean "metadata"?'
    )
    assert refusal("a in instance_id", roots).endswith('did you mean "instanceId"?')
    assert refusal("zzz is empty", roots).endswith("there are instanceId, metadata, name")


def test_nesting_is_bounded() -> None:
    deepest = "(" * MAX_NESTING + "a == 1" + ")" * MAX_NESTING
    assert parse(deepest) == A
    assert "nest at most 64" in refusal(f"({deepest})")
    assert parse("not " * MAX_NESTING + "a == 1").matches({"a": 1})
    assert "nest at most 64" in refusal("not " * (MAX_NESTING + 1) + "a == 1")
    assert "nest at most 64" in refusal("(" * MAX_LENGTH)


def test_the_deepest_filter_needs_little_of_the_stack() -> None:
    half = MAX_NESTING // 2
    text = "a == 1 or b == 2 and not (" * half + "c == 3" + ")" * half
    limit = sys.getrecursionlimit()
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    sys.setrecursionlimit(depth + 400)
    try:
        expression = parse(text)
        assert expression.matches({"a": 2, "b": 2, "c": 3}) in (True, False)
        assert parse(str(expression)) == expression
        assert hash(parse(str(expression))) == hash(expression)
    finally:
        sys.setrecursionlimit(limit)


def test_terms_and_patterns_are_bounded() -> None:
    assert parse(" or ".join(["a == 1"] * MAX_TERMS)).matches({"a": 1})
    assert "at most 200 terms" in refusal(" or ".join(["a == 1"] * (MAX_TERMS + 1)))
    assert parse(" and ".join(["a matches 1"] * MAX_PATTERNS)).matches({"a": "1"})
    assert 'at most 8 "matches"' in refusal(" or ".join(["a matches 1"] * (MAX_PATTERNS + 1)))


def test_a_deep_document_is_no_danger() -> None:
    document: dict[str, object] = {"a": 1}
    for _ in range(1000):
        document = {"a": [document]}
    assert parse("a" + ".a" * 1000 + " == 1").matches(document)


SIGNS = ["==", "!=", "(", ")", "[", "]", ".", "/", '"\\"']
WORDS = ["a", "b.c", 'd["e f"]', '"/a/b"', '"x"', "`y`", "1", "-2.5"]
KEYWORDS = ["in", "not", "and", "or", "is", "empty", "contains", "matches"]
grammar = st.lists(st.sampled_from([*SIGNS, *WORDS, *KEYWORDS]), max_size=30).map(" ".join)


@given(st.text(max_size=200) | grammar | st.text(st.sampled_from('ab ."\\`[]()=!/'), max_size=60))
def test_any_text_is_a_filter_or_malformed(text: str) -> None:
    try:
        expression = parse(text)
    except Malformed:
        return
    assert expression.matches(DOCUMENT) in (True, False)
    assert parse(str(expression)) == expression


UNITS = ['"', "`", "\\", '"\\', "a.", "a == 1 or ", "[", "not ", "= ", " "]


@pytest.mark.parametrize("unit", UNITS)
def test_long_texts_of_one_kind_are_malformed_well_within_the_limit_of_a_test(unit: str) -> None:
    with pytest.raises(Malformed, match=r"^filter: position \d+: "):
        parse((unit * MAX_LENGTH)[:MAX_LENGTH])
