"""The view, its indexes and its min rule against a plain list of decoded documents."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from changes import Held, History, contents_of, view_of
from hypothesis import given, settings
from hypothesis import strategies as st

from registryd.feed.revision import Revision
from registryd.feed.stream import Change
from registryd.registry.document import Offer
from registryd.registry.expression import parse
from registryd.registry.listing import Listing, Page, holds, render
from registryd.registry.query import Filters, parse_filters
from registryd.registry.versions import parse_range
from registryd.registry.view import Contents, View

pytestmark = pytest.mark.timeout(60)

SERVICES = ["chat", "draw", "echo"]
TAGS = ["a", "b", "c/d"]
VERSIONS = ["1.0.0", "1.2", "2.0.0", "2.0.0-rc.1", "nightly"]

capabilities = st.fixed_dictionaries(
    {"name": st.sampled_from(["sum", "sort"]), "version": st.sampled_from(VERSIONS)}
)
Fields = dict[str, st.SearchStrategy[Any]]

required: Fields = {
    "metadata": st.fixed_dictionaries(
        {"owner": st.sampled_from(["nlp", "é"])},
        optional={
            "tags": st.lists(st.sampled_from(TAGS), max_size=2),
            "environment": st.sampled_from(["prod", "staging"]),
        },
    ),
    "capabilities": st.lists(
        capabilities, max_size=2, unique_by=lambda c: (c["name"], c["version"])
    ),
}
optional: Fields = {
    "version": st.sampled_from(VERSIONS),
    "zone": st.sampled_from(["z1", "z2"]),
    "models": st.lists(st.sampled_from(["m1", "m2"]), max_size=3),
    "dependsOn": st.lists(st.sampled_from(SERVICES), max_size=2),
    "weight": st.integers(0, 3),
    "health": st.sampled_from(["", "healthy"]),
}
bodies = st.fixed_dictionaries(required, optional=optional)
names = st.builds("{}:{}".format, st.sampled_from(SERVICES), st.sampled_from(["i1", "i2", "i:3"]))


offers = st.builds(
    Offer,
    st.sampled_from([(), (("sort", "1.0.0"),), (("none", "1.0.0"), ("sum", "1.0.0"))]),
    st.sampled_from([(), ("m1",), ("m2", "m3")]),
)


@dataclass(frozen=True)
class Step:
    """One change, if it can happen in a history; its repr is what a failure shows."""

    what: str
    name: str
    value: Any = None

    def __call__(self, history: History) -> None:
        service, _, instance_id = self.name.partition(":")
        present = self.name in history.held
        match self.what:
            case "register":
                history.register(service, instance_id, **self.value)
            case "remove" if present:
                history.remove(self.name)
            case "health" if present:
                history.health(self.name, self.value)
            case "discover" if present:
                history.discover(self.name, self.value)
            case "administer" if present:
                history.administer(self.name, self.value)
            case "preserve":
                held = history.held  # nobody is held twice
                history.preserve(*[n for n in self.value if n in held and not held[n].suspect])
            case _:
                pass


steps = st.one_of(
    st.builds(Step, st.just("register"), names, bodies),
    st.builds(Step, st.just("register"), names, bodies),
    st.builds(Step, st.just("remove"), names),
    st.builds(
        Step, st.just("health"), names, st.sampled_from(["healthy", "degraded", "unhealthy"])
    ),
    st.builds(Step, st.just("discover"), names, offers),
    st.builds(Step, st.just("administer"), names, st.sampled_from(["maintenance", "draining", ""])),
    st.builds(Step, st.just("preserve"), names, st.lists(names, max_size=3, unique=True)),
)
histories = st.lists(steps, max_size=14)


def some_of(*words: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=1, max_size=2, unique=True).map(",".join)


ranges = st.sampled_from(["1.0", "^1", ">=1.2", "<2", "2.0.0-rc.1", "nightly", "9", "*"])
ranged = st.one_of(
    some_of("sum", "sort", "none"), st.builds("{}@{}".format, some_of("sum", "sort"), ranges)
)
queries = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["^CH", "a", "t$", "x", "."]),
        "capability": ranged,
        "capabilitiesAll": ranged,
        "tags": some_of("a", "b", "c/d", "none"),
        "tagsAll": some_of("a", "b", "c/d"),
        "health": some_of("healthy", "degraded", "unhealthy", "unknown", "maintenance"),
        "version": ranges,
        "environment": some_of("prod", "production", "stage", "none"),
        "zone": some_of("z1", "z2", "z3"),
        "model": some_of("m1", "m2", "m3"),
        "dependsOn": some_of("chat", "draw"),
        "within": some_of("ch", "chat", "chatter", "draw", "e"),
        "filter": st.sampled_from(
            ["weight != 1", 'metadata.owner == "é"', "zone is empty and not b in metadata.tags"]
        ),
    },
)


def words(text: str) -> list[str]:
    return text.split(",")


def claims(document: Any, term: str) -> bool:
    name, at, wanted = term.partition("@")
    accepted = parse_range(wanted) if at else None
    return any(
        claim["name"] == name and (accepted is None or accepted.contains(claim["version"]))
        for claim in offered(document)
    )


def offered(document: Any) -> list[Any]:
    """Its capabilities: of a name that is declared what is discovered says nothing more."""
    declared = document["capabilities"]
    names = {claim["name"] for claim in declared}
    found = document["health"].get("discovered", {}).get("capabilities", ())
    return [*declared, *(claim for claim in found if claim["name"] not in names)]


def models(document: Any) -> list[str]:
    found = document["health"].get("discovered", {}).get("models", ())
    return [*document.get("models", ()), *found]


FULL = {"prod": "production", "stage": "staging"}
NAIVE: dict[str, Callable[[Any, str], bool]] = {
    "name": lambda d, v: re.search(v, d["name"], re.IGNORECASE) is not None,
    "capability": lambda d, v: any(claims(d, term) for term in words(v)),
    "capabilitiesAll": lambda d, v: all(claims(d, term) for term in words(v)),
    "tags": lambda d, v: not set(words(v)).isdisjoint(d["metadata"].get("tags", ())),
    "tagsAll": lambda d, v: set(words(v)).issubset(d["metadata"].get("tags", ())),
    "health": lambda d, v: d["health"]["status"] in words(v),
    "version": lambda d, v: "version" in d and parse_range(v).contains(d["version"]),
    "environment": lambda d, v: (
        d["metadata"].get("environment") in [FULL.get(word, word) for word in words(v)]
    ),
    "zone": lambda d, v: d.get("zone") in words(v),
    "model": lambda d, v: not set(words(v)).isdisjoint(models(d)),
    "dependsOn": lambda d, v: not set(words(v)).isdisjoint(d.get("dependsOn", ())),
    "within": lambda d, v: d["name"].startswith(tuple(words(v))),
    "filter": lambda d, v: parse(v).matches(d),
}


def filters_of(query: dict[str, str]) -> Filters:
    """`within` are the caller's prefixes, which no query parameter gives."""
    prefixes = tuple(words(query["within"])) if "within" in query else ()
    return parse_filters({k: v for k, v in query.items() if k != "within"}).within(prefixes)


