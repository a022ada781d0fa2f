"""Work goes to whoever can do it, among three workers. python examples/capability_routing.py"""

import asyncio
from contextlib import AsyncExitStack

from registryd.client import NoneOffered, RegistryClient

WORKERS = {
    "http://127.0.0.1:18101": ["image_generation"],
    "http://127.0.0.1:18102": ["image_generation", "video_generation"],
    "http://127.0.0.1:18103": [{"name": "video_generation", "version": "2.1.0"}],
}


async def main() -> None:
    async with RegistryClient() as client, AsyncExitStack() as workers:
        for endpoint, capabilities in WORKERS.items():
            worker = client.registration(
                "worker", endpoint, capabilities=capabilities, health={"status": "healthy"}
            )
            await workers.enter_async_context(worker)
        for wanted in ("image_generation", "video_generation@>=2;<3", "voice_cloning"):
            try:
                picker = client.picker("worker", strategy="round_robin", capability=wanted)
                turns = {(await picker.pick()).url for _ in range(6)}
                print(wanted, "→", *sorted(turns))
            except NoneOffered:
                print(wanted, "→ nobody")


asyncio.run(main())
