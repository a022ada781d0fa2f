"""How much may be registered, so that a client gone wild cannot fill every node's memory. Pure.

Counted in the view: what is under way at the same moment, here or through other nodes, comes on top.
"""

from dataclasses import dataclass
from typing import Final

from registryd.errors import RateLimited
from registryd.registry.query import shortest
from registryd.registry.types import split_identity
from registryd.registry.view import View

_TRY_AGAIN: Final = 60.0
"""Seconds: room comes when somebody leaves, which nobody can foretell."""


@dataclass(frozen=True, slots=True)
class Quota:
    services: int
    services_per_caller: int
    """Within the prefixes of a caller that has some."""
    instances: int
    instances_per_service: int


def admit(view: View, quota: Quota, identity: str, prefixes: tuple[str, ...]) -> None:
    """Raises RateLimited where an instance is one too many. Whom the view holds may always renew."""
    contents = view.contents
    if identity in contents.by_id:
        return
    service, _ = split_identity(identity)
    if len(contents.by_id) >= quota.instances:
        raise _full(f"{quota.instances} instances are registered", "instances")
    if (members := contents.services.get(service)) is not None:
        if len(members) >= quota.instances_per_service:
            raise _full(f"{service} has {len(members)} instances", "instancesPerService")
        return
    if len(contents.names) >= quota.services:
        raise _full(f"{len(contents.names)} services are registered", "services")
    if prefixes:
        count = len(contents.names_within(shortest(prefixes)))
        if count >= quota.services_per_caller:
            raise _full(f"{count} services are within the caller's prefixes", "servicesPerCaller")


def _full(what: str, limit: str) -> RateLimited:
    return RateLimited(
        f"{what}, which is the limit (registry.limits.{limit}); unregister what is not needed, or "
        "have it raised",
        retry_after=_TRY_AGAIN,
    )
