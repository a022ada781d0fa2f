"""Why an instance is or is not offered, in words. Pure: the facts come from outside."""

import difflib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from registryd.kit.duration import duration_text
from registryd.registry.types import OFFERED, Answer, HealthStatus

NEAR: Final = 3
LOOK_AMONG: Final = 2_000
"""Names that are compared letter by letter; those that begin alike come first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """A registered instance as the view holds it."""

    health: HealthStatus
    since: str
    error: str | None
    """The last probe's, if it failed."""
    draining: bool
    suspect: bool
    admin_reason: str | None
    admin_by: str | None
    admin_until: str | None
    weight: int
    checked: bool
    """Whether it is probed at all; else only heartbeats speak for it."""
    ttl: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The latest entry of the history about an instance that is not registered."""

    type: str
    time: str
    reason: str | None
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    service: str
    instance_id: str
    present: Present | None
    lease_left: timedelta | None = None
    checks_paused: bool = False
    past: Past | None = None
    removed_at: str | None = None
    """The store's tombstone, which outlives the history of a busy service."""
    near: tuple[str, ...] = ()
    """Names like the one asked for, as `service/instance` or `service`."""


class Reason(Answer):
    code: str
    text: str


class Explanation(Answer):
    service: str
    instance: str | None
    offered: bool
    summary: str
    reasons: list[Reason]
    advice: str | None


class Explanations(Explanation):
    """Of a whole service: offered while one of its instances is."""

    instances: list[Explanation]


ReasonCode = Literal[
    "healthy",
    "degraded",
    "unknown",
    "unhealthy",
    "maintenance",
    "draining",
    "suspect",
    "lease_ending",
    "checks_paused",
    "not_checked",
    "weight_zero",
    "expired",
    "deregistered",
    "removed",
    "never_registered",
]

ADVICE: Final[dict[ReasonCode, str]] = {
    "unhealthy": "look at the instance itself; it is offered again once enough probes in a row pass",
    "maintenance": 'end it with PUT …/maintenance and {"enabled": false}',
    "draining": "it will be unregistered; register it again to keep it",
    "suspect": "it is held, not dropped; a heartbeat clears it, POST /cleanup?force=true lets it go",
    "lease_ending": "send heartbeats at the lease's renewIntervalSeconds",
    "checks_paused": 'resume with PUT /monitoring and {"enabled": true}',
    "unknown": "nothing is known of its health yet; wait for the first probe, or let it report itself",
    "expired": "its heartbeats stopped; if it runs, let it register again",
    "deregistered": "if it should be there, let it register again",
    "removed": "let it register again",
    "never_registered": "check the name, and whether the service registers with this registry",
}


def explain(facts: Facts) -> Explanation:
    found = list(_present(facts, facts.present) if facts.present else _absent(facts))
    codes = {code for code, _ in found}
    hidden = codes & _HIDING
    # Words for what hides it, or else for the best there is to say.
    first = next((text for code, text in found if not hidden or code in hidden), "")
    advice = next((ADVICE[code] for code, _ in found if code in hidden and code in ADVICE), None)
    if not hidden:
        advice = next((ADVICE[code] for code, _ in found if code in ADVICE), None)
    word = "not offered" if hidden else "offered"
    return Explanation(
        service=facts.service,
        instance=facts.instance_id or None,
        offered=not hidden,
        summary=f"{_named(facts)} is {word}: {first}",
        reasons=[Reason(code=code, text=text) for code, text in found],
        advice=advice,
    )


_HIDING: Final[frozenset[ReasonCode]] = frozenset(
    {
        "unhealthy",
        "maintenance",
        "draining",
        "expired",
        "deregistered",
        "removed",
        "never_registered",
    }
)

Found = Iterable[tuple[ReasonCode, str]]


def _named(facts: Facts) -> str:
    return f"{facts.service}/{facts.instance_id}" if facts.instance_id else facts.service


