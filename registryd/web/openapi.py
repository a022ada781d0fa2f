"""The route table as an OpenAPI 3.1 document: what it says is what the router answers.

Paths stand relative to the two servers, the long form (the default) and the short one at the root.
A path that exists in one place only says so with a `servers` of its own.
"""

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from registryd.web.caller import Permission
from registryd.web.reply import JSON, PROBLEM
from registryd.web.router import template
from registryd.web.routing import REGISTRY_PREFIX, Answer, Mount, Route

_REF: Final = "#/components/schemas/{model}"
_ROOT: Final = {"url": "/", "description": "Short form"}
_LONG: Final = {"url": REGISTRY_PREFIX, "description": "Long form"}
_PARAMETER: Final = re.compile(r"\{([^{}]+)\}")

_ACCESS: Final = """\
`x-registryd-permission` is the least role that an operation needs: `open` for none, then `reader`, `writer`, \
`admin`. `x-registryd-scope` is what it is to callers limited to services whose names begin with a prefix: \
`none`, it neither shows nor touches any service; `named`, refused (403) unless the service in the path is \
theirs; `narrowed`, it leaves out what is not theirs, and refuses (403) what names another's; `whole`, refused, \
as it is about the whole registry."""

_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail", "code", "requestId", "error"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "A stable word for programs."},
        "requestId": {"type": "string"},
        "error": {"type": "string", "description": "The detail again, for older clients."},
        "errors": {
            "type": "array",
            "description": "Each wrong value; always there with status 422.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901, into the body."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}

_Models = dict[tuple[Any, JsonSchemaMode], dict[str, Any]]


_CREDENTIALS: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JWT."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def document(routes: Sequence[Route], *, title: str, version: str) -> dict[str, Any]:
    used = sorted(_models(routes), key=_by_name)
    models, definitions = models_json_schema(used, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        item = paths.setdefault(template(route), {})
        if route.mount is not Mount.REGISTRY:
            item["servers"] = [_ROOT]
        item[route.method.lower()] = _operation(route, models)
    statuses = sorted({status for route in routes for status in _problems(route)})
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": _ACCESS},
        "servers": [_LONG, _ROOT],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        # Each of them will do; none is needed where auth.mode is none, or from networks that it lets in.
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "components": {
            "securitySchemes": _CREDENTIALS,
            "schemas": {"Problem": _PROBLEM_SCHEMA, **definitions.get("$defs", {})},
            "responses": {f"Problem{status}": _problem(status) for status in statuses},
        },
    }


def _models(routes: Sequence[Route]) -> set[tuple[type[BaseModel], JsonSchemaMode]]:
    found: set[tuple[type[BaseModel], JsonSchemaMode]] = set()
    for route in routes:
        if route.body is not None:
            found.add((route.body, "validation"))
        found.update((a.model, "serialization") for a in route.answers.values() if a.model)
    return found


def _by_name(entry: tuple[type[BaseModel], JsonSchemaMode]) -> tuple[str, str, str]:
    model, mode = entry
    return model.__module__, model.__qualname__, mode


def _operation(route: Route, models: _Models) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.tag],
        "x-registryd-permission": route.permission.name.lower(),
        "x-registryd-scope": route.scope.value,
    }
    if route.permission is Permission.OPEN:
        operation["security"] = []
    if route.description:
        operation["description"] = route.description
    if parameters := [*_path_parameters(route), *_query_parameters(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        schema = models[route.body, "validation"]
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {media: {"schema": schema} for media in route.body_media},
        }
    operation["responses"] = {
        str(status): _answer(answer, models) for status, answer in sorted(route.answers.items())
    } | {
        str(status): {"$ref": f"#/components/responses/Problem{status}"}
        for status in _problems(route)
    }
    return operation


def _path_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(route.path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if (pattern := route.segments.get(name)) is not None:
            schema["pattern"] = f"^(?:{pattern.pattern})$"
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(route: Route) -> Iterator[dict[str, Any]]:
    for param in route.query:
        parameter: dict[str, Any] = {
            "name": param.name,
            "in": "query",
            "description": param.description,
            "schema": dict(param.schema),
        }
        if param.example is not None:
            parameter["example"] = param.example
        yield parameter


def _answer(answer: Answer, models: _Models) -> dict[str, Any]:
    if answer.model is not None:
        schema = models[answer.model, "serialization"]
    elif answer.content_type != JSON:
        schema = {"type": "string"}
    else:
        return {"description": answer.description}
    return {"description": answer.description, "content": {answer.content_type: {"schema": schema}}}


def _problems(route: Route) -> list[int]:
    """The error statuses of a route: its own, and those that anything like it can answer."""
    statuses = {400, 403, 500, 503, *route.problems}
    if route.permission > Permission.OPEN:
        statuses |= {401, 429}
    if route.body is not None:
        statuses |= {408, 413, 415, 422}
    return sorted(statuses - route.answers.keys())


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
