"""Errors as RFC 9457 problem documents: the only module that knows HTTP statuses of errors."""

import math
from collections.abc import Mapping
from typing import Any, Final

from registryd import errors
from registryd.web import codec
from registryd.web.reply import PROBLEM, Header, Reply

RETRY_AFTER: Final = "1"

STATUS: Final[Mapping[str, tuple[int, str]]] = {
    "malformed": (400, "The request cannot be parsed"),
    "unauthenticated": (401, "Who is asking is not known"),
    "forbidden": (403, "The caller may not do this"),
    "not_found": (404, "Not found"),
    "instance_unknown": (404, "The instance is not registered"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "request_timeout": (408, "The request took too long to arrive"),
    "superseded": (409, "A newer incarnation has registered"),
    "ambiguous_instance": (409, "The service has several instances"),
    "conflict": (409, "The request conflicts with the present state"),
    "precondition_failed": (412, "A precondition does not hold"),
    "payload_too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "The body's media type is not supported"),
    "validation": (422, "A value is not valid"),
    "egress_denied": (422, "The daemon must not connect there"),
    "rate_limited": (429, "Too many requests"),
    "internal": (500, "Internal error"),
    "outbound_failed": (502, "Another server did not answer as it should"),
    "storage_unavailable": (503, "The store is not available"),
    "not_ready": (503, "Not ready"),
}
"""Error code → status and title. The title is the same for every problem of a code."""


def status(error: errors.RegistrydError) -> int:
    return _of(error)[0]


def reply(error: errors.RegistrydError, request_id: str) -> Reply:
    code, title = _of(error)
    # A detail may quote what came in; bytes that were no UTF-8 must not break the answer.
    detail = _sendable(error.detail)
    document: dict[str, Any] = {
        "type": f"urn:registryd:problem:{error.code}",
        "title": title,
        "status": code,
        "detail": detail,
        "code": error.code,
        "requestId": request_id,
        "error": detail,
    }
    if error.errors or code == 422:
        document["errors"] = [
            {"pointer": _sendable(one.pointer), "detail": _sendable(one.detail)}
            for one in error.errors
        ]
    for name, figure in error.members.items():
        document.setdefault(name, figure)
    return Reply(code, codec.dumps(document), PROBLEM, _headers(error, code))


def _of(error: errors.RegistrydError) -> tuple[int, str]:
    return STATUS.get(error.code, STATUS["internal"])


def _headers(error: errors.RegistrydError, code: int) -> list[Header]:
    if isinstance(error, errors.MethodNotAllowed):
        return [("Allow", ", ".join(error.allowed))]
    if code == 401:
        return [("WWW-Authenticate", 'Bearer realm="registryd"')]
    if isinstance(error, errors.RateLimited):
        return [("Retry-After", str(max(1, math.ceil(error.retry_after))))]
    if code == 503:
        return [("Retry-After", RETRY_AFTER)]
    return []


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
