"""The checks of instances, as the checker claims and reports them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from pydantic_core import to_json

from registryd.health.decide import Memory, decide, details_of, heard, verdict_of
from registryd.health.discovered import note, offered, read, standing
from registryd.health.specs import spec_of
from registryd.kit.clock import Clock, rfc3339
from registryd.probing.checker import Claimed, Due
from registryd.probing.latency import noted, typical_worst
from registryd.probing.types import Finding
from registryd.registry.document import Offer
from registryd.registry.store import Claim, RegistryStore, Report, Reported

log = structlog.get_logger(__name__)

MAX_ERROR: Final = 300


@dataclass(frozen=True, slots=True)
class Held:
    """A claim, and the memory that came with it."""

    claim: Claim
    memory: Memory
    degraded_ms: int | None = None


class InstanceChecks:
    """A CheckStore over the registry's part of the store."""

    def __init__(self, store: RegistryStore, clock: Clock, features: Mapping[str, str]) -> None:
        """`features`: which capability a feature stands for that an instance tells of."""
        self._store = store
        self._clock = clock
        self._features = features

    async def claim(
        self, limit: int, *, stretch: float, jitter: float, chance: float, only: str = ""
    ) -> Claimed[Held]:
        claims = await self._store.claim_checks(
            limit, stretch=stretch, jitter=jitter, chance=chance, only=only
        )
        due = [one for one in map(_due, claims.claims) if one is not None]
        next_due = claims.next_due_ms
        return Claimed(due, None if next_due is None else next_due / 1000)

    async def report(self, due: Due[Held], finding: Finding) -> Reported:
        """Records what a probe found, and what that makes of the instance."""
        claim = due.handle.claim
        now = rfc3339(self._clock.now())
        report = report_of(due.handle, finding, self._features, now=now)
        reported = await self._store.report_check(claim, report)
        if reported.outcome == "changed" and reported.status != claim.health:
            log.info(
                "health changed",
                instance=claim.id,
                old=claim.health,
                new=reported.status,
                error=finding.error,
            )
        return reported


def _due(claim: Claim) -> Due[Held] | None:
    memory = Memory.decode(claim.state)
    what: Any
    retries, degraded_ms = 0, None
    if not memory.beats:
        what, retries, degraded_ms = spec_of(claim.document, memory.timeout_ms, memory.sealed)
    elif claim.renewed_ms is not None:
        what = heard(memory, claim.renewed_ms, now_ms=claim.at_ms)
    else:
        return None  # nothing can be said of heartbeats now, and nothing is at stake
    return Due(
        handle=Held(claim, memory, degraded_ms),
        kind="ttl" if memory.beats else what.type,
        what=what,
        retries=retries,
        interval_ms=memory.interval_ms,
        late_ms=claim.late_ms,
        first=not memory.looked_ms,
    )


def report_of(held: Held, finding: Finding, features: Mapping[str, str], *, now: str) -> Report:
    """What the store is told of a finding made at `now` (RFC 3339). Pure."""
    claim = held.claim
    memory, finding = timed(held, finding)
    verdict = verdict_of(finding)
    after, status = decide(memory, verdict, shown=claim.health, now_ms=claim.at_ms)
    told = discovered = ""
    if verdict != "unhealthy" and not memory.beats:
        body = read(finding.body)
        seen, told = note(memory.seen, body, now=now)
        before = Offer.decode(claim.discovered)
        offer, missing = standing(before, seen.missing, offered(body, features))
        after = after._replace(seen=seen._replace(missing=missing))
        if offer != before:
            discovered = offer.encode() or "none"
    shown = _shown(finding, verdict, now, timed=not memory.beats)
    extra = {key: value for key, value in shown.items() if key in _IN_DOCUMENT}
    if details := details_of(after):
        extra = {"details": details, **extra}
    return Report(
        passed=verdict != "unhealthy",
        status="" if status == claim.health else status,
        counts=after.encode_counts(),
        flap=after.encode_flap(),
        finding=to_json(shown),
        error=shown.get("error", ""),
        extra=b"," + to_json(extra)[1:-1],
        told=told.encode(),
        discovered=discovered,
    )


_IN_DOCUMENT: Final = frozenset({"lastCheck", "responseTime", "error"})


def timed(held: Held, finding: Finding) -> tuple[Memory, Finding]:
    """The memory with how long the probe took, and the finding: degraded when it was healthy and the
    latest probes typically took too long."""
    memory, limit = held.memory, held.degraded_ms
    if limit is None:
        return (memory._replace(took=()) if memory.took else memory), finding
    if finding.verdict == "unhealthy":
        return memory, finding
    memory = memory._replace(took=noted(memory.took, finding.response_time_ms))
    worst = typical_worst(memory.took)
    if finding.verdict == "healthy" and worst > limit:
        error = f"typically takes {worst} ms, over {limit} ms"
        return memory, replace(finding, verdict="degraded", error=error)
    return memory, finding


def _shown(finding: Finding, verdict: str, now: str, *, timed: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"lastCheck": now, "verdict": verdict}
    if timed:
        shown["responseTime"] = round(finding.response_time_ms, 1)
    if finding.error:
        shown["error"] = finding.error[:MAX_ERROR]
    if finding.conditions:
        shown["conditions"] = [
            {"condition": text, "passed": passed} for text, passed in finding.conditions
        ]
    return shown
