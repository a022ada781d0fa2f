"""Clients of the store, and the translation of everything they raise.

Two clients: one for calls that answer at once, one for blocking reads, whose socket timeout has to be
longer than the block. Library retries are safe for the former because every script either carries an
operation nonce, whose answer the store remembers, or changes nothing when it runs twice.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from registryd.errors import StartupRefused, StorageUnavailable
from registryd.metrics import Metrics
from registryd.storage.pipelined import Argument, Pipelined

REFUSALS: Final = {
    "OOM": "the store is out of memory",
    "MISCONF": "the store cannot write to its disk",
    "BUSY": "the store is busy with a script",
    "READONLY": "the store is a read-only replica",
    "LOADING": "the store is loading its data",
    "NOREPLICAS": "the store has too few replicas to accept writes",
    "MASTERDOWN": "the store's primary is down",
    "CLUSTERDOWN": "the store's cluster is down",
    "TRYAGAIN": "the store is moving its data",
    "UNBLOCKED": "the store changed its role",
    "NOPERM": "the store's user lacks a right that registryd needs",
    "ACL failure": "the store's user lacks a right that registryd needs",
    "NOAUTH": "the store asks for a password (setting redis.password)",
    "WRONGPASS": "the store refused the user or password",
}
"""Replies that mean "not now" or "not as you are", by their first word; scripts put it further on."""

RESEND: Final = (timedelta(milliseconds=10), timedelta(milliseconds=50))
"""Pauses before a script is sent again over a new connection."""

BLOCK: Final = timedelta(seconds=1)
"""How long a blocking read waits for news before it answers with none."""


@dataclass(frozen=True, slots=True)
class Trust:
    """TLS to the store at rediss://, in PEM files; without `ca` the system's authorities are trusted."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    check_hostname: bool = True

    def options(self) -> dict[str, object]:
        """For the library. Raises StartupRefused for a file that is missing: connecting would fail again and
        again, as if it were the store."""
        for path in (self.ca, self.certificate, self.key):
            if path is not None and not path.is_file():
                raise StartupRefused(f"redis.tls: there is no file {path}")
        return {
            "ssl_ca_certs": _name(self.ca),
            "ssl_certfile": _name(self.certificate),
            "ssl_keyfile": _name(self.key),
            "ssl_check_hostname": self.check_hostname,
        }


class Connection:
    """The clients of one store, standalone, over TCP, TLS or a unix socket."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        password: str | None = None,
        tls: Trust = Trust(),
        connect_timeout: timedelta = timedelta(seconds=2),
        command_timeout: timedelta = timedelta(seconds=5),
        max_connections: int = 32,
    ) -> None:
        self.address = _address(url)
        self._metrics = metrics
        self._patience = command_timeout.total_seconds()
        options: dict[str, Any] = {} if password is None else {"password": password}
        if urlsplit(url).scheme == "rediss":
            options |= tls.options()
        self.client = _client(
            url,
            options,
            connect_timeout,
            command_timeout,
            max_connections,
            Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), 2),
        )
        self.blocking = _client(url, options, connect_timeout, BLOCK * 2, 4, Retry(NoBackoff(), 0))
        self._pipelined = Pipelined(
            self.client.connection_pool, timeout_seconds=command_timeout.total_seconds()
        )

    async def close(self) -> None:
        await self._pipelined.close()
        await self.client.aclose()
        await self.blocking.aclose()

    async def call(self, *command: Argument) -> Any:
        """One command's reply, as bytes, ints, lists and maps. Raises StorageUnavailable; any other
        refusal of the store is passed on."""
        with self.mapped_errors():
            # The client's own limit holds for each attempt and each step of connecting: a store that
            # hangs would keep its callers for many times as long.
            async with asyncio.timeout(self._patience):
                return await self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def script_call(self, *command: Argument) -> Any:
        """Like `call`, over the connection that all share, for what may be sent twice: it is sent again
        when that connection breaks."""
        with self.mapped_errors():
            for delay in RESEND:
                try:
                    return await self._pipelined.call(*command)
                except RedisConnectionError:
                    await asyncio.sleep(delay.total_seconds())
            return await self._pipelined.call(*command)

    async def blocking_call(self, *command: Argument) -> Any:
        """Like `call`, for a command that waits up to BLOCK; never sent twice."""
        with self.mapped_errors():
            return await self.blocking.execute_command(*command)  # type: ignore[no-untyped-call]

    async def scan(
        self, prefix: str, count: int, *, kind: Literal["set", "string"] | None = None
    ) -> AsyncIterator[str]:
        """The names of all keys that start with `prefix`, or of those of one kind. Raises
        StorageUnavailable."""
        only = () if kind is None else ("TYPE", kind)
        cursor = 0
        while True:
            cursor, names = await self.call(
                "SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", count, *only
            )
            for name in names:
                yield name.decode()
            if cursor == 0:
                return

    async def members(
        self, command: Literal["SSCAN", "HSCAN"], key: str, count: int
    ) -> AsyncIterator[list[bytes]]:
        """The members of a set, or the field names of a hash, in chunks. Raises StorageUnavailable."""
        cursor = 0
        while True:
            cursor, found = await self.call(command, key, cursor, "COUNT", count)
            if found:
                yield list(found)
            if cursor == 0:
                return

    @contextmanager
    def mapped_errors(self) -> Iterator[None]:
        """Turns whatever the client raises for an unreachable or unwilling store into StorageUnavailable."""
        try:
            yield
        except RedisError as error:
            refusal = _refusal(error)
            if refusal is None and isinstance(error, ResponseError):
                raise
            self._metrics.store_errors.labels("refused" if refusal else "unreachable").inc()
            raise StorageUnavailable(
                f"{refusal} ({self.address})"
                if refusal
                else f"the store at {self.address} cannot be reached"
            ) from error
        except (OSError, asyncio.IncompleteReadError) as error:
            self._metrics.store_errors.labels("unreachable").inc()
            raise StorageUnavailable(f"the store at {self.address} cannot be reached") from error
        except (AttributeError, TypeError, RuntimeError) as error:
            # A connection that dies inside the client surfaces as an error about None (redis-py#3835, #4287).
            if not _came_from_client(error):
                raise
            self._metrics.store_errors.labels("unreachable").inc()
            raise StorageUnavailable(
                f"the connection to the store at {self.address} broke"
            ) from error


def _client(
    url: str,
    options: Mapping[str, Any],
    connect_timeout: timedelta,
    socket_timeout: timedelta,
    max_connections: int,
    retry: Retry,
) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=connect_timeout.total_seconds(),
        socket_timeout=socket_timeout.total_seconds(),
        socket_connect_timeout=connect_timeout.total_seconds(),
        protocol=3,
        retry=retry,
        **options,
    )
    return Redis.from_pool(pool)


def _refusal(error: RedisError) -> str | None:
    """What a reply of the store means. Its first word is what counts, and the client takes that word
    off the text of the replies that it knows itself; one that came while connecting it wraps."""
    replies = (error, error.__cause__ or error.__context__)
    code = next((code for one in replies if (code := getattr(one, "status_code", None))), "")
    text = f"{code} {error}".strip()
    return REFUSALS.get(text.partition(" ")[0]) or next(
        (meaning for code, meaning in REFUSALS.items() if code in text), None
    )


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _address(url: str) -> str:
    """The url without credentials, for messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname or 'localhost'}{port}{parts.path}"


def _came_from_client(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    module = str(traceback.tb_frame.f_globals.get("__name__", ""))
    return module.startswith(("redis.", "asyncio.", "uvloop"))
