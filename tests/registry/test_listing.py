"""Lists as bytes: order, pages, fields, the JSON of anything, and the cache's bound."""

import json
from typing import Any

import pytest
from changes import History, view_of
from hypothesis import given, settings
from hypothesis import strategies as st

from registryd.errors import Malformed
from registryd.feed.revision import NOWHERE
from registryd.registry.listing import (
    Listing,
    ListingCache,
    array,
    parse_page,
    render,
    service_object,
)
from registryd.registry.query import Filters
from registryd.registry.view import View


def listed(view: View, /, **parameters: str) -> Any:
    return json.loads(render(view, Filters(), parse_page(parameters)).body)


@pytest.fixture
def history() -> History:
    history = History()
    history.register("chat", "c1", version="1.10.0", health="unhealthy")
    history.register("chat", "c2", version="1.9.0", health="degraded")
    history.register("draw", "d1", version="2.0.0-rc.1", health="healthy")
    history.register("echo", "e1", health="unknown")
    return history


def ids(view: View, /, **parameters: str) -> list[str]:
    page = listed(view, view="instances", **parameters)
    return [instance["instanceId"] for instance in page["instances"]]


def test_a_list_of_nothing_is_whole(history: History) -> None:
    assert listed(View()) == {"services": [], "total": 0, "revision": str(NOWHERE), "next": None}


def test_instances_come_by_service_and_id(history: History) -> None:
    assert ids(view_of(history)) == ["c1", "c2", "d1", "e1"]
    assert ids(view_of(history), sort="-name") == ["e1", "d1", "c2", "c1"]


def test_versions_sort_by_precedence_and_none_comes_last(history: History) -> None:
    assert ids(view_of(history), sort="version") == ["c2", "c1", "d1", "e1"]


def test_health_sorts_best_first(history: History) -> None:
    assert ids(view_of(history), sort="health") == ["d1", "c2", "e1", "c1"]


def test_times_sort_oldest_first(history: History) -> None:
    history.register("chat", "c1", version="1.10.1")
    assert ids(view_of(history), sort="registeredAt") == ["c1", "c2", "d1", "e1"]
    assert ids(view_of(history), sort="updatedAt") == ["c2", "d1", "e1", "c1"]


def test_a_service_shows_its_best_instance_and_all_that_match(history: History) -> None:
    page = listed(view_of(history), limit="1")
    [chat] = page["services"]
    assert (page["total"], page["next"] is None) == (3, False)
    assert (chat["name"], chat["instanceId"], chat["url"]) == ("chat", "c2", "http://10.0.0.1:80")
    assert [one["instanceId"] for one in chat["instances"]] == ["c1", "c2"]


def test_the_best_instance_does_not_drain_is_healthy_and_not_suspect() -> None:
    history = History()
    for instance_id in ("a", "b", "c", "d"):
        history.register("chat", instance_id, health="healthy")
    history.administer("chat:a", "draining")
    history.preserve("chat:b")
    assert listed(view_of(history))["services"][0]["instanceId"] == "c"
    history.administer("chat:c", "maintenance")
    history.health("chat:d", "degraded")
    assert listed(view_of(history))["services"][0]["instanceId"] == "b"


def test_fields_are_shown_in_the_order_asked_for_and_only_they(history: History) -> None:
    page = listed(view_of(history), fields="version, name,version,zone", view="instances")
    assert list(page["instances"][0].items()) == [("version", "1.10.0"), ("name", "chat")]
    assert page["instances"][3] == {"name": "echo"}
    page = listed(view_of(history), fields="url")
    assert page["services"][0] == {"url": "http://10.0.0.1:80"}


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"view": "nodes"}, "view"),
        ({"sort": "weight"}, "sort"),
        ({"sort": "--name"}, "sort"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "१"}, "limit"),
        ({"limit": "9" * 9999}, "limit"),
        ({"fields": "name,secret"}, "fields"),
        ({"fields": "url", "view": "instances"}, "fields"),
    ],
)
def test_a_bad_parameter_is_malformed_and_named(parameters: dict[str, str], names: str) -> None:
    with pytest.raises(Malformed, match=f"^{names}: "):
        parse_page(parameters)


