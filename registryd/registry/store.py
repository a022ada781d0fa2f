"""Every change and every bulk read of the registry's part of the store: one method a script.

The scripts decide; this module gives them typed arguments and reads typed answers. What each does, its
KEYS, ARGV and returns are in the headers of lua/*.lua. All methods raise StorageUnavailable.
"""

import itertools
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

from pydantic_core import from_json

from registryd.errors import StartupRefused
from registryd.feed.revision import NOWHERE, Revision
from registryd.kit.actor import actor
from registryd.registry.document import Admin, Row, claims_of, terms_of
from registryd.registry.sealed import Sealed, sealed
from registryd.registry.types import HealthCheck, InstanceFields
from registryd.storage.keys import Keys
from registryd.storage.pipelined import Argument
from registryd.storage.scripts import ScriptRunner

SCHEMA: Final = "1"
SWEEP_LIMIT: Final = 100
"""Expiries in one script call: 100 take the store about 7 ms, 1 000 would hold others up for 60."""

SIGNED: Final = frozenset(
    {"amend", "deregister", "import", "import_stage", "sweep", "report_status"}
)
"""Scripts whose changes carry who asked for them. Of the others `register` is told so for each instance, and
the rest run for many callers at once, or for none."""


DEFAULT_CHECK: Final = HealthCheck()


@dataclass(frozen=True, slots=True)
class Check:
    """What the store needs to schedule and count an instance's probes."""

    interval_ms: int
    rise: int
    fall: int
    timeout_ms: int = 5_000
    grace_ms: int = 0
    """Failures before the first success do not count for so long after the registration."""
    beats: bool = False
    """Nothing is dialled: the heartbeats are what is looked at."""
    sealed: Sealed = field(default_factory=Sealed)
    """What the probe sends and nobody is shown, see `sealed.py`."""

    def encode(self) -> str:
        grace = f',"grace":{self.grace_ms}' if self.grace_ms else ""
        beats = ',"beats":true' if self.beats else ""
        sealed = f',"sealed":{json.dumps(self.sealed, ensure_ascii=False)}' if self.sealed else ""
        return (
            f'{{"interval":{self.interval_ms},"timeout":{self.timeout_ms},"rise":{self.rise},'
            f'"fall":{self.fall}{grace}{beats}{sealed}}}'
        )


