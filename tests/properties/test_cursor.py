"""Pages: together they are the whole list, in order, each item once; and cursors made by strangers."""

import base64
import json
from typing import Any

import pytest
from changes import History, view_of
from hypothesis import given, settings
from hypothesis import strategies as st

from registryd.errors import Malformed
from registryd.registry.listing import SORTS, parse_page, render
from registryd.registry.query import Filters
from registryd.registry.view import View

pytestmark = pytest.mark.timeout(60)

sorts = st.sampled_from([direction + sort for direction in ("", "-") for sort in SORTS])
views = st.sampled_from(["services", "instances"])
instances = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from(["1", "2", "10"]),
        st.sampled_from([None, "1.10", "1.9", "nightly", "2.0.0-rc.1"]),
        st.sampled_from(["healthy", "unhealthy", "unknown"]),
    ),
    max_size=12,
    unique_by=lambda instance: instance[:2],
)


def history_of(instances: list[tuple[str, str, str | None, str]]) -> History:
    history = History()
    for service, instance_id, version, health in instances:
        fields: dict[str, Any] = {} if version is None else {"version": version}
        history.register(service, instance_id, health=health, **fields)
    return history


def page(view: View, /, **parameters: str) -> Any:
    return json.loads(render(view, Filters(), parse_page(parameters)).body)


def names(page: Any) -> list[tuple[str, str]]:
    if "instances" in page:
        return [(one["name"], one["instanceId"]) for one in page["instances"]]
    return [(one["name"], "") for one in page["services"]]


@settings(max_examples=60, deadline=None)
@given(instances, views, sorts, st.integers(1, 5))
def test_pages_of_any_size_and_order_are_together_the_whole_list(
    instances: list[Any], shape: str, sort: str, limit: int
) -> None:
    view = view_of(history_of(instances))
    whole = names(page(view, view=shape, sort=sort))
    seen: list[tuple[str, str]] = []
    cursor: str | None = ""
    while cursor is not None:
        part = page(view, view=shape, sort=sort, limit=str(limit), cursor=cursor)
        assert part["total"] == len(whole)
        assert part["next"] is None or len(names(part)) == limit
        seen += names(part)
        cursor = part["next"]
    assert seen == whole
    assert len(set(seen)) == len(seen)


@settings(max_examples=60, deadline=None)
@given(instances, views, sorts, st.integers(1, 3), st.data())
def test_what_stays_is_seen_once_and_in_order_while_others_come_and_go(
    instances: list[Any], shape: str, sort: str, limit: int, data: st.DataObject
) -> None:
    history = history_of(instances)
    view = view_of(history)
    staying = names(page(view, view=shape, sort=sort))
    seen: list[tuple[str, str]] = []
    cursor: str | None = ""
    while cursor is not None:
        part = page(view, view=shape, sort=sort, limit=str(limit), cursor=cursor)
        seen += [name for name in names(part) if name in staying]
        cursor = part["next"]
        passer = data.draw(st.sampled_from(["aa", "bb", "zz"]))
        if f"{passer}:p" in history.held:
            view.apply(history.remove(f"{passer}:p"))
        elif len(history.changes) < 40:
            view.apply(history.register(passer, "p", version="1.9.5", health="degraded"))
    assert seen == staying


@given(instances.filter(len), views, sorts)
def test_descending_is_ascending_turned_round(instances: list[Any], shape: str, sort: str) -> None:
    view = view_of(history_of(instances))
    bare = sort.removeprefix("-")
    assert (
        names(page(view, view=shape, sort=bare))
        == names(page(view, view=shape, sort=f"-{bare}"))[::-1]
    )


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


words = st.text(max_size=6) | st.sampled_from(["9" * 300 + ".0.0", "\ud800", "healthy"])
hostile = st.one_of(
    st.text(max_size=30),
    st.binary(max_size=30).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
    st.builds(encoded, st.recursive(words | st.integers() | st.none(), st.lists, max_leaves=6)),
    st.builds(lambda v, s, i: encoded(["services", "version", v, s, i]), words, words, words),
    st.builds(lambda v, s, i: encoded(["services", "health", v, s, i]), words, words, words),
    st.just(base64.b64encode(b"[" * 100_000).decode()),
    st.just(base64.b64encode(b"9" * 5_000).decode()),
    st.just(base64.b64encode('["services","name","","",""]'.encode("utf-16")).decode()),
)


@settings(max_examples=200, deadline=None)
@given(hostile.filter(len), st.sampled_from(["version", "health", "name"]))
def test_a_cursor_of_any_text_is_malformed_or_a_place_in_the_list(text: str, sort: str) -> None:
    view = view_of(history_of([("a", "1", "1.0", "healthy"), ("b", "1", "x", "unknown")]))
    try:
        total = page(view, sort=sort, cursor=text)["total"]
    except Malformed as error:
        total = error.detail.startswith("cursor: ") and 2
    assert total == 2


@pytest.mark.parametrize("other", [{"view": "instances"}, {"sort": "health"}, {"sort": "-name"}])
def test_a_cursor_of_another_list_is_refused(other: dict[str, str]) -> None:
    view = view_of(history_of([("a", "1", None, "healthy"), ("b", "1", None, "healthy")]))
    cursor = page(view, limit="1")["next"]
    assert names(page(view, cursor=cursor)) == [("b", "")]
    with pytest.raises(Malformed, match=r"^cursor: it belongs"):
        parse_page({"cursor": cursor, **other})
