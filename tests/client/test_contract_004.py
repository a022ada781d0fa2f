"""The microservice clients' contract, by a client that was written to it and knows nothing else of us.

`Microservice` is what their guide describes: three calls over httpx, timeouts of 5, 5 and 3 s, never an
exception. It is not the SDK, and uses nothing of it.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemons import Api, eventually, running

from registryd.storage.embedded import EmbeddedStore

log = logging.getLogger("microservice")

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""The registry is plain HTTP here: reading the authorities for each call would take most of the time."""


class Microservice:
    """004-07 to 004-10."""

    def __init__(self, environ: Mapping[str, str], *, pid: int = 7) -> None:
        self.name = environ.get("SERVICE_NAME") or "asr-service"
        port = environ.get("SERVICE_PORT") or "8090"
        host = environ.get("SERVICE_HOST") or self.name
        public = environ.get("SERVICE_PUBLIC_URL", "")
        self.url = public.rstrip("/") or f"http://{host}:{port}"
        self.wanted = environ.get("SERVICE_INSTANCE_ID") or f"{self.name}-{pid}"
        self.base = (environ.get("CONFIG_SERVICE_URL") or "http://config-service:8082").rstrip("/")
        self.registry = f"{self.base}/api/v1/registry"

    async def register(self, **metadata: Any) -> str | None:
        body = {
            "service_name": self.name,
            "service_url": self.url,
            "health_check_url": f"{self.url}/health",
            "service_metadata": {"instance_id": self.wanted, "status": "healthy", **metadata},
        }
        try:
            async with httpx.AsyncClient(timeout=5, verify=PLAIN) as client:
                answer = await client.post(f"{self.registry}/register", json=body)
                answer.raise_for_status()
                given = answer.json().get("instance_id")
        except (httpx.HTTPError, ValueError) as error:
            log.warning("Service registry registration failed: %s", error)
            return None
        log.info("Registered %s with service registry as instance %s", self.name, given)
        return str(given)

    async def deregister(self, instance_id: str) -> bool:
        params = {"service_name": self.name, "instance_id": instance_id}
        try:
            async with httpx.AsyncClient(timeout=5, verify=PLAIN) as client:
                answer = await client.post(f"{self.registry}/deregister", params=params)
                answer.raise_for_status()
        except httpx.HTTPError:
            return False
        return True

    async def discover_url(self, name: str) -> str | None:
        try:
            async with httpx.AsyncClient(timeout=3, verify=PLAIN) as client:
                answer = await client.get(f"{self.registry}/services/{name}/url")
                if answer.status_code == 404:
                    return None
                answer.raise_for_status()
                return str(answer.json()["url"])
        except (httpx.HTTPError, ValueError, KeyError):
            return None


def service(api: Api, **environ: str) -> Microservice:
    return Microservice({"CONFIG_SERVICE_URL": api.base, **environ})


async def raw(api: Api, method: str, path: str, body: bytes = b"") -> httpx.Response:
    """One request, byte for byte as the guide's curl would send it."""
    headers = {"Content-Type": "application/json"} if body else {}
    async with httpx.AsyncClient(timeout=5, verify=PLAIN) as client:
        return await client.request(
            method, f"{api.base}/api/v1/registry{path}", content=body, headers=headers
        )


async def test_the_whole_life_of_a_service(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "microservice")
    one = service(api)
    given = await one.register(gpu_count=2)
    assert given == "asr-service-7"
    assert await one.discover_url("asr-service") == "http://asr-service:8090"
    assert await one.deregister(given) is True
    assert await one.discover_url("asr-service") is None
    assert "Registered asr-service with service registry as instance asr-service-7" in caplog.text


async def test_004_01_the_answer_is_the_id_alone(api: Api) -> None:
    answer = await raw(
        *(api, "POST", "/register"),
        b'{"service_name": "asr-service", "service_url": "http://asr-service:8090", '
        b'"health_check_url": null, "service_metadata": {"instance_id": "asr-1"}}',
    )
    assert (answer.status_code, answer.content) == (201, b'{"instance_id":"asr-1"}')
    assert answer.headers["Content-Type"].startswith("application/json")


async def test_004_02_deregistering_is_query_only_and_repeatable(api: Api) -> None:
    await service(api, SERVICE_INSTANCE_ID="asr-1").register()
    for _ in range(2):
        path = "/deregister?service_name=asr-service&instance_id=asr-1"
        answer = await raw(api, "POST", path)
        assert (answer.status_code, answer.content) == (200, b'{"status":"ok"}')


async def test_004_03_only_healthy_instances_have_a_url(api: Api) -> None:
    one = service(api)
    assert (await raw(api, "GET", "/services/asr-service/url")).status_code == 404
    await one.register()
    answer = await raw(api, "GET", "/services/asr-service/url")
    assert answer.json()["url"] == "http://asr-service:8090"
    await one.register(status="unhealthy")
    assert (await raw(api, "GET", "/services/asr-service/url")).status_code == 404
    assert await one.discover_url("asr-service") is None


async def test_004_04_the_registration_can_be_looked_at(api: Api) -> None:
    await service(api).register()
    shown = (await raw(api, "GET", "/services/asr-service")).json()
    assert shown["instances"][0]["instanceId"] == "asr-service-7"
    for path in ("/services/asr-service?view=instances", "/discover/asr-service"):
        array = (await raw(api, "GET", path)).json()
        assert [one["instanceId"] for one in array] == ["asr-service-7"]


