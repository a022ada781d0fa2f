"""API keys and the record of access in the store: every read and write of `<prefix>:auth:…`.

`keys` is a hash: id → row (JSON), and under REVISION a word that every change sets anew, in the same
command, so that a reader learns from one field whether anything has changed. `used` is a hash: id → when
the key was last used, in milliseconds. `denied` and `done` are streams of what was refused and what
admins did, each capped on its own: a flood of refusals pushes nothing else out.
"""

import asyncio
import heapq
import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from registryd.auth.types import ROLES, ApiKey
from registryd.errors import NotFound
from registryd.kit.clock import from_ms, rfc3339
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.web.access import REFUSALS

log = structlog.get_logger(__name__)

REVISION: Final = "revision"
"""A field that is no id: it is no ten characters long."""
FORGOTTEN_AFTER: Final = timedelta(days=90)
"""How long a key that no longer holds is listed."""
RECORD_LENGTH: Final = 10_000
"""Entries kept, roughly, of what was denied, and as many of what was done."""

_STREAMS: Final = ("denied", "done")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the record of access: `outcome` is as in an `Attempt`."""

    time: datetime
    by: str
    request_id: str
    method: str
    path: str
    outcome: str
    detail: str = ""
    count: int = 1
    """How many alike there were at that time; `request_id` is the first one's."""


class AuthStore:
    """Raises StorageUnavailable throughout."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys.auth("keys")
        self._used = keys.auth("used")
        self._streams = {name: keys.auth(name) for name in _STREAMS}

    # --- keys

    async def revision(self) -> bytes:
        """Changes with every change to the keys; empty before the first."""
        return await self._connection.call("HGET", self._keys, REVISION) or b""

    async def keys(self) -> tuple[bytes, dict[str, ApiKey]]:
        """The revision, and every key by its id."""
        rows = await self._connection.call("HGETALL", self._keys)
        revision = bytes(rows.pop(REVISION.encode(), b""))
        found = {}
        for name, row in rows.items():
            identity = name.decode()
            try:
                found[identity] = _read(identity, row)
            except (ValueError, KeyError, TypeError):
                # One row that a later version wrote, or somebody's hand, must not lock all others out.
                log.warning(
                    "an API key in the store cannot be read: it does not count", id=identity
                )
        return revision, found

    async def put(self, key: ApiKey, now: datetime) -> None:
        """Writes a new key, and forgets those that have not held for long."""
        _, known = await self.keys()
        old = [one.id for one in known.values() if _ended(one, now) >= FORGOTTEN_AFTER]
        await self._write(key)
        if old:
            await self._connection.call("HDEL", self._keys, *old)
            await self._connection.call("HDEL", self._used, *old)

    async def revoke(self, identity: str, now: datetime) -> ApiKey:
        """Raises NotFound. A key that was revoked before stays as it is."""
        _, known = await self.keys()
        key = known.get(identity)
        if key is None:
            raise NotFound(f"there is no API key {identity!r}")
        if key.revoked_at is None:
            key = replace(key, revoked_at=now)
            await self._write(key)
        return key

    async def _write(self, key: ApiKey) -> None:
        word = secrets.token_hex(8)
        await self._connection.call("HSET", self._keys, key.id, _row(key), REVISION, word)

    async def mark_used(self, identities: Iterable[str], now: datetime) -> None:
        """Keys, by their ids and at least one, that have been used lately."""
        at = int(now.timestamp() * 1000)
        fields = [part for identity in identities for part in (identity, at)]
        await self._connection.call("HSET", self._used, *fields)

    async def last_used(self) -> dict[str, datetime]:
        found = await self._connection.call("HGETALL", self._used)
        return {name.decode(): from_ms(int(at)) for name, at in found.items()}

    # --- the record

    async def record(self, entries: Iterable[Entry]) -> None:
        """Adds entries. One may stand there twice when the connection breaks meanwhile."""
        await asyncio.gather(
            *(
                self._connection.script_call(
                    "XADD",
                    self._streams["denied" if entry.outcome in REFUSALS else "done"],
                    "MAXLEN",
                    "~",
                    RECORD_LENGTH,
                    "*",
                    "e",
                    _entry_text(entry),
                )
                for entry in entries
            )
        )

    async def recorded(self, limit: int) -> list[dict[str, Any]]:
        """The newest entries, JSON-ready, the newest first."""
        pages: list[Sequence[Any]] = [
            await self._connection.call("XREVRANGE", stream, "+", "-", "COUNT", limit)
            for stream in self._streams.values()
        ]
        newest = heapq.nlargest(limit, (entry for page in pages for entry in page), key=_position)
        return [json.loads(fields[b"e"]) for _, fields in newest]


def _ended(key: ApiKey, now: datetime) -> timedelta:
    """How long a key has not held; negative while it does."""
    ends = [moment for moment in (key.revoked_at, key.expires_at) if moment is not None]
    return now - min(ends) if ends else timedelta(-1)


def _row(key: ApiKey) -> str:
    times = {"createdAt": key.created_at, "expiresAt": key.expires_at, "revokedAt": key.revoked_at}
    return json.dumps(
        {
            "sha256": key.digest.hex(),
            "role": key.role.name.lower(),
            "prefixes": key.prefixes,
            "name": key.name,
            **{field: moment and moment.isoformat() for field, moment in times.items()},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _read(identity: str, row: bytes) -> ApiKey:
    """Raises ValueError, KeyError or TypeError for what is no row."""
    held = json.loads(row)
    created, expires, revoked = (
        datetime.fromisoformat(text) if (text := held[field]) else None
        for field in ("createdAt", "expiresAt", "revokedAt")
    )
    return ApiKey(
        identity,
        bytes.fromhex(held["sha256"]),
        ROLES[held["role"]],
        tuple(map(str, held["prefixes"])),
        str(held["name"]),
        created,
        expires,
        revoked,
    )


def _entry_text(entry: Entry) -> str:
    return json.dumps(
        {
            "time": rfc3339(entry.time),
            "by": entry.by,
            "requestId": entry.request_id,
            "method": entry.method,
            "path": entry.path,
            "outcome": entry.outcome,
            "detail": entry.detail or None,
            "count": entry.count,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _position(entry: tuple[bytes, Any]) -> tuple[int, int]:
    ms, _, number = entry[0].partition(b"-")
    return int(ms), int(number)
