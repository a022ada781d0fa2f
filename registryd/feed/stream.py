"""Reads the change stream of the store: what comes after a position, and what stands at one."""

from dataclasses import dataclass

from registryd.feed.revision import Revision
from registryd.storage.connection import BLOCK, Connection
from registryd.storage.keys import Keys


@dataclass(frozen=True, slots=True)
class Change:
    """One entry: where it stands and its fields, as the script that made it wrote them."""

    at: Revision
    fields: dict[bytes, bytes]

    @property
    def nonce(self) -> bytes:
        return self.fields[b"w"]


class ChangeStream:
    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def after(self, position: Revision, *, limit: int = 1000) -> list[Change]:
        """The next changes; waits for the first of them, or answers with none after a while.

        Raises StorageUnavailable. A trimmed stream answers with a later entry and no error: callers
        have to compare.
        """
        reply = await self._connection.blocking_call(
            "XREAD",
            "COUNT",
            limit,
            "BLOCK",
            int(BLOCK.total_seconds() * 1000),
            "STREAMS",
            self._keys.stream,
            str(position),
        )
        # RESP3: {stream: [[entry, …]]}, or nothing at all when the wait ran out.
        return [
            _change(entry)
            for batches in (reply or {}).values()
            for batch in batches
            for entry in batch
        ]

    async def at(self, position: Revision) -> Change | None:
        """The entry at `position`, if the stream still, or ever, held it."""
        reply = await self._connection.call(
            "XRANGE", self._keys.stream, str(position), str(position)
        )
        return _change(reply[0]) if reply else None

    async def between(self, first: Revision, last: Revision, *, limit: int) -> list[Change]:
        """The entries from `first` to `last`, both included, but no more than `limit` of them. Raises
        StorageUnavailable. What was trimmed is missing without a word."""
        reply = await self._connection.call(
            "XRANGE", self._keys.stream, str(first), str(last), "COUNT", limit
        )
        return [_change(entry) for entry in reply]

    async def head(self) -> Revision:
        """The revision the store is at: (0, 0) for an empty one."""
        epoch, rev = await self._connection.call("HMGET", self._keys.meta, "epoch", "rev")
        return Revision(int(epoch or 0), int(rev or 0))


def _change(entry: tuple[bytes, dict[bytes, bytes]]) -> Change:
    identifier, fields = entry
    epoch, _, rev = identifier.partition(b"-")
    return Change(Revision(int(epoch), int(rev)), fields)
