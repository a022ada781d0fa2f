"""A FastAPI service that is registered while it serves.

SERVICE_NAME=greeter SERVICE_HOST=127.0.0.1 SERVICE_PORT=8090 python examples/fastapi_service.py

On SIGTERM callers stop choosing it, two seconds later it stops: nobody's call fails.
"""

import os

import uvicorn
from fastapi import FastAPI

from registryd.client import registered

app = FastAPI(lifespan=registered(drain_seconds=2, ttl_seconds=30))


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.get("/hello")
async def hello() -> dict[str, str]:
    return {"hello": os.environ["SERVICE_PORT"]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["SERVICE_PORT"]), log_level="warning")
