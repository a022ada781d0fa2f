"""One line that keeps an application registered."""

import logging
from collections.abc import MutableMapping
from typing import Any

import pytest
from aiohttp import web
from daemons import Api
from fastapi import FastAPI

from registryd.client import RegisteredApp, RegistryClient, registered, registered_aiohttp


async def ids(api: Api) -> list[str]:
    return [one["instanceId"] for one in (await api.get("/discover/asr-service")).json]


def environ(api: Api, **more: str) -> dict[str, str]:
    return {"SERVICE_NAME": "asr-service", "CONFIG_SERVICE_URL": api.base, **more}


async def test_fastapi_is_registered_while_it_serves(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "registryd.client")
    app = FastAPI(lifespan=registered(environ=environ(api, SERVICE_INSTANCE_ID="asr-1"), weight=4))
    async with app.router.lifespan_context(app):
        assert await ids(api) == ["asr-1"]
        shown = await api.instance("asr-service", "asr-1")
        assert (shown["endpoint"], shown["weight"]) == ("http://asr-service:8090", 4)
    assert await ids(api) == []
    assert "Registered asr-service with service registry as instance asr-1" in caplog.text


async def test_aiohttp_is_registered_while_it_serves(api: Api, client: RegistryClient) -> None:
    app = web.Application()
    app.cleanup_ctx.append(registered_aiohttp("asr-service", "http://h:1", client=client))
    runner = web.AppRunner(app)
    await runner.setup()
    assert len(await ids(api)) == 1
    await runner.cleanup()
    assert await ids(api) == []
    assert (await client.stats()).total_instances == 0  # a client of the caller's stays open


class Server:
    """Speaks the lifespan protocol as an ASGI server does."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.queue = ["lifespan.startup", "lifespan.shutdown"]
        self.seen: list[list[str]] = []

    async def run(self, app: Any, api: Api) -> None:
        async def receive() -> MutableMapping[str, Any]:
            self.seen.append(await ids(api))
            return {"type": self.queue.pop(0)}

        async def send(message: MutableMapping[str, Any]) -> None:
            self.sent.append(message["type"])

        await app({"type": "lifespan"}, receive, send)


@pytest.mark.parametrize("speaks", [True, False])
async def test_an_asgi_application_is_registered_between_start_and_stop(
    api: Api, speaks: bool
) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start"})

    inner = FastAPI() if speaks else bare
    app = RegisteredApp(
        inner,  # type: ignore[arg-type]
        lifespan=speaks,
        environ=environ(api, SERVICE_INSTANCE_ID="asr-1"),
    )
    server = Server()
    await server.run(app, api)
    assert server.sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert server.seen == [[], ["asr-1"]]
    assert await ids(api) == []


async def test_other_scopes_go_through_untouched(api: Api) -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await RegisteredApp(inner, environ=environ(api))({"type": "http"}, None, None)  # type: ignore[arg-type]
    assert seen == ["http"]


@pytest.mark.parametrize(
    "settings",
    [{"CONFIG_SERVICE_URL": "http://127.0.0.1:1"}, {"SERVICE_PUBLIC_URL": "nonsense"}],
)
async def test_a_registration_that_fails_never_stops_the_service(
    api: Api, settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI(lifespan=registered(environ={**environ(api), **settings}))
    async with app.router.lifespan_context(app):
        assert "Service registry registration failed: " in caplog.text
