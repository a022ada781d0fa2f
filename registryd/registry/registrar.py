"""Every write to the registry: decided by a script, acknowledged once this node's own view holds it.

That makes an acknowledged write outlive a store that loses it, and lets a caller read what it wrote.
Knows no HTTP.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeVar

import structlog

from registryd.errors import (
    AmbiguousInstance,
    Conflict,
    FieldError,
    InstanceUnknown,
    Invalid,
    NotFound,
    PreconditionFailed,
    StorageUnavailable,
    Superseded,
)
from registryd.feed.follower import Follower
from registryd.feed.revision import Revision, parse_revision
from registryd.kit.clock import from_ms, rfc3339
from registryd.registry.admit import RegistrationQueue
from registryd.registry.bodies import Beat, canonical_names, merge, parse_registration
from registryd.registry.document import compose, encode
from registryd.registry.quota import Quota, admit
from registryd.registry.renew import MAX_BATCH, RenewalQueue, Settle
from registryd.registry.sealed import is_masked, masked, server_of, unmasked
from registryd.registry.store import (
    DEFAULT_CHECK,
    Entry,
    Refused,
    Registering,
    RegistryStore,
    Renewal,
    Renewed,
    Stored,
    entry_of,
    signed,
)
from registryd.registry.types import (
    MAX_DOCUMENT_BYTES,
    AdminState,
    HealthCheck,
    Heartbeat,
    Maintenance,
    Registration,
    default_instance_id,
    identity,
)
from registryd.registry.view import Instance, View

log = structlog.get_logger(__name__)

CONFIRM: Final = timedelta(seconds=2)
"""How long a write waits for this node's view."""

ATTEMPTS: Final = 5
"""How often a read-modify-write starts again when somebody else was quicker."""

DEREGISTER_AT_ONCE: Final = 100

T = TypeVar("T")

_LOGGED: Final = {
    "registered": "instance registered",
    "updated": "instance updated",
    "amended": "instance amended",
}


@dataclass(frozen=True, slots=True)
class Written:
    """A write that this node's view holds. `document` is the instance as the answer shows it."""

    instance_id: str
    outcome: str
    revision: Revision
    document: bytes


