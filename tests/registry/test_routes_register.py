"""Registering, renewing and changing instances over HTTP."""

from typing import Any

import pytest
from daemons import Answer, Api

BODY: dict[str, Any] = {"name": "chat", "endpoint": "http://10.0.0.1:8080", "instanceId": "a"}
A = "/services/chat/instances/a"

FULL: dict[str, Any] = {
    "name": "ai-text-processor",
    "endpoint": "https://ai.example.com:8080",
    "version": "2.1.0",
    "instanceId": "ai-1",
    "apiVersion": "1.0",
    "zone": "eu-1",
    "weight": 10,
    "ttlSeconds": 300,
    "capabilities": [
        {
            "name": "text-analysis",
            "version": "2.0.0",
            "description": "reads texts",
            "inputs": {"max_length": 5, "none": None},
            "outputs": {"snake_case": [1, 2.5]},
            "parameters": {"a_b": {"cD": None}},
            "constraints": {"x": True},
        }
    ],
    "models": ["flux-dev"],
    "resourceLimits": {"max_concurrent": 4},
    "dependsOn": ["tokenizer"],
    "metadata": {
        "tags": ["ai", "nlp"],
        "environment": "production",
        "owner_team": {"camelCase": None},
        "nothing": None,
    },
    "healthCheck": {
        "type": "http",
        "path": "/health",
        "method": "GET",
        "intervalMs": 30000,
        "timeoutMs": 5000,
        "failureThreshold": 3,
        "successThreshold": 2,
    },
    "health": {"status": "healthy"},
}


async def unchanged(api: Api, call: Any) -> Answer:
    """The answer to a call that has to succeed and to emit nothing."""
    before = await api.head()
    answer: Answer = await call
    assert answer.status == 200, answer.body
    assert await api.head() == before
    return answer


# --- POST /services


async def test_a_new_instance_is_answered_with_201_and_its_location(api: Api) -> None:
    answer = await api.post("/services", BODY)
    assert answer.status == 201
    assert answer.headers["Location"] == "/api/v1/registry/services/chat/instances/a"
    shown = (await api.get(answer.headers["Location"])).json
    assert shown["endpoint"] == BODY["endpoint"]


async def test_the_location_of_an_odd_id_can_be_followed(api: Api) -> None:
    answer = await api.post("/services", {**BODY, "instanceId": "host:80~b"})
    assert (await api.get(answer.headers["Location"])).json["instanceId"] == "host:80~b"


async def test_the_answer_says_when_to_renew_and_where_it_stands(api: Api) -> None:
    answer = await api.post("/services", {**BODY, "ttlSeconds": 30})
    shown = answer.json
    assert shown["lease"].keys() == {"ttlSeconds", "expiresAt", "renewIntervalSeconds", "state"}
    assert (shown["lease"]["ttlSeconds"], shown["lease"]["renewIntervalSeconds"]) == (30, 10)
    assert shown["incarnation"]
    assert shown["registeredAt"] == shown["updatedAt"]
    assert shown["registeredAt"].endswith("Z")
    assert answer.etag == f'W/"{shown["revision"]}"'
    assert answer.revision == shown["revision"]


async def test_an_identical_body_renews_the_lease_and_emits_nothing(api: Api) -> None:
    first = await api.register()
    again = await unchanged(api, api.post("/services", BODY))
    assert again.json["revision"] == first["revision"]
    assert again.json["incarnation"] == first["incarnation"]
    assert again.json["lease"]["expiresAt"] >= first["lease"]["expiresAt"]


async def test_another_body_makes_a_new_incarnation_and_keeps_the_date_of_registration(
    api: Api,
) -> None:
    first = await api.register()
    answer = await api.post("/services", {**BODY, "version": "2.0.0"})
    assert answer.status == 200
    assert answer.json["incarnation"] != first["incarnation"]
    assert answer.json["registeredAt"] == first["registeredAt"]


async def test_a_changed_body_that_names_its_incarnation_keeps_it(api: Api) -> None:
    await api.register(incarnation="boot-1")
    again = await api.register(incarnation="boot-1", version="2.0.0")
    assert again["incarnation"] == "boot-1"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://10.0.0.7:9000/api", "10.0.0.7-9000"),
        ("https://chat.example.com", "chat.example.com-443"),
        ("http://[2001:db8::1]:80", "2001-db8--1-80"),
    ],
)
async def test_without_an_id_it_is_host_and_port(api: Api, endpoint: str, expected: str) -> None:
    assert (await api.register("chat", None, endpoint=endpoint))["instanceId"] == expected
    assert await api.listed("view=instances") == [f"chat/{expected}"]


