"""Events as calls: a function for each kind of event, as plug-ins of other programs like to have them."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from registryd.client.answers import valid
from registryd.client.types import Event, UnexpectedAnswer
from registryd.registry.types import CapabilityFound, InstanceShown

log = logging.getLogger(__name__)

Called = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """What to call when something happens; what is None is not asked for. Functions and coroutine
    functions; one that raises is logged, and goes on being called."""

    on_service_registered: Called | None = None
    """`(service, instance: InstanceShown)`"""
    on_service_updated: Called | None = None
    """`(service, instance: InstanceShown)`"""
    on_service_unregistered: Called | None = None
    """`(service, instance_id, reason)`: also of one whose lease ended."""
    on_health_changed: Called | None = None
    """`(service, instance_id, old, new)`, the two as words."""
    on_capability_added: Called | None = None
    """`(service, capability: CapabilityFound)`"""
    on_capability_removed: Called | None = None
    """`(service, capability: CapabilityFound)`"""
    on_capability_changed: Called | None = None
    """`(service, capability: CapabilityFound)`, as it is now."""
    on_reset: Called | None = None
    """`()`: what happened meanwhile cannot be told any more; look at everything anew."""

    @property
    def types(self) -> tuple[str, ...]:
        """The types of events that are asked for."""
        return tuple(kind for kind, name in _KINDS.items() if getattr(self, name) is not None)

    async def tell(self, event: Event) -> None:
        """Calls whom an event concerns."""
        name = _KINDS.get(event.type)
        called: Called | None = getattr(self, name) if name is not None else None
        if name is None or called is None:
            return
        try:
            arguments = _arguments(name, event.data)
        except UnexpectedAnswer as error:
            log.warning("%s of %s is left out: %s", event.type, event.subject, error.detail)
            return
        # In a task: what somebody else's code raises must not end the listening.
        call = asyncio.create_task(_call(called, arguments))
        await asyncio.wait([call])
        if not call.cancelled() and (failure := call.exception()) is not None:
            log.error("%s failed on %s", name, event.subject, exc_info=failure)

    async def follow(self, events: AsyncGenerator[Event, None]) -> None:
        """Tells each of the events, until they end."""
        async with aclosing(events) as following:
            async for event in following:
                await self.tell(event)


async def _call(called: Called, arguments: tuple[Any, ...]) -> None:
    outcome = called(*arguments)
    if inspect.isawaitable(outcome):
        await outcome


_KINDS: Final[Mapping[str, str]] = {
    "service:registered": "on_service_registered",
    "service:restored": "on_service_registered",
    "service:updated": "on_service_updated",
    "service:unregistered": "on_service_unregistered",
    "service:expired": "on_service_unregistered",
    "service:health:changed": "on_health_changed",
    "capability:added": "on_capability_added",
    "capability:removed": "on_capability_removed",
    "capability:changed": "on_capability_changed",
    "reset": "on_reset",
}


def _arguments(name: str, data: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a listener is called with. Raises UnexpectedAnswer for data of another shape."""
    try:
        match name:
            case "on_reset":
                return ()
            case "on_service_registered" | "on_service_updated":
                return data["service"], valid(InstanceShown, data["instance"])
            case "on_service_unregistered":
                instance = data["instance"]
                return data["service"], instance["instanceId"], instance.get("reason") or ""
            case "on_health_changed":
                return (
                    data["service"],
                    data["instance"]["instanceId"],
                    str(data["old"]),
                    str(data["new"]),
                )
            case _:
                found = {
                    "name": data["capability"]["name"],
                    "version": data["capability"]["version"],
                }
                return data["service"], valid(CapabilityFound, found)
    except (KeyError, TypeError):
        raise UnexpectedAnswer(
            "the event holds something else than this client expects. Update whichever of client and "
            "daemon is older."
        ) from None
