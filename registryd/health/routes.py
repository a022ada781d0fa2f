"""The HTTP face of health: how instances fare, probing them now, pausing all probing."""

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from typing import Any, Final

from registryd.errors import Conflict, NotFound, StorageUnavailable
from registryd.feed.revision import Revision
from registryd.health.shown import health_of
from registryd.health.store import Held
from registryd.health.types import (
    InstanceHealthShown,
    Monitoring,
    MonitoringShown,
    ServiceHealthShown,
)
from registryd.probing.checker import Checker
from registryd.probing.types import Finding
from registryd.registry.bodies import parse
from registryd.registry.reads import Reads, known_parameters
from registryd.registry.registrar import Registrar
from registryd.registry.routes import FRESH_PARAMS, INSTANCE, NAME
from registryd.registry.store import RegistryStore, Reported, Vitals
from registryd.registry.types import identity
from registryd.registry.view import Instance, View
from registryd.web import codec
from registryd.web.caller import Permission, Scope
from registryd.web.reply import Reply
from registryd.web.request import Request
from registryd.web.routing import Answer, Route

_NOT_MODIFIED: Final = Answer("The caller's copy still holds")
AT_ONCE: Final = 500
"""Instances whose figures one call asks the store for."""

PROBED_AT_ONCE: Final = 64
"""Instances of a service that one request probes at a time."""


