"""What the scripts promise, said once more in plain Python: the registry as one sequential object.

Its methods have the names, arguments and answers of RegistryStore, so that a driver can call both and
compare. It keeps no derived data: index sets and expiring keys follow from what it holds.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar

from registryd.feed.revision import NOWHERE, Revision
from registryd.registry.document import Admin, Offer, Row, compose
from registryd.registry.store import (
    Check,
    Claim,
    Claims,
    Entry,
    Guard,
    Refused,
    Registering,
    Removed,
    Renewal,
    Renewed,
    Report,
    Reported,
    Stored,
    Swept,
)

CAP: Final = 600
TRANSITIONS_LIFE_MS: Final = 7 * 24 * 3_600_000

Answer = TypeVar("Answer")


def moment(ms: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Counts:
    """The check of one instance."""

    check: Check
    due: int
    since: int
    kept: str = ""
    flap: str = ""
    token: str = ""

    def encode(self, incarnation: str) -> bytes:
        """The row as a claim hands it out."""
        row = {**json.loads(self.check.encode()), "inc": incarnation, "since": self.since}
        row |= {"counts": self.kept, "flap": self.flap, "token": self.token}
        return json.dumps(row).encode()


@dataclass
class Inst:
    entry: Entry
    incarnation: str
    health: str
    since: str
    registered: str
    updated: str
    deadline: int
    revision: Revision = NOWHERE
    extra: str = ""
    probed: bool = False
    beaten: bool = False
    held: bool = False
    dated: int | None = None
    """When the expiring key says that it ends, wall ms; None when the key was lost."""
    counts: Counts | None = None
    finding: bytes = b""
    told: bytes = b""
    discovered: str = ""
    transitions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def row(self) -> Row:
        entry = self.entry
        return Row(
            ttl_ms=entry.ttl_ms,
            incarnation=self.incarnation,
            revision=self.revision,
            health=self.health,
            since=self.since,
            extra=self.extra,
            registered_at=self.registered,
            updated_at=self.updated,
            endpoint=entry.endpoint,
            terms=tuple(entry.terms),
            discovered=self.discovered,
        )

    @property
    def undeclared(self) -> list[tuple[str, str]]:
        """Discovered capabilities of names that it does not declare."""
        found = Offer.decode(self.discovered).capabilities
        return [one for one in found if f"capability:{one[0]}" not in self.entry.terms]

    @property
    def claims(self) -> set[str]:
        return {*self.entry.claims, *map("@".join, self.undeclared)}


def still_discovered(was: Inst, entry: Entry) -> str:
    """What probes found stays while the same endpoint is probed."""
    probed = entry.check is not None and not entry.check.beats
    return was.discovered if probed and was.entry.endpoint == entry.endpoint else ""


def changes(had: set[str], has: set[str]) -> list[list[str]]:
    """What was gained and lost, by name; one version in place of one other is a change."""
    found = []
    for name in sorted({claim.partition("@")[0] for claim in had | has}):
        gained, lost = (
            sorted(claim.partition("@")[2] for claim in part if claim.startswith(f"{name}@"))
            for part in (has - had, had - has)
        )
        if len(gained) == len(lost) == 1:
            found.append(["changed", name, gained[0], lost[0]])
        else:
            found += [["added", name, version] for version in gained]
            found += [["removed", name, version] for version in lost]
    return found


@dataclass
class Logged:
    """One entry of the stream."""

    at: Revision
    kind: str
    id: str = ""
    row: Row | None = None
    document: bytes = b""
    admin: bytes = b""
    suspect: bool = False
    reason: str = ""
    old: str = ""
    ids: list[str] = field(default_factory=list)
    capabilities: list[list[str]] = field(default_factory=list)
    ts: int = 0


class Model:
    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.last: int | None = None
        self.skew = 0
        self.epoch = 0
        self.rev = 0
        self.lease_now = now_ms
        self.guard_since: int | None = None
        self.repair_wanted = False
        self.paused = False
        self.resumed = 0
        self.instances: dict[str, Inst] = {}
        self.admin: dict[str, bytes] = {}
        self.until: dict[str, int] = {}
        self.tombstones: dict[str, tuple[Revision, int]] = {}
        self.log: list[Logged] = []
        self.answers: dict[str, Any] = {}
        self._skew_seen = 0
        self._jump = 0

    # --- the lease clock

    def _tick(self) -> None:
        step = 0 if self.last is None else self.now_ms - self.last
        self._jump = step if step < 0 or step > CAP else 0
        self._skew_seen = self.skew + min(step, 0) + max(step - CAP, 0)
        self.lease_now = self.now_ms - self._skew_seen

    def _commit(self) -> None:
        if self._jump:
            self.repair_wanted = True
        if self._jump or self.last is None or self.now_ms - self.last >= 100:
            self.last, self.skew = self.now_ms, self._skew_seen

    # --- parts

    def state(self, identity: str) -> str:
        raw = self.admin.get(identity)
        return json.loads(raw)["state"] if raw else ""

    def draining(self, identity: str) -> bool:
        return identity in self.instances and self.state(identity) == "draining"

    def effective(self, inst: Inst) -> str:
        return "maintenance" if self.state(inst.id) == "maintenance" else inst.health

    def terms(self, inst: Inst) -> set[str]:
        found = {f"capability:{name}" for name, _ in inst.undeclared}
        return {*inst.entry.terms, *found, f"health:{self.effective(inst)}"}

    def shown(self, inst: Inst) -> bytes:
        admin = Admin.decode(self.admin.get(inst.id, b""))
        return compose(inst.entry.document, inst.row, admin, suspect=inst.held)

    def _emit(
        self, kind: str, identity: str = "", inst: Inst | None = None, **more: Any
    ) -> Revision:
        if not self.epoch:
            self.epoch = self.now_ms
            self.last, self.skew = self.now_ms, self._skew_seen
        self.rev += 1
        at = Revision(self.epoch, self.rev)
        entry = Logged(at, kind, identity, ts=self.now_ms, **more)
        if inst is not None:
            inst.revision = at
            entry.row, entry.document = inst.row, inst.entry.document
            entry.admin = self.admin.get(identity, b"")
            entry.suspect = inst.held
        self.log.append(entry)
        return at

    def _date(self, inst: Inst) -> None:
        inst.dated = inst.deadline + self._skew_seen

    def _schedule(self, inst: Inst) -> None:
        check = inst.entry.check
        if check is None:
            inst.counts, inst.finding, inst.told = None, b"", b""
            return
        flap = inst.counts.flap if inst.counts else ""
        inst.counts = Counts(check, self.lease_now, self.lease_now, flap=flap)

    def _note(self, inst: Inst, old: str, reason: str, error: str = "") -> None:
        """One more of the instance's transitions, if there was one."""
        new = self.effective(inst)
        if new == old:
            return
        one = {"at": self.now_ms, "old": old, "new": new, "reason": reason}
        young = [t for t in inst.transitions if self.now_ms - t["at"] < TRANSITIONS_LIFE_MS]
        inst.transitions = [*young, one | ({"error": error} if error else {})][-20:]

    def _remove(self, inst: Inst, kind: str, reason: str) -> Revision:
        identity, state = inst.id, self.state(inst.id)
        capabilities = changes(inst.claims, set())
        at = self._emit(kind, identity, reason=reason, capabilities=capabilities)
        del self.instances[identity]
        if kind != "service:expired" or state != "maintenance":
            self.admin.pop(identity, None)
            self.until.pop(identity, None)
        self.tombstones[identity] = (at, self.now_ms)
        return at

    def _end(self, inst: Inst) -> None:
        if self.draining(inst.id):
            self._remove(inst, "service:unregistered", "drained")
        else:
            self._remove(inst, "service:expired", "lease ended")

    def _rescue(self, inst: Inst) -> None:
        inst.held = False
        self._emit("service:updated", inst.id, inst, reason="renewed")

    def _remember(self, nonce: str | None, answer: Answer) -> Answer:
        if nonce is not None:
            self.answers[nonce] = answer
        return answer

    def _stored(self, outcome: Any, inst: Inst, *, suspect: bool) -> Stored:
        return Stored(
            outcome,
            inst.revision,
            inst.deadline + self._skew_seen,
            inst.row,
            Admin.decode(self.admin.get(inst.id, b"")),
            suspect,
        )

    @staticmethod
    def _matches(expected: str, inst: Inst | None) -> bool:
        if expected == "":
            return True
        return expected == ("absent" if inst is None else str(inst.revision))

    # --- what RegistryStore offers

    def register(
        self,
        entry: Entry,
        *,
        incarnation: str = "",
        claim: str = "",
        expected: str = "",
        exclusive: bool = False,
        nonce: str = "",
    ) -> Stored | Refused:
        if nonce in self.answers:
            remembered: Stored | Refused = self.answers[nonce]
            return remembered
        self._tick()
        was = self.instances.get(entry.id)
        if was is not None and was.deadline < self.lease_now:
            if not self._matches(expected, None):
                return Refused("mismatch")
            self._end(was)
            was = None
        if not self._matches(expected, was):
            return Refused("mismatch")
        if was is not None and exclusive and was.entry.endpoint != entry.endpoint:
            return Refused("taken")
        draining = self.draining(entry.id)
        probed = was is not None and was.probed and entry.check is not None
        heard = was is not None and claim != "" and not probed and claim != was.health
        if (
            was is not None
            and was.entry == entry
            and not heard
            and incarnation in {"", was.incarnation}
        ):
            self._commit()
            if not draining:
                was.deadline = self.lease_now + entry.ttl_ms
                self._date(was)
                if was.held:
                    self._rescue(was)
            return self._remember(nonce, self._stored("same", was, suspect=False))
        now = moment(self.now_ms)
        inst = Inst(
            entry,
            incarnation or nonce,
            claim or "unknown",
            since=now,
            registered=was.registered if was else now,
            updated=now,
            deadline=was.deadline if was and draining else self.lease_now + entry.ttl_ms,
            probed=probed,
        )
        if was is not None and not heard:
            inst.health, inst.since, inst.extra = was.health, was.since, was.extra
        if was is not None:
            inst.counts, inst.finding, inst.told = was.counts, was.finding, was.told
            inst.transitions = was.transitions
            self._note(inst, self.effective(was), "registered")
            inst.discovered = still_discovered(was, entry)
        self.instances[entry.id] = inst
        kind = "service:updated" if was else "service:registered"
        capabilities = changes(was.claims if was else set(), inst.claims)
        self._emit(kind, entry.id, inst, capabilities=capabilities)
        self._commit()
        self.tombstones.pop(entry.id, None)
        self._schedule(inst)
        self._date(inst)
        return self._remember(
            nonce, self._stored("updated" if was else "registered", inst, suspect=False)
        )

    def register_all(self, batch: Sequence[Registering]) -> list[Stored | Refused]:
        return [
            self.register(
                one.entry,
                incarnation=one.incarnation,
                claim=one.claim,
                expected=one.expected,
                exclusive=one.exclusive,
                nonce=one.operation,
            )
            for one in batch
        ]

    def amend(
        self,
        identity: str,
        *,
        reason: str,
        expected: str = "",
        entry: Entry | None = None,
        health: str = "",
        admin: bytes | Literal["", "none"] = "",
        admin_end_ms: int | None = None,
        drain: timedelta | None = None,
        nonce: str = "",
    ) -> Stored | Refused:
        if nonce in self.answers:
            remembered: Stored | Refused = self.answers[nonce]
            return remembered
        self._tick()
        inst = self.instances.get(identity)
        if inst is None:
            return Refused("unknown")
        if not self._matches(expected, inst):
            return Refused("mismatch")
        before = self.effective(inst)
        was_draining = self.draining(identity)
        old_admin = self.admin.get(identity, b"")
        new_admin = old_admin if admin == "" else b"" if admin == "none" else admin
        rewritten = entry is not None and entry != inst.entry
        healed = health not in {"", inst.health}
        if not (rewritten or healed or new_admin != old_admin):
            return self._remember(nonce, self._stored("same", inst, suspect=inst.held))
        now = moment(self.now_ms)
        checks_changed, had = False, inst.claims
        if entry is not None and rewritten:
            checks_changed = (
                entry.check != inst.entry.check
                or entry.endpoint != inst.entry.endpoint
                or bool(entry.ttl_ms != inst.entry.ttl_ms and entry.check and entry.check.beats)
            )
            inst.discovered = still_discovered(inst, entry)
            inst.entry = entry
            inst.probed = inst.probed and entry.check is not None
        if healed:
            inst.health, inst.since, inst.extra = health, now, ""
        assert isinstance(new_admin, bytes)
        if admin != "":
            self.until.pop(identity, None)
            self.admin.pop(identity, None)
            if new_admin:
                self.admin[identity] = new_admin
                if admin_end_ms is not None and self.state(identity) == "maintenance":
                    self.until[identity] = admin_end_ms
        after, drains = self.effective(inst), self.draining(identity)
        inst.updated = now
        if after != before:
            inst.since = now
        if drain is not None:
            inst.deadline = self.lease_now + int(drain.total_seconds() * 1000)
        elif was_draining and not drains:
            inst.deadline = self.lease_now + inst.entry.ttl_ms
        if drains:
            inst.held = False
        kind = "service:health:changed" if after != before and not rewritten else "service:updated"
        capabilities = changes(had, inst.claims)
        self._emit(kind, identity, inst, reason=reason, old=before, capabilities=capabilities)
        self._note(inst, before, reason)
        self._commit()
        if checks_changed:
            self._schedule(inst)
        self._date(inst)
        return self._remember(nonce, self._stored("amended", inst, suspect=inst.held))

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Refused]:
        self._tick()
        self._commit()
        answers: list[Renewed | Refused] = []
        renewed: list[Inst] = []
        for renewal in renewals:
            inst = self.instances.get(renewal.id)
            if inst is None:
                answers.append(Refused("unknown"))
            elif renewal.incarnation not in {"", inst.incarnation}:
                answers.append(Refused("superseded", inst.incarnation))
            elif self.draining(inst.id):
                answers.append(Renewed(renewal.ttl_ms, inst.deadline + self._skew_seen))
            else:
                inst.beaten = True
                renewed.append(inst)
                answers.append(Renewed(inst.entry.ttl_ms, self.now_ms + inst.entry.ttl_ms))
        for inst in renewed:
            inst.deadline = self.lease_now + inst.entry.ttl_ms
            self._date(inst)
            if inst.held:
                self._rescue(inst)
        return answers

    def report_status(
        self, identity: str, incarnation: str, status: str, extra: bytes = b""
    ) -> Revision | None:
        self._tick()
        inst = self.instances.get(identity)
        if (
            inst is None
            or incarnation not in {"", inst.incarnation}
            or inst.probed
            or inst.health == status
        ):
            return None
        reason = "reported by the instance"
        before = self.effective(inst)
        inst.health, inst.since, inst.extra = status, moment(self.now_ms), extra.decode()
        kind = "service:updated" if self.effective(inst) == before else "service:health:changed"
        at = self._emit(kind, inst.id, inst, reason=reason, old=before)
        self._note(inst, before, reason)
        self._commit()
        self._date(inst)
        return at

    def deregister(
        self,
        identities: Sequence[str],
        *,
        incarnation: str = "",
        expected: str = "",
        reason: str = "deregistered",
        nonce: str = "",
    ) -> Removed | Refused:
        if nonce in self.answers:
            remembered: Removed | Refused = self.answers[nonce]
            return remembered
        self._tick()
        found = [self.instances[i] for i in dict.fromkeys(identities) if i in self.instances]
        for inst in found:
            if incarnation not in {"", inst.incarnation}:
                return Refused("superseded", inst.incarnation)
            if not self._matches(expected, inst):
                return Refused("mismatch")
        if not found:
            return self._remember(nonce, Refused("unknown"))
        at = NOWHERE
        for inst in found:
            at = self._remove(inst, "service:unregistered", reason)
        self._commit()
        return self._remember(nonce, Removed(at, len(found)))

    def claim_checks(
        self,
        limit: int,
        tokens: Sequence[str],
        *,
        stretch: float = 1.0,
        jitter: float = 0.0,
        chance: float = 0.0,
        only: str = "",
    ) -> Claims:
        """`tokens` are those that the store made: any will do, as long as it is new."""
        self._tick()
        self._commit()
        checked = {i: inst.counts for i, inst in self.instances.items() if inst.counts}
        if only:
            due = [only] if only in checked else []
        elif self.paused:
            return Claims(paused=True, next_due_ms=None, claims=[])
        else:
            late = sorted((c.due, i) for i, c in checked.items() if c.due <= self.lease_now)
            due = [identity for _, identity in late[:limit]]
        claims = []
        for number, (identity, token) in enumerate(zip(due, tokens, strict=True), 1):
            inst, counts = self.instances[identity], checked[identity]
            counts.token = token
            late_ms = max(0, self.lease_now - max(counts.due, self.resumed))
            part = (chance + number * 0.6180339887) % 1
            factor = stretch * (1 + jitter * (part - 0.5))
            counts.due = round(self.lease_now + counts.check.interval_ms * factor)
            renewed = None
            if not inst.held and not self.draining(identity):
                began = max(inst.deadline - inst.entry.ttl_ms, counts.since)
                renewed = max(0, self.lease_now - began)
            claims.append(
                Claim(
                    identity,
                    counts.encode(inst.incarnation),
                    inst.entry.document,
                    inst.health,
                    self.lease_now,
                    late_ms,
                    renewed,
                    inst.discovered,
                )
            )
        first = min((counts.due for counts in checked.values()), default=None)
        next_due = None if first is None else max(0, first - self.lease_now)
        return Claims(self.paused, next_due, claims)

    def report_check(self, claim: Claim, report: Report, *, nonce: str = "") -> Reported:
        if nonce in self.answers:
            remembered: Reported = self.answers[nonce]
            return remembered
        self._tick()
        inst = self.instances.get(claim.id)
        if inst is None or inst.counts is None:
            return Reported("gone")
        counts = inst.counts
        if counts.token != json.loads(claim.state)["token"]:
            return Reported("stale")
        counts.token, counts.kept, counts.flap = "", report.counts, report.flap
        beats = counts.check.beats
        health = report.status or inst.health
        if beats and inst.health != claim.health:
            health = inst.health
        renews = report.passed and not beats and not inst.beaten and not self.draining(inst.id)
        rescued = renews and inst.held
        inst.probed = inst.probed or not beats
        reported = Reported("counted", health)
        if health != inst.health or report.discovered:
            inst.held = inst.held and not rescued
            rescued = False
            at = self._probed(inst, health, report)
            reported = Reported("changed", health, at)
        self._commit()
        if renews:
            inst.deadline = self.lease_now + inst.entry.ttl_ms
        if rescued:
            self._rescue(inst)
        self._date(inst)
        inst.finding = report.finding or inst.finding
        if report.told:
            inst.told = b"" if report.told == b"none" else bytes(report.told)
        return self._remember(nonce, reported)

    def _probed(self, inst: Inst, health: str, report: Report) -> Revision:
        before, had = self.effective(inst), inst.claims
        reason = "discovered"
        if health != inst.health:
            reason = "probed"
            inst.health, inst.since = health, moment(self.now_ms)
            inst.extra = report.extra.decode()
        if report.discovered:
            inst.discovered = "" if report.discovered == "none" else report.discovered
        kind = "service:updated" if self.effective(inst) == before else "service:health:changed"
        capabilities = changes(had, inst.claims)
        at = self._emit(kind, inst.id, inst, reason=reason, old=before, capabilities=capabilities)
        self._note(inst, before, "probed", report.error)
        return at

    def monitoring(self, enabled: bool | None = None) -> bool:
        self._tick()
        if enabled is not None and enabled == self.paused:
            self._commit()
            self.paused = not enabled
            if enabled:
                self.resumed = self.lease_now
        return not self.paused

    def sweep(self, guard: Guard | None, *, force: bool = False) -> Swept:
        """Of a registry that is smaller than one batch."""
        self._tick()
        self._commit()
        for _, identity in sorted((at, i) for i, at in self.until.items() if at <= self.now_ms):
            del self.until[identity]
            del self.admin[identity]
            inst = self.instances.get(identity)
            if inst is not None:
                inst.since = inst.updated = moment(self.now_ms)
                self._emit(
                    "service:health:changed",
                    identity,
                    inst,
                    reason="maintenance ended",
                    old="maintenance",
                )
                self._note(inst, "maintenance", "maintenance ended")
                self._date(inst)

        due = self._due()
        undecided = [inst for inst in due if not inst.held and not self.draining(inst.id)]
        holding = guard is not None and not force and len(undecided) > 0
        if guard is not None and holding:
            if self.guard_since is None:
                holding = len(undecided) >= max(guard.min_due, guard.fraction * len(self.instances))
            else:
                longest = self.guard_since + guard.max_hold.total_seconds() * 1000
                holding = self.lease_now < longest
            if holding:
                self._hold(undecided, guard)
        goers = self._due()
        if holding:
            goers.sort(key=lambda inst: (self.draining(inst.id), inst.deadline, inst.id))
        if force:
            late = {inst.id for inst in goers}
            rest = [i for i in self.instances.values() if i.held and i.id not in late]
            goers += sorted(rest, key=lambda inst: (inst.deadline, inst.id))
        for inst in goers:
            self._end(inst)

        held = sum(inst.held for inst in self.instances.values())
        if self.guard_since is not None and held == 0:
            self.guard_since = None
            self._emit("registry:preserving", reason="over")
        return Swept(
            preserving=self.guard_since is not None,
            due=len(self._due()),
            jump_ms=self._jump,
            instances=len(self.instances),
            leases=len(self.instances),
            revision=Revision(self.epoch, self.rev) if self.epoch else NOWHERE,
            held=held,
            derived_errors=0,
            repair=self.repair_wanted,
            removed=[inst.id for inst in goers],
        )

    def _hold(self, undecided: list[Inst], guard: Guard) -> None:
        at = self._emit(
            "registry:preserving",
            ids=[inst.id for inst in undecided],
            reason=f"{len(undecided)} of {len(self.instances)} leases ended together",
        )
        if self.guard_since is None:
            self.guard_since = self.lease_now
        for inst in undecided:
            longest = int(guard.max_hold.total_seconds() * 1000)
            inst.deadline = self.lease_now + min(inst.entry.ttl_ms, longest)
            inst.held = True
            inst.revision = at
            self._date(inst)

    def _due(self) -> list[Inst]:
        late = [inst for inst in self.instances.values() if inst.deadline < self.lease_now]
        return sorted(late, key=lambda inst: (inst.deadline, inst.id))

    def repair(self) -> None:
        """All of it."""
        self._tick()
        for inst in self.instances.values():
            if inst.deadline >= self.lease_now:
                self._date(inst)
        self.repair_wanted = False

    def forget_tombstones(self, retention_ms: int) -> int:
        self._tick()
        old = [i for i, (_, at) in self.tombstones.items() if self.now_ms - at > retention_ms]
        for identity in old:
            del self.tombstones[identity]
            if identity not in self.instances:
                self.admin.pop(identity, None)
                self.until.pop(identity, None)
        return len(old)
