"""The HTTP face of services and instances: one row of the table a call, one function each."""

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from pydantic import BaseModel

from registryd.errors import (
    Conflict,
    FieldError,
    InstanceUnknown,
    Invalid,
    Malformed,
    NotFound,
    PreconditionFailed,
)
from registryd.feed.revision import parse_revision
from registryd.kit.clock import Clock
from registryd.registry.bodies import parse, parse_beats, parse_registration
from registryd.registry.legacy import registration_of
from registryd.registry.listing import array, service_object
from registryd.registry.pick import Strategy, Wish, candidates, choose, why_none
from registryd.registry.query import FILTERS, WHOLE, parse_filters
from registryd.registry.reads import Reads, etag, known_parameters, mark_of, next_link
from registryd.registry.reaper import Reaper
from registryd.registry.registrar import Registrar, Written, moment, refused_renewal
from registryd.registry.renew import Outcome
from registryd.registry.stats import capabilities, registry_stats
from registryd.registry.store import Refused, Renewed
from registryd.registry.types import (
    INSTANCE_ID_RE,
    NAME_RE,
    CapabilityList,
    Change,
    Chosen,
    CleanupResult,
    Drain,
    Heartbeat,
    HeartbeatBatch,
    HeartbeatResults,
    InstanceArray,
    InstanceShown,
    Lease,
    LegacyRegistered,
    LegacyRegistration,
    LegacyStatus,
    Maintenance,
    Registration,
    ServiceList,
    ServiceOrInstances,
    ServiceShown,
    Stats,
    identity,
    renew_interval,
    split_identity,
)
from registryd.registry.view import Instance, View
from registryd.web import codec
from registryd.web.caller import Permission, Scope
from registryd.web.reply import Header, Reply
from registryd.web.request import Request
from registryd.web.routing import Answer, Param, Route
from registryd.web.shortcut import Exchange

NAME: Final = {"name": NAME_RE}
INSTANCE: Final = {"name": NAME_RE, "id": INSTANCE_ID_RE}
JSON_OR_PATCH: Final = ("application/json", "application/merge-patch+json")

MAX_BATCH_BYTES: Final = 1024 * 1024
"""Ten thousand heartbeats of a hundred bytes; every other body is 256 KiB at most."""
MAX_DRAIN_SECONDS: Final = 86_400