def _present(facts: Facts, held: Present) -> Found:
    said = f", the last probe said: {held.error}" if held.error else ""
    if held.draining:
        yield "draining", f"draining{_admin(held)}, renewals do not extend it"
    match held.health:
        case HealthStatus.MAINTENANCE:
            yield "maintenance", f"in maintenance since {held.since}{_admin(held)}"
        case HealthStatus.UNHEALTHY:
            yield "unhealthy", f"unhealthy since {held.since}{said}"
        case HealthStatus.DEGRADED:
            yield (
                "degraded",
                f"degraded since {held.since}{said}; offered when no healthy instance is there",
            )
        case HealthStatus.UNKNOWN:
            yield "unknown", f"no probe has found out yet how it fares, since {held.since}{said}"
        case HealthStatus.HEALTHY:
            yield "healthy", f"healthy since {held.since}"
    if held.suspect:
        yield (
            "suspect",
            "its lease ended together with many others, so the expiry guard holds it; it comes after "
            "all others",
        )
    left = facts.lease_left
    if left is not None and not held.draining and left <= held.ttl / 3:
        yield (
            "lease_ending",
            f"its lease of {duration_text(held.ttl)} ends in {left.total_seconds():.0f} s: at least two "
            "heartbeats are missing",
        )
    if facts.checks_paused and held.checked:
        yield "checks_paused", "probing is paused, so what is known of its health grows old"
    if not held.checked:
        yield (
            "not_checked",
            "it is not probed; only its heartbeats and what it says of itself count",
        )
    if held.weight == 0 and held.health in OFFERED and not held.draining:
        yield "weight_zero", "its weight is 0, so it is chosen only when no other is left"


def _admin(held: Present) -> str:
    parts = [f"by {held.admin_by}"] if held.admin_by else []
    if held.admin_until:
        parts.append(f"until {held.admin_until}")
    return "".join(f" {part}" for part in parts) + (
        f" ({held.admin_reason})" if held.admin_reason else ""
    )


def _absent(facts: Facts) -> Found:
    past = facts.past
    because = f" ({past.reason})" if past is not None and past.reason else ""
    if past is not None and past.type == "service:expired":
        yield "expired", f"its lease ended at {past.time}{because}, no heartbeat had come in time"
    elif past is not None and past.type == "service:unregistered":
        yield "deregistered", f"deregistered at {past.time} by {past.by}{because}"
    elif facts.removed_at is not None:
        yield "removed", f"removed at {facts.removed_at}; what happened then is no longer recorded"
    else:
        meant = f"; did you mean {' or '.join(facts.near)}?" if facts.near else ""
        yield "never_registered", f"nothing of that name is registered, nor was lately{meant}"


def whole(service: str, parts: list[Explanation]) -> Explanations:
    """A service out of its instances; `parts` is not empty."""
    offered = [part for part in parts if part.offered]
    word = "offered" if offered else "not offered"
    codes = {reason.code: reason for part in parts for reason in part.reasons}
    return Explanations(
        service=service,
        instance=None,
        offered=bool(offered),
        summary=f"{service} is {word}: {len(offered)} of {len(parts)} instances can be chosen",
        reasons=list(codes.values()),
        advice=None if offered else next((part.advice for part in parts if part.advice), None),
        instances=parts,
    )


def near_misses(wanted: str, names: Iterable[str]) -> tuple[str, ...]:
    """Names that somebody may have meant, the likeliest first. Bounded work, whatever the number of
    names: those that differ in case alone, then those most alike among the ones that begin alike."""
    low = wanted.lower()
    alike: list[str] = []
    others: list[str] = []
    for name in names:
        if name.lower() == low:
            return (name,)
        if abs(len(name) - len(wanted)) <= 4:
            (alike if name[:1].lower() == low[:1] else others).append(name)
    pool = list(itertools.islice(itertools.chain(alike, others), LOOK_AMONG))
    return tuple(difflib.get_close_matches(wanted, pool, n=NEAR, cutoff=0.6))
