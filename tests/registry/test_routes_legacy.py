"""The contract of the microservice clients, to the letter."""

from typing import Any

import pytest
from daemons import Api

BASE = "/api/v1/registry"
BODY: dict[str, Any] = {
    "service_name": "asr-service",
    "service_url": "http://asr-service:8090/",
    "health_check_url": "http://asr-service:8090/health",
    "service_metadata": {"instance_id": "asr-1", "status": "healthy", "gpu_count": 2},
}


async def register(api: Api, **fields: Any) -> str:
    answer = await api.post(f"{BASE}/register", {**BODY, **fields})
    assert answer.status == 201
    assert answer.json.keys() == {"instance_id"}
    return str(answer.json["instance_id"])


async def test_a_registration_answers_with_the_id_alone(api: Api) -> None:
    assert await register(api) == "asr-1"


async def test_what_was_registered_is_an_instance_like_any_other(api: Api) -> None:
    await register(api)
    shown = await api.instance("asr-service", "asr-1")
    assert shown["endpoint"] == "http://asr-service:8090"
    assert shown["healthCheck"]["url"] == "http://asr-service:8090/health"
    assert shown["metadata"] == {"gpu_count": 2}
    assert shown["health"]["status"] == "healthy"


@pytest.mark.parametrize("metadata", [{}, {"instance_id": ""}, {"instance_id": None}])
async def test_without_an_id_or_with_an_empty_one_the_server_makes_it(
    api: Api, metadata: dict[str, Any]
) -> None:
    assert await register(api, service_metadata=metadata) == "asr-service-8090"


async def test_a_null_check_url_means_the_default_check(api: Api) -> None:
    await register(api, health_check_url=None)
    assert "healthCheck" not in await api.instance("asr-service", "asr-1")


async def test_the_metadata_may_be_missing_and_unknown_fields_are_ignored(api: Api) -> None:
    answer = await api.post(
        f"{BASE}/register",
        {"service_name": "asr", "service_url": "http://a:1", "more": 1},
    )
    assert (answer.status, answer.json) == (201, {"instance_id": "a-1"})


async def test_the_same_again_is_an_update(api: Api) -> None:
    await register(api)
    await register(api, service_metadata={"instance_id": "asr-1", "gpu_count": 4})
    assert (await api.instance("asr-service", "asr-1"))["metadata"] == {"gpu_count": 4}
    assert await api.listed("view=instances") == ["asr-service/asr-1"]


async def test_an_id_that_lives_elsewhere_is_not_taken_over(api: Api) -> None:
    await register(api)
    given = await register(api, service_url="http://other:8090")
    assert given.startswith("asr-1~")
    assert await register(api, service_url="http://other:8090") == given
    assert await api.listed("view=instances") == ["asr-service/asr-1", f"asr-service/{given}"]


@pytest.mark.parametrize("status", [["healthy"], {}, 5, "great", None])
async def test_a_claim_that_says_nothing_known_is_no_claim(api: Api, status: object) -> None:
    await register(api, service_metadata={"instance_id": "asr-1", "status": status})
    assert (await api.instance("asr-service", "asr-1"))["health"]["status"] == "unknown"


async def test_down_is_another_word_for_unhealthy(api: Api) -> None:
    await register(api, service_metadata={"instance_id": "asr-1", "status": "down"})
    assert (await api.instance("asr-service", "asr-1"))["health"]["status"] == "unhealthy"


async def test_a_url_is_found_and_404_when_there_is_none(api: Api) -> None:
    await register(api)
    answer = await api.get(f"{BASE}/services/asr-service/url")
    assert (answer.status, answer.json["url"]) == (200, "http://asr-service:8090")
    await register(api, service_metadata={"instance_id": "asr-1", "status": "unhealthy"})
    assert (await api.get(f"{BASE}/services/asr-service/url")).status == 404


async def test_a_deregistration_takes_the_instance_away_and_may_be_repeated(api: Api) -> None:
    await register(api)
    path = f"{BASE}/deregister?service_name=asr-service&instance_id=asr-1"
    for _ in range(2):
        answer = await api.post(path)
        assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert await api.listed("") == []


@pytest.mark.parametrize(
    "query", ["service_name=a%20b&instance_id=x", "service_name=a&instance_id=%7B%7D"]
)
async def test_what_cannot_be_registered_can_be_deregistered(api: Api, query: str) -> None:
    assert (await api.post(f"{BASE}/deregister?{query}")).json == {"status": "ok"}


@pytest.mark.parametrize(
    ("query", "missing"),
    [("", "service_name"), ("?service_name=a", "instance_id"), ("?instance_id=a", "service_name"),
     ("?service_name=a&instance_id=", "instance_id")],
)  # fmt: skip
async def test_a_deregistration_without_names_is_refused_by_parameter(
    api: Api, query: str, missing: str
) -> None:
    answer = await api.post(f"{BASE}/deregister{query}")
    assert answer.status == 400
    assert answer.problem["detail"].startswith(missing)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"service_name": "a b"}, "/service_name"),
        ({"service_url": "asr-service:8090"}, "/service_url"),
        ({"health_check_url": "nowhere"}, "/health_check_url"),
        ({"service_metadata": []}, "/service_metadata"),
        ({"service_metadata": {"instance_id": "a b"}}, "/service_metadata/instance_id"),
        ({"service_metadata": {"instance_id": 0}}, "/service_metadata/instance_id"),
        ({"service_metadata": {"tags": "a"}}, "/service_metadata/tags"),
    ],
)
async def test_a_wrong_registration_is_refused_by_the_field_as_it_was_sent(
    api: Api, fields: dict[str, Any], pointer: str
) -> None:
    answer = await api.post(f"{BASE}/register", {**BODY, **fields})
    assert answer.status == 422
    assert answer.pointers == [pointer]
    assert (
        answer.problem["error"].startswith(pointer.split("/")[1])
        or pointer in answer.problem["error"]
    )
