"""Figures over the whole registry."""

from changes import History, view_of

from registryd.registry.stats import capabilities, registry_stats
from registryd.registry.types import HealthStatus
from registryd.registry.view import View


def test_an_empty_registry_has_figures_too() -> None:
    stats = registry_stats(View())
    assert (stats.total_services, stats.total_instances) == (0, 0)
    assert stats.average_capabilities_per_service == 0.0
    assert set(stats.instances_by_health.values()) == {0}
    assert capabilities(View()) == []


def test_a_service_counts_by_its_best_instance_and_with_all_its_capabilities() -> None:
    history = History()
    history.register("chat", "a", health="healthy", capabilities=["x", "y"])
    history.register(
        "chat", "b", health="unhealthy", capabilities=["x", {"name": "z", "version": "2.0.0"}]
    )
    history.register("draw", health="degraded", capabilities=[{"name": "x", "version": "1.10.0"}])
    history.register("echo", health="healthy")
    history.administer("echo:i1", "maintenance")
    stats = registry_stats(view_of(history))
    assert stats.total_services == 3
    assert (stats.healthy_services, stats.degraded_services, stats.unhealthy_services) == (1, 1, 0)
    assert (stats.services_in_maintenance, stats.unknown_services) == (1, 0)
    assert stats.unique_capabilities == 3
    assert stats.average_capabilities_per_service == 1.33
    assert stats.total_instances == 4
    assert stats.instances_by_health[HealthStatus.UNHEALTHY] == 1


def test_capabilities_come_by_name_with_their_versions_in_order_and_who_claims_them() -> None:
    history = History()
    for service, version in (("b", "1.10.0"), ("a", "1.9.0"), ("a", "nightly")):
        history.register(service, version, capabilities=[{"name": "x", "version": version}, "w"])
    shown = [(one.name, one.versions, one.services) for one in capabilities(view_of(history))]
    assert shown == [
        ("w", ["1.0.0"], ["a", "b"]),
        ("x", ["1.9.0", "1.10.0", "nightly"], ["a", "b"]),
    ]


def test_a_capability_that_nobody_claims_any_more_is_gone() -> None:
    history = History()
    history.register("chat", capabilities=["x"])
    history.register("chat", capabilities=[])
    assert capabilities(view_of(history)) == []
