"""Compares derived data with the truth and puts it right: index sets, expiring keys, old tombstones."""

from datetime import timedelta
from typing import Final

import structlog

from registryd.errors import StorageUnavailable
from registryd.metrics import Metrics
from registryd.registry.store import RegistryStore
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys

log = structlog.get_logger(__name__)

CHUNK: Final = 200


class Auditor:
    def __init__(
        self,
        store: RegistryStore,
        connection: Connection,
        keys: Keys,
        metrics: Metrics,
        *,
        tombstone_retention: timedelta,
    ) -> None:
        self._store = store
        self._connection = connection
        self._keys = keys
        self._metrics = metrics
        self._retention_ms = int(tombstone_retention.total_seconds() * 1000)

    async def turn(self) -> None:
        """A pass, for a supervised loop. A store that is away ends it; the next one begins anew."""
        try:
            await self.audit()
        except StorageUnavailable:
            pass

    async def audit(self) -> int:
        """One pass over everything; answers with how much was put right."""
        written = await self._write_missing()
        index = await self._drop_stale_members()
        keys = await self._drop_stale_keys()
        forgotten = await self._forget_tombstones()
        for kind, count in (("missing", written), ("index", index), ("key", keys)):
            if count:
                self._metrics.audit_repairs.labels(kind).inc(count)
                log.warning("audit put derived data right", kind=kind, count=count)
        return written + index + keys + forgotten

    async def _write_missing(self) -> int:
        cursor, total = 0, 0
        while True:
            cursor, keys, members = await self._store.repair(cursor, CHUNK)
            total += keys + members
            if cursor == 0:
                return total

    async def _drop_stale_members(self) -> int:
        prefix = self._keys.index("")
        dropped = 0
        async for name in self._connection.scan(prefix, CHUNK, kind="set"):
            async for members in self._connection.members("SSCAN", name, CHUNK):
                dropped += await self._store.audit("index", name[len(prefix) :], *members)
        return dropped

    async def _drop_stale_keys(self) -> int:
        prefix = self._keys.instance("")
        batch: list[str] = []
        dropped = 0
        async for name in self._connection.scan(prefix, CHUNK):
            batch.append(name[len(prefix) :])
            if len(batch) == CHUNK:
                dropped += await self._store.audit("keys", *batch)
                batch = []
        return dropped + (await self._store.audit("keys", *batch) if batch else 0)

    async def _forget_tombstones(self) -> int:
        forgotten = 0
        async for pairs in self._connection.members("HSCAN", self._keys.tombstones, CHUNK):
            forgotten += await self._store.audit("tombstones", self._retention_ms, *pairs)
        return forgotten
