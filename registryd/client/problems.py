"""Problem documents of the registry as exceptions of `registryd.errors`, each with what to do about it."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from registryd import errors
from registryd.client.types import NoneOffered, UnexpectedAnswer

KNOWN: Final[Mapping[str, tuple[type[errors.RegistrydError], str]]] = MappingProxyType(
    {
        "malformed": (errors.Malformed, "Correct the argument that it names."),
        "validation": (errors.Invalid, "Correct the fields listed in `errors`."),
        "not_found": (errors.NotFound, "Check the name, or wait until it has registered."),
        "instance_unknown": (errors.InstanceUnknown, "Register the instance again."),
        "superseded": (
            errors.Superseded,
            "Read the instance to see who holds it; register anew only if it should be you.",
        ),
        "ambiguous_instance": (errors.AmbiguousInstance, "Name one with `instance_id`."),
        "conflict": (errors.Conflict, "Read the present state and decide anew."),
        "precondition_failed": (
            errors.PreconditionFailed,
            "Read again, then repeat with what you then know.",
        ),
        "unauthenticated": (
            errors.Unauthenticated,
            "Give a valid key as `api_key` or in REGISTRYD_API_KEY.",
        ),
        "forbidden": (errors.Forbidden, "Use a key whose role and prefixes allow this."),
        "rate_limited": (errors.RateLimited, "Ask less often, or raise the limit of the daemon."),
        "unsupported_media_type": (
            errors.UnsupportedMediaType,
            "Update whichever of client and daemon is older.",
        ),
        "payload_too_large": (errors.PayloadTooLarge, "Send less at once."),
        "request_timeout": (errors.RequestTimeout, "Check the network, then try again."),
        "egress_denied": (errors.EgressDenied, "Use another address, or allow it in the daemon."),
        "outbound_failed": (errors.OutboundFailed, "Look into that other server."),
        "storage_unavailable": (
            errors.StorageUnavailable,
            "Try again a little later, and look at the daemon's store.",
        ),
        "not_ready": (errors.NotReady, "Try again a little later, or ask another daemon."),
        "internal": (errors.RegistrydError, "Look into the daemon's log for this request id."),
    }
)
"""Code → class, and the sentence that every such error ends in."""

WAIT: Final = "retryAfterSeconds"


def problem(status: int, body: bytes, where: str, wait: float) -> errors.RegistrydError:
    """The exception that an answer of 400 or more stands for. `where` is the base URL that gave it;
    `wait` what its `Retry-After` asks for (seconds), which becomes the member `retryAfterSeconds`."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not (isinstance(document, dict) and isinstance(document.get("code"), str)):
        return UnexpectedAnswer(
            f"{where} answered {status} with something that is not registryd's. "
            "Check that the URL is that of a registry and what stands in between."
        )
    detail = _sentence(str(document.get("detail", "")))
    code = document["code"]
    if code == "method_not_allowed":
        advice = "Update whichever of client and daemon is older."
        return errors.MethodNotAllowed(f"{detail} {advice}", allowed=())
    cls, advice = KNOWN.get(
        code,
        (errors.RegistrydError, f"Update the client, which does not know the code {code!r}."),
    )
    if cls is errors.NotFound and "reasons" in document:
        cls, advice = (
            NoneOffered,
            "Ask GET /explain why, or wait until an instance is healthy again.",
        )
    if cls is errors.RateLimited:
        limited = errors.RateLimited(f"{detail} {advice}", retry_after=wait)
        limited.members = {WAIT: wait}
        return limited
    known = {"type", "title", "status", "detail", "code", "error", "errors"}
    return cls(
        f"{detail} {advice}",
        errors=[_field(one) for one in document.get("errors", ())],
        members={
            **{name: value for name, value in document.items() if name not in known},
            **({WAIT: wait} if wait else {}),
        },
    )


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _field(one: Any) -> errors.FieldError:
    if not isinstance(one, dict):
        return errors.FieldError("", str(one))
    return errors.FieldError(str(one.get("pointer", "")), str(one.get("detail", "")))