def naive(history: History, query: dict[str, str]) -> set[str]:
    return {
        name
        for name, document in history.documents.items()
        if all(NAIVE[parameter](document, value) for parameter, value in query.items())
    }


def made(steps: list[Step]) -> History:
    history = History()
    for step in steps:
        step(history)
    return history


def indexes(contents: Contents) -> Any:
    """Everything that finds instances, by their names."""
    return (
        {term: {i.id for i in contents.at(slots)} for term, slots in contents.index.items()},
        {name: [i.fragment for i in members] for name, members in contents.services.items()},
        contents.names,
        contents.capability_versions,
        contents.versions,
        {name: instance.fragment for name, instance in contents.by_id.items()},
    )


@settings(max_examples=60, deadline=None)
@given(histories, st.lists(queries, min_size=1, max_size=4))
def test_a_query_finds_what_a_plain_filter_over_the_documents_finds(
    steps: list[Step], asked: list[dict[str, str]]
) -> None:
    history = made(steps)
    view = view_of(history)
    for query in asked:
        found = filters_of(query).select(view)
        assert len(found) == len(set(found))
        assert {instance.id for instance in found} == naive(history, query)


@settings(max_examples=50, deadline=None)
@given(histories)
def test_the_indexes_are_what_the_instances_imply_after_any_changes(steps: list[Step]) -> None:
    history = made(steps)
    assert indexes(view_of(history).contents) == indexes(contents_of(history.held))


@settings(max_examples=50, deadline=None)
@given(histories, st.data())
def test_a_snapshot_that_holds_any_later_state_of_each_instance_ends_at_the_same_view(
    steps: list[Step], data: st.DataObject
) -> None:
    history = History()
    held_at: list[dict[str, Held]] = [{}]
    for step in steps:
        step(history)
        held_at += [dict(history.held)] * (len(history.changes) + 1 - len(held_at))
    start = data.draw(st.integers(0, len(history.changes)), label="start")
    end = data.draw(st.integers(start, len(history.changes)), label="end")
    mixed = {}
    for name in sorted({name for held in held_at for name in held}):
        moment = data.draw(st.integers(start, end), label=name)
        if name in held_at[moment]:
            mixed[name] = held_at[moment][name]
    view = View()
    view.replace(contents_of(mixed), Revision(history.epoch, start), Revision(history.epoch, end))
    for change in history.changes[start:]:
        view.apply(change)
    assert indexes(view.contents) == indexes(contents_of(history.held))


