"""The health of an instance as the API shows it: the row's status, the last probe's figures. Pure."""

import json
from typing import Any, Final

from registryd.health.decide import Memory, details_of
from registryd.kit.clock import from_ms, rfc3339
from registryd.registry.store import Vitals
from registryd.registry.view import Instance

_CURRENT: Final = ("lastCheck", "responseTime", "error")


def health_of(instance: Instance, vitals: Vitals | None) -> dict[str, Any]:
    """Without `vitals`, because the store is away, everything is as of the last transition."""
    health: dict[str, Any] = {
        "service": instance.service,
        "instanceId": instance.instance_id,
        **json.loads(instance.fragment)["health"],
    }
    if vitals is None:
        return health
    if vitals.finding:
        for name in _CURRENT:
            health.pop(name, None)
        health |= json.loads(vitals.finding)
    seen_at = ""
    if vitals.state:
        memory = Memory.decode(vitals.state)
        health["failures"] = memory.counts.failures
        health["successes"] = memory.counts.successes
        seen_at = memory.seen.at
        health |= _damping(health, memory)
    if found := _found(health, vitals.told if seen_at else b""):
        last_seen = {"lastSeen": seen_at} if seen_at else {}
        health["discovered"] = {"provenance": "discovered", **last_seen, **found}
    transitions = json.loads(vitals.transitions) if vitals.transitions else []
    health["transitions"] = [
        {**one, "at": rfc3339(from_ms(int(one["at"])))} for one in reversed(transitions)
    ]
    return health


def _found(health: dict[str, Any], told: bytes) -> dict[str, Any]:
    """What was told last, and what counts of all that was told."""
    found: dict[str, Any] = json.loads(told) if told else {}
    counts: dict[str, Any] = health.get("discovered", {})
    return found | counts


def _damping(health: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """Details that are current: those of the document may tell of a damping that is over."""
    details: dict[str, Any] = dict(health.get("details") or {})
    if details.get("damped"):
        details = {}
    details |= details_of(memory) or {}
    if details:
        return {"details": details}
    health.pop("details", None)
    return {}


def last_error(vitals: Vitals) -> str | None:
    """What the last probe said was wrong, if it did."""
    error = json.loads(vitals.finding).get("error") if vitals.finding else None
    return error if isinstance(error, str) else None
