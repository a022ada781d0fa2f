"""A web server that is sent webhooks: it remembers what came, and answers as it is told."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy
from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Call:
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def event(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified_by(self, secret: str) -> Any:
        """The event, as a receiver that knows the secret reads it; raises when the signature is wrong."""
        return Webhook(secret).verify(self.body, dict(self.headers))


class Receiver:
    """`answers` are given one after the other, then 204; `delay` is slept before each, and `hold` keeps
    every answer back until it is set."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: list[int | tuple[int, dict[str, str]]] = []
        self.delay = 0.0
        self.hold: asyncio.Event | None = None
        self.under_way = 0
        self.most_under_way = 0
        self.port = 0
        self.scheme = "http"
        self._changed = asyncio.Event()

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    @property
    def events(self) -> list[Any]:
        return [call.event for call in self.calls]

    def ids_of(self, kind: str) -> list[str]:
        return [event["id"] for event in self.events if event["type"] == kind]

    async def until(self, true: Callable[[], object], within: float = 4.0) -> None:
        """Waits until `true` holds, which is asked at each call that comes."""
        async with asyncio.timeout(within):
            while not true():
                await self._changed.wait()
                self._changed.clear()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.calls.append(Call(request.headers, body))
            self._changed.set()
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.under_way -= 1
        answer = self.answers.pop(0) if self.answers else 204
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return web.Response(status=status, headers=headers)


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    receiver.port = runner.addresses[0][1]
    receiver.scheme = "https" if tls else "http"
    try:
        yield receiver
    finally:
        if receiver.hold is not None:
            receiver.hold.set()
        await runner.cleanup()
