"""Finding instances over HTTP: lists, filters, pages, one service, one URL."""

import re
from collections import Counter
from typing import Any

import pytest
from daemons import Api


async def five(api: Api) -> None:
    """Five instances of three services, different in everything a filter may ask for."""
    await api.register(
        "ai-text", "t1", version="2.1.0", zone="eu-1", health={"status": "healthy"},
        capabilities=[{"name": "chat", "version": "2.3.0"}, "text"], models=["flux-dev", "sd-xl"],
        dependsOn=["tokenizer"], metadata={"tags": ["ai", "nlp"], "environment": "production"},
    )  # fmt: skip
    await api.register(
        "ai-text", "t2", version="2.0.0", zone="eu-2", health={"status": "unhealthy"},
        capabilities=[{"name": "chat", "version": "3.0.0"}], metadata={"tags": ["ai"]},
    )  # fmt: skip
    await api.register(
        "ai-image", "i1", version="1.0.0", zone="eu-1", health={"status": "degraded"},
        capabilities=[{"name": "image", "version": "1.0"}], models=["sd-xl"], weight=0,
        metadata={"tags": ["ai", "gpu"], "environment": "staging", "owner": "nlp"},
    )  # fmt: skip
    await api.register("billing", "b1", capabilities=[{"name": "chat", "version": "0.9.0"}])
    await api.register("billing", "b2", metadata={"tags": ["nlp"], "environment": "production"})


ALL = ["ai-image/i1", "ai-text/t1", "ai-text/t2", "billing/b1", "billing/b2"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ALL),
        ("name=ai-", ["ai-image/i1", "ai-text/t1", "ai-text/t2"]),
        ("name=TEXT$", ["ai-text/t1", "ai-text/t2"]),
        ("name=%5Eb", ["billing/b1", "billing/b2"]),
        ("capability=chat", ["ai-text/t1", "ai-text/t2", "billing/b1"]),
        ("capability=text,image", ["ai-image/i1", "ai-text/t1"]),
        ("capability=chat@%3E%3D2%3B%3C3", ["ai-text/t1"]),
        ("capability=chat&minVersion=2.1", ["ai-text/t1"]),
        ("capability=chat&minVersion=0.9", ["billing/b1"]),
        ("capability=chat&minVersion=0.8", []),
        ("capability=image@1.0.0", ["ai-image/i1"]),
        ("capabilitiesAll=chat,text", ["ai-text/t1"]),
        ("tags=nlp,gpu", ["ai-image/i1", "ai-text/t1", "billing/b2"]),
        ("tagsAll=ai,nlp", ["ai-text/t1"]),
        ("health=healthy", ["ai-text/t1"]),
        ("health=degraded,unhealthy", ["ai-image/i1", "ai-text/t2"]),
        ("version=2.1.0", ["ai-text/t1"]),
        ("version=%5E2", ["ai-text/t1", "ai-text/t2"]),
        ("environment=prod", ["ai-text/t1", "billing/b2"]),
        ("environment=staging", ["ai-image/i1"]),
        ("zone=eu-1", ["ai-image/i1", "ai-text/t1"]),
        ("model=sd-xl", ["ai-image/i1", "ai-text/t1"]),
        ("dependsOn=tokenizer", ["ai-text/t1"]),
        ("filter=metadata.owner%20==%20%22nlp%22", ["ai-image/i1"]),
        ("filter=weight%20==%200%20or%20zone%20==%20%22eu-2%22", ["ai-image/i1", "ai-text/t2"]),
        ("tags=ai&zone=eu-1&health=healthy", ["ai-text/t1"]),
        ("tags=ai&environment=", ["ai-image/i1", "ai-text/t1", "ai-text/t2"]),
        ("name=nothing", []),
    ],
)
async def test_a_filter_finds_its_instances(api: Api, query: str, found: list[str]) -> None:
    await five(api)
    assert await api.listed(f"view=instances&{query}") == found


async def test_a_service_is_listed_while_one_instance_matches_and_shows_those_alone(
    api: Api,
) -> None:
    await five(api)
    [service] = (await api.get("/services?name=ai-text&zone=eu-2")).json["services"]
    assert [one["instanceId"] for one in service["instances"]] == ["t2"]
    assert service["health"]["status"] == "unhealthy"