@lru_cache(maxsize=4096)
def moment(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339; one batch of renewals shares few moments."""
    return rfc3339(from_ms(ms))


class Registrar:
    def __init__(
        self,
        store: RegistryStore,
        view: View,
        follower: Follower,
        renewals: RenewalQueue,
        *,
        default_ttl: Callable[[], timedelta],
        quota: Callable[[], Quota],
        default_check: HealthCheck = DEFAULT_CHECK,
    ) -> None:
        self._store = store
        self._view = view
        self._follower = follower
        self._renewals = renewals
        self._registrations = RegistrationQueue(store)
        self._default_ttl = default_ttl
        self._quota = quota
        self._default_check = default_check

    # --- registering

    async def register(
        self,
        registration: Registration,
        *,
        prefixes: tuple[str, ...] = (),
        expected: str = "",
        exclusive: bool = False,
    ) -> Written:
        """Registers, or renews when nothing changed. Raises RateLimited where it is one too many for the
        registry, the service or a caller with these prefixes.

        `expected` is what `If-Match` and the like ask (see `pinned`), else PreconditionFailed. With
        `exclusive` an id that lives at another endpoint is not taken over: the newcomer gets its own.
        """
        registration = await self._unmasked(registration)
        entry = self.entry_of(registration)
        admit(self._view, self._quota(), entry.id, prefixes)
        expected = await self.pinned(entry.id, expected)
        incarnation = registration.incarnation or ""
        stored = await self._registrations.register(
            Registering(
                entry,
                signed(self._store.nonce()),
                incarnation,
                registration.claim,
                expected,
                exclusive,
            )
        )
        if isinstance(stored, Refused):
            if stored.why == "taken":
                return await self._register_beside(registration, entry.id, prefixes)
            raise _precondition(expected)
        return await self._written(entry.id, entry.document, stored)

    async def _register_beside(
        self, registration: Registration, taken: str, prefixes: tuple[str, ...]
    ) -> Written:
        endpoint = hashlib.blake2b(registration.endpoint.encode(), digest_size=4).hexdigest()
        instance_id = f"{taken.partition(':')[2][:119]}~{endpoint}"
        log.warning(
            "instance id is in use at another endpoint, the newcomer gets its own",
            instance=taken,
            given=instance_id,
        )
        newcomer = registration.model_copy(update={"instance_id": instance_id})
        return await self.register(newcomer, prefixes=prefixes)

    def entry_of(self, registration: Registration) -> Entry:
        """What a registration is in the store. Raises Invalid when it is too long."""
        instance_id = registration.instance_id or default_instance_id(registration.endpoint)
        if registration.instance_id is None:
            registration = registration.model_copy(update={"instance_id": instance_id})
        if registration.health_check is not None:
            check = registration.health_check.over(self._default_check)
            registration = registration.model_copy(update={"health_check": check})
        document = encode(registration)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise Invalid(
                f"the instance is {len(document)} bytes of JSON, at most {MAX_DOCUMENT_BYTES} are kept"
            )
        given = registration.health_check
        if given is not None and (shown := masked(given)) is not given:
            document = encode(registration.model_copy(update={"health_check": shown}))
        ttl = (
            timedelta(seconds=registration.ttl_seconds)
            if registration.ttl_seconds is not None
            else self._default_ttl()
        )
        ttl_ms = int(ttl.total_seconds() * 1000)
        name = identity(registration.name, instance_id)
        return entry_of(name, registration, document, ttl_ms, self._default_check)

    async def _unmasked(self, registration: Registration) -> Registration:
        """The same with what came back masked, as it was shown, replaced by what is held. Raises Invalid."""
        check = registration.health_check
        if check is None or not is_masked(check):
            return registration
        instance_id = registration.instance_id or default_instance_id(registration.endpoint)
        held = self._view.get(identity(registration.name, instance_id))
        known: dict[str, Any] = {}
        meant_for = None
        if held is not None:
            [vitals] = await self._store.vitals([held.id])
            known = json.loads(vitals.state).get("sealed", {}) if vitals.state else {}
            meant_for = server_of(held.document)
        check = unmasked(registration.endpoint, check, known, meant_for)
        return registration.model_copy(update={"health_check": check})

    # --- changing in place

    async def patch(
        self, service: str, instance_id: str, change: Mapping[str, Any], *, expected: str = ""
    ) -> Written:
        """RFC 7386 merge of `change` into what the instance registered. Incarnation and lease stay."""
        patch = canonical_names(change)
        expected = await self.pinned(identity(service, instance_id), expected)
        for _ in range(ATTEMPTS):
            held = self._held(service, instance_id)
            given = patch.get("incarnation")
            if isinstance(given, str) and given != held.incarnation:
                raise _superseded(service, instance_id, held.incarnation)
            merged = merge(json.loads(held.document), patch)
            if "healthCheck" in patch and patch["healthCheck"] is None:
                merged["healthCheck"] = None  # "no checking", as it does when registering
            registration = await self._unmasked(
                parse_registration(merged, service=service, instance_id=instance_id)
            )
            entry = self.entry_of(registration)
            if registration.ttl_seconds is None and "ttlSeconds" not in patch:
                entry = replace(entry, ttl_ms=held.ttl_ms)
            stored = await self._store.amend(
                held.id,
                reason="amended",
                expected=expected or str(held.revision),
                entry=entry,
                health=registration.claim,
            )
            if not isinstance(stored, Refused):
                return await self._written(held.id, entry.document, stored)
            if expected and stored.why == "mismatch":
                raise _precondition(expected)
            await self._catch_up()
        raise Conflict(
            f"{service}/{instance_id} is being changed by others all the time; try again"
        )

    async def maintain(
        self,
        service: str,
        instance_id: str,
        wish: Maintenance,
        *,
        actor: str,
        now: datetime,
        expected: str = "",
    ) -> Written:
        """Puts an instance into maintenance, or takes it out."""
        if wish.enabled and wish.until is not None and wish.until <= now:
            raise Invalid(
                "until is in the past", errors=[FieldError("/until", "must be in the future")]
            )
        admin = admin_json(AdminState.MAINTENANCE, wish.reason, actor, wish.until)
        return await self._amend(
            service,
            instance_id,
            lambda held: self._maintenance(held, wish, admin),
            expected,
        )

    def _maintenance(self, held: Instance, wish: Maintenance, admin: bytes) -> dict[str, Any]:
        if held.draining:
            raise Conflict(
                f"{held.service}/{held.instance_id} is draining and will be gone soon: maintenance "
                "can be neither begun nor ended"
            )
        if not wish.enabled:
            return {"admin": "none", "reason": "maintenance ended"}
        end = None if wish.until is None else int(wish.until.timestamp() * 1000)
        return {
            "admin": admin,
            "admin_end_ms": end,
            "reason": wish.reason or "maintenance",
        }

    async def drain(
        self,
        service: str,
        instance_id: str,
        seconds: int,
        *,
        actor: str,
        now: datetime,
        incarnation: str = "",
        expected: str = "",
    ) -> Written:
        """Takes an instance out of every choice, and unregisters it after `seconds`."""
        until = now + timedelta(seconds=seconds)
        admin = admin_json(AdminState.DRAINING, None, actor, until)

        def leave(held: Instance) -> dict[str, Any]:
            if incarnation not in {"", held.incarnation}:
                raise _superseded(service, instance_id, held.incarnation)
            return {"admin": admin, "drain": timedelta(seconds=seconds), "reason": "draining"}

        return await self._amend(service, instance_id, leave, expected)

    async def _amend(
        self,
        service: str,
        instance_id: str,
        decide: Callable[[Instance], dict[str, Any]],
        expected: str,
    ) -> Written:
        expected = await self.pinned(identity(service, instance_id), expected)
        for _ in range(ATTEMPTS):
            held = self._held(service, instance_id)
            if expected not in {"", str(held.revision)}:
                raise _precondition(expected)
            change = decide(held)
            stored = await self._store.amend(held.id, expected=str(held.revision), **change)
            if not isinstance(stored, Refused):
                return await self._written(held.id, held.document, stored)
            await self._catch_up()
        raise Conflict(
            f"{service}/{instance_id} is being changed by others all the time; try again"
        )

    # --- leaving

    async def deregister(
        self,
        service: str,
        instance_ids: Sequence[str],
        *,
        incarnation: str = "",
        expected: str = "",
        reason: str = "deregistered",
    ) -> Revision | None:
        """Takes instances away at once; None when none of them was there."""
        revision: Revision | None = None
        ids = [identity(service, instance_id) for instance_id in instance_ids]
        if expected:
            expected = await self.pinned(ids[0], expected)
        for start in range(0, len(ids), DEREGISTER_AT_ONCE):
            removed = await self._store.deregister(
                ids[start : start + DEREGISTER_AT_ONCE],
                incarnation=incarnation,
                expected=expected,
                reason=reason,
            )
            if not isinstance(removed, Refused):
                revision = removed.revision
            elif removed.why == "superseded":
                raise _superseded(service, instance_ids[0], removed.detail)
            elif removed.why == "mismatch":
                raise _precondition(expected)
        if revision is not None:
            await self.confirm(revision)
            log.info("instances unregistered", service=service, count=len(ids), reason=reason)
            if revision.epoch != self._view.revision.epoch and any(map(self._view.get, ids)):
                raise _unconfirmed()
        return revision

    # --- renewing

    def ask_renewal(self, service: str, instance_id: str, settle: Settle[T], caller: T) -> None:
        """Asks for one lease to be renewed; `settle` is called with `caller` and the outcome."""
        self._renewals.ask(self._renewal(service, instance_id, ""), settle, caller)

    def _renewal(self, service: str, instance_id: str, incarnation: str) -> Renewal:
        name = f"{service}:{instance_id}"
        held = self._view.contents.by_id.get(name)
        return Renewal(name, incarnation, 0 if held is None else held.ttl_ms)

    async def renew(self, service: str, instance_id: str, heartbeat: Heartbeat | None) -> Renewed:
        """Renews one lease. Raises InstanceUnknown or Superseded."""
        details = _details(heartbeat) if heartbeat else b""
        held = self._view.get(identity(service, instance_id))
        incarnation = (heartbeat.incarnation or "") if heartbeat else ""
        lease = await self._renewals.renew(self._renewal(service, instance_id, incarnation))
        if isinstance(lease, Refused):
            raise refused_renewal(service, instance_id, lease)
        if heartbeat and heartbeat.status and (held is None or held.health != heartbeat.status):
            await self._report(identity(service, instance_id), heartbeat, details)
        return lease

    async def _report(self, name: str, heartbeat: Heartbeat, details: bytes) -> None:
        status = heartbeat.status.value if heartbeat.status else ""
        revision = await self._store.report_status(
            name, heartbeat.incarnation or "", status, details
        )
        if revision is not None:
            await self.confirm(revision)

    async def renew_many(self, beats: Sequence[Beat]) -> list[str]:
        """Renews a batch; for each, in order, `renewed`, `unknown` or `superseded`."""
        held = self._view.contents.by_id.get
        words = ["renewed"] * len(beats)
        for start in range(0, len(beats), MAX_BATCH):
            some = beats[start : start + MAX_BATCH]
            known = [held(name) for name, _ in some]
            outcome = await self._renewals.renew_now(
                [
                    Renewal(name, incarnation, 0 if instance is None else instance.ttl_ms)
                    for (name, incarnation), instance in zip(some, known, strict=True)
                ]
            )
            for position, exception in outcome.exceptions.items():
                if isinstance(exception, Refused):
                    words[start + position] = exception.why
        return words

    def the_only_instance(self, service: str, instance_id: str | None = None) -> str:
        """The instance meant when a path names only the service. Raises NotFound or AmbiguousInstance."""
        members = self._view.of_service(service)
        if not members:
            raise NotFound(f"no service {service!r} is registered")
        if instance_id is not None:
            return instance_id
        if len(members) > 1:
            raise AmbiguousInstance(
                f"{service} has {len(members)} instances; name one with instanceId or use "
                f"/services/{service}/instances/{{id}}",
                members={"instances": [member.instance_id for member in members[:100]]},
            )
        return members[0].instance_id

    async def pinned(self, name: str, expected: str) -> str:
        """What the store is to compare with for a condition: "" (none), "absent", "present", or a
        revision up to which the instance must not have changed.

        That revision may be later than the instance's own: a list or a service carries the one of the
        whole view. Raises PreconditionFailed.
        """
        if expected in {"", "absent"}:
            return expected
        wanted = None if expected == "present" else parse_revision(expected)
        held = self._view.get(name)
        if held is None or (wanted is not None and wanted > self._view.revision):
            await self._catch_up()
            held = self._view.get(name)
        if held is None:
            raise PreconditionFailed("the instance does not exist, and If-Match asked that it does")
        if wanted is not None and not (
            held.revision.epoch == wanted.epoch and held.revision <= wanted <= self._view.revision
        ):
            raise _precondition(expected)
        return str(held.revision)

    # --- confirming

    def _held(self, service: str, instance_id: str) -> Instance:
        held = self._view.get(identity(service, instance_id))
        if held is None:
            raise NotFound(f"no instance {instance_id!r} of {service!r} is registered")
        return held

    async def _written(self, name: str, document: bytes, stored: Stored) -> Written:
        await self.confirm(stored.revision)
        if stored.outcome != "same":
            log.info(_LOGGED[stored.outcome], instance=name, revision=str(stored.row.revision))
        if stored.revision.epoch != self._view.revision.epoch:
            # The store lost its history after it took the write: believe only what is there now.
            held = self._view.get(name)
            if held is None or held.incarnation != stored.row.incarnation:
                raise _unconfirmed()
        shown = compose(
            document,
            stored.row,
            stored.admin,
            suspect=stored.suspect,
            expires_at=moment(stored.expires_at_ms),
        )
        return Written(name.partition(":")[2], stored.outcome, stored.row.revision, shown)

    async def confirm(self, revision: Revision) -> None:
        """Waits until the view holds what was written at `revision`."""
        try:
            await self._follower.reached(revision, within=CONFIRM)
        except TimeoutError:
            raise _unconfirmed() from None

    async def _catch_up(self) -> None:
        """Waits until the view holds what the store holds now."""
        try:
            async with asyncio.timeout(CONFIRM.total_seconds()):
                await self._follower.catch_up()
        except TimeoutError:
            raise _unconfirmed() from None


def admin_json(state: AdminState, reason: str | None, actor: str, until: datetime | None) -> bytes:
    shown = {"state": state.value}
    if reason is not None:
        shown["reason"] = reason
    shown["by"] = actor
    if until is not None:
        shown["until"] = rfc3339(until)
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode()


def _details(heartbeat: Heartbeat) -> bytes:
    if not heartbeat.details:
        return b""
    text = json.dumps(heartbeat.details, ensure_ascii=False, separators=(",", ":"))
    details = b',"details":' + text.encode()
    if len(details) > MAX_DOCUMENT_BYTES:
        raise Invalid(
            "details are too long",
            errors=[FieldError("/details", f"at most {MAX_DOCUMENT_BYTES} bytes of JSON")],
        )
    return details


def refused_renewal(
    service: str, instance_id: str, outcome: Refused
) -> InstanceUnknown | Superseded:
    if outcome.why == "superseded":
        return _superseded(service, instance_id, outcome.detail)
    return InstanceUnknown(
        f"{service}/{instance_id} holds no lease here; register again with "
        f"PUT /services/{service}/instances/{instance_id}"
    )


def _superseded(service: str, instance_id: str, current: str) -> Superseded:
    return Superseded(
        f"another incarnation of {service}/{instance_id} has registered since; register again if "
        "this one is to replace it",
        members={"incarnation": current},
    )


def _precondition(expected: str) -> PreconditionFailed:
    if expected == "absent":
        return PreconditionFailed(
            "the instance exists, and If-None-Match: * asked that it does not"
        )
    return PreconditionFailed(
        f"the instance has changed since revision {expected}; read it again and repeat the change"
    )


def _unconfirmed() -> StorageUnavailable:
    return StorageUnavailable(
        "the store took the write, but this node cannot see it there yet; repeat it, that is safe"
    )
