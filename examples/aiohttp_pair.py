"""Two aiohttp services that find each other by name. python examples/aiohttp_pair.py"""

import asyncio
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from registryd.client import RegistryClient, registered_aiohttp
from registryd.client.resolver import connector


@asynccontextmanager
async def serving(name: str, port: int):
    """A service that answers with its name, and that is registered while it runs."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"{name} heard {request.query['from']}")

    app = web.Application()
    app.router.add_get("/", answer)
    app.cleanup_ctx.append(registered_aiohttp(name, f"http://127.0.0.1:{port}"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield
    await runner.cleanup()


async def main() -> None:
    async with (
        serving("ping", 18091),
        serving("pong", 18092),
        RegistryClient() as client,
        aiohttp.ClientSession(connector=connector(client)) as session,
    ):
        for me, other in (("ping", "pong"), ("pong", "ping")):
            async with session.get(f"http://{other}/?from={me}") as answer:
                print(await answer.text())


asyncio.run(main())
