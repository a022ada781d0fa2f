"""One line that keeps a web application registered while it serves.

What is not given comes from the environment (`registryd.client.identity`). A registry that is away, or
refuses, never keeps the application from starting; SIGTERM drains before the server stops.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from registryd.client.client import RegistryClient
from registryd.client.identity import from_environment
from registryd.client.registration import Registration

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@asynccontextmanager
async def _kept(
    name: str | None,
    endpoint: str | None,
    client: RegistryClient | None,
    environ: Mapping[str, str],
    fields: Mapping[str, Any],
) -> AsyncIterator[Registration]:
    instance_id = None
    if name is None or endpoint is None:
        settings = from_environment({**environ, **({"SERVICE_NAME": name} if name else {})})
        name, endpoint = settings.name, endpoint or settings.endpoint
        instance_id = settings.instance_id
    wanted = {"instance_id": instance_id, "on_sigterm": True, **fields}
    ours = client or RegistryClient(environ=environ)
    try:
        async with ours.registration(name, endpoint, forgiving=True, **wanted) as registration:
            yield registration
    finally:
        if client is None:
            await ours.close()


def registered(
    name: str | None = None,
    endpoint: str | None = None,
    *,
    client: RegistryClient | None = None,
    environ: Mapping[str, str] = os.environ,
    **fields: Any,
) -> Callable[[object], AbstractAsyncContextManager[None]]:
    """A lifespan for FastAPI and Starlette: `FastAPI(lifespan=registered("asr", "http://asr:8090"))`.
    `fields` are those of `RegistryClient.registration`."""

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        async with _kept(name, endpoint, client, environ, fields):
            yield

    return lifespan


def registered_aiohttp(
    name: str | None = None,
    endpoint: str | None = None,
    *,
    client: RegistryClient | None = None,
    environ: Mapping[str, str] = os.environ,
    **fields: Any,
) -> Callable[[object], AsyncIterator[None]]:
    """For `app.cleanup_ctx.append(registered_aiohttp("asr", "http://asr:8090"))`."""

    async def context(app: object) -> AsyncIterator[None]:
        async with _kept(name, endpoint, client, environ, fields):
            yield

    return context


class RegisteredApp:
    """An ASGI application around another: `app = RegisteredApp(app, "asr", "http://asr:8090")`.

    `lifespan` False: the inner one does not speak the lifespan protocol, and is not asked to.
    """

    def __init__(
        self,
        app: App,
        name: str | None = None,
        endpoint: str | None = None,
        *,
        lifespan: bool = True,
        client: RegistryClient | None = None,
        environ: Mapping[str, str] = os.environ,
        **fields: Any,
    ) -> None:
        self._app = app
        self._lifespan = lifespan
        self._kept = partial(_kept, name, endpoint, client, environ, fields)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        kept = self._kept()

        async def started(message: Message) -> None:
            # Registered last, when the application is ready; deregistered first.
            if message["type"] == "lifespan.startup.complete":
                await kept.__aenter__()
            await send(message)

        async def stopping() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await kept.__aexit__(None, None, None)
            return message

        if self._lifespan:
            await self._app(scope, stopping, started)
            return
        await stopping()
        await started({"type": "lifespan.startup.complete"})
        await stopping()
        await send({"type": "lifespan.shutdown.complete"})
