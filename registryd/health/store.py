"""The checks of instances, as the checker claims and reports them."""

import json
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from registryd.health.decide import Memory, decide, details_of, heard, verdict_of
from registryd.health.discovered import note, read
from registryd.health.specs import spec_of
from registryd.kit.clock import Clock, rfc3339
from registryd.probing.checker import Claimed, Due
from registryd.probing.types import Finding
from registryd.registry.store import Claim, RegistryStore, Report, Reported

log = structlog.get_logger(__name__)

MAX_ERROR: Final = 300


@dataclass(frozen=True, slots=True)
class Held:
    """A claim, and the memory that came with it."""

    claim: Claim
    memory: Memory


class InstanceChecks:
    """A CheckStore over the registry's part of the store."""

    def __init__(self, store: RegistryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

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
        report = report_of(due.handle, finding, now=rfc3339(self._clock.now()))
        reported = await self._store.report_check(claim, report)
        if reported.outcome == "changed":
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
    retries = 0
    if not memory.beats:
        what, retries = spec_of(claim.document, memory.timeout_ms, memory.sealed)
    elif claim.renewed_ms is not None:
        what = heard(memory, claim.renewed_ms, now_ms=claim.at_ms)
    else:
        return None  # nothing can be said of heartbeats now, and nothing is at stake
    return Due(
        handle=Held(claim, memory),
        kind="ttl" if memory.beats else what.type,
        what=what,
        retries=retries,
        interval_ms=memory.interval_ms,
        late_ms=claim.late_ms,
        first=not memory.looked_ms,
    )


def report_of(held: Held, finding: Finding, *, now: str) -> Report:
    """What the store is told of a finding made at `now` (RFC 3339). Pure."""
    claim, memory = held.claim, held.memory
    verdict = verdict_of(finding)
    after, status = decide(memory, verdict, shown=claim.health, now_ms=claim.at_ms)
    discovered: bytes = b""
    if verdict != "unhealthy" and not memory.beats:
        seen, text = note(memory.seen, read(finding.body), now=now)
        after = replace(after, seen=seen)
        discovered = text.encode()
    shown = _shown(finding, verdict, now, timed=not memory.beats)
    extra = {key: value for key, value in shown.items() if key in _IN_DOCUMENT}
    if details := details_of(after):
        extra = {"details": details, **extra}
    return Report(
        passed=verdict != "unhealthy",
        status="" if status == claim.health else status,
        counts=after.encode_counts(),
        flap=after.encode_flap(),
        finding=_json(shown),
        error=shown.get("error", ""),
        extra=b"," + _json(extra)[1:-1],
        discovered=discovered,
    )


_IN_DOCUMENT: Final = frozenset({"lastCheck", "responseTime", "error"})


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


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
