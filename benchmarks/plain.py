"""The plain Redis way to answer discovery: SINTER and MGET for every request, parsed and encoded anew.

Run as `python -m benchmarks.plain PORT SOCKET COUNT`: fills the store on SOCKET with COUNT instances
and serves `/services?capability=…&tags=…&environment=…`, and heartbeats as one PEXPIRE each.
"""

import json
import sys

import uvloop
from aiohttp import web
from redis.asyncio import Redis

from benchmarks.bare import serve
from benchmarks.data import document, encode


async def fill(redis: Redis, count: int) -> None:
    for first in range(0, count, 500):
        pipeline = redis.pipeline(transaction=False)
        for number in range(first, min(first + 500, count)):
            shown = document(number)
            key = f"doc:{shown['name']}:{shown['instanceId']}"
            pipeline.set(key, encode(shown))
            for capability in shown["capabilities"]:
                pipeline.sadd(f"idx:capability:{capability['name']}", key)
            for tag in shown["metadata"]["tags"]:
                pipeline.sadd(f"idx:tag:{tag}", key)
            pipeline.sadd(f"idx:environment:{shown['metadata']['environment']}", key)
        await pipeline.execute()


def application(redis: Redis) -> web.Application:
    async def discover(request: web.Request) -> web.Response:
        query = request.query
        sets = (
            f"idx:capability:{query['capability']}",
            f"idx:tag:{query['tags']}",
            f"idx:environment:{query['environment']}",
        )
        members = await redis.sinter(list(sets))
        documents = await redis.mget(sorted(members))
        found = [json.loads(each) for each in documents if each is not None]
        return web.json_response({"instances": found, "total": len(found)})

    async def heartbeat(request: web.Request) -> web.Response:
        key = f"doc:{request.match_info['name']}:{request.match_info['id']}"
        known = await redis.pexpire(key, 86_400_000)
        return web.json_response({"renewed": bool(known)}, status=200 if known else 404)

    app = web.Application()
    app.router.add_get("/services", discover)
    app.router.add_put("/services/{name}/instances/{id}/heartbeat", heartbeat)
    return app


async def main(port: int, socket: str, count: int) -> None:
    redis = Redis(unix_socket_path=socket)
    await fill(redis, count)
    await serve(application(redis), port)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