async def test_a_list_says_how_many_there_are_and_where_it_stands(api: Api) -> None:
    await five(api)
    answer = await api.get("/services")
    assert answer.json.keys() == {"services", "total", "revision", "next"}
    assert answer.json["total"] == 3
    assert answer.json["next"] is None
    assert answer.json["revision"] == answer.revision
    assert "Link" not in answer.headers


async def test_an_empty_registry_is_an_empty_list(api: Api) -> None:
    answer = await api.get("/services")
    assert answer.status == 200
    assert answer.json["services"] == []


# --- pages


@pytest.mark.parametrize("view", ["services", "instances"])
@pytest.mark.parametrize("sort", ["name", "-name", "registeredAt", "-updatedAt", "health"])
async def test_pages_follow_one_another_without_gap_or_repeat(
    api: Api, view: str, sort: str
) -> None:
    for number in range(7):
        await api.register(f"s{number}", "a")
    whole = await api.listed(f"view={view}&sort={sort}")
    found: list[Any] = []
    path = f"/api/v1/registry/services?view={view}&sort={sort}&limit=3"
    sizes = []
    while path:
        answer = await api.get(path)
        page = await api.listed(path.partition("?")[2])
        sizes.append(len(page))
        found += page
        link = answer.headers.get("Link")
        assert (link is None) == (answer.json["next"] is None)
        assert answer.json["total"] == 7
        path = ""
        if link:
            match = re.fullmatch('<(/api/v1/registry/services[^>]+)>; rel="next"', link)
            assert match
            path = match[1]
    assert sizes == [3, 3, 1]
    assert found == whole
    assert len(whole) == 7


async def test_pages_are_of_100_unless_asked(api: Api) -> None:
    for number in range(101):
        await api.put(f"/services/s/instances/{number:03}", {"endpoint": "http://a"})
    assert len(await api.listed("view=instances")) == 100
    assert len(await api.listed("view=instances&limit=10000")) == 101


async def test_fields_limit_what_is_shown(api: Api) -> None:
    await five(api)
    answer = await api.get("/services?fields=name,zone&limit=1")
    assert answer.json["services"] == [{"name": "ai-image", "zone": "eu-1"}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("name=%5Bab", "name: position 1"),
        ("name=(%3F%3D", "name: position"),
        ("capability=chat@%3E%3E", "capability: position 7"),
        ("capability=a%20b", "capability: position 1"),
        ("capabilitiesAll=x@y@", "capabilitiesAll: position"),
        ("capability=chat&minVersion=new", "minVersion"),
        ("minVersion=1", "minVersion"),
        ("version=%3E%3E1", "version: position"),
        ("filter=name%20==", "filter: position"),
        ("filter=nme%20==%201", "filter: position 1"),
        ("filter=" + "not%20" * 500 + "name%20is%20empty", "filter"),
        ("tags=a,b%22", "tags: position 3"),
        ("health=good", "health"),
        ("zone=a%20b", "zone: position 1"),
        ("sort=size", "sort"),
        ("fields=nme", "fields"),
        ("view=all", "view"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=-1", "limit"),
        ("limit=1e1", "limit"),
        ("cursor=abc", "cursor"),
        ("cursor=W10", "cursor"),
        ("nme=x", "'nme'"),
        ("name=a&name=b", "'name'"),
        ("name=%zz", "'name'"),
        ("name=%00", "'name'"),
        ("name=%ff", "'name'"),
        ("consistency=eventual", "consistency"),
        ("minRevision=abc", "minRevision"),
        ("maxStaleMs=soon", "maxStaleMs"),
        ("wait=soon", "wait"),
        ("since=abc", "since"),
    ],
)
async def test_a_bad_parameter_is_refused_by_name_and_position(
    api: Api, query: str, said: str
) -> None:
    answer = await api.get(f"/services?{query}")
    assert (answer.status, answer.problem["code"]) == (400, "malformed")
    assert said in answer.problem["detail"]


async def test_a_cursor_of_another_sort_is_refused(api: Api) -> None:
    await five(api)
    cursor = (await api.get("/services?limit=1")).json["next"]
    answer = await api.get(f"/services?limit=1&sort=-name&cursor={cursor}")
    assert answer.status == 400
    assert "start again without it" in answer.problem["detail"]


