"""Carries out imports, all or nothing: whatever dies on the way, what was begun is undone or completed.

Everything is validated and compared before anything is written. What fits goes to the store in one call. More
is laid down in parts there, which nobody sees and which go by themselves, and then committed in one step: from
there on any daemon carries it out to its end (`turn`), also one that starts later, before it shows anything.
Views take it in as one (`sync.py`).
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import structlog

from registryd.errors import Conflict, StorageUnavailable
from registryd.feed.follower import Follower
from registryd.kit.clock import Clock
from registryd.kit.logs import MASK
from registryd.registry.quota import Quota
from registryd.registry.registrar import Registrar
from registryd.registry.sealed import Sealed, Server, server_of
from registryd.registry.store import Imported, Importing, RegistryStore
from registryd.registry.transfer import (
    File,
    ImportResult,
    Mode,
    Plan,
    Secrets,
    admit_all,
    plan,
    read,
    result,
)
from registryd.registry.view import Instance, View
from registryd.web import codec

log = structlog.get_logger(__name__)

_MASKED: Final = json.dumps(MASK).encode()
AT_ONCE: Final = 200
"""Instances of an import that is one call: the store does nothing else meanwhile, 30 ms or so."""
PART: Final = 50
"""Instances in a part of a larger one."""
KEEP: Final = timedelta(minutes=10)
"""How long parts may take to be laid down."""
CATCH_UP: Final = timedelta(seconds=2)
SHOWN: Final = timedelta(seconds=60)
"""How long a view may take to show it: a large import means loading anew."""


class Importer:
    def __init__(
        self,
        store: RegistryStore,
        view: View,
        follower: Follower,
        registrar: Registrar,
        clock: Clock,
        *,
        quota: Callable[[], Quota],
        at_once: int = AT_ONCE,
        part: int = PART,
    ) -> None:
        self._store = store
        self._view = view
        self._follower = follower
        self._registrar = registrar
        self._clock = clock
        self._quota = quota
        self.at_once = at_once
        self.part = part
        self._carrying = False

    async def run(self, body: bytes, mode: Mode, *, dry_run: bool, confirm: str) -> ImportResult:
        """Reads a file (JSON), and makes the registry what it says, unless `dry_run`. Raises Malformed,
        Invalid, RateLimited, StorageUnavailable; Conflict where `confirm` does not name what would be
        removed, and while another import is under way."""
        await self._catch_up()
        # Instances never change, so the rest may take its time.
        held = dict(self._view.contents.by_id)
        file = await asyncio.to_thread(self._read, body, await self._secrets(held))
        made = await asyncio.to_thread(plan, file, held, mode)
        if not dry_run:
            if made.confirmation and confirm != made.confirmation:
                raise Conflict(
                    f"{len(made.removed)} instances that are not in the file would be removed; see which "
                    f"with dryRun=true, then repeat with confirm={made.confirmation}",
                    members={"confirm": made.confirmation},
                )
            admit_all(self._view, self._quota(), made)
        shown = result(made, file, mode, dry_run=dry_run)
        if dry_run or not made.items:
            return shown
        done = await self._carry_out(made, mode)
        if done is not None:
            shown.counts.overtaken = len(made.items) - done.written - done.removed
        log.info("import done", mode=mode.value, **shown.counts.model_dump())
        return shown

    def _read(self, body: bytes, secrets: Secrets) -> File:
        return read(codec.loads(body), self._registrar.entry_of, self._clock.now(), secrets)

    async def _secrets(self, held: Mapping[str, Instance]) -> Secrets:
        """What is known here of the values that the file has masks for."""
        masked = await asyncio.to_thread(
            lambda: [name for name, one in held.items() if _MASKED in one.fragment]
        )
        found: dict[str, tuple[Sealed, Server]] = {}
        for start in range(0, len(masked), self.at_once):
            names = masked[start : start + self.at_once]
            for name, vitals in zip(names, await self._store.vitals(names), strict=True):
                known = json.loads(vitals.state).get("sealed", ()) if vitals.state else ()
                found[name] = (Sealed(known), server_of(held[name].document))
        return found

    async def _carry_out(self, made: Plan, mode: Mode) -> Imported | None:
        """What was written in the end; None when another daemon did the last of it."""
        reason = f"import ({mode.value})"
        if len(made.items) <= self.at_once:
            done: Imported | None = await self._store.import_all(made.items, reason=reason)
        else:
            await self._commit(made.items, reason)
            done = await self._complete()
        await self._await_shown(done)
        return done

    async def _commit(self, items: Sequence[Importing], reason: str) -> None:
        name, parts = self._store.nonce(), 0
        for start in range(0, len(items), self.part):
            await self._store.stage_import(name, items[start : start + self.part], keep=KEEP)
            parts += 1
        match await self._store.commit_import(name, parts, reason=reason):
            case "committed":
                pass
            case "busy":
                raise Conflict("another import is under way; try again when it is done")
            case "lost":
                raise StorageUnavailable("the store was too slow, nothing was imported; try again")

    async def _complete(self) -> Imported | None:
        """The outcome, or None where another daemon did the last of it."""
        self._carrying = True
        try:
            while (outcome := await self._store.continue_import()) is not None:
                if isinstance(outcome, Imported):
                    return outcome
        finally:
            self._carrying = False
        return None

    async def turn(self) -> None:
        """Carries on with what was committed and whose daemon has gone. For a supervised loop."""
        if self._carrying:
            return
        try:
            if await self._store.continue_import() is None:
                return
            await self._complete()
        except StorageUnavailable:
            return
        log.info("completed an import")

    async def _await_shown(self, done: Imported | None) -> None:
        try:
            async with asyncio.timeout(SHOWN.total_seconds()):
                if done is None:
                    await self._follower.catch_up()
                else:
                    await self._follower.reached(done.revision)
        except TimeoutError:
            raise StorageUnavailable(
                "the import is done, but this node cannot see all of it yet"
            ) from None

    async def _catch_up(self) -> None:
        try:
            async with asyncio.timeout(CATCH_UP.total_seconds()):
                await self._follower.catch_up()
        except TimeoutError:
            raise StorageUnavailable("this node cannot see yet what the store holds") from None
