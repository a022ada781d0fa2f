"""The API keys that this daemon goes by: all of them in memory, from the store and from the keys file.

A change in the store is noticed by one field, asked for twice a second, and at once where somebody shows
a key that is not known. While the store is away what is known goes on.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog

from registryd.auth.apikey import KeySet
from registryd.auth.store import AuthStore
from registryd.auth.types import ApiKey
from registryd.auth.watched import WatchedFile
from registryd.errors import StorageUnavailable
from registryd.kit.clock import Clock

log = structlog.get_logger(__name__)

LOOK_EVERY: Final = timedelta(milliseconds=500)
LOOK_AGAIN_AFTER: Final = timedelta(milliseconds=100)
"""Between two looks because of keys that are not known: a flood of wrong keys costs ten calls a second."""
USES_EVERY: Final = timedelta(seconds=30)
"""How often it is written down which keys were used."""


class Keyring:
    """`changed` is called whenever the keys have become others."""

    def __init__(
        self,
        store: AuthStore,
        clock: Clock,
        file: WatchedFile[tuple[ApiKey, ...]] | None = None,
    ) -> None:
        self.known = KeySet()
        self.changed: Callable[[], None] = lambda: None
        self._store = store
        self._clock = clock
        self._file = file
        self._revision: bytes | None = None
        self._looked = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self.used: set[str] = set()
        """Ids of the keys that somebody came with since that was last written down."""

    async def load(self) -> None:
        """Once, at the start. Raises StartupRefused for the file, StorageUnavailable for the store."""
        if self._file is not None:
            self.known = KeySet(filed=self._file.first())
        await self._refresh()

    async def turn(self) -> None:
        """Looks whether keys have changed, in the store and in the file."""
        if self._file is not None and (filed := self._file.news()) is not None:
            self.known = KeySet(self.known.stored, filed)
            self.changed()
        try:
            await self._refresh()
        except StorageUnavailable as error:
            log.debug("keys not looked at", reason=error.detail)

    async def look(self) -> None:
        """Looks for somebody whose key is not known: now, or where that was done a moment ago a moment
        later, once for all who ask meanwhile."""
        if self._look is None:
            self._look = asyncio.create_task(self._look_when_due())
            self._look.add_done_callback(self._look_ended)
        # Others wait for the same look: who gives up must not end it for them.
        await asyncio.shield(self._look)

    async def write_uses(self) -> None:
        """Writes down which keys were used since the last time; of those in the store."""
        used = self.used & self.known.stored.keys()
        self.used.clear()
        if used:
            try:
                await self._store.mark_used(used, self._clock.now())
            except StorageUnavailable:
                self.used |= used

    async def _look_when_due(self) -> None:
        due = self._looked + LOOK_AGAIN_AFTER.total_seconds() - self._clock.monotonic()
        if due > 0:
            await asyncio.sleep(due)
        self._looked = self._clock.monotonic()
        await self.turn()

    def _look_ended(self, _look: "asyncio.Task[None]") -> None:
        self._look = None

    async def _refresh(self) -> None:
        if await self._store.revision() == self._revision:
            return
        revision, stored = await self._store.keys()
        self.known = KeySet(stored, self.known.filed)
        self._revision = revision
        self.changed()