class ServiceRoutes:
    def __init__(
        self,
        view: View,
        reads: Reads,
        registrar: Registrar,
        reaper: Reaper,
        clock: Clock,
        dice: random.Random,
    ) -> None:
        self._view = view
        self._reads = reads
        self._registrar = registrar
        self._reaper = reaper
        self._clock = clock
        self._dice = dice
        self._turns: Counter[str] = Counter()
        self._figures = (view.at(), registry_stats(view))

    # --- writing

    async def register(self, request: Request) -> Reply:
        registration = parse_registration(await request.json())
        request.caller.demand(registration.name)
        written = await self._registrar.register(registration, prefixes=request.caller.prefixes)
        return self._registered(written, registration)

    async def put_instance(self, request: Request) -> Reply:
        name, instance_id = request.params["name"], request.params["id"]
        registration = parse_registration(
            await request.json(), service=name, instance_id=instance_id
        )
        written = await self._registrar.register(
            registration, prefixes=request.caller.prefixes, expected=_expected(request)
        )
        return self._registered(written, registration)

    def _registered(self, written: Written, registration: Registration) -> Reply:
        if written.outcome != "registered":
            return self._wrote(written)
        name, instance_id = quote(registration.name), quote(written.instance_id, safe="")
        location = f"/api/v1/registry/services/{name}/instances/{instance_id}"
        return self._wrote(written, 201, [("Location", location)])

    def _wrote(self, written: Written, status: int = 200, headers: Sequence[Header] = ()) -> Reply:
        tag = ("ETag", etag(written.revision))
        return Reply(status, written.document, headers=[*self._at(), tag, *headers])

    async def patch_instance(self, request: Request) -> Reply:
        body = await request.json()
        written = await self._registrar.patch(
            request.params["name"],
            request.params["id"],
            _object(body),
            expected=_expected(request),
        )
        return self._wrote(written)

    async def put_service(self, request: Request) -> Reply:
        body = _object(await request.json())
        name = request.params["name"]
        known_parameters(request, "instanceId")
        instance_id = request.one("instanceId")
        if instance_id is None:
            given = body.get("instanceId", body.get("instance_id"))
            instance_id = given if isinstance(given, str) else None
        instance_id = self._registrar.the_only_instance(name, instance_id)
        written = await self._registrar.patch(name, instance_id, body, expected=_expected(request))
        return self._wrote(written)

    async def delete_instance(self, request: Request) -> Reply:
        name, instance_id = request.params["name"], request.params["id"]
        parameters = known_parameters(request, "drainSeconds", "incarnation")
        incarnation = parameters.get("incarnation", "")
        if text := parameters.get("drainSeconds"):
            return self._wrote(
                await self._drain(request, name, instance_id, _seconds(text), incarnation), 202
            )
        revision = await self._registrar.deregister(
            name, [instance_id], incarnation=incarnation, expected=_expected(request)
        )
        if revision is None:
            raise NotFound(f"no instance {instance_id!r} of {name!r} is registered")
        return self._gone()

    async def delete_service(self, request: Request) -> Reply:
        name = request.params["name"]
        parameters = known_parameters(request, "drainSeconds")
        members = await self._meant(request, name)
        if text := parameters.get("drainSeconds"):
            seconds = _seconds(text)
            return await self._each(
                name, members, lambda one: self._drain(request, name, one, seconds), 202
            )
        ids = [member.instance_id for member in members]
        if await self._registrar.deregister(name, ids) is None:
            raise _no_service(name)
        return self._gone()

    async def _meant(self, request: Request, name: str) -> list[Instance]:
        """All instances of a service, none of which changed after the revision in If-Match."""
        members = self._members(name)
        expected = _expected(request)
        for member in members:
            await self._registrar.pinned(member.id, expected)
        return members

    async def _each(
        self,
        name: str,
        members: Sequence[Instance],
        change: Callable[[str], Awaitable[Written]],
        status: int = 200,
    ) -> Reply:
        """Changes all these instances of a service, and answers with the service."""
        for member in members:
            try:
                await change(member.instance_id)
            except NotFound:
                pass  # it left in the meantime
        left = self._view.of_service(name) or members
        return Reply(status, service_object(left), headers=self._reads.headers())

    def _gone(self) -> Reply:
        return Reply(204, headers=self._at())

    async def maintain_instance(self, request: Request) -> Reply:
        wish = parse(Maintenance, await request.json())
        name, instance_id = request.params["name"], request.params["id"]
        return self._wrote(await self._maintain(request, name, instance_id, wish))

    async def maintain_service(self, request: Request) -> Reply:
        wish = parse(Maintenance, await request.json())
        name = request.params["name"]
        staying = [member for member in await self._meant(request, name) if not member.draining]
        if not staying:
            raise Conflict(f"all instances of {name} are draining and will be gone soon")
        return await self._each(name, staying, lambda one: self._maintain(request, name, one, wish))

    async def _maintain(
        self, request: Request, name: str, instance_id: str, wish: Maintenance
    ) -> Written:
        return await self._registrar.maintain(
            name,
            instance_id,
            wish,
            actor=request.actor,
            now=self._clock.now(),
            expected=_expected(request),
        )

    async def drain_instance(self, request: Request) -> Reply:
        body = await request.optional_json()
        wish = Drain() if body is None else parse(Drain, body)
        name, instance_id = request.params["name"], request.params["id"]
        return self._wrote(await self._drain(request, name, instance_id, wish.seconds))

    async def _drain(
        self, request: Request, name: str, instance_id: str, seconds: int, incarnation: str = ""
    ) -> Written:
        return await self._registrar.drain(
            name,
            instance_id,
            seconds,
            actor=request.actor,
            now=self._clock.now(),
            incarnation=incarnation,
            expected=_expected(request),
        )

    # --- renewing

    async def heartbeat(self, request: Request) -> Reply:
        name, instance_id = request.params["name"], request.params["id"]
        heartbeat = None
        if request.raw.can_read_body:
            heartbeat = _heartbeat(await request.optional_json())
            given = heartbeat.instance_id if heartbeat else None
            if given is not None and given != instance_id:
                raise Invalid(
                    "instanceId differs from the path",
                    errors=[FieldError("/instanceId", "is another than in the path")],
                )
        return _renewed(await self._registrar.renew(name, instance_id, heartbeat))

    def heartbeat_shortly(self, exchange: Exchange) -> bool:
        """A bare heartbeat in the fast lane."""
        if exchange.query:
            return False
        name, instance_id = exchange.params
        self._registrar.ask_renewal(name, instance_id, _answer_renewal, exchange)
        return True

    async def heartbeat_service(self, request: Request) -> Reply:
        name = request.params["name"]
        heartbeat = _heartbeat(await request.optional_json())
        known_parameters(request, "instanceId")
        wanted = request.one("instanceId") or (heartbeat.instance_id if heartbeat else None)
        if wanted is not None and not INSTANCE_ID_RE.fullmatch(wanted):
            raise Malformed(f"instanceId: {wanted[:60]!r} cannot be the id of any instance")
        try:
            instance_id = self._registrar.the_only_instance(name, wanted)
        except NotFound:
            if wanted is None:
                raise InstanceUnknown(
                    f"{name} holds no lease here; register again with POST /services"
                ) from None
            instance_id = wanted
        return _renewed(await self._registrar.renew(name, instance_id, heartbeat))

    async def heartbeat_batch(self, request: Request) -> Reply:
        beats = parse_beats(await request.json_text())
        if request.caller.prefixes:
            for name, _ in beats:
                request.caller.demand(split_identity(name)[0])
        words = await self._registrar.renew_many(beats)
        return Reply(200, codec.dumps({"results": words}))

    # --- reading

    async def list_services(self, request: Request) -> Reply:
        return await self._reads.list(request)

    def list_shortly(self, exchange: Exchange) -> bool:
        return self._reads.list_shortly(exchange)

    async def get_service(self, request: Request) -> Reply:
        name = request.params["name"]
        parameters = known_parameters(request, "view")
        shape = parameters.get("view") or "service"
        if shape not in {"service", "instances"}:
            raise Malformed(f"view: expected service or instances, found {shape[:40]!r}")
        if reply := await self._read_of(request, name):
            return reply
        members = self._members(name)
        body = array(members) if shape == "instances" else service_object(members)
        return Reply(200, body, headers=self._reads.headers())

    async def list_instances(self, request: Request) -> Reply:
        name = request.params["name"]
        known_parameters(request)
        if reply := await self._read_of(request, name):
            return reply
        return Reply(200, array(self._members(name)), headers=self._reads.headers())

    async def discover(self, request: Request) -> Reply:
        name = request.params["name"]
        known_parameters(request)
        if reply := await self._read_of(request, name):
            return reply
        members = [m for m in self._view.of_service(name) if not m.draining]
        members.sort(key=lambda instance: instance.rank)
        return Reply(200, array(members), headers=self._reads.headers())

    async def get_instance(self, request: Request) -> Reply:
        name, instance_id = request.params["name"], request.params["id"]
        known_parameters(request)
        await self._reads.fresh(request)
        held = self._view.get(identity(name, instance_id))
        if held is None:
            raise NotFound(f"no instance {instance_id!r} of {name!r} is registered")
        headers = self._reads.headers(held.revision)
        # Weak comparison: with or without W/ in front.
        if f'"{held.revision}"' in (request.headers.get("If-None-Match") or ""):
            return Reply(304, headers=headers)
        return Reply(200, held.fragment, headers=headers)

    async def _read_of(self, request: Request, name: str) -> Reply | None:
        """Waits as asked, and answers 304 if the caller's copy of this service still holds."""
        await self._reads.fresh(request)
        groups = ((f"service:{name}",),)
        extra = await self._reads.changed(request, groups)
        reply = self._reads.unchanged(request, groups)
        return reply.with_headers(extra) if reply else None

    def _members(self, name: str) -> list[Instance]:
        members = self._view.of_service(name)
        if not members:
            raise _no_service(name)
        return members

    async def url(self, request: Request) -> Reply:
        name = request.params["name"]
        parameters = dict(known_parameters(request, *FILTERS, *_PICK))
        wish = _wish(parameters)
        filters = parse_filters(
            {k: v for k, v in parameters.items() if k in FILTERS and k != "zone"}
        )
        await self._reads.fresh(request)
        members = self._view.of_service(name)
        if not members:
            raise NotFound(
                f"no service {name!r} is registered",
                members={"registered": 0, "healthy": 0, "reasons": {}},
            )
        matching = set(replace(filters, service=name).select(self._view))
        eligible = [member for member in members if member in matching]
        able = candidates(eligible, wish)
        if not able:
            raise _none_offered(name, members, eligible, wish)
        turn = self._turns[name]
        self._turns[name] = turn + 1
        return Reply(
            200,
            codec.dumps(_chosen(choose(able, wish, dice=self._dice, turn=turn))),
            # No ETag: the next choice may be another one though nothing changed.
            headers=[header for header in self._reads.headers() if header[0] != "ETag"],
        )

    async def stats(self, request: Request) -> Reply:
        known_parameters(request)
        await self._reads.fresh(request)
        scope, mark = WHOLE.within(request.caller.prefixes), mark_of(request.caller.prefixes)
        if reply := self._reads.unchanged(request, scope.groups, mark):
            return reply
        if scope is not WHOLE:
            return _shown(registry_stats(self._view, scope), self._reads.headers(mark=mark))
        at = self._view.at()
        if self._figures[0] != at:
            self._figures = (at, registry_stats(self._view))
        return _shown(self._figures[1], self._reads.headers())

    async def capabilities(self, request: Request) -> Reply:
        parameters = known_parameters(request, "limit", "cursor")
        await self._reads.fresh(request)
        scope, mark = WHOLE.within(request.caller.prefixes), mark_of(request.caller.prefixes)
        if reply := self._reads.unchanged(request, scope.groups, mark):
            return reply
        found = capabilities(self._view, scope)
        after, limit = parameters.get("cursor", ""), _limit(parameters.get("limit"))
        rest = [one for one in found if one.name > after]
        answer = CapabilityList(
            capabilities=rest[:limit],
            total=len(found),
            next=rest[limit - 1].name if len(rest) > limit else None,
        )
        headers = self._reads.headers(mark=mark)
        if answer.next is not None:
            headers.append(
                (
                    "Link",
                    next_link(request.raw.rel_url.raw_path, request.query.items(), answer.next),
                )
            )
        return _shown(answer, headers)

    # --- upkeep

    async def cleanup(self, request: Request) -> Reply:
        parameters = known_parameters(request, "force")
        force = parameters.get("force", "false")
        if force not in {"true", "false", "1", "0", ""}:
            raise Malformed(f"force: expected true or false, found {force[:40]!r}")
        removed = await self._reaper.sweep(force=force in {"true", "1"})
        if removed and self._reaper.last is not None:
            await self._registrar.confirm(self._reaper.last.revision)
        return _shown(CleanupResult(removed=removed), self._at())

    def _at(self) -> list[Header]:
        return [("X-Registry-Revision", str(self._view.revision))]

    # --- the microservice clients' contract

    async def legacy_register(self, request: Request) -> Reply:
        body = parse(LegacyRegistration, await request.json())
        request.caller.demand(body.service_name)
        written = await self._registrar.register(
            registration_of(body), prefixes=request.caller.prefixes, exclusive=True
        )
        return _shown(LegacyRegistered(instance_id=written.instance_id), self._at(), status=201)

    async def legacy_deregister(self, request: Request) -> Reply:
        name, instance_id = request.one("service_name"), request.one("instance_id")
        for parameter, value in (("service_name", name), ("instance_id", instance_id)):
            if not value:
                raise Malformed(
                    f"{parameter}: has to be given in the query, such as "
                    "/deregister?service_name=chat&instance_id=chat-1"
                )
        request.caller.demand(str(name))
        # What cannot be a name is no instance's, and unknown ones are fine.
        if NAME_RE.fullmatch(name or "") and INSTANCE_ID_RE.fullmatch(instance_id or ""):
            await self._registrar.deregister(str(name), [str(instance_id)])
        return _shown(LegacyStatus(status="ok"), self._at())

    # --- the table

    def table(self) -> list[Route]:
        reader, writer, admin = Permission.READER, Permission.WRITER, Permission.ADMIN
        instance = {200: Answer("The instance", InstanceShown)}
        registered = {
            200: Answer("Renewed or updated", InstanceShown),
            201: Answer("Registered", InstanceShown),
        }
        lease = {200: Answer("The lease", Lease)}
        array_of_instances = {
            200: Answer("The instances, as a bare array", InstanceArray),
            304: _NOT_MODIFIED,
        }
        fresh = (*FRESH_PARAMS,)
        return [
            Route(
                method="POST",
                path="/services",
                handler=self.register,
                permission=writer,
                scope=Scope.NARROWED,
                operation_id="registerInstance",
                summary="Register an instance, or renew it",
                description="An identical body renews the lease and changes nothing else.",
                tag="services",
                body=Registration,
                answers=registered,
                problems=(409, 413, 415, 422, 429),
            ),
            Route(
                method="GET",
                path="/services",
                handler=self.list_services,
                shortcut=self.list_shortly,
                permission=reader,
                scope=Scope.NARROWED,
                operation_id="listServices",
                summary="Discover services or instances",
                tag="services",
                query=(*FILTER_PARAMS, *_PAGE_PARAMS, *fresh, *_WAIT_PARAMS),
                answers={200: Answer("What matches", ServiceList), 304: _NOT_MODIFIED},
                problems=(412,),
            ),
            Route(
                method="GET",
                path="/services/{name}",
                handler=self.get_service,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="getService",
                summary="A service with its instances",
                tag="services",
                segments=NAME,
                query=(
                    Param(
                        "view",
                        "`instances` for the bare array",
                        {"type": "string", "enum": ["service", "instances"]},
                    ),
                    *fresh,
                    *_WAIT_PARAMS,
                ),
                answers={
                    200: Answer("The service, or its instances", ServiceOrInstances),
                    304: _NOT_MODIFIED,
                },
                problems=(404, 412),
            ),
            Route(
                method="PUT",
                path="/services/{name}",
                handler=self.put_service,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="updateService",
                summary="Merge into the only instance of a service",
                tag="services",
                segments=NAME,
                query=(_INSTANCE_ID_PARAM,),
                body=Change,
                body_media=JSON_OR_PATCH,
                answers=instance,
                problems=(404, 409, 412, 413, 415, 422),
            ),
            Route(
                method="DELETE",
                path="/services/{name}",
                handler=self.delete_service,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="deleteService",
                summary="Unregister all instances of a service",
                tag="services",
                segments=NAME,
                query=(_DRAIN_PARAM,),
                answers={204: Answer("Gone"), 202: Answer("Draining", ServiceShown)},
                problems=(404, 409),
            ),
            Route(
                method="GET",
                path="/services/{name}/instances",
                handler=self.list_instances,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="listInstances",
                summary="The instances of a service",
                tag="services",
                segments=NAME,
                query=(*fresh, *_WAIT_PARAMS),
                answers=array_of_instances,
                problems=(404, 412),
            ),
            Route(
                method="GET",
                path="/services/{name}/instances/{id}",
                handler=self.get_instance,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="getInstance",
                summary="One instance",
                tag="services",
                segments=INSTANCE,
                query=fresh,
                answers={200: Answer("The instance", InstanceShown), 304: _NOT_MODIFIED},
                problems=(404, 412),
            ),
            Route(
                method="PUT",
                path="/services/{name}/instances/{id}",
                handler=self.put_instance,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="putInstance",
                summary="Register or renew one instance by its id",
                tag="services",
                segments=INSTANCE,
                body=Registration,
                answers=registered,
                problems=(409, 412, 413, 415, 422, 429),
            ),
            Route(
                method="PATCH",
                path="/services/{name}/instances/{id}",
                handler=self.patch_instance,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="patchInstance",
                summary="Change an instance in place (JSON merge patch)",
                tag="services",
                segments=INSTANCE,
                body=Change,
                body_media=JSON_OR_PATCH,
                answers=instance,
                problems=(404, 409, 412, 413, 415, 422),
            ),
            Route(
                method="DELETE",
                path="/services/{name}/instances/{id}",
                handler=self.delete_instance,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="deleteInstance",
                summary="Unregister one instance",
                tag="services",
                segments=INSTANCE,
                query=(
                    _DRAIN_PARAM,
                    Param("incarnation", "Only this incarnation; a newer one stays (409)"),
                ),
                answers={204: Answer("Gone"), 202: Answer("Draining", InstanceShown)},
                problems=(404, 409, 412),
            ),
            Route(
                method="PUT",
                path="/services/{name}/heartbeat",
                handler=self.heartbeat_service,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="heartbeatService",
                renewal=True,
                summary="Renew the lease of the only instance",
                tag="leases",
                segments=NAME,
                query=(_INSTANCE_ID_PARAM,),
                body=Heartbeat,
                body_required=False,
                answers=lease,
                problems=(404, 409, 413, 415, 422),
            ),
            Route(
                method="PUT",
                path="/services/{name}/instances/{id}/heartbeat",
                handler=self.heartbeat,
                shortcut=self.heartbeat_shortly,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="heartbeat",
                renewal=True,
                summary="Renew the lease of an instance",
                tag="leases",
                segments=INSTANCE,
                body=Heartbeat,
                body_required=False,
                answers=lease,
                problems=(404, 409, 413, 415, 422),
            ),
            Route(
                method="PUT",
                path="/heartbeats",
                handler=self.heartbeat_batch,
                permission=writer,
                scope=Scope.NARROWED,
                operation_id="heartbeatBatch",
                renewal=True,
                summary="Renew many leases in one call",
                tag="leases",
                body_bytes=MAX_BATCH_BYTES,
                body=HeartbeatBatch,
                answers={200: Answer("An outcome for each, in order", HeartbeatResults)},
                problems=(413, 415, 422),
            ),
            Route(
                method="PUT",
                path="/services/{name}/maintenance",
                handler=self.maintain_service,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="maintainService",
                summary="Put all instances of a service into maintenance, or take them out",
                tag="administration",
                segments=NAME,
                body=Maintenance,
                answers={200: Answer("The service", ServiceShown)},
                problems=(404, 409, 413, 415, 422),
            ),
            Route(
                method="PUT",
                path="/services/{name}/instances/{id}/maintenance",
                handler=self.maintain_instance,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="maintainInstance",
                summary="Put an instance into maintenance, or take it out",
                tag="administration",
                segments=INSTANCE,
                body=Maintenance,
                answers=instance,
                problems=(404, 409, 413, 415, 422),
            ),
            Route(
                method="PUT",
                path="/services/{name}/instances/{id}/drain",
                handler=self.drain_instance,
                permission=writer,
                scope=Scope.NAMED,
                operation_id="drainInstance",
                summary="Take an instance out of every choice, then unregister it",
                tag="administration",
                segments=INSTANCE,
                body=Drain,
                body_required=False,
                answers=instance,
                problems=(404, 409, 413, 415, 422),
            ),
            Route(
                method="GET",
                path="/services/{name}/url",
                handler=self.url,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="pickUrl",
                summary="The URL of one chosen instance",
                tag="services",
                segments=NAME,
                query=(*_PICK_PARAMS, *FILTER_PARAMS, *fresh),
                answers={200: Answer("The chosen instance", Chosen)},
                problems=(404, 412),
            ),
            Route(
                method="GET",
                path="/discover/{name}",
                handler=self.discover,
                permission=reader,
                scope=Scope.NAMED,
                operation_id="discover",
                summary="Live instances, healthy first",
                tag="services",
                segments=NAME,
                query=(*fresh, *_WAIT_PARAMS),
                answers=array_of_instances,
                problems=(412,),
            ),
            Route(
                method="GET",
                path="/stats",
                handler=self.stats,
                permission=reader,
                scope=Scope.NARROWED,
                operation_id="getStats",
                summary="Figures over all services that the caller may see",
                tag="registry",
                query=fresh,
                answers={200: Answer("The figures", Stats), 304: _NOT_MODIFIED},
                problems=(412,),
            ),
            Route(
                method="GET",
                path="/capabilities",
                handler=self.capabilities,
                permission=reader,
                scope=Scope.NARROWED,
                operation_id="listCapabilities",
                summary="The capabilities there are",
                tag="registry",
                query=(*_PAGE_PARAMS[1:3], *fresh),
                answers={200: Answer("By name", CapabilityList), 304: _NOT_MODIFIED},
                problems=(412,),
            ),
            Route(
                method="POST",
                path="/cleanup",
                handler=self.cleanup,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="cleanup",
                summary="Expire what is due now",
                description="With `force` the expiry guard lets go of what it holds.",
                tag="registry",
                query=(Param("force", "Release the expiry guard", {"type": "boolean"}),),
                answers={200: Answer("How many went", CleanupResult)},
            ),
            Route(
                method="POST",
                path="/register",
                handler=self.legacy_register,
                permission=writer,
                scope=Scope.NARROWED,
                operation_id="register",
                summary="Register, as the microservice clients do",
                tag="microservice clients",
                body=LegacyRegistration,
                answers={201: Answer("Registered", LegacyRegistered)},
                problems=(409, 413, 415, 422, 429),
            ),
            Route(
                method="POST",
                path="/deregister",
                handler=self.legacy_deregister,
                permission=writer,
                scope=Scope.NARROWED,
                operation_id="deregister",
                summary="Deregister, as the microservice clients do; unknown ones are fine too",
                tag="microservice clients",
                query=(Param("service_name", "The service"), Param("instance_id", "The instance")),
                answers={200: Answer("Gone", LegacyStatus)},
            ),
        ]


