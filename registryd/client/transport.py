"""HTTP to one of several base URLs: timeouts, retries, failover, and errors that have a type.

Knows nothing of services. aiohttp is imported when the first request is made.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlencode

from registryd.client.problems import problem
from registryd.client.retry import IDEMPOTENT, may_retry, pause, retry_after
from registryd.client.types import UnexpectedAnswer, Unreachable
from registryd.errors import Invalid

if TYPE_CHECKING:
    import aiohttp

PREFIX: Final = "/api/v1/registry"
MAX_BODY_BYTES: Final = 256 * 1024 * 1024
"""More than any list: an endless body must not fill the memory."""
Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes
    base: str

    @property
    def json(self) -> Any:
        """Raises UnexpectedAnswer when the body is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise UnexpectedAnswer(
                f"{self.base} answered {self.status} with something that is not JSON. "
                "Check that the URL is that of a registry and what stands in between."
            ) from None


@dataclass(frozen=True, slots=True)
class _Failure:
    why: str
    sent: bool
    """Whether the request may have reached somebody."""


class Transport:
    """`timeout` bounds one attempt, `patience` a call with all its retries; both in seconds."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 5.0,
        patience: float = 15.0,
        dice: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.urls = tuple(url.rstrip("/") for url in urls)
        if not self.urls or not all(url.startswith(("http://", "https://")) for url in self.urls):
            raise Invalid(
                f"no usable base URL in {list(urls)!r}. "
                "Give one such as http://127.0.0.1:8082, or set REGISTRYD_URL."
            )
        self.failures = 0
        """Attempts that got no answer, ever: whoever remembers the figure sees whether there was an
        interruption since."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._tls = tls
        self.timeout = timeout
        self._patience = patience
        self._dice = dice or random.Random()  # noqa: S311  jitter, not a secret
        self._clock = clock
        self._now = now
        self._sleep = sleep
        self._turn = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def base(self) -> str:
        """The base URL that is asked next: the last one that worked."""
        return self.urls[self._turn % len(self.urls)]

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: object = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  of each attempt; the caller bounds the whole
        patience: float | None = None,
        prefix: str = PREFIX,
    ) -> Reply:
        """The first answer below 400. Raises what the registry's problem document says, UnexpectedAnswer
        or Unreachable. `patience=0` tries every base URL once. `raw` is a body that is JSON already.

        What is not idempotent is sent again only when it cannot have arrived, or was refused with 429.
        """
        safe = method in IDEMPOTENT if idempotent is None else idempotent
        target = f"{prefix}{path}{'?' + urlencode(query) if query else ''}"
        data = raw if body is None else json.dumps(body, allow_nan=False).encode()
        until = self._clock() + (self._patience if patience is None else patience)
        limit = self.timeout if timeout is None else timeout
        attempt = 0
        while True:
            outcome = await self._attempt(method, target, data, headers or {}, limit)
            wanted = 0.0
            if isinstance(outcome, Reply):
                if outcome.status < 400:
                    return outcome
                again = may_retry(outcome.status, idempotent=safe)
                wanted = retry_after(outcome.headers.get("Retry-After"), self._now())
            else:
                again = safe or not outcome.sent
            attempt += 1
            if again:
                self._turn += 1
                if attempt < len(self.urls):
                    continue
                wait = max(wanted, pause(attempt - len(self.urls), self._dice))
                if self._clock() + wait < until:
                    await self._sleep(wait)
                    continue
            if isinstance(outcome, Reply):
                raise problem(outcome.status, outcome.body, outcome.base, wanted)
            raise Unreachable(
                f"the registry at {', '.join(self.urls)} did not answer {method} {path}: "
                f"{outcome.why}. Check that it runs there and can be reached from here"
                f"{'' if safe or not outcome.sent else ', and whether the call had its effect'}."
            )

    async def _attempt(
        self,
        method: str,
        target: str,
        data: bytes | None,
        headers: Mapping[str, str],
        limit: float,
    ) -> Reply | _Failure:
        import aiohttp

        base = self.base
        try:
            async with self._open(base, method, target, data, headers, limit) as answer:
                body = await answer.content.read(MAX_BODY_BYTES)
                while not answer.content.at_eof() and len(body) < MAX_BODY_BYTES:
                    body += await answer.content.read(MAX_BODY_BYTES - len(body))
                return Reply(answer.status, answer.headers, body, base)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self.failures += 1
            return _Failure(str(error) or type(error).__name__, sent=False)
        except TimeoutError:
            self.failures += 1
            return _Failure(f"{base} was silent for {limit:g} s", sent=True)
        except (aiohttp.ClientError, OSError) as error:
            self.failures += 1
            return _Failure(str(error) or type(error).__name__, sent=True)

    @asynccontextmanager
    async def _open(
        self,
        base: str,
        method: str,
        target: str,
        data: bytes | None,
        headers: Mapping[str, str],
        limit: float,
        silence: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request. `limit` bounds all of it, or with `silence` only the connecting, and then every
        pause between two pieces."""
        import aiohttp
        from yarl import URL

        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        times = (
            aiohttp.ClientTimeout(total=limit)
            if silence is None
            else aiohttp.ClientTimeout(total=None, connect=limit, sock_read=silence)
        )
        sent = {**({"Content-Type": "application/json"} if data is not None else {}), **headers}
        async with self._session.request(
            method,
            URL(base + target, encoded=True),
            data=data,
            headers=sent,
            timeout=times,
            ssl=self._tls if self._tls is not None else True,
            allow_redirects=False,  # elsewhere nobody needs to see the key
        ) as answer:
            yield answer

    async def pieces(self, path: str, *, silence: float) -> AsyncGenerator[bytes, None]:
        """The body of an answer that is too long to be held, as it comes. One attempt; raises as `call`
        does, and Unreachable when it breaks off or is silent for `silence` seconds."""
        import aiohttp

        base = self.base
        try:
            async with self._open(
                base, "GET", PREFIX + path, None, {}, self.timeout, silence
            ) as answer:
                if answer.status >= 400:
                    wanted = retry_after(answer.headers.get("Retry-After"), self._now())
                    raise problem(answer.status, await answer.read(), base, wanted)
                async for piece in answer.content.iter_any():
                    yield piece
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            self.failures += 1
            self._turn += 1
            raise Unreachable(
                f"{path} of {base} broke off: {str(error) or type(error).__name__}. "
                "Check that the registry runs there and can be reached from here."
            ) from None

    async def lines(
        self, path: str, *, query: Query, headers: Mapping[str, str], silence: float
    ) -> AsyncGenerator[str, None]:
        """The lines of a stream that stays open, without their ends, until it breaks off or is silent
        for `silence` seconds. One attempt; raises as `call` does, and Unreachable at the end too."""
        import aiohttp

        base = self.base
        target = f"{PREFIX}{path}?{urlencode(query)}"
        sent = {"Accept": "text/event-stream", **headers}
        try:
            async with self._open(base, "GET", target, None, sent, self.timeout, silence) as answer:
                if answer.status >= 400:
                    wanted = retry_after(answer.headers.get("Retry-After"), self._now())
                    raise problem(answer.status, await answer.read(), base, wanted)
                if answer.content_type != "text/event-stream":
                    raise UnexpectedAnswer(
                        f"{base} answered {path} with {answer.content_type}, not with a stream. "
                        "Check that the URL is that of a registry and what stands in between."
                    )
                rest = b""
                async for piece in answer.content.iter_any():
                    *whole, rest = (rest + piece).split(b"\n")
                    for line in whole:
                        yield line.decode("utf-8", "replace").removesuffix("\r")
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            why = str(error) or type(error).__name__
        else:
            why = "it ended"
        self.failures += 1
        self._turn += 1
        raise Unreachable(
            f"the stream {path} of {base} broke off: {why}. "
            "Open it again after the last event; `watch` and `events` of the client do so themselves."
        )
