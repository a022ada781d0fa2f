"""Version ranges, `minVersion`, the `capability` parameter and the order of versions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.errors import Malformed
from registryd.registry.versions import (
    ANY_VERSION,
    MAX_LENGTH,
    CapabilityTerm,
    Range,
    minimum,
    parse_capability,
    parse_range,
    sort_key,
)

numbers = st.integers(0, 12)
releases = st.tuples(numbers, numbers, numbers)
prereleases = st.sampled_from(["", "-rc.1", "-rc.2", "-alpha", "-0", "+build"])
versions = st.builds(lambda release, pre: ".".join(map(str, release)) + pre, releases, prereleases)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("1.2.3", ["1.2.3", "v1.2.3", "1.2.3+build"], ["1.2.4", "1.2.3-rc.1", "1.2"]),
        ("1.0", ["1.0.0", "1.0", "1"], ["1.0.1", "1.1.0"]),
        ("v1.2", ["1.2.0"], ["1.2.1"]),
        ("=1.2", ["1.2.0"], ["1.2.1"]),
        ("==1.2", ["1.2.0"], ["1.2.1"]),
        ("!=1.2", ["1.2.1", "2.0.0"], ["1.2.0", "1.2"]),
        (">=1,<2", ["1.0.0", "1.9.9"], ["0.9.0", "2.0.0", "2.0.0-rc.1"]),
        (" >= 1 , < 2 ", ["1.5"], ["2.0"]),
        (">1.2", ["1.2.1"], ["1.2.0"]),
        ("<=1.2", ["1.2.0"], ["1.2.1"]),
        ("^1.2", ["1.2.0", "1.9.0", "1.3.0-rc.1"], ["1.1.9", "2.0.0", "2.0.0-rc.1"]),
        ("^0.3", ["0.3.9"], ["0.4.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^0", ["0.0.0", "0.9.0"], ["1.0.0"]),
        ("^0.0", ["0.0.9"], ["0.1.0"]),
        ("~1.2.3", ["1.2.9"], ["1.3.0", "1.2.2"]),
        ("~1", ["1.9.0"], ["2.0.0"]),
        ("~=1.2", ["1.9.0"], ["2.0.0"]),
        ("~=1.2.3", ["1.2.9"], ["1.3.0"]),
        ("1.x", ["1.0.0", "1.9.9"], ["2.0.0"]),
        ("1.*", ["1.0.0", "1.9.9"], ["2.0.0"]),
        ("1.2.X", ["1.2.9"], ["1.3.0"]),
        ("!=1.x", ["2.0.0", "0.9.0"], ["1.5.0"]),
        (">=1.2", ["1.3.0-rc.1", "2.0.0-rc.1"], ["1.2.0-rc.1"]),
        ("1.2.3+b", ["1.2.3+b"], ["1.2.3", "1.2.3+c"]),
        (">=2024.05", ["2024.05.01", "2024.6"], ["2024.04"]),
    ],
)
def test_a_range_holds_these_versions_and_not_those(
    text: str, inside: list[str], outside: list[str]
) -> None:
    requirement = parse_range(text)
    assert [version for version in inside if not requirement.contains(version)] == []
    assert [version for version in outside if requirement.contains(version)] == []


def test_a_version_that_is_none_is_only_in_the_range_spelled_the_same_and_in_any() -> None:
    assert parse_range("2024-05-beta").contains("2024-05-beta")
    assert parse_range("*").contains("2024-05-beta")
    assert not parse_range("2024-05-beta").contains("2024-05-beta2")
    assert not parse_range(">=0").contains("2024-05-beta")
    assert not parse_range("!=1.0").contains("2024-05-beta")
    assert not parse_range(">=0").contains("1.0.0-01")
    assert not parse_range(">=0").contains("1" * (MAX_LENGTH + 1))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", 'version: position 1: expected a version or a range such as >=1.2, found ""'),
        (
            ">=1,",
            'version: position 5: expected a version or a range such as >=1.2, found ""',
        ),
        (
            ">=1,<latest",
            'version: position 6: expected a version such as 1.2 or 1.2.3, found "latest"',
        ),
        (
            ">=1 <2",
            "version: position 1: expected a version or a range such as >=1.2 "
            '(several are joined by a comma), found ">=1 <2"',
        ),
        (">=1.x", "version: position 3: a wildcard cannot follow >="),
        ("!=*", "version: position 3: a wildcard cannot follow !="),
        (
            "^1.0.0+b",
            "version: position 2: build metadata has no order, so it cannot follow ^",
        ),
        (
            ">\ud800",
            'version: position 2: expected a version such as 1.2 or 1.2.3, found "?"',
        ),
        ("1" * 257, "version: position 257: a range may hold at most 256 characters"),
    ],
)
def test_a_bad_range_is_malformed_with_its_position(text: str, sentence: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_range(text)
    assert caught.value.detail == sentence


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1.2", ">=1.2.0,<2.0.0"),
        ("v1", ">=1.0.0,<2.0.0"),
        (" 1.0 ", ">=1.0.0,<2.0.0"),
        ("0.3", ">=0.3.0,<0.4.0"),
        ("0.0.3", ">=0.0.3,<0.1.0"),
        ("0", ">=0.0.0,<0.1.0"),
        ("2.0.0-rc.1+build", ">=2.0.0-rc.1,<3.0.0"),
    ],
)
def test_a_minimum_ends_where_compatibility_does(text: str, canonical: str) -> None:
    assert str(minimum(text)) == canonical
    assert parse_range(canonical) == minimum(text)


@pytest.mark.parametrize("text", ["", "^1", "latest", "1.x", "1,2", "1" * 257])
def test_a_minimum_is_one_version(text: str) -> None:
    with pytest.raises(Malformed, match=r"^minVersion: position \d+: "):
        minimum(text)


def test_capabilities_are_joined_by_commas_and_their_ranges_by_semicolons() -> None:
    assert parse_capability("chat@>=2;<3, embeddings") == [
        CapabilityTerm("chat", parse_range(">=2,<3")),
        CapabilityTerm("embeddings", ANY_VERSION),
    ]


def test_a_capability_term_accepts_by_name_and_version() -> None:
    (term,) = parse_capability("chat@^2")
    assert term.accepts("chat", "2.1")
    assert not term.accepts("chat", "3.0")
    assert not term.accepts("Chat", "2.1")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "capability: position 1: expected the name of a capability"),
        ("chat,", "capability: position 6: expected the name of a capability"),
        ("-a", 'capability: position 1: expected the name of a capability, found "-a"'),
        (
            "chat@>=1,<2",
            'capability: position 10: expected the name of a capability, found "<2" '
            '(inside a range, "and" is written ;)',
        ),
        (
            "a,chat@>=1;<x",
            "capability: position 13: a wildcard cannot follow <",
        ),
        (
            "a,chat@>=1;<y",
            'capability: position 13: expected a version such as 1.2 or 1.2.3, found "y"',
        ),
        (
            "chat@",
            'capability: position 6: expected a version or a range such as >=1.2, found ""',
        ),
        ("a," * 64 + "a", "capability: position 129: at most 64 capabilities may be named"),
    ],
)
def test_a_bad_capability_is_malformed_with_its_position(text: str, sentence: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_capability(text)
    assert caught.value.detail == sentence


def test_versions_sort_by_precedence_and_those_that_are_none_last() -> None:
    upwards = [
        "0.9",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "v1.2",
        "1.10.0",
        "2024-05-beta",
        "latest",
    ]
    shuffled = random.Random(7).sample(upwards, len(upwards))
    assert sorted(shuffled, key=sort_key) == upwards


@given(st.lists(versions, min_size=2, max_size=2))
def test_the_sort_key_agrees_with_the_ranges(pair: list[str]) -> None:
    low, high = sorted(pair, key=sort_key)
    assert not parse_range(f"<{low.partition('+')[0]}").contains(high)


@given(releases, versions)
def test_ranges_agree_with_arithmetic_on_releases(
    release: tuple[int, int, int], version: str
) -> None:
    text = ".".join(map(str, release))
    core = version.partition("+")[0]
    if "-" in core:
        return
    candidate = tuple(map(int, core.split(".")))
    major, minor, _ = release
    assert parse_range(text).contains(version) == (candidate == release)
    assert parse_range(f">={text}").contains(version) == (candidate >= release)
    assert parse_range(f"<{text}").contains(version) == (candidate < release)
    assert parse_range(f"!={text}").contains(version) == (candidate != release)
    breaking = (major + 1, 0, 0) if major else (0, minor + 1, 0)
    assert minimum(text).contains(version) == (release <= candidate < breaking)
    assert parse_range(f"{major}.{minor}.x").contains(version) == (candidate[:2] == release[:2])


some_ranges = st.sampled_from(["*", "1.x", ">=1.2", "<2", "latest", "1.3.0", "!=1.3"]).map(
    parse_range
)


@given(some_ranges, some_ranges, versions | st.sampled_from(["latest", "1.3", "other"]))
def test_two_ranges_joined_hold_what_both_hold(one: Range, other: Range, version: str) -> None:
    both = one & other
    assert both.contains(version) == (one.contains(version) and other.contains(version))
    assert parse_range(str(both)) == both


range_text = st.text(st.sampled_from("0123.xX*v<>=!~^,; -+abz@"), max_size=30) | st.lists(
    st.builds(
        str.__add__,
        st.sampled_from(["", "=", "==", "!=", ">=", "<=", ">", "<", "^", "~", "~=", "^v", ">= "]),
        versions | st.sampled_from(["1", "0", "0.0", "1.2", "1.x", "*", "01.02", "latest"]),
    ),
    max_size=4,
).map(",".join)


@given(range_text | st.text(), versions | st.text())
def test_a_range_is_malformed_or_reads_back_from_its_own_text(text: str, version: str) -> None:
    sort_key(version)
    for parse in (parse_range, minimum):
        try:
            requirement = parse(text)
        except Malformed:
            continue
        requirement.contains(version)
        requirement.contains(text)
        assert parse_range(str(requirement)) == requirement


@given(
    st.lists(st.builds("{}@{}".format, st.sampled_from(["a", "b:c/d"]), range_text)).map(",".join)
    | st.text()
)
def test_a_capability_is_malformed_or_reads_back_from_its_own_text(text: str) -> None:
    try:
        terms = parse_capability(text.replace(",", ";", 1))
    except Malformed:
        return
    assert parse_capability(",".join(map(str, terms))) == terms