async def test_004_05_health_stands_at_the_root(api: Api) -> None:
    async with httpx.AsyncClient(verify=PLAIN) as client:
        answer = await client.get(f"{api.base}/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "healthy")


@pytest.mark.parametrize("given", ["", None])
async def test_004_06_an_empty_id_is_none(api: Api, given: str | None) -> None:
    assert await service(api).register(instance_id=given) == "asr-service-8090"


async def test_004_06_an_unhealthy_claim_counts(api: Api) -> None:
    await service(api).register(status="unhealthy")
    shown = await api.instance("asr-service", "asr-service-7")
    assert shown["health"]["status"] == "unhealthy"


async def test_004_07_many_instances_have_one_name_and_the_same_again_is_an_update(
    api: Api,
) -> None:
    for number in range(3):
        one = service(api, SERVICE_INSTANCE_ID=f"i{number}", SERVICE_PORT=f"809{number}")
        assert await one.register() == f"i{number}"
        assert await one.register(again=True) == f"i{number}"
    seen = {await one.discover_url("asr-service") for _ in range(60)}
    assert seen == {f"http://asr-service:809{number}" for number in range(3)}
    assert len(await api.listed("view=instances")) == 3


async def test_one_id_at_two_urls_while_the_holder_lives(api: Api) -> None:
    first = service(api, SERVICE_INSTANCE_ID="asr-1", SERVICE_HOST="one")
    second = service(api, SERVICE_INSTANCE_ID="asr-1", SERVICE_HOST="two")
    assert await first.register() == "asr-1"
    given = await second.register()
    assert given is not None
    assert given.startswith("asr-1~")
    assert await second.register() == given  # a restart finds its own again
    assert (await api.instance("asr-service", "asr-1"))["endpoint"] == "http://one:8090"
    assert await second.deregister(given)
    assert await first.discover_url("asr-service") == "http://one:8090"
    assert await first.deregister("asr-1")
    assert await second.register() == "asr-1"  # nobody holds it any more


async def test_004_08_every_failure_is_a_value(
    api: Api, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    away = Microservice({"CONFIG_SERVICE_URL": f"http://127.0.0.1:{unused_tcp_port}"})
    assert await away.register() is None
    assert await away.deregister("x") is False
    assert await away.discover_url("x") is None
    assert "Service registry registration failed: " in caplog.text
    refused = service(api, SERVICE_NAME="no such name")
    assert await refused.register() is None
    assert await service(api).deregister("never-seen") is True


@pytest.mark.parametrize(
    ("environ", "url", "instance_id"),
    [
        ({}, "http://asr-service:8090", "asr-service-7"),
        ({"SERVICE_PORT": "9000", "SERVICE_HOST": "gpu"}, "http://gpu:9000", "asr-service-7"),
        ({"SERVICE_PUBLIC_URL": "https://asr.example/"}, "https://asr.example", "asr-service-7"),
        ({"SERVICE_INSTANCE_ID": "mine"}, "http://asr-service:8090", "mine"),
        (dict.fromkeys(["SERVICE_NAME", "SERVICE_PORT", "SERVICE_HOST", "SERVICE_PUBLIC_URL",
                        "SERVICE_INSTANCE_ID"], ""), "http://asr-service:8090", "asr-service-7"),
    ],
)  # fmt: skip
async def test_004_09_the_environment_decides_and_empty_is_absent(
    api: Api, environ: dict[str, str], url: str, instance_id: str
) -> None:
    one = service(api, **environ)
    assert await one.register() == instance_id
    assert await one.discover_url("asr-service") == url


@pytest.fixture
async def three(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[list[Api]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running(store_url, prefix, tmp_path)) for _ in range(3)
        ]


async def test_any_of_three_daemons_will_do(three: list[Api]) -> None:
    given = [
        await service(api, SERVICE_INSTANCE_ID="i", SERVICE_HOST=f"h{number}").register()
        for number, api in enumerate(three)
    ]
    assert given[0] == "i"
    assert len(set(given)) == 3

    async def everywhere() -> bool:
        seen = [
            {await service(api).discover_url("asr-service") for _ in range(12)} for api in three
        ]
        return all(urls == {f"http://h{number}:8090" for number in range(3)} for urls in seen)

    await eventually(everywhere)
    for instance_id in given:
        assert await service(three[2]).deregister(str(instance_id))

    async def nowhere() -> bool:
        return not any([await service(api).discover_url("asr-service") for api in three])

    await eventually(nowhere)


async def test_a_restart_of_the_store_in_between_is_not_noticed(tmp_path: Path) -> None:
    data = tmp_path / "store"
    store = EmbeddedStore(data, runtime_dir=tmp_path)
    url = await store.start()
    async with running(url, "contract", tmp_path) as api:
        one = service(api, SERVICE_INSTANCE_ID="asr-1")
        assert await one.register() == "asr-1"
        await store.stop()
        assert await one.discover_url("asr-service") == "http://asr-service:8090"
        assert await one.deregister("asr-1") is False
        store = EmbeddedStore(data, runtime_dir=tmp_path)
        await store.start()

        async def written() -> bool:
            return await one.register(again=True) == "asr-1"

        await eventually(written, within=4)
        assert await one.discover_url("asr-service") == "http://asr-service:8090"
        assert await one.deregister("asr-1") is True
        assert await one.discover_url("asr-service") is None
    await store.stop()
