"""What a notifier is given and what comes of it. A failed delivery is a value, never an exception."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal, Protocol

MAX_ANSWER_BYTES: Final = 1024
"""As much of a receiver's answer is read, and thrown away: only its status counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to tell. `secrets` sign what is sent, the newest first; they appear nowhere else."""

    url: str
    secrets: tuple[str, ...] = field(default=(), repr=False)
    timeout: timedelta = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What to tell. `id` stays the same at every attempt, so that a receiver can tell a repetition."""

    id: str
    type: str
    body: bytes
    content_type: str = "application/cloudevents+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What came of one attempt.

    `gone` means that the receiver never wants to hear from us again. `error` is one sentence without
    secrets or line ends; `status` is HTTP's, where there was an answer; `retry_after_seconds` is the
    receiver's wish.
    """

    outcome: Literal["delivered", "failed", "gone"]
    duration_ms: float
    status: int | None = None
    error: str | None = None
    retry_after_seconds: float | None = None


class Reply(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


class Egress(Protocol):
    """The one way out of the daemon. Raises EgressDenied or OutboundFailed."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: timedelta,  # noqa: ASYNC109  of the whole exchange
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_body: int = MAX_ANSWER_BYTES,
    ) -> Reply: ...


class Notifier(Protocol):
    """One kind of notifier. Ends soon after the target's timeout whatever the receiver does; raises
    nothing but CancelledError."""

    async def notify(self, target: Target, notice: Notice) -> Receipt: ...
