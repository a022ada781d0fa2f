"""Subscriptions of webhooks: their shapes on the wire, what is kept of them, and what they want to hear.

Pure. The secret stands in `Subscription` alone; what the API shows is made without it.
"""

import json
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from registryd.events.cloudevent import Event
from registryd.kit.clock import from_ms, rfc3339
from registryd.notify.signing import key_of, new_secret
from registryd.registry.types import Answer, Flag, Line, Shape

MAX_SUBSCRIPTIONS: Final = 1_000
MAX_PATTERNS: Final = 32
OLD_SECRET_SIGNS: Final = timedelta(hours=24)
"""How long the secret before the present one goes on signing, so that a receiver can change over."""


def matches(pattern: str, text: str) -> bool:
    """Whether `text` is what the glob `pattern` says; `*` stands for any characters, also none.

    In linear time: the pieces between the stars are looked for one after the other.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    if not text.startswith(first) or len(text) < len(first) + len(last):
        return False
    end = len(text) - len(last)
    position = len(first)
    for piece in middle:
        position = text.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return text.endswith(last)


def _receiver(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        # What urlsplit says quotes the URL, and what it takes for a port may be half a password.
        raise PydanticCustomError("url", "not a URL: its host or port cannot be read", {}) from None
    if parts.scheme.lower() not in {"http", "https"} or not host or port == 0:
        raise PydanticCustomError(
            "url", "expected an absolute http or https URL such as https://example.com/hook", {}
        )
    if parts.username is not None or parts.password is not None:
        raise PydanticCustomError("url", "a URL here must not carry a user or password", {})
    if parts.fragment:
        raise PydanticCustomError("url", "a URL here must not have a fragment", {})
    if not text.isascii() or any(c <= " " or c in '"<>\\^`{|}' for c in text):
        raise PydanticCustomError("url", "illegal character in URL; percent-encode it", {})
    return text


def _secret(text: str) -> str:
    try:
        key_of(text)
    except ValueError as error:
        raise PydanticCustomError("secret", "{why}", {"why": str(error)}) from None
    return text


Receiver = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_receiver)]
TypeGlob = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9_.*-]+(:[a-z0-9_.*-]+)*$", max_length=64)
]
ServiceGlob = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9*][A-Za-z0-9._*-]*$", max_length=128)
]
Secret = Annotated[str, StringConstraints(max_length=128), AfterValidator(_secret)]
Types = Annotated[list[TypeGlob], Field(min_length=1, max_length=MAX_PATTERNS)]
Services = Annotated[list[ServiceGlob], Field(min_length=1, max_length=MAX_PATTERNS)]


class NewWebhook(Shape):
    """Body of `POST /webhooks`. `*` in types and services stands for any characters."""

    url: Receiver
    types: Types
    services: Services | None = None
    secret: Secret | None = None
    description: Line | None = None
    enabled: Flag = True


class WebhookChange(Shape):
    """Body of `PATCH /webhooks/{id}`. `services: null` means all again; `secret: null` has a new one made,
    which the answer shows once."""

    url: Receiver | None = None
    types: Types | None = None
    services: Services | None = None
    secret: Secret | None = None
    description: Line | None = None
    enabled: Flag | None = None


class Replay(Shape):
    """Optional body of `POST …/dead-letters/replay`: these, or else all."""

    ids: (
        Annotated[
            list[Annotated[str, StringConstraints(pattern=r"^[0-9]{15}$")]],
            Field(min_length=1, max_length=1_000),
        ]
        | None
    ) = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What the store keeps."""

    id: str
    url: str
    types: tuple[str, ...]
    services: tuple[str, ...]
    """None of them means all."""
    secret: str
    previous_secret: str = ""
    previous_until_ms: int = 0
    description: str = ""
    created_at: str = ""
    created_by: str = ""
    updated_at: str = ""

    def __repr__(self) -> str:
        # Whatever prints one, such as a traceback, must not print its secrets.
        return f"Subscription({self.id})"

    def encode(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        fields: dict[str, Any] = json.loads(raw)
        fields["types"], fields["services"] = tuple(fields["types"]), tuple(fields["services"])
        return cls(**fields)

    def wants(self, event: Event) -> bool:
        if not any(matches(glob, event.type) for glob in self.types):
            return False
        return not self.services or any(matches(glob, event.service) for glob in self.services)

    def secrets_at(self, now: datetime) -> tuple[str, ...]:
        """Those that sign at `now`, the newest first."""
        if self.previous_secret and now.timestamp() * 1000 < self.previous_until_ms:
            return self.secret, self.previous_secret
        return (self.secret,)


def subscribe(wish: NewWebhook, *, by: str, now: datetime) -> Subscription:
    moment = rfc3339(now)
    return Subscription(
        id=f"wh_{secrets.token_hex(8)}",
        url=wish.url,
        types=tuple(dict.fromkeys(wish.types)),
        services=tuple(dict.fromkeys(wish.services or ())),
        secret=wish.secret or new_secret(),
        description=wish.description or "",
        created_at=moment,
        created_by=by,
        updated_at=moment,
    )


def amend(held: Subscription, change: WebhookChange, *, now: datetime) -> Subscription:
    """The subscription with what the change names."""
    given = change.model_fields_set
    fields: dict[str, Any] = {"updated_at": rfc3339(now)}
    if change.url is not None:
        fields["url"] = change.url
    if change.types is not None:
        fields["types"] = tuple(dict.fromkeys(change.types))
    if "services" in given:
        fields["services"] = tuple(dict.fromkeys(change.services or ()))
    if "description" in given:
        fields["description"] = change.description or ""
    if "secret" in given and change.secret != held.secret:
        fields["secret"] = change.secret or new_secret()
        fields["previous_secret"] = held.secret
        fields["previous_until_ms"] = int((now + OLD_SECRET_SIGNS).timestamp() * 1000)
    return replace(held, **fields)


# --- what is answered


class Missed(Answer):
    """Changes that left the stream before they were carried on: the receiver should read anew."""

    at: str
    after: str
    before: str


class WebhookStatus(Answer):
    queued: int
    dead_letters: int
    oldest_waiting_seconds: float | None
    delivered: int
    failed_attempts: int
    given_up: int
    forgotten_dead_letters: int
    last_delivered_at: str | None
    missed: Missed | None


class WebhookShown(Answer):
    id: str
    url: str
    types: list[str]
    services: list[str] | None
    description: str | None
    enabled: bool
    disabled_reason: str | None
    created_at: str
    created_by: str
    updated_at: str
    status: WebhookStatus


class WebhookCreated(WebhookShown):
    """`secret` is shown here, and never again."""

    secret: str


class WebhookChanged(WebhookShown):
    secret: str | None = Field(None, description="Only when the request had a new one made")


class WebhookList(Answer):
    webhooks: list[WebhookShown]
    total: int
    next: str | None


class Attempt(Answer):
    """One attempt to deliver."""

    delivery_id: str
    event_id: str
    type: str
    subject: str
    attempt: int
    at: str
    outcome: Literal["delivered", "retry", "dead", "gone"]
    http_status: int | None
    duration_ms: float
    error: str | None
    next_attempt_at: str | None


class Attempts(Answer):
    deliveries: list[Attempt]


class DeadLetter(Answer):
    id: str
    event_id: str
    type: str
    subject: str
    queued_at: str
    died_at: str
    attempts: int
    error: str
    event: dict[str, Any]


class DeadLetters(Answer):
    dead_letters: list[DeadLetter]
    total: int
    next: str | None


class Replayed(Answer):
    replayed: int
    left: int


class Tested(Answer):
    success: bool
    http_status: int | None
    duration_ms: float
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a subscription fares, as the store tells."""

    waiting: int
    dead: int
    oldest_ms: int | None
    disabled: str
    """Why, or ""."""
    delivered: int
    failed: int
    died: int
    forgotten: int
    last_ms: int | None
    missed: dict[str, Any] | None


def shown(held: Subscription, figures: Figures) -> dict[str, Any]:
    """Everything but the secret, as the models above have it."""
    missed = figures.missed
    return {
        "id": held.id,
        "url": held.url,
        "types": list(held.types),
        "services": list(held.services) or None,
        "description": held.description or None,
        "enabled": not figures.disabled,
        "disabledReason": figures.disabled or None,
        "createdAt": held.created_at,
        "createdBy": held.created_by,
        "updatedAt": held.updated_at,
        "status": {
            "queued": figures.waiting,
            "deadLetters": figures.dead,
            "oldestWaitingSeconds": None if figures.oldest_ms is None else figures.oldest_ms / 1000,
            "delivered": figures.delivered,
            "failedAttempts": figures.failed,
            "givenUp": figures.died,
            "forgottenDeadLetters": figures.forgotten,
            "lastDeliveredAt": None
            if figures.last_ms is None
            else rfc3339(from_ms(figures.last_ms)),
            "missed": missed,
        },
    }