def test_empty_parameters_are_none() -> None:
    empty = dict.fromkeys(("view", "limit", "cursor", "sort", "fields"), "")
    assert parse_page(empty) == parse_page({})


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
free = st.dictionaries(
    texts.filter(lambda key: key not in ("tags", "environment")), anything, max_size=4
)


@pytest.mark.timeout(60)
@settings(max_examples=60, deadline=None)
@given(free, free, texts)
def test_whatever_a_client_wrote_comes_back_as_it_was_in_valid_json(
    metadata: Any, parameters: Any, reason: str
) -> None:
    history = History()
    history.register(
        "chat", metadata=metadata, capabilities=[{"name": "c", "parameters": parameters}]
    )
    extra = json.dumps({"error": reason}, ensure_ascii=False)[1:-1]
    history.health("chat:i1", "unhealthy", f",{extra}")
    view = view_of(history)
    [chat] = listed(view)["services"]
    for shown in (
        chat,
        chat["instances"][0],
        listed(view, fields="metadata,health,capabilities")["services"][0],
    ):
        assert shown["metadata"] == metadata
        assert shown["capabilities"][0]["parameters"] == parameters
        assert shown["health"]["error"] == reason


def test_a_bare_array_and_a_service_object_hold_the_documents_as_they_are() -> None:
    history = History()
    history.register("chat", "a", endpoint="http://h:1/%22?a=b&c=[d]")
    view = view_of(history)
    members = view.of_service("chat")
    document = history.documents["chat:a"]
    assert json.loads(array(members)) == [document]
    assert array([]) == b"[]"
    assert json.loads(service_object(members)) == document | {
        "url": document["endpoint"],
        "instances": [document],
    }


def listing(size: int) -> Listing:
    return Listing(b"x" * size, NOWHERE, 0, 0, None)


def test_the_cache_keeps_what_was_asked_for_last() -> None:
    cache = ListingCache(4 * 1600)
    kept = {key: listing(1000) for key in "abcd"}
    for key, one in kept.items():
        cache.put(key, one)
    assert cache.get("a") is kept["a"]
    cache.put("e", listing(1000))
    assert [key for key in "abcde" if cache.get(key)] == ["a", "c", "d", "e"]


def test_an_answer_beyond_a_quarter_of_the_cache_is_not_kept_and_ends_the_one_before() -> None:
    cache = ListingCache(4000)
    cache.put("a", listing(10))
    cache.put("a", listing(1000))
    assert (cache.get("a"), cache.size, len(cache)) == (None, 0, 0)


def test_a_compressed_form_of_an_answer_no_longer_kept_does_not_count() -> None:
    cache = ListingCache(8000)
    first, second = listing(100), listing(200)
    cache.put("a", first)
    cache.put("a", second)
    before = cache.size
    cache.keep_encoded("a", first, "gzip", b"y" * 50)
    assert (cache.size, first.encoded) == (before, {"gzip": b"y" * 50})


keys = st.text("ab", min_size=1, max_size=3) | st.just("k" * 900)
actions = st.lists(
    st.tuples(st.sampled_from(["put", "get", "gzip", "zstd"]), keys, st.integers(0, 2000)),
    max_size=40,
)


@given(actions)
def test_the_cache_never_holds_more_than_its_limit_and_counts_every_byte(
    actions: list[tuple[str, str, int]],
) -> None:
    limit = 5000
    cache = ListingCache(limit)
    put: dict[str, Listing] = {}
    for action, key, size in actions:
        if action == "put":
            put[key] = listing(size)
            cache.put(key, put[key])
        elif action == "get":
            assert cache.get(key) in (None, put.get(key))
        elif key in put:
            cache.keep_encoded(key, put[key], action, b"z" * size)
        held = {key: one for key in put if (one := cache.get(key)) is not None}
        assert cache.size == sum(len(key) + one.size for key, one in held.items()) <= limit
        assert len(cache) == len(held)