# --- one service


async def test_a_service_has_the_fields_of_its_best_instance_and_all_of_them(api: Api) -> None:
    await five(api)
    service = (await api.get("/services/ai-text")).json
    assert (service["name"], service["instanceId"], service["url"]) == (
        "ai-text", "t1", "http://10.0.0.1:8080",
    )  # fmt: skip
    assert service["health"]["status"] == "healthy"
    assert [one["instanceId"] for one in service["instances"]] == ["t1", "t2"]


@pytest.mark.parametrize(
    "path", ["/services/ai-text?view=instances", "/services/ai-text/instances"]
)
async def test_the_instances_of_a_service_are_a_bare_array(api: Api, path: str) -> None:
    await five(api)
    assert [one["instanceId"] for one in (await api.get(path)).json] == ["t1", "t2"]


@pytest.mark.parametrize(
    "path",
    ["/services/nope", "/services/nope/instances", "/services/ai-text/instances/nope",
     "/services/nope/health", "/services/ai-text/instances/nope/health"],
)  # fmt: skip
async def test_what_is_not_registered_is_not_found_by_name(api: Api, path: str) -> None:
    await five(api)
    answer = await api.get(path)
    assert (answer.status, answer.problem["code"]) == (404, "not_found")
    assert "'nope'" in answer.problem["detail"]


async def test_the_health_of_a_service_is_its_best_instances_and_each_ones(api: Api) -> None:
    await five(api)
    answer = (await api.get("/services/ai-text/health")).json
    assert (answer["status"], answer["instanceId"]) == ("healthy", "t1")
    assert [one["status"] for one in answer["instances"]] == ["healthy", "unhealthy"]
    one = (await api.get("/services/ai-text/instances/t2/health")).json
    assert one == answer["instances"][1]


async def test_discover_is_a_bare_array_healthy_first(api: Api) -> None:
    for name, status in (("a", "unhealthy"), ("b", "degraded"), ("c", "healthy")):
        await api.register("chat", name, health={"status": status})
    await api.register("chat", "d")
    answer = await api.get("/discover/chat")
    assert [one["instanceId"] for one in answer.json] == ["c", "b", "d", "a"]


async def test_discover_knows_no_404(api: Api) -> None:
    answer = await api.get("/discover/nope")
    assert (answer.status, answer.json) == (200, [])


# --- one URL


async def test_a_url_names_the_chosen_instance(api: Api) -> None:
    await api.register(version="1.0", zone="eu", health={"status": "healthy"})
    answer = await api.get("/services/chat/url")
    assert answer.json == {
        "url": "http://10.0.0.1:8080",
        "service": "chat",
        "instanceId": "a",
        "health": "healthy",
        "version": "1.0",
        "zone": "eu",
    }
    assert answer.revision
    assert (
        "max-age" in answer.headers["Cache-Control"]
        or "no-cache" in answer.headers["Cache-Control"]
    )


async def test_the_healthy_are_chosen_before_the_degraded_before_the_unknown(api: Api) -> None:
    await api.register("chat", "unknown")
    assert await api.offered() == "unknown"
    await api.register("chat", "degraded", health={"status": "degraded"})
    assert await api.offered() == "degraded"
    await api.register("chat", "healthy", health={"status": "healthy"})
    assert await api.offered() == "healthy"


async def test_the_weighted_choice_follows_the_weights(api: Api) -> None:
    await api.register("chat", "heavy", weight=9)
    await api.register("chat", "light", weight=1)
    await api.register("chat", "none", weight=0)
    picked = Counter([await api.offered() for _ in range(200)])
    assert picked["none"] == 0
    assert picked["heavy"] > 130  # 180 expected; below 130 once in 10^20


async def test_round_robin_takes_turns(api: Api) -> None:
    for name in "abc":
        await api.register("chat", name)
    picked = [await api.offered("?strategy=round_robin") for _ in range(6)]
    assert picked[:3] == picked[3:]
    assert sorted(picked[:3]) == ["a", "b", "c"]


