"""Shapes of credentials, and why one is refused."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from registryd.errors import Unauthenticated
from registryd.web.caller import Caller, Permission

ROLES: Final[Mapping[str, Permission]] = {
    "reader": Permission.READER,
    "writer": Permission.WRITER,
    "admin": Permission.ADMIN,
}
"""The words for roles, in settings, keys and tokens."""

LONGEST_NAME: Final = 128
"""Characters of a token's or certificate's name that are kept."""


class Reason(enum.StrEnum):
    """Why a request was denied: the label of a metric, so few and fixed."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_YET = "not_yet"
    ALGORITHM = "algorithm"
    SIGNATURE = "signature"
    AUDIENCE = "audience"
    ISSUER = "issuer"
    CLAIMS = "claims"
    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"


class Rejected(Unauthenticated):
    """A credential that does not hold. `detail` never quotes it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of an API key: its SHA-256, never the key. Times are aware, None for never."""

    id: str
    digest: bytes
    role: Permission
    prefixes: tuple[str, ...] = ()
    name: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def caller(self) -> Caller:
        return Caller(f"key:{self.id}", self.role, self.prefixes)


@dataclass(frozen=True, slots=True)
class Verified:
    """A credential that holds until `expires_at`, or until the keys it rests on change."""

    caller: Caller
    expires_at: datetime | None = None
    key_id: str | None = None
    """Of an API key: its use is written down."""


def printable(name: str) -> str:
    """A name that somebody else chose, as it may stand in logs and entries."""
    shown = "".join(one if one.isascii() and one.isprintable() else "?" for one in name)
    return shown[:LONGEST_NAME]
