"""Calling services by their names with other people's HTTP clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
import pytest
from aiohttp import web
from daemons import Api

from registryd.client import RegistryClient
from registryd.client.httpx_transport import RegistryTransport
from registryd.client.resolver import connector

HEALTHY = {"health": {"status": "healthy"}}


@asynccontextmanager
async def service(word: str, *, status: int = 200) -> AsyncIterator[str]:
    """A service that answers each path with its word and the path; yields its URL."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{word} {request.path_qs} {request.host}", status=status)

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def test_aiohttp_finds_a_service_by_its_name(api: Api, client: RegistryClient) -> None:
    async with service("one") as url, aiohttp.ClientSession(connector=connector(client)) as session:
        await api.register("asr-service", "a", endpoint=url, **HEALTHY)
        async with session.get("http://asr-service/listen?x=1") as answer:
            assert await answer.text() == "one /listen?x=1 asr-service"
        async with session.get(url) as answer:
            assert answer.status == 200


async def test_aiohttp_says_why_when_no_instance_may_be_chosen(
    api: Api, client: RegistryClient
) -> None:
    await api.register("asr-service", "a", health={"status": "unhealthy"})
    async with aiohttp.ClientSession(connector=connector(client)) as session:
        with pytest.raises(aiohttp.ClientConnectorError, match="unhealthy"):
            await session.get("http://asr-service/")


async def test_httpx_chooses_for_each_request(api: Api, client: RegistryClient) -> None:
    transport = RegistryTransport(client, strategy="round_robin")
    async with (
        service("one") as first,
        service("two") as second,
        httpx.AsyncClient(transport=transport) as caller,
    ):
        await api.register("asr-service", "a", endpoint=first, **HEALTHY)
        await api.register("asr-service", "b", endpoint=f"{second}/base", **HEALTHY)
        texts = [(await caller.get("http://asr-service/x?y=1")).text for _ in range(4)]
        assert sorted({text.split()[0] for text in texts}) == ["one", "two"]
        assert f"two /base/x?y=1 {second.removeprefix('http://')}" in texts
        assert (await caller.get(first)).status_code == 200


async def test_answers_that_are_errors_turn_httpx_away(api: Api, client: RegistryClient) -> None:
    transport = RegistryTransport(client, strategy="round_robin")
    async with (
        service("good") as good,
        service("bad", status=500) as bad,
        httpx.AsyncClient(transport=transport) as caller,
    ):
        await api.register("asr-service", "a", endpoint=good, **HEALTHY)
        await api.register("asr-service", "b", endpoint=bad, **HEALTHY)
        for _ in range(8):
            await caller.get("http://asr-service/")
        assert {(await caller.get("http://asr-service/")).text[:4] for _ in range(4)} == {"good"}


async def test_httpx_says_why_when_no_instance_may_be_chosen(
    api: Api, client: RegistryClient
) -> None:
    await api.register("asr-service", "a", health={"status": "unhealthy"})
    async with httpx.AsyncClient(transport=RegistryTransport(client)) as caller:
        with pytest.raises(httpx.ConnectError, match="unhealthy"):
            await caller.post("http://asr-service/", content=b"x")


async def test_httpx_sends_bodies_through(api: Api, client: RegistryClient) -> None:
    async with service("one") as url:
        await api.register("asr-service", "a", endpoint=url, **HEALTHY)
        async with httpx.AsyncClient(transport=RegistryTransport(client)) as caller:
            answer = await caller.post("http://asr-service/", content=b"x" * 1000)
            assert answer.status_code == 200
