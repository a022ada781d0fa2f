"""Registrations, many in one call to the store, by natural batching as heartbeats are (renew.py).

A storm of them, after a deployment or an outage, then costs the store half as much each. Two of the same
instance never travel together: the second is decided by what the first has left.
"""

import asyncio
from typing import Final

from registryd.errors import StorageUnavailable
from registryd.registry.store import Refused, Registering, RegistryStore, Stored

MAX_BATCH: Final = 32
"""Each holds the store up for a tenth of a millisecond or two."""

Outcome = Stored | Refused
Waiting = tuple[Registering, "asyncio.Future[Outcome]"]


class RegistrationQueue:
    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self._pending: list[Waiting] = []
        self._under_way: list[Waiting] = []
        self._call: asyncio.Task[list[Outcome]] | None = None

    async def register(self, registering: Registering) -> Outcome:
        """What became of a registration. Raises StorageUnavailable if the store does."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending.append((registering, future))
        if self._call is None:
            self._start()
        return await future

    def _start(self) -> None:
        self._call = asyncio.create_task(self._send(), name="registrations")
        self._call.add_done_callback(self._settle)

    async def _send(self) -> list[Outcome]:
        # Taken here, a turn of the loop after the first arrived: its neighbours travel along.
        self._under_way, self._pending = taken(self._pending)
        if not self._under_way:
            return []  # all who waited have gone
        return await self._store.register_all([registering for registering, _ in self._under_way])

    def _settle(self, call: "asyncio.Task[list[Outcome]]") -> None:
        batch, self._under_way, self._call = self._under_way, [], None
        error: BaseException | None
        if call.cancelled():
            error = StorageUnavailable("the registry is shutting down; try another node")
        else:
            error = call.exception()
        outcomes = [] if error is not None else call.result()
        for position, (_, future) in enumerate(batch):
            if future.done():
                continue  # its caller has gone
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(outcomes[position])
        if self._pending:
            self._start()


def taken(pending: list[Waiting]) -> tuple[list[Waiting], list[Waiting]]:
    """The next batch, in the order of arrival and each instance once, and what has to wait. Whose caller
    has gone before it was sent is in neither."""
    batch: dict[str, Waiting] = {}
    later: list[Waiting] = []
    for waiting in pending:
        registering, future = waiting
        if future.done():
            continue
        if len(batch) == MAX_BATCH or registering.entry.id in batch:
            later.append(waiting)
        else:
            batch[registering.entry.id] = waiting
    return list(batch.values()), later
