"""Filters made at random: their text reads back, and they mean what a naive evaluator says."""

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from registryd.registry.expression import (
    MAX_LENGTH,
    And,
    Empty,
    Equal,
    Expression,
    Matches,
    Member,
    Not,
    Or,
    Selector,
    Value,
    parse,
)
from registryd.registry.patterns import compile_pattern

characters = st.characters(exclude_categories=["Cs"])
names = st.sampled_from(["a", "b", "name", "0", "1", "not", "x-y", "p/q", "~", '"', "é"]) | st.text(
    characters, min_size=1, max_size=4
)
words = st.sampled_from(["a", "b", "chat", "1", "1.0", "-2", "true", "false", "and", ""]) | st.text(
    characters, max_size=4
)
selectors = st.builds(Selector, st.lists(names, min_size=1, max_size=3).map(tuple))
values = st.builds(Value, words)
terms = st.one_of(
    st.builds(Equal, selectors, values),
    st.builds(Member, values, selectors),
    st.builds(Empty, selectors),
    st.builds(
        Matches, selectors, st.sampled_from(["a", "^b", "[0-9]+", r'\d"']).map(compile_pattern)
    ),
)


def joined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, parts), st.builds(And, several), st.builds(Or, several))


# at most eight leaves, so that no limit on terms or patterns is met
expressions = st.recursive(terms, joined, max_leaves=8)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.5, 1.0]), words
)
documents = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(expressions)
def test_the_text_of_an_expression_parses_back_to_it(expression: Expression) -> None:
    text = str(expression)
    if len(text) <= MAX_LENGTH:
        assert parse(text) == expression
        assert str(parse(text)) == text
        assert hash(parse(text)) == hash(expression)


@given(expressions, documents)
def test_an_expression_means_what_a_naive_evaluator_says(
    expression: Expression, document: dict[str, Any]
) -> None:
    assert expression.matches(document) == naive(expression, document)


@given(terms, documents)
def test_a_term_and_its_negation_share_out_all_documents(
    term: Expression, document: dict[str, Any]
) -> None:
    assert term.matches(document) != parse(str(Not(term))).matches(document)


def naive(expression: Expression, document: dict[str, Any]) -> bool:
    match expression:
        case And(operands):
            return all(naive(operand, document) for operand in operands)
        case Or(operands):
            return any(naive(operand, document) for operand in operands)
        case Not(operand):
            return not naive(operand, document)
        case Equal(selector, value):
            return any(same(found, value.text) for found in reach(document, selector.path))
        case Member(value, selector):
            return any(holds(found, value.text) for found in reach(document, selector.path))
        case Empty(selector):
            return all(found in ("", [], {}) for found in reach(document, selector.path))
        case Matches(selector, pattern):
            strings: list[object] = []
            for found in reach(document, selector.path):
                strings += found if isinstance(found, list) else [found]
            return any(isinstance(s, str) and re.search(pattern.text, s) for s in strings)
        case _:
            raise AssertionError(expression)


def reach(value: Any, path: tuple[str, ...]) -> list[Any]:
    """Recursive, where the real one walks."""
    if value is None:
        return []
    if not path:
        return [value]
    first, rest = path[0], path[1:]
    if isinstance(value, dict):
        return reach(value.get(first), rest)
    if not isinstance(value, list):
        return []
    if re.fullmatch("[0-9]+", first):
        return reach(value[int(first)], rest) if int(first) < len(value) else []
    return [found for item in value if isinstance(item, dict) for found in reach(item, path)]


def same(found: Any, text: str) -> bool:
    if isinstance(found, str):
        return found == text
    if isinstance(found, bool):
        return text == str(found).lower()
    if isinstance(found, int | float) and re.fullmatch(
        r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text
    ):
        return float(found) == float(text)
    return False


def holds(found: Any, text: str) -> bool:
    if isinstance(found, list):
        return any(same(i.get("name") if isinstance(i, dict) else i, text) for i in found)
    return isinstance(found, str | dict) and text in found
