"""Server-sent events of the registry: reading them, and going on where a connection broke off."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from registryd.client.problems import WAIT
from registryd.client.retry import pause
from registryd.client.transport import Query, Transport
from registryd.client.types import UnexpectedAnswer, Unreachable
from registryd.errors import NotReady, RateLimited, RegistrydError, StorageUnavailable

log = logging.getLogger(__name__)

SILENCE: Final = 45.0
"""Seconds: the registry pings every 15."""
PASSING: Final = (Unreachable, UnexpectedAnswer, StorageUnavailable, NotReady, RateLimited)
"""What another attempt, or another node, may not meet."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a stream, or with `event` "" a ping: a sign of life with a position."""

    event: str
    id: str
    data: str

    @property
    def json(self) -> dict[str, Any]:
        """Raises UnexpectedAnswer when the data is no JSON object."""
        try:
            data = json.loads(self.data)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise UnexpectedAnswer(
                f"the stream carried a {self.event!r} that is not a JSON object. "
                "Check what stands between client and registry."
            )
        return data


class Assembler:
    """Makes messages of lines, as the HTML standard says (9.2.6). No I/O."""

    def __init__(self) -> None:
        self.retry = 0.0
        """Seconds that the server asks for before coming back."""
        self._event = ""
        self._id = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Message | None:
        """The message that this line ends, if it does."""
        if not line:
            message = Message(self._event if self._data else "", self._id, "\n".join(self._data))
            self._event, self._data = "", []
            return message
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = int(value) / 1000
        return None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The stream broke off and is about to be opened again."""

    error: RegistrydError


async def follow(
    transport: Transport,
    path: str,
    query: Query,
    *,
    since: str = "",
    dice: random.Random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncGenerator[Message | Interrupted, None]:
    """The messages of a stream, for ever: what breaks off is opened again after the last one, at the
    next base URL. Raises what another attempt would meet again, such as Forbidden or Malformed."""
    last, attempt = since, 0
    while True:
        assembler = Assembler()
        headers = {"Last-Event-ID": last} if last else {}
        try:
            async with aclosing(
                transport.lines(path, query=query, headers=headers, silence=SILENCE)
            ) as lines:
                async for line in lines:
                    message = assembler.feed(line)
                    if message is not None:
                        yield message
                        # Only now: a consumer that was interrupted has not had it.
                        last, attempt = message.id or last, 0
        except PASSING as error:
            if attempt == 0:
                log.info("%s", error.detail)
            yield Interrupted(error)
            wanted = error.members.get(WAIT, assembler.retry if attempt else 0.0)
            await sleep(max(float(str(wanted)), pause(attempt, dice)))
            attempt += 1
