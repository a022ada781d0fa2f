"""Services to be probed: real servers on free ports that count who comes, and a probe that says what it is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from registryd.probing.types import Finding, Target


class Service:
    """Answers GET /health with `status` and `body`, after `delay` seconds; `asked` counts by instance."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = {"status": "healthy"}
        self.delay = 0.0
        self.asked: list[float] = []
        self.seen: dict[str, list[float]] = {}
        self.port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            # What was accepted at the last moment is opened in one turn of the loop, and closed in others.
            for _ in range(3):
                await asyncio.sleep(0)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(time.monotonic())
        self.seen.setdefault(request.path, []).append(time.monotonic())
        await asyncio.sleep(self.delay)
        return web.json_response(self.body, status=self.status)


@asynccontextmanager
async def service() -> AsyncIterator[Service]:
    one = Service()
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


class ScriptedProbe:
    """Says what `answer` says, after `gate` was opened; remembers whom it was asked about."""

    def __init__(self, answer: Callable[[Target], Finding]) -> None:
        self.answer = answer
        self.asked: list[Target] = []
        self.busy = 0
        self.busiest = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def probe(self, target: Target) -> Finding:
        self.asked.append(target)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await self.gate.wait()
        finally:
            self.busy -= 1
        return self.answer(target)
