"""An instance that stays registered for as long as a block of code runs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from registryd.client.identity import token
from registryd.client.lives import Life, after_superseded
from registryd.client.stream import PASSING
from registryd.client.types import State
from registryd.errors import NotFound, RegistrydError
from registryd.registry.types import HeartbeatItem, InstanceShown, renew_interval

if TYPE_CHECKING:
    from registryd.client.client import RegistryClient
    from registryd.client.heartbeats import Heartbeats

log = logging.getLogger(__name__)

FAREWELL: Final = 3.0
"""Seconds that deregistering may take: the process is about to end, and the lease ends by itself."""


class Registration:
    """`async with client.registration(…) as reg:` registers, renews each third of the lease, registers
    again when the registry has lost it, and deregisters at the end.

    A registry that is away does not keep the block from running: `state` is then `waiting`, and
    `registered()` waits. What no later attempt would mend (a wrong field, a missing permission) is
    raised, unless `forgiving`.

    `drain()` takes the instance out of every choice and waits `drain_seconds`, in which callers hear of
    it and running calls end. With `on_sigterm` a SIGTERM is answered by that (of all such registrations
    of one client together), and only then handed on to whoever handled it before; where nobody did, the
    program ends as by Ctrl-C.

    Superseded by another incarnation of the same id, it goes by `registryd.client.lives`: the later
    start keeps the id; the earlier one ends (`yielded`) if both stand for the same endpoint, else it
    goes on as `<id>~<random>`.
    """

    def __init__(
        self,
        client: RegistryClient,
        heartbeats: Heartbeats,
        name: str,
        instance_id: str,
        fields: Mapping[str, Any],
        *,
        drain_seconds: int,
        on_sigterm: bool,
        forgiving: bool = False,
        dice: random.Random,
    ) -> None:
        self.name = name
        self.instance_id = instance_id
        """May change when it meets a namesake."""
        self.fields = dict(fields)
        self.drain_seconds = drain_seconds
        self.state: State = "waiting"
        self.life = Life(int(time.time() * 1000), token(dice))
        self.interval = float(renew_interval(self.fields["ttlSeconds"]))
        """Seconds between heartbeats, as the registry wants it."""
        self.due = 0.0
        """When something is to be done for it, by the clock of the heartbeats."""
        self.failed = 0
        """Attempts in a row that came to nothing."""
        self._client = client
        self._heartbeats = heartbeats
        self._on_sigterm = on_sigterm
        self._forgiving = forgiving
        self._dice = dice
        self._registered = asyncio.Event()

    async def __aenter__(self) -> Self:
        with ExitStack() as undo:
            if self._on_sigterm:
                # First: a signal that comes right after the registration has to find it.
                self._heartbeats.drain_on_sigterm(self)
                undo.callback(self._heartbeats.leave_sigterm, self)
            try:
                await self.register()
            except RegistrydError as error:
                if not (self._forgiving or isinstance(error, PASSING)):
                    raise
                log.warning("Service registry registration failed: %s", error.detail)
            undo.pop_all()
        self._heartbeats.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._heartbeats.leave_sigterm(self)
        await self._heartbeats.remove(self)
        if self.state in {"registered", "draining"}:
            try:
                await self._client.deregister(
                    self.name,
                    self.instance_id,
                    incarnation=str(self.life),
                    patience=FAREWELL,
                )
            except RegistrydError as error:
                log.warning("Not deregistered, the lease will end by itself: %s", error.detail)
        if self.state != "yielded":
            self.state = "left"

    @property
    def endpoint(self) -> str:
        return str(self.fields["endpoint"])

    @property
    def beat(self) -> HeartbeatItem:
        return HeartbeatItem(
            name=self.name, instance_id=self.instance_id, incarnation=str(self.life)
        )

    async def registered(self) -> None:
        """Returns once the registry knows it."""
        await self._registered.wait()

    async def register(self) -> None:
        """One attempt, at every base URL. Raises what it meets."""
        shown: InstanceShown = await self._client.register(
            self.name,
            instance_id=self.instance_id,
            incarnation=str(self.life),
            patience=0,
            **self.fields,
        )
        self.interval = float(shown.lease.renew_interval_seconds)
        self.state = "registered"
        self._registered.set()
        log.info("Registered %s with service registry as instance %s", self.name, self.instance_id)

    def lost(self) -> None:
        """The registry does not know it any more."""
        self.state = "waiting"
        self._registered.clear()

    async def superseded(self) -> None:
        """Another incarnation holds its id. Raises when the registry cannot say which."""
        try:
            holder = await self._client.get_instance(self.name, self.instance_id, patience=0)
        except NotFound:
            holder = None
        match after_superseded(self.life, self.endpoint, holder):
            case "register":
                self.life = self.life.next()
                self.lost()
            case "rename":
                old, self.instance_id = (
                    self.instance_id,
                    f"{self.instance_id[:120]}~{token(self._dice)}",
                )
                log.warning(
                    "%s/%s is taken by %s; going on as %s",
                    *(self.name, old, holder.endpoint if holder else "", self.instance_id),
                )
                self.lost()
            case "yield":
                log.warning("%s/%s has a successor; no longer renewed", self.name, self.instance_id)
                self.state = "yielded"
                self._registered.clear()

    async def drain(self) -> None:
        """Out of every choice, at once; returns after `drain_seconds`, or at once when the registry
        cannot be told."""
        if self.state != "registered":
            return
        self.state = "draining"
        try:
            there = await self._client.deregister(
                self.name,
                self.instance_id,
                drain_seconds=self.drain_seconds,
                incarnation=str(self.life),
                patience=FAREWELL,
            )
        except RegistrydError as error:
            log.warning("Not drained: %s", error.detail)
            return
        if there:
            log.info("Draining %s/%s for %s s", self.name, self.instance_id, self.drain_seconds)
            await asyncio.sleep(self.drain_seconds)
