"""The microservice clients' registration, as a registration of ours. Pure."""

from typing import Any

from registryd.errors import FieldError, Invalid
from registryd.registry.bodies import parse
from registryd.registry.types import CLAIMS, INSTANCE_ID_RE, LegacyRegistration, Registration


def registration_of(body: LegacyRegistration) -> Registration:
    """`service_metadata` may carry an `instance_id` and a claimed `status`; empty strings are absent.

    Raises Invalid, pointing into the body as it came.
    """
    metadata: dict[str, Any] = dict(body.service_metadata)
    instance_id = metadata.pop("instance_id", None)
    status = metadata.pop("status", None)
    if instance_id == "":
        instance_id = None
    if instance_id is not None and not (
        isinstance(instance_id, str) and INSTANCE_ID_RE.fullmatch(instance_id)
    ):
        raise Invalid(
            "service_metadata.instance_id is not a legal instance id",
            errors=[FieldError("/service_metadata/instance_id", 'letters, digits or ". _ - : ~"')],
        )
    fields: dict[str, Any] = {
        "name": body.service_name,
        "endpoint": body.service_url.rstrip("/"),
        "metadata": metadata,
    }
    if instance_id is not None:
        fields["instanceId"] = instance_id
    if body.health_check_url is not None:
        fields["healthCheck"] = {"url": body.health_check_url}
    if isinstance(status, str) and status in {*CLAIMS, "down"}:
        fields["health"] = {"status": status}
    try:
        return parse(Registration, fields)
    except Invalid as error:
        raise Invalid(
            _as_it_came(error.detail),
            errors=[FieldError(_as_it_came(one.pointer), one.detail) for one in error.errors],
        ) from None


def _as_it_came(pointer: str) -> str:
    return pointer.replace("/metadata", "/service_metadata", 1)
