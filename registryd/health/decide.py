"""What a finding makes of an instance's health. Pure: the memory of earlier ones comes and goes as text.

The store hands the memory out with a claim and takes it back with the report, and a claim is one
daemon's alone; so the decision is made here, once, and is as atomic as if the store had made it.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from registryd.health.discovered import Seen
from registryd.probing import flap as flapping
from registryd.probing.flap import Flap
from registryd.probing.rise_fall import Counts, Rules, count, reached
from registryd.probing.types import Finding, Verdict
from registryd.registry.sealed import Sealed

SUSTAINED: Final = 3
"""So many times the threshold in a row is no flapping but an outage, and is shown also while damped."""

DEGRADED_WORDS: Final = frozenset({"degraded", "warn", "warning"})


class Memory(NamedTuple):
    """All that is remembered of a check from one finding to the next."""

    rules: Rules
    interval_ms: int
    timeout_ms: int
    since_ms: int
    """When counting began, on the lease clock."""
    beats: bool = False
    counts: Counts = Counts()
    flap: Flap = Flap()
    status: str = ""
    """What the thresholds say; it differs from what is shown only while that is damped."""
    missed: bool = False
    """It is unhealthy because heartbeats were missed, not because it said so."""
    seen: Seen = Seen()
    took: tuple[int, ...] = ()
    """How long the latest successful probes took, in ms, where that is judged."""
    looked_ms: int = 0
    """When the last finding was made, on the lease clock."""
    sealed: Sealed = Sealed()  # never changed
    """What the check sends and nobody is shown."""

    @classmethod
    def decode(cls, state: bytes) -> "Memory":
        """Reads a row of checkstate (see `Claim.state`)."""
        row: dict[str, Any] = from_json(state)
        kept: dict[str, Any] = from_json(row["counts"]) if row["counts"] else {}
        flap: dict[str, Any] = from_json(row["flap"]) if row["flap"] else {}
        return cls(
            Rules(int(row["rise"]), int(row["fall"]), int(row.get("grace", 0))),
            int(row["interval"]),
            int(row["timeout"]),
            int(row["since"]),
            bool(row.get("beats", False)),
            Counts(kept.get("failures", 0), kept.get("successes", 0), kept.get("started", False)),
            Flap(
                flap.get("penalty", 0.0),
                flap.get("at", 0),
                tuple(flap.get("recent", ())),
                flap.get("damped", False),
            ),
            kept.get("status", ""),
            kept.get("missed", False),
            Seen(
                kept.get("digest", ""),
                kept.get("absent", 0),
                kept.get("seenAt", ""),
                kept.get("missing", ""),
            ),
            tuple(kept.get("took", ())),
            kept.get("looked", 0),
            Sealed(row.get("sealed", ())),
        )

    def encode_counts(self) -> str:
        return _text(
            {
                "failures": self.counts.failures,
                "successes": self.counts.successes,
                "started": self.counts.started,
                "status": self.status,
                "missed": self.missed,
                "digest": self.seen.digest,
                "absent": self.seen.absent,
                "seenAt": self.seen.at,
                "missing": self.seen.missing,
                "took": self.took,
                "looked": self.looked_ms,
            }
        )

    def encode_flap(self) -> str:
        if not self.flap.recent:
            return ""
        return _text(
            {
                "penalty": round(self.flap.penalty, 3),
                "at": self.flap.at_ms,
                "recent": self.flap.recent,
                "damped": self.flap.damped,
            }
        )


def _text(fields: Mapping[str, object]) -> str:
    return to_json({name: value for name, value in fields.items() if value}).decode()


def verdict_of(finding: Finding) -> Verdict:
    """The probe's verdict; who answers well but says of himself that he is degraded is that."""
    said = finding.body.get("status") if finding.body is not None else None
    if finding.verdict == "healthy" and isinstance(said, str) and said.lower() in DEGRADED_WORDS:
        return "degraded"
    return finding.verdict


def heard(memory: Memory, renewed_ms: int, *, now_ms: int) -> Finding:
    """What the heartbeats of an instance tell, the last of which came `renewed_ms` ago: one is due in
    every interval, or since the last look, when that is longer ago."""
    looked = now_ms - memory.looked_ms if memory.looked_ms else 0
    if renewed_ms <= max(memory.interval_ms, looked):
        return Finding(verdict="healthy", response_time_ms=0.0)
    return Finding(
        verdict="unhealthy",
        response_time_ms=0.0,
        error=f"no heartbeat for {renewed_ms / 1000:.1f} s, one is due every "
        f"{memory.interval_ms / 1000:g} s",
    )


def decide(memory: Memory, verdict: Verdict, *, shown: str, now_ms: int) -> tuple[Memory, str]:
    """The memory after one more finding, and the status to show from now on.

    While damped an instance is shown as degraded: it works at times, so it is worth trying after those
    that always do. Shown healthy it would get the calls it keeps dropping; shown unhealthy, a fault
    on our own side of the network would take everything away at once.
    """
    counts = count(memory.rules, memory.counts, verdict, age_ms=now_ms - memory.since_ms)
    wanted = reached(memory.rules, counts, verdict)
    missed = memory.missed and shown == "unhealthy"
    if memory.beats:
        if verdict != "unhealthy" and not (shown == "unknown" or missed):
            wanted = None  # a heartbeat alone does not overrule what it said of itself
        if wanted == "unhealthy":
            missed = missed or shown != "unhealthy"
    before = (memory.status or shown) if memory.flap.damped else shown
    flap = flapping.decayed(memory.flap, now_ms)
    status = wanted or before
    if status != before and before != "unknown":
        flap = flapping.changed(flap, now_ms)
    after = memory._replace(
        counts=counts, flap=flap, status=status, missed=missed, looked_ms=now_ms
    )
    if flap.damped:
        return after, _damped(memory, after, shown)
    if wanted is not None or memory.flap.damped:
        return after, status
    return after, shown


def _damped(before: Memory, after: Memory, shown: str) -> str:
    if after.status != "unhealthy":
        return "degraded"
    if after.counts.failures >= SUSTAINED * after.rules.fall:
        return "unhealthy"
    # Shown as an outage already, it stays one until something succeeds.
    return "unhealthy" if before.flap.damped and shown == "unhealthy" else "degraded"


def details_of(memory: Memory) -> dict[str, object] | None:
    """What health `details` says of a damped instance."""
    if not memory.flap.damped:
        return None
    return {
        "damped": True,
        "reason": f"changed {flapping.CHANGES} times within "
        f"{flapping.WINDOW_MS // 60_000} minutes; shown as it is once it keeps still",
        "penalty": round(memory.flap.penalty),
    }
