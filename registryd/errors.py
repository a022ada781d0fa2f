"""The one error tree. Every error a caller may see has a stable `code`; only `web/problem.py` knows HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong value: `pointer` is an RFC 6901 JSON pointer into the body."""

    pointer: str
    detail: str


class RegistrydError(Exception):
    """Base of all our errors; `detail` is a sentence for people, `code` a word for programs."""

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.members = members or {}
        """Further figures for programs, JSON-ready: a problem document's extension members."""


class Malformed(RegistrydError):
    """The request could not be parsed: JSON, path segment or query parameter."""

    code = "malformed"


class Invalid(RegistrydError):
    """The request parsed, but holds a wrong value; `errors` names each field."""

    code = "validation"


class NotFound(RegistrydError):
    code = "not_found"


class MethodNotAllowed(RegistrydError):
    code = "method_not_allowed"

    def __init__(self, detail: str, *, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.allowed = tuple(allowed)


class UnsupportedMediaType(RegistrydError):
    code = "unsupported_media_type"


class PayloadTooLarge(RegistrydError):
    code = "payload_too_large"


class RequestTimeout(RegistrydError):
    """The client was too slow in sending its body."""

    code = "request_timeout"


class InstanceUnknown(RegistrydError):
    """A heartbeat for a lease that does not exist: the service has to register again."""

    code = "instance_unknown"


class Superseded(RegistrydError):
    """Another incarnation of the instance has registered since."""

    code = "superseded"


class AmbiguousInstance(RegistrydError):
    """The service has several instances and the request named none."""

    code = "ambiguous_instance"


class Conflict(RegistrydError):
    code = "conflict"


class PreconditionFailed(RegistrydError):
    code = "precondition_failed"


class Unauthenticated(RegistrydError):
    code = "unauthenticated"


class Forbidden(RegistrydError):
    code = "forbidden"


class RateLimited(RegistrydError):
    """Too much was asked for; `retry_after` seconds later there is room again."""

    code = "rate_limited"

    def __init__(self, detail: str, *, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class StorageUnavailable(RegistrydError):
    """The store cannot be reached or refuses writes; the same request may succeed a little later."""

    code = "storage_unavailable"


class NotReady(RegistrydError):
    """This node cannot answer as fresh as was asked; another node, or a little patience, can."""

    code = "not_ready"


class EgressDenied(RegistrydError):
    """A connection to somewhere the daemon must not go; `detail` starts with the code."""

    code = "egress_denied"


class OutboundFailed(RegistrydError):
    """A connection of ours to somebody else failed; `detail` says how, without secrets."""

    code = "outbound_failed"


class StartupRefused(RegistrydError):
    """The daemon will not start: configuration, store or address. `detail` says what to change."""

    code = "startup_refused"
