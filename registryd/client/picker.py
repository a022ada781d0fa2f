"""Chooses instances of one service, from what a watch tells, without asking the registry each time."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, cast

from registryd.client.answers import step
from registryd.client.choosing import CHOOSERS, Choice, candidates, why_none
from registryd.client.known import Known
from registryd.client.outliers import Outliers
from registryd.client.stream import PASSING, Interrupted, Message
from registryd.client.types import (
    Filters,
    Found,
    Matching,
    NoneOffered,
    Strategy,
    Target,
    UnexpectedAnswer,
)
from registryd.errors import RegistrydError

if TYPE_CHECKING:
    from registryd.client.client import RegistryClient

log = logging.getLogger(__name__)

FIRST: Final = 5.0
"""Seconds that the first choice waits to hear of instances."""
POLL: Final = 2.0
"""Seconds between two looks while no watch can be held."""
KEEP_EVERY: Final = 1.0
"""Seconds between two writes of what is known to the disk."""


class Picker:
    """A local view of one service, kept by a watch; while none can be held, by polling; while nobody
    answers, what was known last. Starts with the first choice.

    `connected`: whether a watch is open. `found`: the view, with its age.
    """

    def __init__(
        self,
        client: RegistryClient,
        service: str,
        filters: Matching,
        *,
        strategy: Strategy,
        zone: str | None,
        dice: random.Random,
        clock: Callable[[], float],
        doubt_for: float,
    ) -> None:
        self.service = service
        self.connected = False
        self.outliers = Outliers(clock)
        self._client = client
        self._filters = filters
        self._choose = CHOOSERS[strategy]
        self._zone = zone
        self._dice = dice
        self._clock = clock
        self._known = Known(clock=clock, doubt_for=doubt_for)
        self._news = asyncio.Event()
        """Something has been heard, be it that nobody answers."""
        self._trouble: RegistrydError | None = None
        """Why nothing is known yet."""
        self._sound = False
        """Whether what is known came without an interruption since."""
        self._turn = 0
        self._kept = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def found(self) -> Found:
        return self._known.found("registry" if self.connected else "last-known-good")

    async def pick(self, *, key: str = "") -> Target:
        """One instance. `key` is what a consistent choice is made for. Raises NoneOffered, or what the
        registry refuses with, or Unreachable when nothing has ever been known."""
        if self._task is None:
            self._task = asyncio.create_task(
                self._follow(), name=f"registryd picker {self.service}"
            )
        if self._known.agreed is None:
            try:
                async with asyncio.timeout(FIRST):
                    await self._news.wait()
            except TimeoutError:
                pass  # then the choice below says what is known, which is nothing
        instances = self.found.instances
        if self._trouble is not None and self._known.agreed is None:
            raise self._trouble
        rejected = self.outliers.ejected([one.instance_id for one in instances])
        able = candidates(instances, rejected=rejected, zone=self._zone)
        if not able:
            raise NoneOffered(
                f"no instance of {self.service!r} can be chosen: {why_none(instances)}. "
                f"Ask GET /explain?service={self.service} why, or wait until one is healthy.",
                members=why_none(instances),
            )
        turn, self._turn = self._turn, self._turn + 1
        chosen = self._choose(able, Choice(key, turn, self._dice, self.outliers))
        return Target(chosen.endpoint, self.service, chosen.instance_id, chosen)

    def use(self, *, key: str = "") -> Use:
        """`async with picker.use() as target:` picks, and learns from how the block ends: an exception,
        or `target.failed = True`, counts against the instance; its time is measured."""
        return Use(self, key, self._clock)

    async def close(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        if self._known.agreed is not None:
            await self._client.keep(self._query, self._known)

    @property
    def _query(self) -> str:
        return f"watch/{self.service}?{sorted(self._filters.items())}"

    async def _follow(self) -> None:
        """Ends only when the registry refuses what is asked."""
        await self._client.recall(self._query, self._known)
        while True:
            try:
                async with aclosing(
                    self._client.follow_watch([self.service], self._filters)
                ) as messages:
                    async for message in messages:
                        if isinstance(message, Interrupted):
                            self.connected = False
                            await self._poll()
                        else:
                            self._take(message)
                        await self._keep()
            except UnexpectedAnswer as error:
                log.warning("the watch of %s begins anew: %s", self.service, error.detail)
                self.connected = self._sound = False
                await asyncio.sleep(POLL)
            except RegistrydError as error:
                log.error("cannot watch %s: %s", self.service, error.detail)  # noqa: TRY400  expected
                self.connected, self._trouble = False, error
                self._news.set()
                return

    def _take(self, message: Message) -> None:
        known, told = self._known, step(message)
        self.connected = message.event != "bye"
        if told is None:
            if known.agreed is not None:
                known.confirm()
            return
        if told.whole is not None:
            known.take(told.whole, told.revision, interrupted=not self._sound)
            self.outliers.forget([one.instance_id for one in told.whole])
        else:
            known.change(told.revision, [*told.added, *told.changed], told.removed)
        self._sound = True
        self._news.set()

    async def _poll(self) -> None:
        """One look by an ordinary request, which may get through where a stream does not."""
        name = "^" + re.escape(self.service) + "$"
        filters = cast("Filters", {**self._filters, "name": name})
        try:
            instances, revision, stale = await self._client.list_instances(filters, patience=0)
        except PASSING as error:
            self._sound, self._trouble = False, error
        else:
            self._known.take(instances, revision, interrupted=not self._sound, stale_for=stale)
            self._sound = True
        self._news.set()

    async def _keep(self) -> None:
        if self._clock() - self._kept >= KEEP_EVERY and self._known.agreed is not None:
            self._kept = self._clock()
            await self._client.keep(self._query, self._known)


class Use:
    """One call through a picker, see `Picker.use`."""

    def __init__(self, picker: Picker, key: str, clock: Callable[[], float]) -> None:
        self._picker = picker
        self._key = key
        self._clock = clock
        self._began = 0.0
        self._target: Target | None = None

    async def __aenter__(self) -> Target:
        self._target = await self._picker.pick(key=self._key)
        self._picker.outliers.begin(self._target.instance_id)
        self._began = self._clock()
        return self._target

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        target = self._target
        if target is None:
            return
        good: bool | None = kind is None and not target.failed
        if kind is not None and not issubclass(kind, Exception):
            good = None  # cancelled: that says nothing of the instance
        self._picker.outliers.end(
            target.instance_id, seconds=self._clock() - self._began, good=good
        )
