"""The shapes of health on the wire. Pure."""

from typing import Any

from pydantic import Field

from registryd.probing.types import Verdict
from registryd.registry.types import Answer, Flag, HealthShown, HealthStatus, OfferShown, Shape


class ConditionShown(Answer):
    condition: str
    passed: bool


class TransitionShown(Answer):
    """One change of what callers saw as the status. `error` is that of the probe that made it."""

    at: str
    old: HealthStatus
    new: HealthStatus
    reason: str
    error: str | None = None


class DiscoveredShown(OfferShown):
    """What the instance told of itself in the body of its health answer, and what of that counts:
    `capabilities` and `models`, which stay for two passing probes that do not name them."""

    provenance: str = Field(description="Always `discovered`: probes found it, nobody declared it")
    last_seen: str | None = None
    version: str | None = None
    api_version: str | None = None
    features: list[str] | None = None
    limits: dict[str, Any] | None = None


class InstanceHealthShown(HealthShown):
    """`status` and `since` as callers see them; `lastCheck`, `responseTime` (ms) and `error` as of the
    last probe; the latest transitions, newest first."""

    service: str
    instance_id: str
    verdict: Verdict | None = Field(None, description="What the last probe alone says")
    failures: int | None = Field(None, description="Failed probes in a row")
    successes: int | None = Field(None, description="Passed probes in a row")
    conditions: list[ConditionShown] | None = None
    discovered: DiscoveredShown | None = None
    transitions: list[TransitionShown] | None = None


class ServiceHealthShown(InstanceHealthShown):
    """The fields of the best instance, and all of them."""

    instances: list[InstanceHealthShown]


class Monitoring(Shape):
    """Body and answer of `PUT /monitoring`."""

    enabled: Flag


class MonitoringShown(Answer):
    enabled: bool
