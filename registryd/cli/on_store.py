"""Works on the API keys in the store itself, beside the daemons that use them, and shows them."""

import asyncio
import os
import pwd
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from registryd.app import STORE_PATIENCE, connection_to
from registryd.auth.store import AuthStore, Entry
from registryd.auth.types import ApiKey
from registryd.config import Settings
from registryd.errors import StartupRefused, StorageUnavailable
from registryd.kit.clock import rfc3339
from registryd.metrics import Metrics
from registryd.registry.preflight import check_server
from registryd.storage.connection import Connection
from registryd.storage.embedded import EmbeddedStore, InUse
from registryd.storage.keys import Keys

T = TypeVar("T")

PATIENCE: Final = timedelta(seconds=2)
"""How long a store may take that somebody else runs."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A key as it is shown: never its text."""

    key: ApiKey
    last_used: datetime | None

    def state(self, now: datetime) -> str:
        if self.key.revoked_at is not None:
            return "revoked"
        expired = self.key.expires_at is not None and self.key.expires_at <= now
        return "expired" if expired else "valid"


# --- on the store


def work(settings: Settings, job: Callable[[AuthStore], Awaitable[T]]) -> T:
    """What `job` answers. Raises what it raises, StartupRefused and StorageUnavailable."""

    async def done() -> T:
        async with opened(settings) as store:
            return await job(store)

    return asyncio.run(done())


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[AuthStore]:
    """The keys of the store that the settings name. The embedded one is asked while a daemon runs it;
    else it is started for the length of the block.

    Raises StartupRefused, StorageUnavailable.
    """
    embedded, url = None, settings.redis.url
    if settings.redis.embedded:
        embedded = EmbeddedStore(settings.data_dir, appendfsync=settings.redis.appendfsync)
        try:
            url = await embedded.start()
        except InUse as held:
            url = held.url
    connection = connection_to(url, settings.redis, Metrics())
    try:
        # A daemon that holds the directory may be about to start its store.
        await _answering(connection, PATIENCE if embedded is None else STORE_PATIENCE)
        yield AuthStore(connection, Keys(settings.redis.key_prefix))
    finally:
        await connection.close()
        if embedded is not None:
            await embedded.stop()


async def _answering(connection: Connection, patience: timedelta) -> None:
    try:
        await check_server(connection, patience=patience)
    except StartupRefused as refusal:
        if isinstance(refusal.__cause__, StorageUnavailable):
            raise refusal.__cause__ from None
        raise


async def create(store: AuthStore, key: ApiKey, now: datetime) -> None:
    await store.put(key, now)
    await store.record([_deed("keys create", key.id, now)])


async def listed(store: AuthStore) -> list[Listed]:
    """The oldest first."""
    _, keys = await store.keys()
    used = await store.last_used()
    oldest = sorted(keys.values(), key=lambda key: (str(key.created_at), key.id))
    return [Listed(key, used.get(key.id)) for key in oldest]


async def revoke(store: AuthStore, identity: str, now: datetime) -> None:
    """Raises NotFound."""
    await store.revoke(identity, now)
    await store.record([_deed("keys revoke", identity, now)])


def _deed(command: str, identity: str, now: datetime) -> Entry:
    return Entry(now, f"{_user()}@{socket.gethostname()}", "", "CLI", command, "done", identity)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user often has no name
        return str(os.geteuid())


# --- as text


def shown(one: Listed, now: datetime) -> dict[str, Any]:
    key = one.key
    return {
        "id": key.id,
        "name": key.name or None,
        "role": key.role.name.lower(),
        "prefixes": list(key.prefixes),
        "state": one.state(now),
        "createdAt": time_text(key.created_at),
        "expiresAt": time_text(key.expires_at),
        "revokedAt": time_text(key.revoked_at),
        "lastUsedAt": time_text(one.last_used),
    }


def table(rows: list[Listed], now: datetime) -> str:
    """Aligned columns."""
    lines = [("ID", "ROLE", "PREFIXES", "STATE", "CREATED", "EXPIRES", "LAST USED", "NAME")]
    for one in rows:
        key = one.key
        lines.append(
            (
                key.id,
                key.role.name.lower(),
                ",".join(key.prefixes) or "all",
                one.state(now),
                day_text(key.created_at),
                day_text(key.expires_at),
                day_text(one.last_used),
                key.name,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def time_text(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def day_text(moment: datetime | None) -> str:
    return "-" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
