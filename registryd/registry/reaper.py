"""Lets go of what is due, on every node at once and without a leader: the script gives each to one."""

from typing import Final

import structlog

from registryd.errors import StorageUnavailable
from registryd.metrics import Metrics
from registryd.registry.store import Guard, RegistryStore, Swept

log = structlog.get_logger(__name__)

LOGGED: Final = 20
"""Expiries of one sweep that get a log line each; a mass expiry gets its number."""


class Reaper:
    """Sweeps, and tells what the sweeps found. `guard` None switches the expiry guard off."""

    def __init__(self, store: RegistryStore, metrics: Metrics, guard: Guard | None) -> None:
        self._store = store
        self._metrics = metrics
        self.guard = guard
        self.last: Swept | None = None

    async def turn(self) -> None:
        """A sweep, for a supervised loop. A store that is away is told of by the feed; we only try on,
        at the pace of ever: a longer pause would let the dead outlive their lease when it is back."""
        try:
            await self.sweep()
        except StorageUnavailable:
            pass

    async def sweep(self, *, force: bool = False) -> int:
        """Everything that is due now, batch by batch; answers with how many instances went."""
        removed = 0
        while True:
            swept = await self._store.sweep(self.guard, force=force)
            self._note(swept)
            removed += len(swept.removed)
            if swept.due == 0 and not (force and swept.held):
                return removed

    def _note(self, swept: Swept) -> None:
        before, self.last = self.last, swept
        self._metrics.expired.inc(len(swept.removed))
        self._metrics.held.set(swept.held)
        self._metrics.guard_active.set(swept.preserving)
        self._metrics.derived_errors.set(swept.derived_errors)
        for identity in swept.removed[:LOGGED]:
            log.info("instance expired", instance=identity)
        if len(swept.removed) > LOGGED:
            log.info("more instances expired", count=len(swept.removed) - LOGGED)
        if abs(swept.jump_ms) > 5_000:
            log.warning(
                "the store was away or its clock jumped, no lease ran meanwhile",
                jump_ms=swept.jump_ms,
            )
        if swept.preserving and not (before and before.preserving):
            log.warning(
                "expiry guard holds: many leases ended together, likely a network fault",
                held=swept.held,
                release="POST /cleanup?force=true",
            )
        if before and before.preserving and not swept.preserving:
            log.info("expiry guard is over")
        if swept.instances != swept.leases and (
            before is None or before.instances == before.leases
        ):
            log.error("the store lost data", instances=swept.instances, leases=swept.leases)
