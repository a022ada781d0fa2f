"""The bare server: an aiohttp application with two path parameters that answers from a dict.

What everything else is measured against; no store, no validation, the process layout of the daemon.
`/gzip` compresses one body anew for every request. Run as `python -m benchmarks.bare PORT [BODY]`.
"""

import asyncio
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from benchmarks.data import INSTANCES, TTL_SECONDS, encode, instance_id_of, service_of


def application(body: bytes) -> web.Application:
    lease = {"ttlSeconds": TTL_SECONDS, "expiresAt": "2030-01-01T00:00:00.000Z"}
    answer = encode(lease | {"renewIntervalSeconds": TTL_SECONDS // 3}).encode()
    answers = {(service_of(n), instance_id_of(n)): answer for n in range(INSTANCES)}

    async def from_dict(request: web.Request) -> web.Response:
        found = answers.get((request.match_info["name"], request.match_info["id"]))
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found, content_type="application/json")

    async def gzip_anew(request: web.Request) -> web.Response:
        response = web.Response(body=body, content_type="application/json")
        response.enable_compression(web.ContentCoding.gzip)
        return response

    app = web.Application()
    app.router.add_put("/services/{name}/instances/{id}/heartbeat", from_dict)
    app.router.add_get("/gzip", gzip_anew)
    return app


async def serve(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    compressed = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 2 else b"{}"
    uvloop.run(serve(application(compressed), int(sys.argv[1])))
