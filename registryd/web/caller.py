"""Who calls, and what may be called by whom: the data that a route and a credential are held against."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from registryd import errors


class Permission(enum.IntEnum):
    """The least role a caller needs. Ordered, so that a role suffices for all below it."""

    OPEN = 0
    READER = 1
    WRITER = 2
    ADMIN = 3


class Scope(enum.Enum):
    """How a route treats callers that are limited to services whose names begin with a prefix."""

    NONE = "none"
    """Neither shows nor touches any service: nothing to limit."""
    NAMED = "named"
    """About the one service that the path parameter `name` names, which is the path's first."""
    NARROWED = "narrowed"
    """The route's function leaves out, or refuses, what the caller does not cover."""
    WHOLE = "whole"
    """About the registry as a whole: refused to callers with prefixes."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection: its address, and the certificate it showed, as `ssl` parses it."""

    address: str
    certificate: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody whose credential has been verified, or who needs none.

    `name` is for logs, events and the audit: `key:<id>`, `jwt:<subject>`, `cert:<subject>`, `anonymous`.
    No `prefixes` is no limit.
    """

    name: str
    role: Permission
    prefixes: tuple[str, ...] = ()

    def covers(self, service: str) -> bool:
        return not self.prefixes or service.startswith(self.prefixes)

    def demand(self, service: str) -> None:
        """Raises Forbidden where the service is outside of the caller's prefixes."""
        if not self.covers(service):
            allowed = ", ".join(f"{prefix!r}" for prefix in self.prefixes)
            raise errors.Forbidden(
                f"{self.name} may use services whose names begin with {allowed} only; "
                f"use a key with another prefix for {service!r}"
            )


ANYBODY: Final = Caller("anonymous", Permission.OPEN)
"""A caller without any credential, where none is needed."""


def permit(caller: Caller, permission: Permission, scope: Scope, params: Mapping[str, str]) -> None:
    """Raises Forbidden unless the caller's role and prefixes allow a route."""
    if caller.role < permission:
        raise errors.Forbidden(
            f"this needs the role {permission.name.lower()}; {caller.name} is "
            f"{caller.role.name.lower()}"
        )
    if caller.prefixes and permission is not Permission.OPEN:
        if scope is Scope.NAMED:
            caller.demand(params["name"])
        elif scope is Scope.WHOLE:
            raise errors.Forbidden(
                f"this is about the whole registry; {caller.name} is limited to services whose "
                f"names begin with {', '.join(map(repr, caller.prefixes))}"
            )
