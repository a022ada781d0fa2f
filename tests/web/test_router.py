"""Paths to routes: precedence, decoding, mounting, and tables that contradict themselves."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wired import route

from registryd.errors import Malformed, MethodNotAllowed, NotFound
from registryd.web.router import Router, template
from registryd.web.routing import REGISTRY_PREFIX, Mount

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
HEARTBEAT = "/services/{name}/instances/{id}/heartbeat"


def router(*routes):
    return Router(routes)


def found(table, method, path):
    matched, params = table.match(method, path)
    return matched.path, params


def test_a_path_without_parameters_is_found():
    assert found(router(route("GET", "/livez")), "GET", "/livez") == ("/livez", {})


def test_parameters_are_decoded_and_named():
    table = router(route("PUT", HEARTBEAT))
    assert found(table, "PUT", "/services/tok%C3%A9/instances/a-1/heartbeat") == (
        HEARTBEAT,
        {"name": "toké", "id": "a-1"},
    )


@settings(deadline=None)  # a busy machine is no bug
@given(
    name=st.text(st.characters(exclude_categories=("C",), exclude_characters="/"), min_size=1),
    id=st.from_regex(NAME, fullmatch=True),
)
def test_a_match_undoes_the_building_of_a_path(name, id):
    table = router(route("PUT", HEARTBEAT, segments={"id": NAME}))
    path = f"/services/{quote(name, safe='')}/instances/{quote(id, safe='')}/heartbeat"
    if name in (".", ".."):
        with pytest.raises(Malformed):
            table.match("PUT", path)
    else:
        assert table.match("PUT", path)[1] == {"name": name, "id": id}


@settings(deadline=None)
@given(path=st.text(max_size=60), method=st.sampled_from(["GET", "PUT", "OPTIONS", "BREW"]))
def test_any_path_is_matched_or_refused_with_one_of_our_errors(path, method):
    table = router(
        route("GET", "/services"), route("PUT", HEARTBEAT), route("GET", "/services/{name}")
    )
    try:
        table.match(method, path)
    except (Malformed, NotFound, MethodNotAllowed):
        pass


def test_a_literal_segment_wins_over_a_parameter():
    table = router(route("GET", "/services/{name}"), route("GET", "/services/search"))
    assert found(table, "GET", "/services/search")[0] == "/services/search"


def test_a_literal_segment_that_leads_nowhere_does_not_hide_the_parameter():
    table = router(route("GET", "/services/search"), route("GET", "/services/{name}/health"))
    assert found(table, "GET", "/services/search/health") == (
        "/services/{name}/health",
        {"name": "search"},
    )


def test_a_literal_path_without_the_method_does_not_hide_the_parameter():
    table = router(route("GET", "/services/search"), route("PUT", "/services/{name}"))
    assert found(table, "PUT", "/services/search")[1] == {"name": "search"}


def test_methods_of_one_path_may_name_their_parameters_differently():
    table = router(route("GET", "/things/{name}"), route("PUT", "/things/{id}"))
    assert found(table, "PUT", "/things/x")[1] == {"id": "x"}


@pytest.mark.parametrize(
    "segment",
    [
        "%2f",
        "a%2Fb",
        "%2e%2e",
        "..",
        ".",
        "%00",
        "%0d%0a",
        "%7f",
        "%ff",
        "%c3",
        "%",
        "%zz",
        "",
        "\udcff",
    ],
)
@pytest.mark.parametrize("pattern", [{}, {"id": re.compile(r"(?s).*")}])
def test_a_hostile_segment_is_malformed_and_named(segment, pattern):
    table = router(route("GET", "/things/{id}/x", segments=pattern))
    with pytest.raises(Malformed, match="'id'"):
        table.match("GET", f"/things/{segment}/x")


def test_a_segment_has_to_match_its_pattern_in_full():
    table = router(route("GET", "/things/{id}", segments={"id": NAME}))
    with pytest.raises(Malformed, match="'id'"):
        table.match("GET", "/things/good*")


def test_an_encoded_literal_is_not_decoded():
    with pytest.raises(NotFound):
        router(route("GET", "/livez")).match("GET", "/live%7A")


@pytest.mark.parametrize("path", ["/livez/", "/things/a/"])
def test_one_trailing_slash_is_tolerated(path):
    table = router(route("GET", "/livez"), route("GET", "/things/{id}"))
    assert table.match("GET", path)[0].path in ("/livez", "/things/{id}")


def test_two_trailing_slashes_are_not_tolerated():
    with pytest.raises(NotFound):
        router(route("GET", "/livez")).match("GET", "/livez//")


def test_the_root_is_a_path_like_any_other():
    assert found(router(route("GET", "/")), "GET", "/")[0] == "/"


@pytest.mark.parametrize("path", ["", "/", "/nothing", "/livez/more", "//livez", "livez"])
def test_an_unknown_path_is_not_found(path):
    with pytest.raises(NotFound):
        router(route("GET", "/livez")).match("GET", path)


def test_a_wrong_method_names_the_right_ones():
    table = router(route("GET", "/things/{id}"), route("DELETE", "/things/{id}"))
    with pytest.raises(MethodNotAllowed) as caught:
        table.match("POST", "/things/a")
    assert caught.value.allowed == ("DELETE", "GET", "HEAD", "OPTIONS")


def test_get_answers_head():
    assert found(router(route("GET", "/livez")), "HEAD", "/livez")[0] == "/livez"


@pytest.mark.parametrize("path", ["/livez", "/things/%00", "*"])
def test_options_is_known_everywhere(path):
    table = router(route("GET", "/livez"), route("GET", "/things/{id}"))
    assert table.match("OPTIONS", path)[0].method == "OPTIONS"


def test_options_of_an_unknown_path_is_not_found():
    with pytest.raises(NotFound):
        router(route("GET", "/livez")).match("OPTIONS", "/nothing")


@pytest.mark.parametrize(
    ("mount", "long", "short"),
    [(Mount.REGISTRY, True, True), (Mount.ROOT, False, True), (Mount.PREFIX_ONLY, True, False)],
)
@pytest.mark.parametrize("path", ["/services", "/services/{name}"])
def test_a_mount_says_where_a_route_answers(mount, long, short, path):
    table = router(route("GET", path, mount=mount))
    for prefix, answers in ((REGISTRY_PREFIX, long), ("", short)):
        try:
            table.match("GET", prefix + path.format(name="a"))
            assert answers
        except NotFound:
            assert not answers


def test_the_short_path_may_mean_something_else():
    table = router(
        route("GET", "/health", mount=Mount.PREFIX_ONLY), route("GET", "/health", mount=Mount.ROOT)
    )
    assert table.match("GET", "/health")[0].mount is Mount.ROOT
    assert table.match("GET", REGISTRY_PREFIX + "/health")[0].mount is Mount.PREFIX_ONLY


def test_a_route_that_exists_in_the_long_form_alone_is_called_so():
    long = route("GET", "/health", mount=Mount.PREFIX_ONLY)
    assert template(long) == REGISTRY_PREFIX + "/health"


@pytest.mark.parametrize(
    "routes",
    [
        (route("GET", "/a"), route("GET", "/a", operation_id="other")),
        (route("GET", "/a/{x}"), route("GET", "/a/{y}")),
        (route("GET", "/a", operation_id="same"), route("GET", "/b", operation_id="same")),
        (route("GET", "/a", mount=Mount.REGISTRY), route("GET", "/a", mount=Mount.ROOT)),
        (route("GET", "a"),),
        (route("GET", "/a/"),),
        (route("GET", "/a/{x}/{x}"),),
        (route("GET", "/a/x{y}"),),
        (route("GET", "/a/{x}", segments={"z": NAME}),),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(routes):
    with pytest.raises(ValueError, match=r"slash|/|twice"):
        Router(routes)
