"""Request bodies as types: which fields come back ignored, how patches merge, whose name it is."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from registryd.errors import FieldError, Invalid
from registryd.registry.types import (
    INSTANCE_ID_RE,
    MAX_BATCH,
    NAME_RE,
    READ_ONLY,
    HealthCheck,
    HeartbeatBatch,
    Registration,
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


class Beat(NamedTuple):
    """One heartbeat of a batch; an empty incarnation stands for any."""

    service: str
    instance_id: str
    incarnation: str


def parse_beats(body: object) -> list[Beat]:
    """Validates a batch of heartbeats: ordinary ones by hand, because there may be ten thousand, and
    whatever looks odd by the model. Raises Invalid."""
    items = body.get("heartbeats") if isinstance(body, dict) and len(body) == 1 else None
    beats = []
    if isinstance(items, list) and len(items) <= MAX_BATCH:
        for item in items:
            if type(item) is not dict or len(item) != 2:
                break
            name, instance_id = item.get("name"), item.get("instanceId")
            if type(name) is not str or type(instance_id) is not str:
                break
            if not NAME_RE.fullmatch(name) or not INSTANCE_ID_RE.fullmatch(instance_id):
                break
            beats.append(Beat(name, instance_id, ""))
        else:
            return beats
    batch = parse(HeartbeatBatch, body)
    return [Beat(one.name, one.instance_id, one.incarnation or "") for one in batch.heartbeats]


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