_PICK: Final = ("strategy", "key", "exclude")
_NOT_MODIFIED: Final = Answer("The caller's copy still holds")

_INSTANCE_ID_PARAM: Final = Param("instanceId", "Which instance, when there are several")
_DRAIN_PARAM: Final = Param(
    "drainSeconds",
    "Drain that long first",
    {"type": "integer", "minimum": 0, "maximum": MAX_DRAIN_SECONDS},
)
FILTER_PARAMS: Final = (
    Param("name", "RE2, anywhere in the name, any case", example="^ai-"),
    Param("capability", "Any of these, with ranges: `chat@>=2;<3,embeddings`", example="chat"),
    Param("capabilitiesAll", "All of these"),
    Param("minVersion", "Of the capabilities named: this or newer, same major"),
    Param("tags", "Any of these", example="ai,nlp"),
    Param("tagsAll", "All of these"),
    Param("health", "Any of these statuses", example="healthy"),
    Param("version", "Exact or a range", example="^2.1"),
    Param("environment", "Any of these; prod, dev and stage are known", example="production"),
    Param("zone", "Any of these"),
    Param("model", "Any of these models"),
    Param("dependsOn", "Depends on any of these services"),
    Param(
        "filter",
        "A boolean expression over the fields",
        example='metadata.owner == "nlp" and weight != 0',
    ),
)
_PAGE_PARAMS: Final = (
    Param(
        "view",
        "List services, or instances",
        {"type": "string", "enum": ["services", "instances"]},
    ),
    Param(
        "limit",
        "How many (default 100)",
        {"type": "integer", "minimum": 1, "maximum": 10_000},
    ),
    Param("cursor", "Where the page before ended: its `next`"),
    Param("sort", "name, registeredAt, updatedAt, health or version; - in front turns it round"),
    Param("fields", "Only these fields of each"),
)
FRESH_PARAMS: Final = (
    Param("minRevision", "Wait (2 s at most) until this node holds that revision"),
    Param(
        "consistency",
        "`strong` asks the store for its revision first",
        {"type": "string", "enum": ["default", "strong"]},
    ),
    Param(
        "maxStaleMs",
        "Refuse (503) when the store has been away for longer",
        {"type": "integer", "minimum": 0},
    ),
)
_WAIT_PARAMS: Final = (
    Param("since", "With `wait`: answer when the result may have changed since this revision"),
    Param("wait", "How long at most, such as 30s; up to 5m"),
)
_PICK_PARAMS: Final = (
    Param(
        "strategy", "How to choose", {"type": "string", "enum": [word.value for word in Strategy]}
    ),
    Param("key", "What a consistent choice is made for"),
    Param("exclude", "Not these instances"),
)


