"""User-supplied regular expressions: what is found, what is refused, and with which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.errors import Malformed
from registryd.registry.patterns import MAX_LENGTH, compile_pattern


def refusal(text: str) -> str:
    with pytest.raises(Malformed) as caught:
        compile_pattern(text)
    return caught.value.detail


def test_a_pattern_is_found_anywhere_in_the_text() -> None:
    assert compile_pattern("text").search("ai-text-processor")
    assert not compile_pattern("^text").search("ai-text-processor")


def test_case_counts_unless_told_otherwise() -> None:
    assert not compile_pattern("TEXT").search("ai-text")
    assert compile_pattern("TEXT", ignore_case=True).search("ai-text")
    assert compile_pattern("É", ignore_case=True).search("café")


def test_patterns_of_one_text_and_case_rule_are_equal() -> None:
    assert compile_pattern("a+") == compile_pattern("a+")
    assert hash(compile_pattern("a+")) == hash(compile_pattern("a+"))
    assert compile_pattern("a+") != compile_pattern("a+", ignore_case=True)


def test_a_catastrophic_pattern_is_harmless() -> None:
    assert not compile_pattern("(a+)+$").search("a" * 20_000 + "!")


def test_a_text_with_half_a_surrogate_pair_is_searched_all_the_same() -> None:
    assert compile_pattern("b$").search("a\ud800b")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a(b", "name: position 4: missing )"),
        ("a)", "name: one ) too many"),
        ("x[a", "name: position 2: missing ]: [a"),
        ("ab**", "name: position 3: bad repetition operator: **"),
        (
            "x(?=a)",
            "name: position 2: invalid perl operator: (?= "
            "(RE2 has no lookahead, lookbehind or atomic groups)",
        ),
        (
            r"(a)\1",
            r"name: position 4: invalid escape sequence: \1 (RE2 has no back-references)",
        ),
        (
            "a{1001}",
            "name: position 2: invalid repetition size: {1001} "
            "(repetitions may add up to at most 1000)",
        ),
        (
            r"\pL{1000}",
            "name: pattern too large - compile failed (use fewer or smaller repetitions)",
        ),
        ("a\0b", "name: position 2: a pattern cannot hold a NUL character"),
        ("a\ud800", "name: position 2: a pattern cannot hold half a surrogate pair"),
        ("a" * 257, "name: position 257: a pattern may hold at most 256 characters"),
    ],
)
def test_a_fault_is_named_with_its_position(text: str, sentence: str) -> None:
    assert refusal(text) == sentence


def test_the_sentence_names_the_parameter_also_after_a_success_of_another_name() -> None:
    compile_pattern("a", what="name")
    with pytest.raises(Malformed, match=r"^version: position 2"):
        compile_pattern("a[", what="version")


def test_faults_do_not_reach_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    refusal("(((")
    assert capfd.readouterr().err == ""


@given(
    st.text(st.sampled_from("ab\\(){}[]*+?|^$.,:=!<>P12\0\ud800é-"), max_size=MAX_LENGTH + 1)
    | st.text(max_size=40),
    st.text(max_size=20),
    st.booleans(),
)
def test_whatever_the_pattern_it_searches_or_is_malformed(
    pattern: str, text: str, ignore_case: bool
) -> None:
    try:
        compiled = compile_pattern(pattern, ignore_case=ignore_case)
    except Malformed:
        return
    assert compiled.search(text) in (True, False)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.text(max_size=3))
def test_a_quoted_text_is_found_where_python_finds_it(text: str, part: str) -> None:
    literal = "".join(f"\\x{{{ord(character):x}}}" for character in part)
    try:
        pattern = compile_pattern(literal)
    except Malformed:  # NUL is written here as an escape; only surrogates remain
        assert any("\ud800" <= character <= "\udfff" for character in part)
        return
    if not any("\ud800" <= character <= "\udfff" for character in part):
        assert pattern.search(text) == (part in text)