@settings(max_examples=50, deadline=None)
@given(histories, st.lists(queries, min_size=1, max_size=5), st.booleans())
def test_an_answer_that_is_said_to_hold_is_the_answer_of_now(
    steps: list[Step], asked: list[dict[str, str]], by_instances: bool
) -> None:
    history, view = History(), View()
    page = Page("instances" if by_instances else "services", limit=None)
    filters = [filters_of(query) for query in asked]
    kept: list[list[Listing]] = [[render(view, one, page)] for one in filters]
    for step in steps:
        before = len(history.changes)
        step(history)
        for change in history.changes[before:]:
            view.apply(change)
            for one, answers in zip(filters, kept, strict=True):
                fresh = render(view, one, page)
                for old in answers:
                    if holds(old, view, one.groups):
                        assert items(old) == items(fresh)
                answers.append(fresh)


def items(listing: Listing) -> bytes:
    """The answer without the revision that it was made at, which stands behind all items."""
    return listing.body.rpartition(b',"revision":')[0]


@settings(max_examples=50, deadline=None)
@given(histories, st.lists(queries, min_size=1, max_size=3), st.data())
def test_no_revision_seen_elsewhere_holds_wrongly_after_a_snapshot_taken_amid_changes(
    steps: list[Step], asked: list[dict[str, str]], data: st.DataObject
) -> None:
    # Another node followed every change, and a client brings what it answered.
    history, elsewhere = History(), View()
    held_at: list[dict[str, Held]] = [{}]
    filters = [filters_of(query) for query in asked]
    answers = [{0: select(elsewhere, one)} for one in filters]
    for step in steps:
        step(history)
        for change in history.changes[len(held_at) - 1 :]:
            elsewhere.apply(change)
            held_at.append(dict(history.held))
            for one, answer in zip(filters, answers, strict=True):
                answer[change.at.rev] = select(elsewhere, one)
    start = data.draw(st.integers(0, len(history.changes)), label="start")
    end = data.draw(st.integers(start, len(history.changes)), label="end")
    view = View()
    view.replace(
        contents_of(held_at[end]), Revision(history.epoch, start), Revision(history.epoch, end)
    )
    replayed: list[Change | None] = [None, *history.changes[start:]]
    for next_one in replayed:
        if next_one is not None:
            view.apply(next_one)
        for one, answer in zip(filters, answers, strict=True):
            least = view.changed_at(one.groups)
            now = select(view, one)
            for rev in range(least, view.revision.rev + 1):
                assert answer[rev] == now


def select(view: View, filters: Filters) -> dict[str, bytes]:
    return {instance.id: instance.fragment for instance in filters.select(view)}


@settings(max_examples=50, deadline=None)
@given(histories, st.sampled_from(SERVICES))
def test_an_answer_about_one_service_outlives_every_change_of_others(
    steps: list[Step], service: str
) -> None:
    history, view = History(), View()
    filters = Filters(service=service)
    history.register(service, "here")
    view.apply(history.changes[0])
    listing = render(view, filters, Page())
    for step in steps:
        if step.what != "preserve" and not step.name.startswith(f"{service}:"):
            step(history)
    for change in history.changes[1:]:
        view.apply(change)
        assert holds(listing, view, filters.groups)


@pytest.mark.parametrize(
    ("query", "survives"),
    [
        ({"tags": "a"}, True),
        ({"tags": "b"}, False),
        ({"tags": "b", "zone": "z1"}, True),
        ({"capability": "sort"}, True),
        ({"health": "unknown", "tags": "a"}, True),
        ({"health": "unknown"}, False),
        ({"filter": "weight == 1", "tags": "a"}, True),
        ({"within": "cha"}, True),
        ({"within": "cha,dra"}, False),
        ({"within": "draw", "zone": "z1"}, True),
        ({}, False),
    ],
)
def test_a_change_ends_only_answers_all_of_whose_terms_it_touches(
    query: dict[str, str], survives: bool
) -> None:
    history, view = History(), View()
    history.register("chat", metadata={"tags": ["a"]}, zone="z1")
    view.apply(history.changes[0])
    filters = filters_of(query)
    listing = render(view, filters, Page())
    assert holds(listing, view, filters.groups)  # and a prefix is followed from now on
    view.apply(history.register("draw", metadata={"tags": ["b"]}, zone="z2"))
    assert holds(listing, view, filters.groups) is survives