def _no_service(name: str) -> NotFound:
    return NotFound(f"no service {name!r} is registered")


def _none_offered(
    name: str, members: Sequence[Instance], eligible: Sequence[Instance], wish: Wish
) -> NotFound:
    counts = why_none(eligible, wish)
    reasons = counts["reasons"]
    if left_out := len(members) - len(eligible):
        reasons["filtered"] = left_out
    said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return NotFound(
        f"no instance of {name} can be offered: of {len(members)} registered {said}",
        members={**counts, "registered": len(members), "reasons": reasons},
    )


def _chosen(instance: Instance) -> dict[str, object]:
    fields = json.loads(instance.document)
    chosen = {
        "url": fields["endpoint"],
        "service": instance.service,
        "instanceId": instance.instance_id,
        "health": instance.health.value,
    }
    for name in ("version", "zone"):
        if name in fields:
            chosen[name] = fields[name]
    return chosen


def _wish(parameters: dict[str, str]) -> Wish:
    strategy = parameters.get("strategy") or Strategy.WEIGHTED
    if strategy not in {word.value for word in Strategy}:
        raise Malformed(f"strategy: expected one of {', '.join(Strategy)}, found {strategy[:40]!r}")
    key = parameters.get("key", "")
    if strategy == Strategy.CONSISTENT and not key:
        raise Malformed("key: strategy=consistent needs one, such as a user or session id")
    excluded = frozenset(part.strip() for part in parameters.get("exclude", "").split(","))
    return Wish(Strategy(strategy), key, parameters.get("zone") or None, excluded)