async def test_without_an_id_a_restart_renews_and_a_second_replica_joins(api: Api) -> None:
    for port in (8080, 8080, 8081):
        await api.register("chat", None, endpoint=f"http://10.0.0.1:{port}")
    assert await api.listed("view=instances") == ["chat/10.0.0.1-8080", "chat/10.0.0.1-8081"]


async def test_both_styles_of_field_names_mean_the_same(api: Api) -> None:
    camel = await api.register(
        apiVersion="1", ttlSeconds=30, dependsOn=["x"], resourceLimits={"a_b": 1},
        healthCheck={"intervalMs": 9000, "expectedStatusCodes": [200]},
    )  # fmt: skip
    snake = {
        "name": "chat", "endpoint": BODY["endpoint"], "instance_id": "a", "api_version": "1",
        "ttl_seconds": 30, "depends_on": ["x"], "resource_limits": {"a_b": 1},
        "health_check": {"interval_ms": 9000, "expected_status_codes": [200]},
    }  # fmt: skip
    again = await unchanged(api, api.post("/services", snake))
    assert again.json["revision"] == camel["revision"]


async def test_a_field_given_in_both_styles_is_refused(api: Api) -> None:
    answer = await api.post("/services", {**BODY, "ttlSeconds": 30, "ttl_seconds": 60})
    assert answer.status == 422


async def test_an_unknown_field_is_refused_by_name(api: Api) -> None:
    answer = await api.post("/services", {**BODY, "endpiont": "http://x", "zome": "eu"})
    assert answer.status == 422
    assert answer.pointers == ["/endpiont", "/zome"]


async def test_missing_fields_are_named(api: Api) -> None:
    answer = await api.post("/services", {})
    assert answer.pointers == ["/name", "/endpoint"]
    assert "required" in answer.problem["detail"]


async def test_read_only_fields_are_ignored(api: Api) -> None:
    await api.register()
    odd = dict.fromkeys(
        ("registeredAt", "updatedAt", "revision", "lease", "url", "instances", "admin"), 5
    )
    health = {"since": 1, "lastCheck": 2, "responseTime": 3, "details": 4, "error": 5}
    await unchanged(api, api.post("/services", {**BODY, **odd, "health": health}))


async def test_what_the_client_wrote_comes_back_as_it_was(api: Api) -> None:
    await api.post("/services", FULL)
    shown = await api.instance("ai-text-processor", "ai-1")
    assert FULL["health"]["status"] == shown["health"]["status"]
    assert {name: shown[name] for name in FULL if name != "health"} == {
        name: value for name, value in FULL.items() if name != "health"
    }


async def test_the_expiry_stands_in_answers_to_writes_alone(api: Api) -> None:
    await api.register()
    assert "expiresAt" not in (await api.instance())["lease"]


async def test_a_null_check_is_shown_as_null_and_a_missing_one_is_not_shown(api: Api) -> None:
    await api.register(healthCheck=None)
    await api.register("chat", "b")
    assert (await api.instance())["healthCheck"] is None
    assert "healthCheck" not in await api.instance("chat", "b")


async def test_environments_are_known_by_their_short_names(api: Api) -> None:
    assert (await api.register(metadata={"environment": "prod"}))["metadata"] == {
        "environment": "production"
    }


async def test_a_claim_of_health_is_believed_while_nothing_has_probed(api: Api) -> None:
    assert (await api.register(health={"status": "healthy"}))["health"]["status"] == "healthy"
    assert (await api.register(health={"status": "down"}))["health"]["status"] == "unhealthy"


# --- reading back


async def test_an_instance_can_be_put_back_as_it_was_read(api: Api) -> None:
    await api.post("/services", FULL)
    path = "/services/ai-text-processor/instances/ai-1"
    await unchanged(api, api.put(path, (await api.get(path)).json))


async def test_an_instance_can_be_posted_and_patched_back_as_it_was_read(api: Api) -> None:
    await api.post("/services", FULL)
    path = "/services/ai-text-processor/instances/ai-1"
    read = (await api.get(path)).json
    await unchanged(api, api.post("/services", read))
    await unchanged(api, api.patch(path, read))


@pytest.mark.parametrize("check", [{}, {"healthCheck": None}, {"healthCheck": {"type": "tcp"}}])
async def test_a_service_can_be_put_back_as_it_was_read(api: Api, check: dict[str, Any]) -> None:
    await api.register(metadata={"a": None}, **check)
    await unchanged(api, api.put("/services/chat", (await api.get("/services/chat")).json))


async def test_an_instance_can_be_put_back_while_in_maintenance(api: Api) -> None:
    await api.register(health={"status": "healthy"})
    await api.put(f"{A}/maintenance", {"enabled": True, "reason": "disks"})
    again = await unchanged(api, api.put(A, await api.instance()))
    assert again.json["health"]["status"] == "maintenance"
    assert again.json["admin"]["reason"] == "disks"


