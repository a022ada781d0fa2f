"""The heartbeats of all registrations of one client: what is due together goes in one call."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from registryd.client.retry import CAP, pause
from registryd.client.signals import before_sigterm
from registryd.errors import RegistrydError
from registryd.registry.types import MAX_BATCH

if TYPE_CHECKING:
    from registryd.client.client import RegistryClient
    from registryd.client.registration import Registration

log = logging.getLogger(__name__)

TOGETHER: Final = 0.15
"""The part of an interval by which a heartbeat may come early, to go with others; also its jitter."""
AT_ONCE: Final = 16
"""Registrations under way at the same time."""


class Heartbeats:
    def __init__(
        self, client: RegistryClient, dice: random.Random, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._dice = dice
        self._clock = clock
        self._members: list[Registration] = []
        self._draining: list[Registration] = []
        self._signal = ExitStack()
        self._news = asyncio.Event()
        self._turning = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def drain_on_sigterm(self, one: Registration) -> None:
        """SIGTERM drains `one`, before anything else. A signal has one receiver: registrations that each
        took it would take it from each other."""
        if not self._draining:
            self._signal.enter_context(before_sigterm(self._drain))
        self._draining.append(one)

    def leave_sigterm(self, one: Registration) -> None:
        if one in self._draining:
            self._draining.remove(one)
            if not self._draining:
                self._signal.close()

    def add(self, one: Registration) -> None:
        """From now on `one` is kept registered."""
        one.due = self._clock() + (
            self._next(one) if one.state == "registered" else pause(0, self._dice)
        )
        self._members.append(one)
        self._news.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="registryd heartbeats")

    async def remove(self, one: Registration) -> None:
        """Returns when nothing is under way for it any more."""
        async with self._turning:
            self._members.remove(one)
        if not self._members:
            await self.close()

    async def _drain(self) -> None:
        await asyncio.gather(*(one.drain() for one in self._draining))

    async def close(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            active = [one for one in self._members if one.state in {"registered", "waiting"}]
            due = min((one.due for one in active), default=None)
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._news.wait()
            except TimeoutError:
                async with self._turning:
                    await self.turn()

    async def turn(self) -> None:
        """Does what is due now."""
        now = self._clock()
        due = [
            one
            for one in self._members
            if one.state == "registered" and one.due <= now + TOGETHER * one.interval
        ]
        # One early bird alone is no reason.
        if any(one.due <= now for one in due):
            for some in _batches(due):
                await self._renew(some)
        slots = asyncio.Semaphore(AT_ONCE)
        waiting = [
            one for one in self._members if one.state == "waiting" and one.due <= self._clock()
        ]
        await asyncio.gather(*(self._register(one, slots) for one in waiting))

    async def _renew(self, members: Sequence[Registration]) -> None:
        try:
            words = await self._client.renew_many([one.beat for one in members], patience=0)
        except RegistrydError as error:
            if not members[0].failed:
                log.warning("Heartbeats failed, and go on being tried: %s", error.detail)
            for one in members:
                self._later(one)
            return
        for one, word in zip(members, words, strict=True):
            if one.state != "registered":
                continue  # it began to drain meanwhile
            match word:
                case "renewed":
                    one.failed = 0
                    one.due = self._clock() + self._next(one)
                case "superseded":
                    await self._settle(one)
                case _:
                    log.warning("The registry has lost %s/%s", one.name, one.instance_id)
                    one.lost()
                    one.due = self._clock()

    async def _settle(self, one: Registration) -> None:
        try:
            await one.superseded()
        except RegistrydError:
            self._later(one)  # the next heartbeat is told the same
        else:
            one.due = self._clock()

    async def _register(self, one: Registration, slots: asyncio.Semaphore) -> None:
        async with slots:
            try:
                await one.register()
            except RegistrydError as error:
                if one.failed <= 1:
                    log.warning("Service registry registration failed: %s", error.detail)
                self._later(one)
            else:
                one.failed = 0
                one.due = self._clock() + self._next(one)

    def _next(self, one: Registration) -> float:
        return one.interval * self._dice.uniform(1 - TOGETHER, 1)

    def _later(self, one: Registration) -> None:
        one.due = self._clock() + pause(one.failed, self._dice, cap=min(CAP, one.interval))
        one.failed += 1


def _batches(members: Sequence[Registration]) -> list[Sequence[Registration]]:
    return [members[at : at + MAX_BATCH] for at in range(0, len(members), MAX_BATCH)]
