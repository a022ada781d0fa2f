"""The route table's types: path, permission and handler in one row."""

import enum
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

from registryd.web.caller import Permission, Scope
from registryd.web.reply import Reply, Stream
from registryd.web.request import Request
from registryd.web.shortcut import Shortcut

API_PREFIX: Final = "/api/v1"
REGISTRY_PREFIX: Final = f"{API_PREFIX}/registry"

Handler = Callable[[Request], Awaitable[Reply | Stream]]


class Mount(enum.Enum):
    """Where a route answers."""

    REGISTRY = "registry"
    """Under `/api/v1/registry` and, for short, at the root."""
    ROOT = "root"
    """At the root alone."""
    PREFIX_ONLY = "prefix-only"
    """Under `/api/v1/registry` alone; the short path means something else."""
    API = "api"
    """Under `/api/v1`, beside the registry."""


@dataclass(frozen=True, slots=True)
class Param:
    """A query parameter, for OpenAPI. `schema` is a JSON Schema fragment."""

    name: str
    description: str
    schema: Mapping[str, object] = field(default_factory=lambda: {"type": "string"})
    example: object = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One possible answer of a route, for OpenAPI. `model` None means no body."""

    description: str
    model: type[BaseModel] | None = None
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One row of the table.

    `path` is relative to its mount, with `{param}` segments; `segments` gives for each parameter
    the pattern that the percent-decoded segment has to match in full, else 400 `malformed`.
    `problems` lists the error statuses particular to the route; those that every route can answer
    (400, 401, 403, 413, 500, 503 …) are added by `web/openapi.py`.
    """

    method: str
    path: str
    handler: Handler
    permission: Permission
    scope: Scope
    summary: str
    tag: str
    description: str = ""
    mount: Mount = Mount.REGISTRY
    segments: Mapping[str, re.Pattern[str]] = field(default_factory=dict)
    query: tuple[Param, ...] = ()
    renewal: bool = False
    """Renews leases: limited only in what it does beside that, see `web/throttle.py`."""
    body: type[BaseModel] | None = None
    body_required: bool = True
    body_media: tuple[str, ...] = ("application/json",)
    body_bytes: int | None = None
    """The largest body, where it is not the one that holds for all."""
    body_seconds: float | None = None
    """How long it may take to arrive, likewise."""
    answers: Mapping[int, Answer] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    operation_id: str
    shortcut: Shortcut | None = None
    """Answers ordinary requests in the fast lane. A path parameter then needs a pattern that lets pass
    only what stands in a path as it is."""