async def test_a_degraded_instance_can_be_put_back(api: Api) -> None:
    await api.register()
    await api.put(f"{A}/heartbeat", {"status": "degraded", "details": {"queue": 9}})
    again = await unchanged(api, api.put(A, await api.instance()))
    assert again.json["health"]["details"] == {"queue": 9}


# --- PUT …/instances/{id}


async def test_a_put_registers_under_the_names_of_its_path(api: Api) -> None:
    answer = await api.put(A, {"endpoint": BODY["endpoint"]})
    assert answer.status == 201
    assert (answer.json["name"], answer.json["instanceId"]) == ("chat", "a")
    await unchanged(api, api.put(A, BODY))


@pytest.mark.parametrize(
    ("field", "value"), [("name", "other"), ("instanceId", "b"), ("instance_id", "b")]
)
async def test_a_name_that_differs_from_the_path_is_refused(
    api: Api, field: str, value: str
) -> None:
    answer = await api.put(A, {"endpoint": BODY["endpoint"], field: value})
    assert answer.status == 422
    assert answer.problem["code"] == "validation"
    assert answer.pointers[0] in {"/name", "/instanceId"}
    assert (await api.get(A)).status == 404


async def test_if_none_match_star_creates_and_never_replaces(api: Api) -> None:
    assert (await api.put(A, BODY, If_None_Match="*")).status == 201
    answer = await api.put(A, BODY, If_None_Match="*")
    assert (answer.status, answer.problem["code"]) == (412, "precondition_failed")


async def test_if_match_lets_the_first_writer_through_and_stops_the_second(api: Api) -> None:
    await api.register()
    tag = (await api.get(A)).etag
    assert (await api.put(A, {**BODY, "version": "2"}, If_Match=tag)).status == 200
    answer = await api.put(A, {**BODY, "version": "3"}, If_Match=tag)
    assert (answer.status, answer.problem["code"]) == (412, "precondition_failed")
    assert (await api.instance())["version"] == "2"


async def test_if_match_star_asks_that_the_instance_exists(api: Api) -> None:
    assert (await api.put(A, BODY, If_Match="*")).status == 412
    await api.register()
    assert (await api.put(A, {**BODY, "version": "2"}, If_Match="*")).status == 200


@pytest.mark.parametrize(
    "tag", ["junk", 'W/""', '"1-"', 'W/"1-1"', 'W/"99999999999999999-1"', "1-2-3", '"x", "y"']
)
async def test_a_foreign_etag_never_matches(api: Api, tag: str) -> None:
    await api.register()
    answer = await api.put(A, {**BODY, "version": "2"}, If_Match=tag)
    assert (answer.status, answer.problem["code"]) == (412, "precondition_failed")


async def test_a_revision_that_is_still_to_come_never_matches(api: Api) -> None:
    await api.register()
    epoch, _, rev = (await api.instance())["revision"].partition("-")
    answer = await api.put(A, {**BODY, "version": "2"}, If_Match=f'W/"{epoch}-{int(rev) + 1}"')
    assert answer.status == 412


@pytest.mark.parametrize("page", ["/services/chat", "/services", "/services/chat/instances"])
async def test_the_etag_of_a_list_or_service_guards_each_instance_in_it(
    api: Api, page: str
) -> None:
    await api.register()
    await api.register("other", "z")  # the whole view is further than the instance
    tag = (await api.get(page)).etag
    assert (await api.patch(A, {"version": "2"}, If_Match=tag)).status == 200
    assert (await api.patch(A, {"version": "3"}, If_Match=tag)).status == 412


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", A, {"version": "2"}),
        ("PUT", "/services/chat", {"version": "2"}),
        ("DELETE", A, None),
        ("DELETE", f"{A}?drainSeconds=5", None),
        ("DELETE", "/services/chat", None),
        ("DELETE", "/services/chat?drainSeconds=5", None),
        ("PUT", f"{A}/maintenance", {"enabled": True}),
        ("PUT", "/services/chat/maintenance", {"enabled": True}),
        ("PUT", f"{A}/drain", {"seconds": 5}),
    ],
)
async def test_every_write_honours_if_match(api: Api, method: str, path: str, body: object) -> None:
    await api.register()
    old = (await api.get(A)).etag
    new = (await api.patch(A, {"zone": "eu"})).etag
    before = await api.head()
    answer = await api(method, path, body, headers={"If-Match": old})
    assert (answer.status, answer.problem["code"]) == (412, "precondition_failed")
    assert await api.head() == before
    assert (await api(method, path, body, headers={"If-Match": new})).status in {200, 202, 204}


# --- merging