def _expected(request: Request) -> str:
    """What If-Match or If-None-Match ask of the instance, in the words of `Registrar.pinned`."""
    if request.headers.get("If-None-Match", "").strip() == "*":
        return "absent"
    condition = request.headers.get("If-Match")
    if condition is None:
        return ""
    if condition.strip() == "*":
        return "present"
    try:
        # Of several any will do, so the latest one. What stands behind the revision says for whom the
        # answer was made.
        tags = [tag.strip().removeprefix("W/").strip('"') for tag in condition.split(",")]
        return str(max(parse_revision(tag.partition(".")[0]) for tag in tags))
    except Malformed:
        raise PreconditionFailed(
            "If-Match: not an ETag that this registry gave; read the instance and send its ETag"
        ) from None


def _object(body: object) -> dict[str, object]:
    if not isinstance(body, dict):
        raise Invalid("expected a JSON object", errors=[FieldError("", "expected an object")])
    return body


def _heartbeat(body: object) -> Heartbeat | None:
    return None if body is None else parse(Heartbeat, body)


def _renewed(lease: Renewed) -> Reply:
    return Reply(200, _lease_json(lease))


@lru_cache(maxsize=4096)
def _lease_json(lease: Renewed) -> bytes:
    """The hottest answer of all; one batch of renewals has but a few different ones."""
    seconds = lease.ttl_ms // 1000
    return b'{"ttlSeconds":%d,"expiresAt":"%b","renewIntervalSeconds":%d}' % (
        seconds,
        moment(lease.expires_at_ms).encode(),
        renew_interval(seconds),
    )


def _answer_renewal(exchange: Exchange, outcome: Outcome | Exception) -> None:
    if isinstance(outcome, Renewed):
        exchange.reply(_renewed(outcome))
    elif isinstance(outcome, Refused):
        name, instance_id = exchange.params
        exchange.fail(refused_renewal(name, instance_id, outcome))
    else:
        exchange.fail(outcome)


def _seconds(text: str) -> int:
    if not (
        text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_DRAIN_SECONDS
    ):
        raise Malformed(
            f"drainSeconds: expected a number from 0 to {MAX_DRAIN_SECONDS}, found {text[:40]!r}"
        )
    return int(text)


def _limit(text: str | None) -> int:
    if not text:
        return 100
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 10_000):
        raise Malformed(f"limit: expected a number from 1 to 10000, found {text[:40]!r}")
    return int(text)


def _shown(answer: BaseModel, headers: Sequence[Header] = (), *, status: int = 200) -> Reply:
    body = answer.model_dump_json(by_alias=True)
    return Reply(status, body.encode(), headers=list(headers))
