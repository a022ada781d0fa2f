"""Before serving: is this store fit to hold a registry? Refuses with one clear line what it is not."""

import asyncio
import secrets
from collections.abc import Mapping
from datetime import timedelta
from importlib.resources import files
from typing import Final

import structlog

from registryd.errors import StartupRefused, StorageUnavailable
from registryd.metrics import Metrics
from registryd.registry.store import (
    Check,
    Entry,
    Refused,
    RegistryStore,
    Renewal,
    Report,
    StoreLimits,
)
from registryd.storage.connection import REFUSALS, Connection
from registryd.storage.keys import Keys
from registryd.storage.scripts import Script, ScriptRunner, load

log = structlog.get_logger(__name__)

OLDEST: Final = (6, 2)
FLAGS_SINCE: Final = 7
"""The first major version of Redis that reads a script's flags; every Valkey does."""

RIGHTS: Final = (
    "~{prefix}:* &{prefix}:* +@read +@write +@scripting +publish +pubsub +time +info +ping"
)


CREDENTIALS: Final = (REFUSALS["NOAUTH"], REFUSALS["WRONGPASS"])


async def check_server(connection: Connection, *, patience: timedelta) -> Mapping[str, object]:
    """The server's INFO, once it answers and is found fit. Raises StartupRefused."""
    info = await _answer(connection, patience)
    version = str(info.get("redis_version", "0"))
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise StartupRefused(
            f"the store at {connection.address} is Redis {version}; registryd needs 6.2 or newer"
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        raise StartupRefused(
            f"the store at {connection.address} evicts keys (maxmemory-policy {policy}) and would throw "
            "registrations away: set maxmemory-policy noeviction"
        )
    if policy.startswith("volatile") and info.get("maxmemory") not in {0, "0", None}:
        log.warning(
            "the store may evict expiring keys; the registry writes them again, but set noeviction",
            policy=policy,
        )
    if info.get("role") in {"slave", "replica"}:
        raise StartupRefused(
            f"the store at {connection.address} is a replica: give the address of the primary"
        )
    return info


async def _answer(connection: Connection, patience: timedelta) -> Mapping[str, object]:
    deadline = asyncio.get_running_loop().time() + patience.total_seconds()
    told = False
    while True:
        try:
            info: Mapping[str, object] = await connection.call("INFO")
        except StorageUnavailable as error:
            # A wrong password does not get better by waiting.
            hopeless = any(text in error.detail for text in CREDENTIALS)
            if hopeless or asyncio.get_running_loop().time() >= deadline:
                advice = "" if hopeless else ": is it running, and is redis.url right?"
                raise StartupRefused(error.detail + advice) from error
            if not told:
                log.warning("waiting for the store", reason=error.detail)
                told = True
            await asyncio.sleep(0.2)
        else:
            return info


def flagged(info: Mapping[str, object]) -> bool:
    """Whether this server reads a script's flags."""
    return int(str(info.get("redis_version", "0")).split(".", 1)[0]) >= FLAGS_SINCE


def scripts_for(info: Mapping[str, object]) -> dict[str, Script]:
    return load(files("registryd.registry") / "lua", flags=flagged(info))


async def check_rights(
    connection: Connection, scripts: dict[str, Script], prefix: str, metrics: Metrics
) -> None:
    """Runs the life of a scratch instance, so that a missing right shows now and not half way through
    somebody's registration. Its keys lie under the prefix, no other daemon that starts at the same time
    uses them, and they are gone afterwards."""
    scratch = Keys(prefix=f"{prefix}:preflight:{secrets.token_hex(4)}")
    runner = ScriptRunner(connection, scripts, scratch.core, metrics)
    store = RegistryStore(runner, scratch, StoreLimits())
    entry = Entry("preflight:scratch", b'{"name":"preflight"}', (), 60_000, "", Check(60_000, 1, 1))
    try:
        try:
            await store.set_up(None)
            await connection.call("HSET", scratch.meta, "relayed", "1")  # messages are tried too
            await store.register(entry)
            await store.renew([Renewal(entry.id, "", entry.ttl_ms)])
            await store.report_status(entry.id, "", "healthy")
            for claim in (await store.claim_checks(1)).claims:
                offer = '{"capabilities":[],"models":["m"]}'
                report = Report(
                    passed=True, status="degraded", finding=b"{}", told=b"{}", discovered=offer
                )
                await store.report_check(claim, report)
            await store.monitoring(enabled=True)
            await store.vitals([entry.id])
            await store.amend(entry.id, reason="preflight", health="unhealthy")
            await store.repair(0, 10)
            await store.snapshot(0, 10)
            await connection.call("XREAD", "COUNT", 1, "STREAMS", scratch.stream, "0-0")
            await connection.call("XREVRANGE", scratch.stream, "+", "-", "COUNT", 1)
            refused = await store.deregister([entry.id])
            swept = await store.sweep(None)
        finally:
            await _sweep_up(connection, scratch)
    except StorageUnavailable as error:
        raise StartupRefused(
            f"{error.detail}; the user needs {RIGHTS.format(prefix=prefix)}"
        ) from error
    if isinstance(refused, Refused) or swept.derived_errors:
        raise StartupRefused(
            f"the store at {connection.address} does not let registryd write indexes, expiring keys or "
            f"messages; the user needs {RIGHTS.format(prefix=prefix)}"
        )


async def _sweep_up(connection: Connection, scratch: Keys) -> None:
    names = [name async for name in connection.scan(f"{scratch.prefix}:", 100)]
    if names:
        await connection.call("DEL", *names)
