"""How filters are read; what they find is in tests/properties."""

import pytest
from changes import History, view_of
from hypothesis import given
from hypothesis import strategies as st

from registryd.errors import Malformed
from registryd.registry.query import FILTERS, MAX_VALUES, Filters, parse_filters


def test_empty_filters_are_none() -> None:
    assert parse_filters(dict.fromkeys(FILTERS, "")) == parse_filters({}) == Filters()


def test_lists_mean_the_same_in_any_order_and_spacing() -> None:
    assert parse_filters({"tags": " b,a,,b "}) == parse_filters({"tags": "a,b"})


@pytest.mark.parametrize(
    ("parameter", "value", "position"),
    [
        ("tags", "a,b c", 3),
        ("tags", "é", 1),
        ("tagsAll", "a,-b", 3),
        ("zone", "z:1", 1),
        ("model", "a~b", 1),
        ("dependsOn", "a,b/c", 3),
        ("environment", "a" * 129, 1),
        ("name", "a(", 3),
        ("version", ">=", 1),
        ("capability", "chat@>=", 6),
        ("capabilitiesAll", "a,,b", 3),
        ("filter", "weight ==", 10),
    ],
)
def test_a_bad_filter_is_malformed_with_parameter_and_position(
    parameter: str, value: str, position: int
) -> None:
    with pytest.raises(Malformed) as caught:
        parse_filters({parameter: value})
    assert caught.value.detail.startswith(f"{parameter}: ")
    assert f"position {position}" in caught.value.detail


def test_an_unknown_health_is_malformed_and_the_known_are_named() -> None:
    with pytest.raises(Malformed, match=r"^health: 'fine' is none of healthy, unhealthy"):
        parse_filters({"health": "healthy,fine"})


def test_a_list_is_bounded() -> None:
    words = [f"t{number}" for number in range(MAX_VALUES + 1)]
    assert len(parse_filters({"tags": ",".join(words[1:])}).tags) == MAX_VALUES
    with pytest.raises(Malformed, match=r"^tags: at most 64"):
        parse_filters({"tags": ",".join(words)})


def test_a_least_version_narrows_the_capabilities_named_and_needs_one() -> None:
    history = History()
    for number, version in enumerate(["1.1.0", "1.2.0", "1.9.0", "2.0.0"]):
        history.register("chat", f"n{number}", capabilities=[{"name": "c", "version": version}])
    view = view_of(history)
    for parameter in ("capability", "capabilitiesAll"):
        found = parse_filters({parameter: "c", "minVersion": "1.2"}).select(view)
        assert sorted(i.instance_id for i in found) == ["n1", "n2"]
    with pytest.raises(Malformed, match=r"^minVersion: "):
        parse_filters({"minVersion": "1.2"})


def test_a_filter_over_an_unknown_field_is_malformed() -> None:
    with pytest.raises(Malformed, match=r"^filter: "):
        parse_filters({"filter": "secret == 1"})


@given(st.dictionaries(st.sampled_from(FILTERS), st.text(max_size=20)))
def test_any_text_is_a_filter_or_malformed(parameters: dict[str, str]) -> None:
    history = History()
    history.register("chat", metadata={"tags": ["a"]}, version="1.0.0")
    try:
        found = parse_filters(parameters).select(view_of(history))
    except Malformed as error:
        found = []
        named = error.detail.split(":")[0]
    else:
        named = "name"
    assert named in FILTERS
    assert len(found) <= 1
