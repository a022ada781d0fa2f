"""What callers with prefixes see and may do: their part of the registry, as if there were no other."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from callers import HeaderAccess
from changes import History, view_of
from daemons import Answer, Api, eventually, running

from registryd.registry.query import Filters, shortest, spelled
from registryd.registry.stats import capabilities, registry_stats

NAMES = ("team-a.shop", "team-a.till", "team-ab", "team-b.shop", "team-c.x")


class As:
    """Calls of one caller."""

    def __init__(self, api: Api, prefixes: str, role: str = "writer") -> None:
        self._api = api
        self._caller = f"{prefixes};{role};{prefixes}"

    async def __call__(self, method: str, path: str, body: object = None, **more: str) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        return await self._api(method, path, body, headers={"X-Caller": self._caller, **headers})

    async def get(self, path: str, **more: str) -> Answer:
        return await self("GET", path, **more)

    async def listed(self, query: str = "") -> list[str]:
        answer = await self.get(f"/services?{query}")
        assert answer.status == 200, answer.body
        return [one["name"] for one in answer.json["services"]]


@pytest.fixture
async def api(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, prefix, tmp_path, access=HeaderAccess()) as api:
        yield api


@pytest.fixture
async def all_there(api: Api) -> None:
    for name in NAMES:
        await api.register(name, "a", capabilities=["sell", name])


@pytest.fixture
def team_a(api: Api) -> As:
    return As(api, "team-a.")


@pytest.fixture
def team_b(api: Api) -> As:
    return As(api, "team-b.")


# --- what prefixes mean


def test_prefixes_mean_the_same_in_any_order_and_with_others_that_say_no_more() -> None:
    assert shortest(("b", "a.x", "a", "a")) == ("a", "b")
    assert shortest(("", "a")) == ("",)
    assert spelled(("b", "a.x", "a")) == spelled(("a", "b"))
    assert spelled(("a,b",)) != spelled(("a", "b"))


@pytest.mark.parametrize(
    ("prefixes", "found"),
    [
        (("team-a.",), ["team-a.shop", "team-a.till"]),
        (("team-a",), ["team-a.shop", "team-a.till", "team-ab"]),
        (("team-a.shop",), ["team-a.shop"]),
        (("team-c.", "team-a.t"), ["team-a.till", "team-c.x"]),
        (("",), list(NAMES)),
        (("team-a.*",), []),
        (("TEAM-A.",), []),
        (("é",), []),
        (("team-a.shop0",), []),
    ],
)
def test_a_prefix_is_plain_text(prefixes: tuple[str, ...], found: list[str]) -> None:
    history = History()
    for name in NAMES:
        history.register(name)
    view = view_of(history)
    assert view.contents.names_within(shortest(prefixes)) == found
    scope = Filters().within(prefixes)
    assert sorted(instance.service for instance in scope.select(view)) == found


# --- lists


@pytest.mark.usefixtures("all_there")
async def test_a_list_is_that_of_a_registry_of_one_s_own(api: Api, team_a: As) -> None:
    assert await team_a.listed() == ["team-a.shop", "team-a.till"]
    assert await team_a.listed("name=shop") == ["team-a.shop"]
    assert await team_a.listed("sort=-name") == ["team-a.till", "team-a.shop"]
    assert await team_a.listed("capability=team-b.shop") == []
    assert await team_a.listed("filter=name%20!=%20%22team-a.till%22") == ["team-a.shop"]
    assert (await team_a.get("/services?limit=1")).json["total"] == 2
    assert (await team_a.get("/services?view=instances")).json["total"] == 2
    assert await As(api, "team-b.,team-a.t").listed() == ["team-a.till", "team-b.shop"]


@pytest.mark.usefixtures("all_there")
async def test_pages_go_on_to_what_is_one_s_own_and_end_there(team_a: As) -> None:
    path, seen = "/services?limit=1&view=instances", []
    while path:
        answer = await team_a.get(path)
        seen += [one["name"] for one in answer.json["instances"]]
        link = answer.headers.get("Link", "")
        path = link.partition(">")[0].removeprefix("<")
    assert seen == ["team-a.shop", "team-a.till"]


@pytest.mark.usefixtures("all_there")
async def test_the_same_query_of_different_callers_has_different_answers_in_any_order(
    api: Api, team_a: As, team_b: As
) -> None:
    for query in ("", "capability=sell", "filter=weight%20==%201"):
        for _ in range(3):  # from the third time on answers come from the cache, and the fast lane
            assert await team_a.listed(query) == ["team-a.shop", "team-a.till"]
            assert await api.listed(query) == list(NAMES)
            assert await team_b.listed(query) == ["team-b.shop"]


@pytest.mark.usefixtures("all_there")
async def test_a_copy_holds_for_those_with_the_same_prefixes_alone(
    api: Api, team_a: As, team_b: As
) -> None:
    for path in ("/services", "/services?capability=sell", "/stats", "/capabilities"):
        tags = {who: (await who.get(path)).etag for who in (team_a, team_b, api)}
        assert len(set(tags.values())) == 3
        for who, tag in tags.items():
            for other in (team_a, team_b, api):
                answer = await other.get(path, If_None_Match=tag)
                assert answer.status == (304 if other is who else 200)
        again = As(api, "team-a.shop,team-a.")  # says the same as team A's
        assert (await again.get(path, If_None_Match=tags[team_a])).status == 304


@pytest.mark.usefixtures("all_there")
async def test_what_happens_to_others_leaves_one_s_copy_as_it_is(api: Api, team_a: As) -> None:
    for path in ("/services", "/stats", "/capabilities"):
        tag = (await team_a.get(path)).etag
        assert (await team_a.get(path, If_None_Match=tag)).status == 304
        await api.register("team-b.shop", "a", weight=api.seen.rev % 1000 + 2)
        assert (await team_a.get(path, If_None_Match=tag)).status == 304
        await api.register("team-a.shop", "a", weight=api.seen.rev % 1000 + 2)
        assert (await team_a.get(path, If_None_Match=tag)).status == 200


@pytest.mark.usefixtures("all_there")
async def test_a_service_s_own_answer_is_the_same_for_all_who_may_see_it(
    api: Api, team_a: As
) -> None:
    for path in (
        "/services/team-a.shop",
        "/services/team-a.shop/instances/a",
        "/discover/team-a.shop",
    ):
        tag = (await api.get(path)).etag
        assert (await team_a.get(path, If_None_Match=tag)).status == 304


@pytest.mark.usefixtures("all_there")
async def test_the_tag_of_one_s_list_guards_a_change(team_a: As) -> None:
    tag = (await team_a.get("/services")).etag
    path = "/services/team-a.shop/instances/a"
    assert (await team_a("PATCH", path, {"weight": 7}, If_Match=tag)).status == 200
    answer = await team_a("PATCH", path, {"weight": 8}, If_Match=tag)
    assert (answer.status, answer.problem["code"]) == (412, "precondition_failed")


@pytest.mark.usefixtures("all_there")
async def test_who_waits_is_not_woken_by_others(api: Api, team_a: As) -> None:
    since = (await team_a.get("/services")).revision
    # Whoever asks first of a prefix is told once that it may have changed.
    await team_a.get(f"/services?since={since}&wait=1ms")
    poll = asyncio.create_task(team_a.get(f"/services?since={since}&wait=30s"))
    await eventually(lambda: api.daemon.pipeline.in_flight == 1)
    for number in range(3):
        await api.register("team-b.shop", f"b{number}")
        await api.get("/services")
    assert not poll.done()
    await api.register("team-a.shop", "b")
    answer = await poll
    assert len(answer.json["services"][0]["instances"]) == 2


# --- figures


@pytest.mark.usefixtures("all_there")
async def test_figures_are_those_of_one_s_own_services(api: Api, team_a: As) -> None:
    everything, own = (await api.get("/stats")).json, (await team_a.get("/stats")).json
    assert (everything["totalServices"], everything["uniqueCapabilities"]) == (5, 6)
    assert (own["totalServices"], own["totalInstances"], own["unknownServices"]) == (2, 2, 2)
    assert (own["uniqueCapabilities"], own["averageCapabilitiesPerService"]) == (3, 2.0)
    assert own["instancesByHealth"]["unknown"] == 2


def test_capabilities_are_shown_in_the_versions_and_services_that_one_may_see() -> None:
    history = History()
    history.register("a.x", capabilities=[{"name": "sum", "version": "1.0.0"}])
    history.register("b.x", capabilities=[{"name": "sum", "version": "2.0.0"}, "secret"])
    view, scope = view_of(history), Filters().within(("a.",))
    for _ in range(2):  # to look changes nothing
        [shown] = capabilities(view, scope)
        assert (shown.name, shown.versions, shown.services) == ("sum", ["1.0.0"], ["a.x"])
        whole = {one.name: (one.versions, one.services) for one in capabilities(view)}
        assert whole == {
            "sum": (["1.0.0", "2.0.0"], ["a.x", "b.x"]),
            "secret": (["1.0.0"], ["b.x"]),
        }
    assert registry_stats(view, scope).unique_capabilities == 1


# --- writing


def body(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "endpoint": "http://10.0.0.1:80", "instanceId": "a", **fields}


async def test_one_writes_what_is_one_s_own(api: Api, team_a: As) -> None:
    assert (await team_a("POST", "/services", body("team-a.new"))).status == 201
    legacy = {"service_name": "team-a.old", "service_url": "http://10.0.0.1"}
    instance_id = (await team_a("POST", "/register", legacy)).json["instance_id"]
    beats = [{"name": "team-a.new", "instanceId": "a"}]
    answer = await team_a("PUT", "/heartbeats", {"heartbeats": beats})
    assert answer.json == {"results": ["renewed"]}
    assert (await team_a("PUT", "/services/team-a.new/heartbeat")).status == 200
    gone = f"/deregister?service_name=team-a.old&instance_id={instance_id}"
    assert (await team_a("POST", gone)).status == 200
    assert await team_a.listed() == ["team-a.new"]


@pytest.mark.parametrize("spaced", [False, True], ids=["as programs write it", "otherwise"])
@pytest.mark.usefixtures("all_there")
async def test_one_forbidden_item_refuses_a_batch_and_nothing_of_it_is_renewed(
    api: Api, team_a: As, spaced: bool
) -> None:
    beats = [{"name": name, "instanceId": "a"} for name in ("team-a.shop", "team-b.shop")]
    if spaced:
        beats[0]["instance_id"] = beats[0].pop("instanceId")  # read by the slower way
    renewed = api.daemon.metrics.registry.get_sample_value
    labels = {"outcome": "renewed"}
    answer = await team_a("PUT", "/heartbeats", {"heartbeats": beats})
    assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    assert not renewed("registryd_renewals_total", labels)
    answer = await team_a("PUT", "/heartbeats", {"heartbeats": beats[:1]})
    assert answer.json == {"results": ["renewed"]}
    assert renewed("registryd_renewals_total", labels) == 1


@pytest.mark.usefixtures("all_there")
async def test_a_body_cannot_name_another_service_than_the_path(api: Api, team_a: As) -> None:
    before, path = await api.instance("team-b.shop"), "/services/team-a.shop/instances/a"
    for method, where, sent in (
        ("PUT", path, body("team-b.shop")),
        ("PATCH", path, {"name": "team-b.shop"}),
        ("PUT", "/services/team-a.shop", {"name": "team-b.shop", "weight": 9}),
        ("PUT", "/services/team-a.shop", {"name": "team-b.shop", "instanceId": "a"}),
        ("PUT", f"{path}/heartbeat", {"name": "team-b.shop"}),
        ("PUT", f"{path}/maintenance", {"enabled": True, "name": "team-b.shop"}),
        ("PUT", f"{path}/drain", {"seconds": 1, "name": "team-b.shop"}),
    ):
        assert (await team_a(method, where, sent)).status == 422, (method, where)
    assert await api.instance("team-b.shop") == before


async def test_to_depend_on_another_s_service_only_names_it(api: Api, team_a: As) -> None:
    await api.register("team-b.shop", "a")
    before = await api.instance("team-b.shop")
    depending = body("team-a.shop", dependsOn=["team-b.shop"])
    assert (await team_a("POST", "/services", depending)).status == 201
    assert await team_a.listed("dependsOn=team-b.shop") == ["team-a.shop"]
    assert await api.instance("team-b.shop") == before


# --- ownership, and incarnations within it

INSTANCE = "/services/{}/instances/a"
WRITES: dict[str, tuple[str, str, Any]] = {
    "heartbeat": ("PUT", f"{INSTANCE}/heartbeat", None),
    "heartbeat of the service": ("PUT", "/services/{}/heartbeat", None),
    "register again": ("PUT", INSTANCE, {"endpoint": "http://10.6.6.6:80"}),
    "patch": ("PATCH", INSTANCE, {"weight": 9}),
    "merge": ("PUT", "/services/{}", {"weight": 9}),
    "maintenance": ("PUT", f"{INSTANCE}/maintenance", {"enabled": True}),
    "maintenance of the service": ("PUT", "/services/{}/maintenance", {"enabled": True}),
    "drain": ("PUT", f"{INSTANCE}/drain", None),
    "check": ("POST", f"{INSTANCE}/check", None),
    "check of the service": ("POST", "/services/{}/check", None),
    "deregister": ("DELETE", INSTANCE, None),
    "deregister the service": ("DELETE", "/services/{}", None),
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.usefixtures("all_there")
async def test_a_writer_cannot_touch_another_team_s_instance(
    api: Api, team_a: As, team_b: As, what: str
) -> None:
    before = await api.instance("team-b.shop")
    method, path, sent = WRITES[what]
    answer = await team_a(method, path.format("team-b.shop"), sent)
    assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    assert "'team-a.'" in answer.problem["detail"]
    assert await api.instance("team-b.shop") == before
    allowed = await team_b(method, path.format("team-b.shop"), sent)
    assert allowed.status in {200, 204, 409}  # 409: this daemon probes nothing


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("PUT", f"{INSTANCE}/heartbeat", {"incarnation": "first"}),
        ("PUT", "/services/{}/heartbeat", {"incarnation": "first"}),
        ("PATCH", INSTANCE, {"incarnation": "first", "weight": 9}),
        ("DELETE", f"{INSTANCE}?incarnation=first", None),
        ("DELETE", f"{INSTANCE}?incarnation=first&drainSeconds=5", None),
    ],
)
async def test_within_one_s_prefix_a_stale_incarnation_is_superseded(
    api: Api, team_a: As, method: str, path: str, sent: Any
) -> None:
    for incarnation in ("first", "second"):
        registered = await team_a("POST", "/services", body("team-a.shop", incarnation=incarnation))
        assert registered.status in {200, 201}
    before = await api.instance("team-a.shop")
    answer = await team_a(method, path.format("team-a.shop"), sent)
    assert (answer.status, answer.problem["code"]) == (409, "superseded")
    assert await api.instance("team-a.shop") == before
