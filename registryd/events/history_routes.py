"""The HTTP face of history and explanations: collects the facts, and lets others judge them."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from registryd.errors import Malformed, StorageUnavailable
from registryd.events.explain import (
    Explanation,
    Explanations,
    Facts,
    Past,
    Present,
    explain,
    near_misses,
    whole,
)
from registryd.events.history import Wanted, read
from registryd.events.webhook_store import WebhookStore
from registryd.feed.revision import parse_revision
from registryd.kit.clock import from_ms, rfc3339
from registryd.registry.query import shortest
from registryd.registry.reads import Reads, known_parameters, next_link
from registryd.registry.types import INSTANCE_ID_RE, NAME_RE, identity
from registryd.registry.types import Answer as Shown
from registryd.registry.view import Instance, View
from registryd.web import codec
from registryd.web.caller import Caller, Permission, Scope
from registryd.web.reply import Header, Reply
from registryd.web.request import Request
from registryd.web.routing import Answer, Param, Route

MAX_LIMIT: Final = 1_000
MAX_EXPLAINED: Final = 1_000
CATCH_UP: Final = timedelta(seconds=1)
_POSITION: Final = re.compile(r"\d{1,20}-\d{1,20}")


class HistoryEntry(Shown):
    """`by` is who asked for the change and from where, `registry` for what nobody asked for."""

    id: str
    revision: str | None
    type: str
    time: str
    service: str | None
    instance_id: str | None
    reason: str | None
    old: Any
    new: Any
    by: str


class HistoryPage(Shown):
    """The newest first. `upTo` is the revision up to which changes are recorded."""

    history: list[HistoryEntry]
    up_to: str
    next: str | None


class HistoryRoutes:
    """`paused` tells whether probing is, and `last_error` what the last probe of an instance said."""

    def __init__(
        self,
        store: WebhookStore,
        view: View,
        reads: Reads,
        *,
        paused: Callable[[], Awaitable[bool]],
        last_error: Callable[[Instance], Awaitable[str | None]],
    ) -> None:
        self._store = store
        self._view = view
        self._reads = reads
        self._paused = paused
        self._last_error = last_error

    async def history(self, request: Request) -> Reply:
        parameters = known_parameters(
            request, "service", "instance", "types", "since", "limit", "cursor"
        )
        wanted = _wanted(parameters)
        if wanted.service:
            request.caller.demand(wanted.service)
        wanted = replace(wanted, prefixes=request.caller.prefixes)
        before = parameters.get("cursor") or "+"
        if before != "+" and not _POSITION.fullmatch(before):
            raise Malformed("cursor: give the `next` of the page before")
        await self._reads.fresh(request)
        up_to = await self._recorded()
        entries, following = await read(
            self._store, wanted, before=before, limit=_limit(parameters.get("limit"))
        )
        headers: list[Header] = [_NO_STORE, ("X-Registry-Revision", str(self._view.revision))]
        if following is not None:
            headers.append(
                ("Link", next_link(request.raw.rel_url.raw_path, request.query.items(), following))
            )
        answer = {"history": entries, "upTo": up_to, "next": following}
        return Reply(200, codec.dumps(answer), headers=headers)

    async def _recorded(self) -> str:
        """Waits a little until what this node shows is recorded too; the revision that is."""
        deadline = asyncio.get_running_loop().time() + CATCH_UP.total_seconds()
        while True:
            cursor = await self._store.cursor()
            late = asyncio.get_running_loop().time() >= deadline
            if cursor >= self._view.revision or late:
                return str(cursor)
            await asyncio.sleep(0.01)

    async def explain(self, request: Request) -> Reply:
        parameters = known_parameters(request, "service", "instance")
        service, instance_id = parameters.get("service", ""), parameters.get("instance", "")
        if not service:
            raise Malformed("service: name one, such as /explain?service=chat&instance=chat-1")
        caller = request.caller
        caller.demand(service)
        await self._reads.fresh(request)
        try:
            paused = await self._paused()
        except StorageUnavailable:
            paused = False  # nothing is known; what the view holds can be told all the same
        answer: Explanation | Explanations
        members = self._view.of_service(service)
        if instance_id:
            answer = explain(await self._facts(caller, service, instance_id, paused))
        elif members:
            answer = whole(
                service,
                [
                    explain(await self._facts(caller, service, member.instance_id, paused))
                    for member in members[:MAX_EXPLAINED]
                ],
            )
        else:
            nobody = explain(await self._gone(caller, service, ""))
            answer = Explanations(**nobody.model_dump(), instances=[])
        return Reply(
            200,
            answer.model_dump_json(by_alias=True).encode(),
            # No ETag: leases run on without a change.
            headers=[_NO_STORE, *(h for h in self._reads.headers() if h[0] != "ETag")],
        )

    async def _facts(self, caller: Caller, service: str, instance_id: str, paused: bool) -> Facts:
        held = self._view.get(identity(service, instance_id))
        if held is None:
            return await self._gone(caller, service, instance_id)
        error, left = None, None
        try:
            error = await self._last_error(held)
            left = await self._store.lease_left(held.id)
        except StorageUnavailable:
            pass  # the view knows the rest, and reads go on without the store
        return Facts(
            service=service,
            instance_id=instance_id,
            present=_present(held, error),
            lease_left=left,
            checks_paused=paused,
        )

    async def _gone(self, caller: Caller, service: str, instance_id: str) -> Facts:
        """What is known of somebody who is not registered."""
        past, removed = None, None
        legal = NAME_RE.fullmatch(service) and (
            not instance_id or INSTANCE_ID_RE.fullmatch(instance_id)
        )
        if legal:
            await self._recorded()
            wanted = Wanted(service=service, instance_id=instance_id, types=_ENDINGS)
            entries, _ = await read(self._store, wanted, limit=1)
            if entries:
                latest = entries[0]
                past = Past(
                    type=latest["type"],
                    time=latest["time"],
                    reason=latest["reason"],
                    by=latest["by"],
                )
            if instance_id:
                at = await self._store.removed_at_ms(identity(service, instance_id))
                removed = None if at is None else rfc3339(from_ms(at))
        return Facts(
            service=service,
            instance_id=instance_id,
            present=None,
            past=past,
            removed_at=removed,
            near=self._near(caller, service, instance_id),
        )

    def _near(self, caller: Caller, service: str, instance_id: str) -> tuple[str, ...]:
        members = self._view.of_service(service)
        if members:
            ids = near_misses(instance_id, (member.instance_id for member in members))
            return tuple(f"{service}/{one}" for one in ids)
        known = self._view.contents.names_within(shortest(caller.prefixes))
        return near_misses(service, known)

    def table(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/history",
                handler=self.history,
                permission=Permission.READER,
                scope=Scope.NARROWED,
                operation_id="getHistory",
                summary="Who changed what, and why",
                tag="history",
                query=(
                    Param("service", "Only of this service", example="chat"),
                    Param("instance", "Only of this instance; needs `service`"),
                    Param("types", "Only these; `*` is a glob", example="service:*,webhook:*"),
                    Param("since", "After this moment (RFC 3339) or revision"),
                    Param(
                        "limit",
                        "How many (default 100)",
                        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
                    ),
                    Param("cursor", "Where the page before ended: its `next`"),
                ),
                answers={200: Answer("The newest first", HistoryPage)},
            ),
            Route(
                method="GET",
                path="/explain",
                handler=self.explain,
                permission=Permission.READER,
                scope=Scope.NARROWED,
                operation_id="explain",
                summary="Why an instance is offered, or is not",
                tag="history",
                query=(
                    Param("service", "The service", example="chat"),
                    Param("instance", "The instance; without it, each one of the service"),
                ),
                answers={200: Answer("In words", Explanations)},
            ),
        ]


_NO_STORE: Final[Header] = ("Cache-Control", "no-store")
_ENDINGS: Final = ("service:expired", "service:unregistered")


def _present(held: Instance, last_error: str | None) -> Present:
    shown: dict[str, Any] = json.loads(held.fragment)
    admin = shown.get("admin") or {}
    return Present(
        health=held.health,
        since=shown["health"]["since"],
        error=last_error or shown["health"].get("error"),
        draining=held.draining,
        suspect=held.suspect,
        admin_reason=admin.get("reason"),
        admin_by=admin.get("by"),
        admin_until=admin.get("until"),
        weight=held.weight,
        checked="healthCheck" not in shown or shown["healthCheck"] is not None,
        ttl=timedelta(milliseconds=held.ttl_ms),
    )


def _wanted(parameters: Mapping[str, str]) -> Wanted:
    service, instance_id = parameters.get("service", ""), parameters.get("instance", "")
    if service and not NAME_RE.fullmatch(service):
        raise Malformed(f"service: {codec.shown(service)} cannot be the name of any service")
    if instance_id and not (service and INSTANCE_ID_RE.fullmatch(instance_id)):
        raise Malformed("instance: needs `service`, and the id of an instance of it")
    types = tuple(part.strip() for part in parameters.get("types", "").split(",") if part.strip())
    since = parameters.get("since", "")
    if not since:
        return Wanted(service=service, instance_id=instance_id, types=types)
    if _POSITION.fullmatch(since):
        after = parse_revision(since, what="since")
        return Wanted(service=service, instance_id=instance_id, types=types, after=after)
    try:
        moment = datetime.fromisoformat(since)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Malformed(
            "since: expected a time such as 2030-01-31T12:00:00Z, or a revision as "
            "X-Registry-Revision gives it"
        )
    return Wanted(
        service=service, instance_id=instance_id, types=types, since=rfc3339(moment.astimezone(UTC))
    )


def _limit(text: str | None) -> int:
    if not text:
        return 100
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_LIMIT):
        raise Malformed(
            f"limit: expected a number from 1 to {MAX_LIMIT}, found {codec.shown(text)}"
        )
    return int(text)
