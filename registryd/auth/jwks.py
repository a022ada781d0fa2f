"""The keys that tokens are verified with: a fixed set, a file, or a set fetched from the issuer.

A fetched set is fetched again at an interval, and sooner where a token names a key that is not in it,
but never twice within MIN_INTERVAL, whatever tokens say. Where a fetch fails what is known stays.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol

import structlog

from registryd.auth.jwt import JwtRules, TokenKeys, UnknownKey, of_jwks, verify
from registryd.auth.types import Verified
from registryd.auth.watched import WatchedFile
from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.clock import Clock
from registryd.kit.outbound import OutboundReply
from registryd.metrics import Metrics

log = structlog.get_logger(__name__)

MIN_INTERVAL: Final = timedelta(seconds=30)
FETCH_TIMEOUT: Final = timedelta(seconds=5)
LARGEST: Final = 256 * 1024
"""Bytes of a set."""
UNKNOWN_FOR: Final = timedelta(minutes=5)
"""How long a key id that a new set did not bring is not asked for again."""
UNKNOWN_KEPT: Final = 1_000


class Egress(Protocol):
    """What is needed of `kit/outbound.py`."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: timedelta,  # noqa: ASYNC109
        max_body: int,
    ) -> OutboundReply: ...


class TokenKeySource(Protocol):
    """Where keys come from. `keys` may be empty; `changed` is called when they have become others."""

    keys: TokenKeys
    changed: Callable[[], None]

    async def load(self) -> None:
        """The first keys, if they can be had. Raises StartupRefused for what will not get better."""

    async def turn(self) -> None:
        """One look for newer keys, for a loop that pauses in between."""

    async def seek(self, key_id: str) -> None:
        """Looks now for a key that is not among them, unless that would be too often."""


class FileKeys:
    """Keys of a file, which is read again when it has changed."""

    def __init__(self, file: WatchedFile[TokenKeys]) -> None:
        self.keys: TokenKeys = ()
        self.changed: Callable[[], None] = lambda: None
        self._file = file

    async def load(self) -> None:
        self.keys = self._file.first()

    async def turn(self) -> None:
        if (keys := self._file.news()) is not None:
            self.keys = keys
            self.changed()

    async def seek(self, key_id: str) -> None:
        await self.turn()


class FixedKeys:
    """Keys that stay, such as a secret of the settings."""

    def __init__(self, keys: TokenKeys) -> None:
        self.keys = keys
        self.changed: Callable[[], None] = lambda: None

    async def load(self) -> None:
        """They are there."""

    async def turn(self) -> None:
        """They stay."""

    async def seek(self, key_id: str) -> None:
        """There are no others."""


class RemoteKeys:
    """The set at a URL, fetched at least every `interval`."""

    def __init__(
        self, egress: Egress, url: str, metrics: Metrics, clock: Clock, *, interval: timedelta
    ) -> None:
        self.keys: TokenKeys = ()
        self.changed: Callable[[], None] = lambda: None
        self._egress = egress
        self._url = url
        self._metrics = metrics
        self._clock = clock
        self._interval = interval
        self._asked = float("-inf")
        self._failing = False
        self._unknown: dict[str, float] = {}
        """Until when a key id is not asked for again."""
        self._fetch: asyncio.Task[None] | None = None

    async def load(self) -> None:
        await self._refresh()

    async def turn(self) -> None:
        # After a failure, and before the first success, sooner: tokens are refused meanwhile, or go by
        # keys that may have been withdrawn.
        due = MIN_INTERVAL if self._failing or not self.keys else self._interval
        if self._clock.monotonic() - self._asked >= due.total_seconds():
            await self._refresh()

    async def seek(self, key_id: str) -> None:
        now = self._clock.monotonic()
        if self._unknown.get(key_id, now) > now:
            return
        if self._fetch is None and now - self._asked < MIN_INTERVAL.total_seconds():
            return
        await self._refresh()
        if all(key.id != key_id for key in self.keys):
            if len(self._unknown) >= UNKNOWN_KEPT:
                self._unknown.clear()
            self._unknown[key_id] = now + UNKNOWN_FOR.total_seconds()

    async def _refresh(self) -> None:
        """One fetch for all who ask meanwhile; one who gives up does not end it for the others."""
        if self._fetch is None:
            self._asked = self._clock.monotonic()
            self._fetch = asyncio.create_task(self._fetch_now())
            self._fetch.add_done_callback(self._fetched)
        await asyncio.shield(self._fetch)

    def _fetched(self, _fetch: "asyncio.Task[None]") -> None:
        self._fetch = None

    async def _fetch_now(self) -> None:
        try:
            answer = await self._egress.request(
                "GET", self._url, timeout=FETCH_TIMEOUT, max_body=LARGEST
            )
            keys = _read(answer)
        except (EgressDenied, OutboundFailed, ValueError) as error:
            self._metrics.jwks_fetches.labels("failed").inc()
            if not self._failing:
                log.warning("keys of tokens not fetched, those known stay", reason=str(error))
            self._failing = True
            return
        self._metrics.jwks_fetches.labels("ok").inc()
        if self._failing or not self.keys:
            log.info("keys of tokens fetched", keys=len(keys))
        self._failing = False
        if keys != self.keys:
            self.keys = keys
            self.changed()


def _read(answer: OutboundReply) -> TokenKeys:
    """Raises ValueError."""
    if answer.status != 200:
        raise ValueError(f"the answer's status is {answer.status}")
    if answer.truncated:
        raise ValueError(f"the answer is larger than {LARGEST} bytes")
    try:
        text = answer.body.decode()
    except UnicodeDecodeError:
        raise ValueError("the answer is not UTF-8 text") from None
    return of_jwks(text)


class Tokens:
    """Verifies tokens with the keys of a source."""

    def __init__(self, source: TokenKeySource, rules: JwtRules, clock: Clock) -> None:
        self.source = source
        self._rules = rules
        self._clock = clock

    async def verify(self, token: str) -> Verified:
        """Raises Rejected. A key that is not known yet is looked for once."""
        try:
            return verify(token, self.source.keys, self._rules, self._clock.now())
        except UnknownKey as unknown:
            await self.source.seek(unknown.key_id)
        return verify(token, self.source.keys, self._rules, self._clock.now())
