"""Figures over the whole registry, computed from the view. Pure."""

from collections import Counter, defaultdict

from registryd.registry.types import (
    CapabilityShown,
    HealthStatus,
    Stats,
)
from registryd.registry.versions import sort_key
from registryd.registry.view import View


def registry_stats(view: View) -> Stats:
    """A service counts by its best instance's health, and with the capabilities of all its instances."""
    services: Counter[HealthStatus] = Counter()
    claims = 0
    for name in view.contents.names:
        members = view.of_service(name)
        services[min(members, key=lambda instance: instance.rank).health] += 1
        claims += len({name for member in members for name in member.capability_names})
    instances = Counter(instance.health for instance in view.contents.by_id.values())
    total = services.total()
    return Stats(
        total_services=total,
        healthy_services=services[HealthStatus.HEALTHY],
        unhealthy_services=services[HealthStatus.UNHEALTHY],
        degraded_services=services[HealthStatus.DEGRADED],
        unknown_services=services[HealthStatus.UNKNOWN],
        services_in_maintenance=services[HealthStatus.MAINTENANCE],
        unique_capabilities=len(view.contents.capability_versions),
        average_capabilities_per_service=round(claims / total, 2) if total else 0.0,
        total_instances=instances.total(),
        instances_by_health={status: instances[status] for status in HealthStatus},
    )


def capabilities(view: View) -> list[CapabilityShown]:
    """What can be asked for, by name, with the versions there are and the services that claim it."""
    services: defaultdict[str, set[str]] = defaultdict(set)
    contents = view.contents
    for term in contents.capability_versions:
        services[term].update(instance.service for instance in contents.at(contents.index[term]))
    return [
        CapabilityShown(
            name=term.removeprefix("capability:"),
            versions=sorted(contents.capability_versions[term], key=sort_key),
            services=sorted(names),
            defined=False,
        )
        for term, names in sorted(services.items())
    ]