class HealthRoutes:
    def __init__(
        self,
        view: View,
        reads: Reads,
        registrar: Registrar,
        store: RegistryStore,
        checker: Checker[Held, Reported],
    ) -> None:
        self._view = view
        self._reads = reads
        self._registrar = registrar
        self._store = store
        self._checker = checker

    # --- reading

    async def service_health(self, request: Request) -> Reply:
        name = request.params["name"]
        known_parameters(request)
        await self._reads.fresh(request)
        extra = await self._reads.changed(request, ((f"service:{name}",),))
        return _unless_held(request, await self._service(name)).with_headers(extra)

    async def instance_health(self, request: Request) -> Reply:
        known_parameters(request)
        await self._reads.fresh(request)
        reply = await self._instance(request.params["name"], request.params["id"])
        return _unless_held(request, reply)

    async def _service(self, name: str) -> Reply:
        members = self._members(name)
        best = min(members, key=lambda instance: (instance.rank, instance.instance_id))
        shown = dict(zip(members, await self._shown(members), strict=True))
        answer = {**shown[best], "instances": list(shown.values())}
        return self._answer(answer, max(member.revision for member in members))

    async def _instance(self, name: str, instance_id: str) -> Reply:
        held = self._held(name, instance_id)
        [shown] = await self._shown([held])
        return self._answer(shown, held.revision)

    async def _shown(self, members: Sequence[Instance]) -> list[dict[str, Any]]:
        try:
            vitals: list[Vitals | None] = []
            for start in range(0, len(members), AT_ONCE):
                part = members[start : start + AT_ONCE]
                vitals += await self._store.vitals([member.id for member in part])
        except StorageUnavailable:
            # What the view holds is still worth telling: as of the last transition.
            vitals = [None] * len(members)
        return [health_of(member, found) for member, found in zip(members, vitals, strict=True)]

    def _answer(self, shown: dict[str, Any], revision: Revision) -> Reply:
        # The figures move with every probe while the revision does not, so the tag tells both; every
        # node makes the same one.
        body = codec.dumps(shown)
        digest = hashlib.blake2b(body, digest_size=6).hexdigest()
        headers = [
            ("ETag", f'W/"{revision}.{digest}"') if header[0] == "ETag" else header
            for header in self._reads.headers()
        ]
        return Reply(200, body, headers=headers)

    def _members(self, name: str) -> list[Instance]:
        members = self._view.of_service(name)
        if not members:
            raise NotFound(f"no service {name!r} is registered")
        return members

    def _held(self, name: str, instance_id: str) -> Instance:
        held = self._view.get(identity(name, instance_id))
        if held is None:
            raise NotFound(f"no instance {instance_id!r} of {name!r} is registered")
        return held

    # --- probing now

    async def check_instance(self, request: Request) -> Reply:
        name, instance_id = request.params["name"], request.params["id"]
        known_parameters(request)
        await self._check([self._held(name, instance_id)])
        return await self._instance(name, instance_id)

    async def check_service(self, request: Request) -> Reply:
        name = request.params["name"]
        known_parameters(request)
        await self._check(self._members(name))
        return await self._service(name)

    async def _check(self, members: Sequence[Instance]) -> None:
        """Probes all of these that can be. Raises Conflict when none can."""
        outcomes = []
        for start in range(0, len(members), PROBED_AT_ONCE):
            part = members[start : start + PROBED_AT_ONCE]
            outcomes += await _all([self._checker.check_now(member.id) for member in part])
        if not any(outcomes):
            raise Conflict(
                f"{members[0].service}: nothing to probe; no instance meant has a health check, or it "
                "is draining"
            )
        for outcome in outcomes:
            if outcome is not None and outcome[1].revision is not None:
                await self._registrar.confirm(outcome[1].revision)

    # --- pausing

    async def monitoring(self, request: Request) -> Reply:
        wish = parse(Monitoring, await request.json())
        known_parameters(request)
        enabled = await self._store.monitoring(wish.enabled)
        self._checker.hint()
        return Reply(200, codec.dumps({"enabled": enabled}))

    async def get_monitoring(self, request: Request) -> Reply:
        known_parameters(request)
        return Reply(200, codec.dumps({"enabled": await self._store.monitoring()}))

    # --- the table

    def table(self) -> list[Route]:
        reader, writer, admin = Permission.READER, Permission.WRITER, Permission.ADMIN
        service = {200: Answer("The health", ServiceHealthShown)}
        instance = {200: Answer("The health", InstanceHealthShown)}
        monitoring = {200: Answer("Whether checks are probed", MonitoringShown)}
        return [
            Route(
                method="GET",
                path="/services/{name}/health",
                handler=self.service_health,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="serviceHealth",
                summary="The health of a service: its best instance's, and each one's",
                description="Figures are those of the last probe, transitions the latest 20 of seven days. "
                "While the store cannot be reached they are as of the last transition.",
                tag="health",
                segments=NAME,
                query=FRESH_PARAMS,
                answers={**service, 304: _NOT_MODIFIED},
                problems=(404, 412),
            ),
            Route(
                method="GET",
                path="/services/{name}/instances/{id}/health",
                handler=self.instance_health,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="instanceHealth",
                summary="The health of an instance",
                description="Figures are those of the last probe, transitions the latest 20 of seven days. "
                "While the store cannot be reached they are as of the last transition.",
                tag="health",
                segments=INSTANCE,
                query=FRESH_PARAMS,
                answers={**instance, 304: _NOT_MODIFIED},
                problems=(404, 412),
            ),
            Route(
                method="POST",
                path="/services/{name}/check",
                handler=self.check_service,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="checkService",
                summary="Probe all instances of a service now",
                description="Counts like any other probe. Works while probing is paused.",
                tag="health",
                segments=NAME,
                answers=service,
                problems=(404, 409),
            ),
            Route(
                method="POST",
                path="/services/{name}/instances/{id}/check",
                handler=self.check_instance,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="checkInstance",
                summary="Probe an instance now",
                description="Counts like any other probe. Works while probing is paused.",
                tag="health",
                segments=INSTANCE,
                answers=instance,
                problems=(404, 409),
            ),
            Route(
                method="GET",
                path="/monitoring",
                handler=self.get_monitoring,
                permission=reader,
                scope=Scope.NONE,
                operation_id="getMonitoring",
                summary="Whether checks are probed",
                tag="health",
                answers=monitoring,
            ),
            Route(
                method="PUT",
                path="/monitoring",
                handler=self.monitoring,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="setMonitoring",
                summary="Pause or resume all probing, on all daemons",
                description="It stays so until it is changed, also over restarts.",
                tag="health",
                body=Monitoring,
                answers=monitoring,
                problems=(413, 415, 422),
            ),
        ]


def _unless_held(request: Request, reply: Reply) -> Reply:
    """304 instead of what the caller has already."""
    tag = dict(reply.headers)["ETag"].removeprefix("W/")
    if tag in request.headers.get("If-None-Match", ""):
        return Reply(304, headers=reply.headers)
    return reply


async def _all(
    checks: Sequence[Awaitable[tuple[Finding, Reported] | None]],
) -> list[tuple[Finding, Reported] | None]:
    """The outcome of each; the first error, once all have ended."""
    found: list[tuple[Finding, Reported] | None] = []
    for outcome in await asyncio.gather(*checks, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
        found.append(outcome)
    return found
