"""Figures over the registry, or what a caller may see of it, computed from the view. Pure."""

from collections import Counter

from pyroaring import BitMap

from registryd.registry.query import WHOLE, Filters
from registryd.registry.types import (
    CapabilityShown,
    HealthStatus,
    Stats,
)
from registryd.registry.versions import sort_key
from registryd.registry.view import View


def registry_stats(view: View, scope: Filters = WHOLE) -> Stats:
    """Over the services within the scope's prefixes. A service counts by its best instance's health, and
    with the capabilities of all its instances."""
    services: Counter[HealthStatus] = Counter()
    instances: Counter[HealthStatus] = Counter()
    unique: set[str] = set()
    claims = 0
    contents = view.contents
    for name in contents.names_within(scope.prefixes):
        members = contents.services[name]
        services[min(members, key=lambda instance: instance.rank).health] += 1
        instances.update([member.health for member in members])
        claimed = {name for member in members for name in member.capability_names}
        claims += len(claimed)
        unique |= claimed
    total = services.total()
    return Stats(
        total_services=total,
        healthy_services=services[HealthStatus.HEALTHY],
        unhealthy_services=services[HealthStatus.UNHEALTHY],
        degraded_services=services[HealthStatus.DEGRADED],
        unknown_services=services[HealthStatus.UNKNOWN],
        services_in_maintenance=services[HealthStatus.MAINTENANCE],
        unique_capabilities=len(unique),
        average_capabilities_per_service=round(claims / total, 2) if total else 0.0,
        total_instances=instances.total(),
        instances_by_health={status: instances[status] for status in HealthStatus},
    )


def capabilities(view: View, scope: Filters = WHOLE) -> list[CapabilityShown]:
    """What can be asked for within the scope's prefixes, by name, with the versions there are and the
    services that claim it."""
    contents = view.contents
    covered = scope.slots(contents)

    def claimants(term: str) -> BitMap:
        slots = contents.index[term]
        return slots if covered is None else slots & covered

    found = []
    for term, versions in sorted(contents.capability_versions.items()):
        if slots := claimants(term):
            known = [version for version in versions if claimants(f"{term}@{version}")]
            found.append(
                CapabilityShown(
                    name=term.removeprefix("capability:"),
                    versions=sorted(known, key=sort_key),
                    services=sorted({instance.service for instance in contents.at(slots)}),
                    defined=False,
                )
            )
    return found