def check_of(fields: InstanceFields, default: HealthCheck = DEFAULT_CHECK) -> Check | None:
    """The check an instance is to have: its own, the default one, or none when it said null."""
    check = fields.health_check
    if check is None:
        if "health_check" in fields.model_fields_set or fields.endpoint.lower().startswith("udp:"):
            return None  # to a datagram nobody need answer
        check = default
    return Check(
        check.interval_ms,
        check.success_threshold,
        check.failure_threshold,
        check.timeout_ms,
        check.startup_grace_ms or 0,
        check.type == "ttl",
        sealed(check),
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """An instance ready for the store."""

    id: str
    document: bytes
    terms: Sequence[str]
    ttl_ms: int
    endpoint: str
    check: Check | None
    claims: Sequence[str] = ()
    """Its capabilities as `name@version`."""

    def arguments(self) -> tuple[Argument, Argument, Argument, Argument, Argument]:
        """document, terms, ttl, check, endpoint"""
        return (
            self.document,
            _array(self.terms),
            self.ttl_ms,
            self.check.encode() if self.check else "",
            self.endpoint,
        )


def _array(terms: Sequence[str]) -> str:
    """A JSON array. No name, tag or version can hold what would have to be escaped."""
    return '["' + '","'.join(terms) + '"]' if terms else "[]"


def entry_of(
    identity: str,
    fields: InstanceFields,
    document: bytes,
    ttl_ms: int,
    default_check: HealthCheck = DEFAULT_CHECK,
) -> Entry:
    return Entry(
        identity,
        document,
        terms_of(fields),
        ttl_ms,
        fields.endpoint,
        check_of(fields, default_check),
        claims_of(fields),
    )


class Registering(NamedTuple):
    """A registration to send: what it is to be, and on what conditions.

    `operation` names it, and behind a `|` says who asked: the same one sent twice is carried out once.
    """

    entry: Entry
    operation: str
    incarnation: str = ""
    claim: str = ""
    expected: str = ""
    exclusive: bool = False

    def arguments(self) -> tuple[Argument, ...]:
        document, terms, ttl, check, endpoint = self.entry.arguments()
        return (
            self.operation,
            self.entry.id,
            self.incarnation,
            ttl,
            document,
            terms,
            check,
            self.claim,
            self.expected,
            endpoint,
            "exclusive" if self.exclusive else "",
            _array(self.entry.claims),
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance as a write left it."""

    outcome: Literal["registered", "updated", "amended", "same"]
    revision: Revision
    expires_at_ms: int
    row: Row
    admin: Admin
    suspect: bool


class Refused(NamedTuple):
    """Why a write did nothing: `mismatch` of the expected revision, `unknown` instance, an id `taken`
    by a live instance elsewhere, or `superseded` by the incarnation in `detail`."""

    why: Literal["mismatch", "unknown", "taken", "superseded"]
    detail: str = ""


class Renewal(NamedTuple):
    """A heartbeat to send. `ttl_ms` is what the caller believes the lease to be, 0 if it does not know."""

    id: str
    incarnation: str
    ttl_ms: int


class Renewed(NamedTuple):
    ttl_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Renewals:
    """The outcome of a batch. Whoever is not among the exceptions, by position, is renewed for his ttl."""

    now_ms: int
    exceptions: dict[int, Renewed | Refused]

    def of(self, position: int, renewal: Renewal) -> Renewed | Refused:
        outcome = self.exceptions.get(position)
        if outcome is not None:
            return outcome
        return Renewed(renewal.ttl_ms, self.now_ms + renewal.ttl_ms)


@dataclass(frozen=True, slots=True)
class Removed:
    revision: Revision
    count: int


class Importing(NamedTuple):
    """One instance of an import, as import.lua reads it: to be written, or without an entry removed.

    `guard` is the incarnation that was there when this was decided, "" for none. `admin` None leaves it
    as it is, b"" takes it away.
    """

    id: str
    guard: str
    entry: Entry | None = None
    incarnation: str = ""
    claim: str = ""
    admin: bytes | None = None
    admin_end_ms: int | None = None
    registered_at: str = ""

    def arguments(self) -> tuple[Argument, ...]:
        if self.entry is None:
            return ("del", self.id, self.guard, *("",) * 11)
        document, terms, ttl, check, endpoint = self.entry.arguments()
        return (
            "put",
            self.id,
            self.guard,
            self.incarnation,
            ttl,
            document,
            terms,
            check,
            self.claim,
            endpoint,
            _array(self.entry.claims),
            "keep" if self.admin is None else self.admin,
            "" if self.admin_end_ms is None else self.admin_end_ms,
            self.registered_at,
        )


@dataclass(frozen=True, slots=True)
class Imported:
    revision: Revision
    written: int
    removed: int


@dataclass(frozen=True, slots=True)
class Guard:
    """When to hold a mass expiry: from `min_due` leases and this `fraction` of all ending together."""

    min_due: int
    fraction: float
    max_hold: timedelta


@dataclass(frozen=True, slots=True)
class Swept:
    preserving: bool
    due: int
    jump_ms: int
    instances: int
    leases: int
    revision: Revision
    held: int
    derived_errors: int
    repair: bool
    removed: list[str]


class Claim(NamedTuple):
    """A check that is the caller's alone until it is claimed again."""

    id: str
    state: bytes
    """Its row (JSON): `interval, timeout, rise, fall, grace?, beats?, sealed?` of the check, `inc, token, since` of
    the schedule (lease clock ms), and the texts that the last report left, `counts` and `flap`."""
    document: bytes
    """The client's part of the instance."""
    health: str
    at_ms: int
    """The lease clock."""
    late_ms: int
    renewed_ms: int | None
    """How long ago the lease was renewed, if that can be told: not while it is held or draining."""
    discovered: str
    """What earlier probes found it to offer (`Row.discovered`)."""


@dataclass(frozen=True, slots=True)
class Claims:
    paused: bool
    next_due_ms: int | None
    """In how long the next check is due, of those that were not claimed; None when there is none."""
    claims: list[Claim]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a finished probe changes. An empty text leaves a thing as it is, but for the two memories."""

    passed: bool
    status: str = ""
    counts: str = ""
    flap: str = ""
    finding: bytes = b""
    error: str = ""
    extra: bytes = b""
    told: bytes | Literal["", "none"] = ""
    """All that its answer told of the instance."""
    discovered: str = ""
    """What of that counts (`Row.discovered`), or "none"."""


class Reported(NamedTuple):
    """`stale`: the token was used or superseded; `gone`: so was the instance."""

    outcome: Literal["counted", "changed", "stale", "gone"]
    status: str = ""
    revision: Revision | None = None


class Vitals(NamedTuple):
    """What is known of an instance's health beyond its row: JSON texts, b"" for nothing."""

    finding: bytes
    state: bytes
    transitions: bytes
    told: bytes


class SnapshotRow(NamedTuple):
    id: str
    row: bytes
    document: bytes
    admin: bytes
    suspect: bool


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    cursor: int
    revision: Revision
    rows: list[SnapshotRow]


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Figures that every script is told."""

    clock_cap: timedelta = timedelta(milliseconds=600)
    stream_length: int = 100_000


class RegistryStore:
    """One partition of the registry. `now_ms` replaces the store's clock; tests only."""

    def __init__(
        self, runner: ScriptRunner, keys: Keys, limits: StoreLimits, *, now_ms: int = 0
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._limits = limits
        self._nonces = map(
            "{}{:x}".format, itertools.repeat(secrets.token_hex(6)), itertools.count(1)
        )
        self.now_ms = now_ms
        self.deployment: str | None = None
        """Whose store this is, once it is set up."""

    def nonce(self) -> str:
        """A name for one operation, unique among all daemons. It is also the default incarnation."""
        return next(self._nonces)

    async def _run(
        self, script: str, *arguments: Argument, nonce: str | None = None
    ) -> list[bytes]:
        nonce = nonce or self.nonce()
        if script in SIGNED:
            nonce = signed(nonce)
        reply: list[bytes] = await self._runner.run(
            script,
            (
                self._keys.prefix,
                self._keys.tag,
                self.now_ms,
                int(self._limits.clock_cap.total_seconds() * 1000),
                self._limits.stream_length,
                nonce,
                *arguments,
            ),
        )
        return reply

    async def set_up(self, deployment: str | None) -> str:
        """Claims an empty store, or checks that it is ours; answers with the deployment's id.

        Raises StartupRefused for another schema, deployment or number of partitions.
        """
        partitions = "1"
        schema, found, parts = (
            value.decode()
            for value in await self._run(
                "setup", SCHEMA, deployment or secrets.token_hex(4), partitions
            )
        )
        if schema != SCHEMA:
            raise StartupRefused(
                f"the store under prefix {self._keys.prefix!r} has schema {schema}, this registryd speaks "
                f"{SCHEMA}: run the version that made it, or choose another redis.keyPrefix"
            )
        if deployment is not None and found != deployment:
            raise StartupRefused(
                f"the store under prefix {self._keys.prefix!r} belongs to deployment {found!r}, not "
                f"{deployment!r}: correct redis.url, redis.deployment or redis.keyPrefix"
            )
        if parts != partitions:
            raise StartupRefused(
                f"the store under prefix {self._keys.prefix!r} has {parts} partitions, not {partitions}: "
                "their number is fixed when a store is first used"
            )
        self.deployment = found
        return found

    async def register(
        self,
        entry: Entry,
        *,
        incarnation: str = "",
        claim: str = "",
        expected: str = "",
        exclusive: bool = False,
        nonce: str | None = None,
    ) -> Stored | Refused:
        operation = signed(nonce or self.nonce())
        registering = Registering(entry, operation, incarnation, claim, expected, exclusive)
        [outcome] = await self.register_all([registering])
        return outcome

    async def register_all(self, batch: Sequence[Registering]) -> list[Stored | Refused]:
        """Carries out many registrations in one call, each for itself. No id may stand there twice."""
        arguments = itertools.chain.from_iterable(one.arguments() for one in batch)
        replies: Any = await self._run("register", *arguments)
        return [_stored(reply) for reply in replies]

    async def amend(
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
        nonce: str | None = None,
    ) -> Stored | Refused:
        document, terms, ttl, check, endpoint = entry.arguments() if entry else ("", "", "", "", "")
        return _stored(
            await self._run(
                "amend",
                identity,
                expected,
                reason,
                document,
                terms,
                ttl,
                check,
                endpoint,
                health,
                admin,
                "" if admin_end_ms is None else admin_end_ms,
                "" if drain is None else int(drain.total_seconds() * 1000),
                _array(entry.claims) if entry else "",
                nonce=nonce,
            )
        )

    async def renew(self, renewals: Sequence[Renewal]) -> Renewals:
        """Renews many leases in one call."""
        arguments: Iterable[Argument] = itertools.chain.from_iterable(renewals)
        reply = await self._run("heartbeat", *arguments)
        now = int(reply[0])
        exceptions: dict[int, Renewed | Refused] = {}
        for place, kind, value in zip(*(iter(reply[1:]),) * 3, strict=True):
            position = int(place) - 1
            match kind:
                case b"unknown":
                    exceptions[position] = Refused("unknown")
                case b"superseded":
                    exceptions[position] = Refused("superseded", value.decode())
                case b"ttl":
                    exceptions[position] = Renewed(int(value), now + int(value))
                case b"draining":
                    exceptions[position] = Renewed(renewals[position].ttl_ms, int(value))
                case _:
                    raise ValueError(f"heartbeat.lua answered {kind!r}")
        return Renewals(now, exceptions)

    async def report_status(
        self, identity: str, incarnation: str, status: str, extra: bytes = b""
    ) -> Revision | None:
        """Records a status that an instance reports; None when that changed nothing."""
        reply = await self._run("report_status", identity, incarnation, status, extra)
        return _revision(reply[1], reply[2]) if reply[0] == b"changed" else None

    async def deregister(
        self,
        identities: Sequence[str],
        *,
        incarnation: str = "",
        expected: str = "",
        reason: str = "deregistered",
        nonce: str | None = None,
    ) -> Removed | Refused:
        reply = await self._run(
            "deregister", incarnation, expected, reason, *identities, nonce=nonce
        )
        if reply[0] == b"removed":
            return Removed(_revision(reply[1], reply[2]), int(reply[3]))
        return _refused(reply)

    async def import_all(self, items: Sequence[Importing], *, reason: str) -> Imported:
        """Carries out a whole import in one call."""
        arguments = itertools.chain.from_iterable(item.arguments() for item in items)
        done = _imported(await self._run("import", reason, *arguments))
        assert isinstance(done, Imported)  # noqa: S101  nothing is left over of one call
        return done

    async def stage_import(self, name: str, items: Sequence[Importing], *, keep: timedelta) -> None:
        """Lays down a part of an import, which goes after `keep` unless it is committed."""
        texts = itertools.chain.from_iterable(item.arguments() for item in items)
        part = b"\0".join(t if isinstance(t, bytes) else str(t).encode() for t in texts)
        await self._run("import_stage", name, int(keep.total_seconds() * 1000), "part", part)

    async def commit_import(
        self, name: str, parts: int, *, reason: str
    ) -> Literal["committed", "busy", "lost"]:
        """From here on the import is carried out to its end. `busy`: another one is not at its end;
        `lost`: it took too long to lay down."""
        reply = await self._run("import_stage", name, 0, "commit", parts, reason)
        match reply[0]:
            case b"committed":
                return "committed"
            case b"busy":
                return "busy"
            case b"lost":
                return "lost"
            case word:
                raise ValueError(f"import_stage.lua answered {word!r}")

    async def continue_import(self) -> Imported | int | None:
        """Carries out the next part of what is committed: how many are left, the outcome when that was
        the last one, or None when there was nothing to do."""
        return _imported(await self._run("import", ""))

    async def sweep(self, guard: Guard | None, *, force: bool = False) -> Swept:
        reply = await self._run(
            "sweep",
            SWEEP_LIMIT,
            guard.min_due if guard else 0,
            repr(guard.fraction) if guard else 1,
            int(guard.max_hold.total_seconds() * 1000) if guard else 0,
            "force" if force else "",
        )
        state, due, jump, instances, leases, epoch, rev, held, errors, repair, *removed = reply
        return Swept(
            preserving=state == b"preserving",
            due=int(due),
            jump_ms=int(jump),
            instances=int(instances),
            leases=int(leases),
            revision=_revision(epoch, rev),
            held=int(held),
            derived_errors=int(errors),
            repair=repair == b"1",
            removed=[identity.decode() for identity in removed],
        )

    async def snapshot(self, cursor: int, count: int) -> SnapshotPage:
        reply = await self._run("snapshot", cursor, count)
        return SnapshotPage(
            int(reply[0]),
            _revision(reply[1], reply[2]),
            [
                SnapshotRow(identity.decode(), row, document, admin, suspect == b"1")
                for identity, row, document, admin, suspect in zip(
                    *(iter(reply[3:]),) * 5, strict=True
                )
            ],
        )

    async def claim_checks(
        self,
        limit: int,
        *,
        stretch: float = 1.0,
        jitter: float = 0.0,
        chance: float = 0.0,
        only: str = "",
    ) -> Claims:
        """Up to `limit` due checks, or the one of the instance `only`, due or not.

        Each is due again after its interval times `stretch`, give or take half of `jitter` as a part
        of it; `chance`, random in [0, 1), places it there.
        """
        reply = await self._run(
            "claim_checks", limit, repr(stretch), repr(jitter), repr(chance), only
        )
        state, next_due, at, *claimed = reply
        return Claims(
            state == b"paused",
            int(next_due) if int(next_due) >= 0 else None,
            [
                Claim(
                    identity.decode(),
                    row,
                    document,
                    health.decode(),
                    int(at),
                    int(late),
                    int(renewed) if int(renewed) >= 0 else None,
                    discovered.decode(),
                )
                for identity, row, document, health, late, renewed, discovered in zip(
                    *(iter(claimed),) * 7, strict=True
                )
            ],
        )

    async def report_check(
        self, claim: Claim, report: Report, *, nonce: str | None = None
    ) -> Reported:
        """Records a finished probe of what was claimed."""
        reply = await self._run(
            "report_check",
            claim.id,
            from_json(claim.state)["token"],
            "1" if report.passed else "",
            report.status,
            report.counts,
            report.flap,
            report.finding,
            report.error,
            report.extra,
            report.told,
            claim.health,
            report.discovered,
            nonce=nonce,
        )
        match reply[0]:
            case b"counted":
                return Reported("counted", reply[1].decode())
            case b"changed":
                return Reported("changed", reply[1].decode(), _revision(reply[2], reply[3]))
            case b"stale":
                return Reported("stale")
            case b"gone":
                return Reported("gone")
            case word:
                raise ValueError(f"report_check.lua answered {word!r}")

    async def monitoring(self, enabled: bool | None = None) -> bool:
        """Whether checks are probed, after switching that on or off (None changes nothing)."""
        word = "" if enabled is None else "on" if enabled else "paused"
        return (await self._run("monitoring", word))[0] == b"on"

    async def vitals(self, identities: Sequence[str]) -> list[Vitals]:
        """What the last probes found and the like, for each, in order."""
        if not identities:
            return []
        reply = await self._run("health", *identities)
        return [Vitals(*four) for four in zip(*(iter(reply),) * 4, strict=True)]

    async def repair(self, cursor: int, count: int) -> tuple[int, int, int]:
        """Rewrites missing derived data of one chunk: (next cursor, keys written, members added)."""
        cursor_, keys, members = await self._run("repair", cursor, count)
        return int(cursor_), int(keys), int(members)

    async def audit(
        self, what: Literal["index", "keys", "tombstones"], *arguments: Argument
    ) -> int:
        """Drops what the truth does not back; see lua/audit.lua. Answers with how much that was."""
        return int((await self._run("audit", what, *arguments))[0])


def signed(nonce: str) -> str:
    """The name of an operation, with whom the present task works for."""
    return f"{nonce}|{by}" if (by := actor()) else nonce


def _revision(epoch: bytes, rev: bytes | int) -> Revision:
    return Revision(int(epoch), int(rev)) if int(epoch) else NOWHERE


def _imported(reply: list[bytes]) -> Imported | int | None:
    match reply[0]:
        case b"done":
            return Imported(_revision(reply[1], reply[2]), int(reply[3]), int(reply[4]))
        case b"more":
            return int(reply[1])
        case b"none":
            return None
        case word:
            raise ValueError(f"import.lua answered {word!r}")


def _stored(reply: list[bytes]) -> Stored | Refused:
    outcome = reply[0].decode()
    match outcome:
        case "registered" | "updated" | "amended" | "same":
            return Stored(
                outcome,
                _revision(reply[1], reply[2]),
                int(reply[3]),
                Row.decode(reply[4]),
                Admin.decode(reply[5]),
                reply[6] == b"1",
            )
        case _:
            return _refused(reply)


def _refused(reply: list[bytes]) -> Refused:
    why = reply[0].decode()
    match why:
        case "mismatch" | "unknown" | "taken":
            return Refused(why)
        case "superseded":
            return Refused(why, reply[1].decode())
        case _:
            raise ValueError(f"a script answered {why!r}")
