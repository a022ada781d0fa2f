"""What the registry sends, in shapes that have types. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from registryd.client.stream import Message
from registryd.client.transport import Reply
from registryd.client.types import Removed, UnexpectedAnswer
from registryd.registry.types import InstanceArray, InstanceShown

M = TypeVar("M", bound=BaseModel)


def shaped(model: type[M], reply: Reply) -> M:
    """The body of an answer. Raises UnexpectedAnswer when it is another shape."""
    return valid(model, reply.json)


def valid(model: type[M], value: object) -> M:
    """A part of an answer. Raises UnexpectedAnswer when it is another shape."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(map(str, first["loc"]))
        raise UnexpectedAnswer(
            f"the registry's answer is not what this client knows as {model.__name__} (at {where!r}: "
            f"{first['msg']}). Update whichever of client and daemon is older."
        ) from None


def stale_for(reply: Reply) -> float:
    """Seconds that the answer itself says it is old."""
    text = reply.headers.get("X-Registry-Stale-Ms", "")
    return int(text) / 1000 if text.isascii() and text.isdigit() else 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What a message of a watch says: all there is, or with `whole` None what has changed."""

    revision: str
    whole: Sequence[InstanceShown] | None = None
    added: Sequence[InstanceShown] = ()
    changed: Sequence[InstanceShown] = ()
    removed: Sequence[Removed] = ()


def step(message: Message) -> Step | None:
    """None: it says nothing of the result. Raises UnexpectedAnswer when it is another shape."""
    if message.event not in {"snapshot", "reset", "change"}:
        return None
    body = message.json
    revision = str(body.get("revision", ""))
    if message.event != "change":
        return Step(revision, _instances(body, "instances"))
    return Step(
        revision, None, _instances(body, "added"), _instances(body, "changed"), _removed(body)
    )


def _instances(body: Mapping[str, Any], field: str) -> Sequence[InstanceShown]:
    return valid(InstanceArray, body.get(field)).root


def _removed(body: Mapping[str, Any]) -> Sequence[Removed]:
    try:
        return [
            Removed(str(one["name"]), str(one["instanceId"]), str(one.get("reason", "")))
            for one in body["removed"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise UnexpectedAnswer(
            "a watch told of removals in a shape that this client does not know. "
            "Update whichever of client and daemon is older."
        ) from None