async def test_a_random_choice_reaches_all(api: Api) -> None:
    for name in "abc":
        await api.register("chat", name)
    assert {await api.offered("?strategy=random") for _ in range(100)} == {"a", "b", "c"}


async def test_a_consistent_choice_is_the_same_on_every_node(api: Api, other: Api) -> None:
    for name in "abcd":
        await api.register("chat", name)
    last = (await api.get("/services")).revision
    for key in range(20):
        query = f"?strategy=consistent&key=user-{key}&minRevision={last}"
        assert await api.offered(query) == await other.offered(query)


async def test_a_zone_is_preferred_and_not_demanded(api: Api) -> None:
    await api.register("chat", "near", zone="eu")
    await api.register("chat", "far", zone="us")
    assert {await api.offered("?zone=eu") for _ in range(20)} == {"near"}
    assert await api.offered("?zone=asia") in {"near", "far"}


async def test_excluded_instances_are_not_chosen(api: Api) -> None:
    for name in "abc":
        await api.register("chat", name)
    assert {await api.offered("?exclude=a,c") for _ in range(20)} == {"b"}


async def test_filters_narrow_the_choice(api: Api) -> None:
    await api.register("chat", "a", version="1.0.0")
    await api.register("chat", "b", version="2.0.0", capabilities=["text"])
    assert await api.offered("?version=%5E2") == "b"
    assert await api.offered("?capability=text") == "b"
    refusal = await api.get("/services/chat/url?version=3.0.0")
    assert (refusal.status, refusal.problem["reasons"]) == (404, {"filtered": 2})


async def test_where_none_can_be_offered_the_404_counts_and_explains(api: Api) -> None:
    for name, status in (("a", "unhealthy"), ("b", "unhealthy"), ("c", "healthy")):
        await api.register("chat", name, health={"status": status})
    answer = await api.get("/services/chat/url?exclude=c")
    assert (answer.status, answer.problem["code"]) == (404, "not_found")
    assert answer.problem["registered"] == 3
    assert answer.problem["healthy"] == 1
    assert answer.problem["reasons"] == {"unhealthy": 2, "excluded": 1}
    assert "2 unhealthy" in answer.problem["detail"]
    missing = await api.get("/services/nope/url")
    assert (missing.status, missing.problem["registered"]) == (404, 0)


@pytest.mark.parametrize(
    ("query", "said"),
    [("strategy=best", "strategy"), ("strategy=consistent", "key"), ("limit=1", "'limit'")],
)
async def test_a_bad_wish_is_refused_by_name(api: Api, query: str, said: str) -> None:
    answer = await api.get(f"/services/chat/url?{query}")
    assert (answer.status, answer.problem["code"]) == (400, "malformed")
    assert said in answer.problem["detail"]


# --- what there is altogether


async def test_the_figures_count_services_by_their_best_instance(api: Api) -> None:
    await five(api)
    figures = (await api.get("/stats")).json
    assert figures == {
        "totalServices": 3,
        "healthyServices": 1,
        "unhealthyServices": 0,
        "degradedServices": 1,
        "unknownServices": 1,
        "servicesInMaintenance": 0,
        "uniqueCapabilities": 3,
        "averageCapabilitiesPerService": 1.33,
        "totalInstances": 5,
        "instancesByHealth": {
            "healthy": 1, "unhealthy": 1, "degraded": 1, "unknown": 2, "maintenance": 0,
        },
    }  # fmt: skip


async def test_the_capabilities_come_with_versions_and_services(api: Api) -> None:
    await five(api)
    answer = (await api.get("/capabilities")).json
    assert answer["total"] == 3
    assert answer["capabilities"][0] == {
        "name": "chat",
        "versions": ["0.9.0", "2.3.0", "3.0.0"],
        "services": ["ai-text", "billing"],
        "defined": False,
    }


async def test_the_capabilities_come_in_pages(api: Api) -> None:
    await five(api)
    first = await api.get("/capabilities?limit=2")
    assert [one["name"] for one in first.json["capabilities"]] == ["chat", "image"]
    assert first.json["total"] == 3
    match = re.fullmatch('<(.+)>; rel="next"', first.headers["Link"])
    assert match
    rest = await api.get(match[1])
    assert [one["name"] for one in rest.json["capabilities"]] == ["text"]
    assert rest.json["next"] is None
