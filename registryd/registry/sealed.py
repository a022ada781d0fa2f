"""What of a health check only its probe may know: the values of its headers, and its body.

They are where credentials stand. In the document, and so in every answer, event and message, a mask takes
their place; the values go with the schedule of the check (`ossa:checkstate`), which nobody is shown. What was
read can be sent back: a mask then stands for the value that is held, as long as the check goes to the same
server. Otherwise whoever may change the instance could have the value sent to himself.

Pure. What stands in a URL is no secret here: it is what callers are told to connect to.
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from registryd.errors import FieldError, Invalid
from registryd.kit.logs import MASK
from registryd.registry.types import HealthCheck

Server = tuple[str, str | None, int | None, bool]
"""Scheme, host, port, and whether its certificate is verified."""

_POINTER: Final = "/healthCheck"


class Sealed(dict[str, Any]):
    """The values that are not shown: `{"headers": {…}, "body": "…"}`, each where there is one."""

    def __repr__(self) -> str:
        return MASK


def sealed(check: HealthCheck) -> Sealed:
    found = Sealed()
    if check.headers:
        found["headers"] = check.headers
    if check.body is not None:
        found["body"] = check.body
    return found


def masked(check: HealthCheck) -> HealthCheck:
    """The check as it is shown."""
    if not check.headers and check.body is None:
        return check
    headers = check.headers and dict.fromkeys(check.headers, MASK)
    return check.model_copy(
        update={"headers": headers, "body": None if check.body is None else MASK}
    )


def is_masked(check: HealthCheck) -> bool:
    """Whether it came back as it was shown, in part at least."""
    return check.body == MASK or MASK in (check.headers or {}).values()


def server_of(document: bytes) -> Server:
    """Whom the check of an instance's document is sent to."""
    fields = json.loads(document)
    check = fields.get("healthCheck") or {}
    return _server(
        check.get("url") or fields["endpoint"], verifies=not check.get("tlsSkipVerify", False)
    )


def unmasked(
    endpoint: str, check: HealthCheck, known: Mapping[str, Any], meant_for: Server | None
) -> HealthCheck:
    """The check with the values that are `known`, as `sealed` gives them, in the places of their masks, if
    it goes to the server that they are meant for. Raises Invalid."""
    check, missing = _filled(endpoint, check, known, meant_for)
    if missing:
        raise Invalid(
            f"{_POINTER}{missing[0]}: {MASK} stands for a value that is not known here, or was meant for "
            "another server; send the value itself",
            errors=[FieldError(f"{_POINTER}{one}", "send the value itself") for one in missing],
        )
    return check


def restored(
    endpoint: str, check: HealthCheck, known: Mapping[str, Any], meant_for: Server | None
) -> tuple[HealthCheck, bool]:
    """The same of a file, which nobody may be able to complete: what is not known is left out. Also
    whether nothing was."""
    check, missing = _filled(endpoint, check, known, meant_for)
    headers = {name: value for name, value in (check.headers or {}).items() if value != MASK}
    body = None if check.body == MASK else check.body
    left = check.model_copy(update={"headers": headers or None, "body": body})
    return left, not missing


def _filled(
    endpoint: str, check: HealthCheck, known: Mapping[str, Any], meant_for: Server | None
) -> tuple[HealthCheck, list[str]]:
    """The check with what is known in the places of masks, and where masks are left."""
    if _server(check.url or endpoint, verifies=not check.tls_skip_verify) != meant_for:
        known = {}
    names = {name.lower(): value for name, value in known.get("headers", {}).items()}
    headers = {
        name: names.get(name.lower(), value) if value == MASK else value
        for name, value in (check.headers or {}).items()
    }
    body = known.get("body", MASK) if check.body == MASK else check.body
    missing = [
        *(f"/headers/{name}" for name, value in headers.items() if value == MASK),
        *(["/body"] if body == MASK else []),
    ]
    return check.model_copy(update={"headers": headers or None, "body": body}), missing


def _server(url: str, *, verifies: bool) -> Server:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.hostname, parts.port, verifies