async def test_a_merge_changes_what_it_names_and_keeps_lease_and_incarnation(api: Api) -> None:
    first = await api.register(version="1.0.0", zone="eu")
    answer = await api.put("/services/chat", {"version": "2.0.0"})
    assert answer.status == 200
    assert (answer.json["version"], answer.json["zone"]) == ("2.0.0", "eu")
    assert answer.json["incarnation"] == first["incarnation"]
    assert answer.json["lease"]["expiresAt"] == first["lease"]["expiresAt"]
    assert answer.json["registeredAt"] == first["registeredAt"]


async def test_a_merge_of_several_instances_is_ambiguous_until_one_is_named(api: Api) -> None:
    await api.register()
    await api.register("chat", "b")
    answer = await api.put("/services/chat", {"version": "2"})
    assert (answer.status, answer.problem["code"]) == (409, "ambiguous_instance")
    assert answer.problem["instances"] == ["a", "b"]
    assert (await api.put("/services/chat", {"version": "2", "instanceId": "b"})).status == 200
    assert (await api.put("/services/chat?instanceId=a", {"version": "3"})).status == 200
    assert (await api.instance("chat", "a"))["version"] == "3"
    assert (await api.instance("chat", "b"))["version"] == "2"


@pytest.mark.parametrize("field", [{"name": "other"}, {"instanceId": "b"}, {"incarnation": 5}])
async def test_a_merge_cannot_rename(api: Api, field: dict[str, Any]) -> None:
    await api.register()
    answer = await api.patch(A, {"zone": "eu", **field})
    assert answer.status == 422
    assert answer.pointers == [f"/{next(iter(field))}"]
    assert "zone" not in await api.instance()


async def test_a_merge_cannot_change_the_date_of_registration(api: Api) -> None:
    first = await api.register()
    await unchanged(api, api.put("/services/chat", {"registeredAt": "2020-01-01T00:00:00Z"}))
    assert (await api.instance())["registeredAt"] == first["registeredAt"]


async def test_a_patch_merges_objects_replaces_lists_and_drops_nulls(api: Api) -> None:
    await api.register(
        zone="eu", metadata={"tags": ["a", "b"], "owner": {"team": "x", "mail": "y"}}
    )
    answer = await api.patch(
        A, {"zone": None, "metadata": {"tags": ["c"], "owner": {"mail": None, "chat": "z"}}}
    )
    assert "zone" not in answer.json
    assert answer.json["metadata"] == {"tags": ["c"], "owner": {"team": "x", "chat": "z"}}


async def test_a_patch_may_come_as_merge_patch_and_in_snake_case(api: Api) -> None:
    await api.register(healthCheck={"intervalMs": 9000, "timeoutMs": 100})
    answer = await api(
        "PATCH",
        A,
        {"ttl_seconds": 60, "health_check": {"interval_ms": 8000}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert answer.json["lease"]["ttlSeconds"] == 60
    assert answer.json["healthCheck"]["intervalMs"] == 8000
    assert answer.json["healthCheck"]["timeoutMs"] == 100


async def test_a_patch_with_a_null_check_switches_checking_off(api: Api) -> None:
    await api.register(healthCheck={"type": "tcp"})
    assert (await api.patch(A, {"healthCheck": None})).json["healthCheck"] is None
    assert (await api.patch(A, {"zone": "eu"})).json["healthCheck"] is None


async def test_a_patch_that_takes_a_required_field_away_is_refused(api: Api) -> None:
    await api.register()
    assert (await api.patch(A, {"endpoint": None})).pointers == ["/endpoint"]


async def test_an_empty_patch_changes_nothing(api: Api) -> None:
    await api.register()
    await unchanged(api, api.patch(A, {}))


async def test_a_patch_of_another_incarnation_is_superseded(api: Api) -> None:
    await api.register(incarnation="new")
    answer = await api.patch(A, {"zone": "eu", "incarnation": "old"})
    assert (answer.status, answer.problem["code"]) == (409, "superseded")
    assert answer.problem["incarnation"] == "new"


@pytest.mark.parametrize("path", ["/services/nope", "/services/chat/instances/nope"])
async def test_what_is_not_there_cannot_be_changed(api: Api, path: str) -> None:
    await api.register()
    method = "PUT" if path == "/services/nope" else "PATCH"
    answer = await api(method, path, {"zone": "eu"})
    assert (answer.status, answer.problem["code"]) == (404, "not_found")
    assert "nope" in answer.problem["detail"]


async def test_an_instance_over_64_kib_is_refused(api: Api) -> None:
    answer = await api.post("/services", {**BODY, "metadata": {"text": "x" * 70_000}})
    assert (answer.status, answer.problem["code"]) == (422, "validation")
    assert "65536" in answer.problem["detail"]
