"""Request bodies as types: which fields come back ignored, how patches merge, whose name it is."""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from registryd.errors import FieldError, Invalid
from registryd.registry.types import (
    INSTANCE_ID,
    MAX_BATCH,
    NAME,
    READ_ONLY,
    HealthCheck,
    HeartbeatBatch,
    Registration,
    identity,
)
from registryd.web import codec

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], body: object) -> M:
    """Validates a body. Raises Invalid, naming each wrong field."""
    if not isinstance(body, dict):
        raise Invalid("expected a JSON object", errors=[FieldError("", "expected an object")])
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise codec.invalid(error, body) from None


Beat = tuple[str, str]
"""One heartbeat of a batch: whose, by identity, and of which incarnation ("" for any)."""

_INCARNATION: Final = r"[A-Za-z0-9._~-]{1,64}"
_PLAIN_BATCH: Final = re.compile(rb'\{"heartbeats": ?\[')
_PLAIN_BEAT: Final = re.compile(
    rf'(\{{"name": ?"({NAME})", ?"instanceId": ?"({INSTANCE_ID})"'
    rf'(?:, ?"incarnation": ?"({_INCARNATION})")?\}}(?:, ?|(?=\]\}}\Z)))'
)


def parse_beats(body: bytes) -> list[Beat]:
    """Validates a batch of heartbeats. Raises Malformed or Invalid.

    There may be ten thousand: what is written as programs write it is read and checked in one pass;
    anything else goes the ordinary way.
    """
    if (start := _PLAIN_BATCH.match(body)) is not None and body.isascii():
        found = _PLAIN_BEAT.findall(body.decode(), start.end())
        # The pieces lie side by side from there to the end: no byte is left out.
        covered = start.end() + sum([len(piece) for piece, _, _, _ in found])
        if body[covered - 1 :] == b"}]}" and 0 < len(found) <= MAX_BATCH:
            return [(f"{name}:{instance}", incarnation) for _, name, instance, incarnation in found]
    batch = parse(HeartbeatBatch, codec.loads(body))
    return [
        (identity(one.name, one.instance_id), one.incarnation or "") for one in batch.heartbeats
    ]


def parse_registration(
    body: object, *, service: str | None = None, instance_id: str | None = None
) -> Registration:
    """Validates a native body; names in the path have to agree with those in it."""
    if not isinstance(body, dict):
        raise Invalid("expected a JSON object", errors=[FieldError("", "expected an object")])
    fields = {key: value for key, value in body.items() if key not in _IGNORED}
    if service is not None:
        _agree(fields, "name", service)
    if instance_id is not None:
        _agree(fields, "instanceId", instance_id, also="instance_id")
    return parse(Registration, fields)


_IGNORED: Final = READ_ONLY | {"registered_at", "updated_at"}
"""What we gave out, in either style, may come back and is ignored."""


def _agree(fields: dict[str, Any], key: str, value: str, *, also: str = "") -> None:
    given = fields.pop(also, None) if also else None
    given = fields.get(key, given)
    if given is not None and given != value:
        raise Invalid(
            f"{key} differs from the path",
            errors=[FieldError(f"/{key}", f"is another than {value!r} in the path")],
        )
    fields[key] = value


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386, but a null where there is one already stays: what was read can be sent back."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            if result.get(key) is not None:
                del result[key]
        else:
            result[key] = merge(result.get(key), value)
    return result


_SNAKE: Final = {name: to_camel(name) for name in Registration.model_fields if "_" in name}
_SNAKE_CHECK: Final = {name: to_camel(name) for name in HealthCheck.model_fields if "_" in name}


def canonical_names(change: Mapping[str, Any]) -> dict[str, Any]:
    """A patch with our own field names in camelCase, as the stored document has them."""
    patch = {_SNAKE.get(key, key): value for key, value in change.items()}
    check = patch.get("healthCheck")
    if isinstance(check, dict):
        patch["healthCheck"] = {_SNAKE_CHECK.get(key, key): value for key, value in check.items()}
    return patch
