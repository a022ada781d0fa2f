"""The events described as an AsyncAPI 3.0 document, made from the same models as the rest of the API. Pure."""

from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from registryd.events.types import DATA, LOCAL, Bye, ResultChange, Snapshot
from registryd.web.routing import REGISTRY_PREFIX

_REF: Final = "#/components/schemas/{model}"

_INSTANCE: Final[dict[str, Any]] = {
    "name": "chat",
    "instanceId": "chat-1",
    "endpoint": "http://10.0.0.1:8080",
    "weight": 1,
    "capabilities": [{"name": "tts", "version": "2.0.0"}],
    "metadata": {},
    "health": {"status": "healthy", "since": "2026-01-31T12:00:00.123Z"},
    "registeredAt": "2026-01-31T11:00:00.000Z",
    "updatedAt": "2026-01-31T12:00:00.123Z",
    "incarnation": "5f8004ea7e1",
    "lease": {"ttlSeconds": 300, "renewIntervalSeconds": 100, "state": "live"},
    "revision": "1700000000000-42",
}
_GONE: Final[dict[str, Any]] = {"instanceId": "chat-1", "reason": "lease ended"}
_CLAIM: Final[dict[str, Any]] = {"name": "tts", "version": "2.0.0"}

_TITLES: Final[dict[str, str]] = {
    "service:registered": "An instance has come",
    "service:updated": "An instance has changed",
    "service:restored": "An instance that the store had lost is back",
    "service:health:changed": "The health of an instance has changed",
    "service:unregistered": "An instance has left, by its own or an operator's wish",
    "service:expired": "The lease of an instance has ended",
    "capability:added": "An instance offers a capability that it did not",
    "capability:changed": "An instance offers another version of a capability",
    "capability:removed": "An instance offers a capability no longer",
    "registry:preserving": "The expiry guard holds instances, or holds none any more",
    "registry:imported": "An import is done, and shows as a whole from here on",
    "registry:error": "A fault of one node, told there alone",
}


def example_data(kind: str) -> dict[str, Any]:
    """The data of an event of this type, such as there might be."""
    present = {"service": "chat", "instance": _INSTANCE}
    match kind:
        case "service:health:changed":
            return {**present, "reason": "probed", "old": "unknown", "new": "healthy"}
        case "service:unregistered" | "service:expired":
            return {"service": "chat", "instance": _GONE}
        case "capability:changed":
            return {**present, "capability": {**_CLAIM, "oldVersion": "1.0.0"}}
        case "capability:removed":
            return {"service": "chat", "instance": _GONE, "capability": _CLAIM}
        case "capability:added":
            return {**present, "capability": _CLAIM}
        case "registry:preserving":
            return {"reason": "40 of 50 leases ended together", "instances": ["chat:chat-1"]}
        case "registry:imported":
            return {"reason": "import (merge)", "instances": []}
        case "registry:error":
            return {"code": "storage_unavailable", "detail": "the store does not answer"}
        case _:
            return present


def example(kind: str) -> dict[str, Any]:
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": "1700000000000-42" + (".1" if kind.startswith("capability:") else ""),
        "source": "/registryd/6df67c83",
        "type": kind,
        "subject": "chat/chat-1",
        "time": "2026-01-31T12:00:00.123Z",
        "datacontenttype": "application/json",
        "data": example_data(kind),
    }
    if kind.startswith("registry:"):
        del event["subject"]
    return event


def document(*, title: str, version: str, prefix: str) -> dict[str, Any]:
    """`prefix` is that of the store's keys and channels."""
    models: list[type[BaseModel]] = sorted({*DATA.values(), Snapshot, ResultChange, Bye}, key=_name)
    refs, definitions = models_json_schema(
        [(model, "serialization") for model in models], ref_template=_REF
    )
    schemas = {model.__name__: refs[model, "serialization"] for model in models}
    events = {_word(kind): _event_message(kind, schemas[DATA[kind].__name__]) for kind in DATA}
    of_watch = {
        "snapshot": _message(
            "snapshot",
            "The whole result",
            schemas["Snapshot"],
            {"revision": "1700000000000-42", "instances": [_INSTANCE]},
        ),
        "change": _message(
            "change",
            "What one change did to the result",
            schemas["ResultChange"],
            {
                "revision": "1700000000000-43",
                "added": [],
                "changed": [_INSTANCE],
                "removed": [
                    {"name": "chat", "instanceId": "chat-2", "reason": "no longer matches"}
                ],
            },
        ),
    }
    reset = _message(
        "reset",
        "The instances there are: what was asked to resume from is not known any more",
        schemas["Snapshot"],
        {"revision": "1700000000000-42", "instances": [_INSTANCE]},
    )
    bye = _message("bye", "The node shuts down", schemas["Bye"], {"reason": "shutting down"})
    http, redis = [{"$ref": "#/servers/http"}], [{"$ref": "#/servers/store"}]
    channels: dict[str, Any] = {
        "events": {
            "address": f"{REGISTRY_PREFIX}/events",
            "title": "The event stream",
            "description": "Server-sent events: `event` is the type, `id` the id, `data` the CloudEvent.",
            "servers": http,
            "messages": _refs([*events, "reset", "bye"]),
        },
        "watch": {
            "address": f"{REGISTRY_PREFIX}/watch",
            "title": "The result of a query, and every change to it",
            "servers": http,
            "messages": _refs([*of_watch, "bye"]),
        },
    }
    for kind in DATA:
        if kind not in LOCAL:
            channels[_word(kind)] = {
                "address": f"{prefix}:events:{kind}",
                "title": _TITLES[kind],
                "description": "Published by the script that makes the change; nobody who is away hears it.",
                "servers": redis,
                "messages": _refs([_word(kind)]),
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": title,
            "version": version,
            "description": "What registryd tells by itself. The HTTP interface is in `openapi.json`.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "http": {"host": "127.0.0.1:8082", "protocol": "http"},
            "store": {"host": "localhost:6379", "protocol": "redis"},
        },
        "channels": channels,
        "operations": {
            f"receive_{name}": {"action": "receive", "channel": {"$ref": f"#/channels/{name}"}}
            for name in channels
        },
        "components": {
            "messages": {**events, **of_watch, "reset": reset, "bye": bye},
            "schemas": definitions["$defs"],
        },
    }


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _word(kind: str) -> str:
    """A type as a key, which must not hold a colon."""
    return kind.replace(":", "_")


def _refs(names: list[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _message(
    name: str, title: str, payload: dict[str, Any], shown: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "title": title, "payload": payload, "examples": [{"payload": shown}]}


def _event_message(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    about = [] if kind.startswith("registry:") else ["subject"]
    payload = {
        "type": "object",
        "required": [
            "specversion",
            "id",
            "source",
            "type",
            *about,
            "time",
            "datacontenttype",
            "data",
        ],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {
                "type": "string",
                "description": "`<epoch>-<rev>`, or with `.<n>` a further one.",
            },
            "source": {"type": "string", "pattern": "^/registryd/"},
            "type": {"const": kind},
            "subject": {"type": "string", "description": "`<service>/<instance>`"},
            "time": {"type": "string", "format": "date-time"},
            "datacontenttype": {"const": "application/json"},
            "data": data,
        },
    }
    return _message(kind, _TITLES[kind], payload, example(kind))
