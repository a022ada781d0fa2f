"""Webhooks and history in the store: one method a script, and the reads beside them.

What each script does, its ARGV and returns are in the headers of lua/*.lua. All methods raise
StorageUnavailable.
"""

import itertools
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, NamedTuple

from registryd.events.cloudevent import Event
from registryd.events.webhook_types import MAX_SUBSCRIPTIONS, Figures, Subscription
from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.storage.pipelined import Argument
from registryd.storage.scripts import ScriptRunner

ATTEMPTS_KEPT: Final = 100
REPLAY_AT_ONCE: Final = 200
CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait for one subscription; what goes beyond is given up, the oldest first."""

    deliveries: int = 10_000
    bytes: int = 64 * 1024 * 1024


class Turn(NamedTuple):
    """Whose turn it is to carry changes on; `cursor` None before the first was carried."""

    mine: bool
    cursor: Revision | None
    version: str


class Record(NamedTuple):
    """One entry of the history, as JSON, for one service or ("") for none in particular."""

    service: str
    entry: bytes


class Dispatch(NamedTuple):
    """An event and the subscriptions that want it."""

    event: Event
    to: tuple[str, ...]


class Carried(NamedTuple):
    """`lost`: another node has the turn, or was quicker; `changed`: so have the subscriptions."""

    outcome: Literal["carried", "lost", "changed"]
    queued: int = 0
    overflow: int = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed delivery. `attempt` counts from 1."""

    to: Subscription
    id: str
    event_id: str
    type: str
    subject: str
    attempt: int
    token: str
    body: bytes


class Claimed(NamedTuple):
    """`next_due` is how long until another is due, None when nothing waits."""

    next_due: timedelta | None
    deliveries: list[Delivery]


class Held(NamedTuple):
    """A subscription, and its bytes as the store has them: whoever changes it tells what he saw."""

    subscription: Subscription
    raw: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """A delivery that was given up."""

    id: str
    item: dict[str, Any]
    body: bytes


class WebhookStore:
    """`now_ms` replaces the store's clock; tests only."""

    def __init__(
        self,
        runner: ScriptRunner,
        connection: Connection,
        keys: Keys,
        *,
        limits: QueueLimits = QueueLimits(),
        now_ms: int = 0,
    ) -> None:
        self._limits = limits
        self._runner = runner
        self._connection = connection
        self._keys = keys
        _, self._hooks, self._state, *_ = keys.events
        self.node = secrets.token_hex(6)
        self._tokens = map(f"{self.node}-{{:x}}".format, itertools.count(1))
        self.now_ms = now_ms

    async def _run(self, script: str, *arguments: Argument) -> Any:
        return await self._runner.run(
            script, (self._keys.prefix, self._keys.tag, self.now_ms, *arguments)
        )

    # --- carrying changes on

    async def turn(self, lasts: timedelta) -> Turn:
        whose, cursor, version = await self._run(
            "fan_turn", self.node, int(lasts.total_seconds() * 1000)
        )
        return Turn(whose == b"mine", _position(cursor), version.decode())

    async def cursor(self) -> Revision:
        """Up to where changes were carried on."""
        return _position(await self._connection.call("HGET", self._state, "cursor")) or NOWHERE

    async def changes(self, after: Revision, limit: int) -> list[Change]:
        """What the stream holds after a position. Never waits."""
        reply = await self._connection.call(
            "XRANGE", self._keys.stream, f"({after}", "+", "COUNT", limit
        )
        return [Change(_position(identifier) or NOWHERE, fields) for identifier, fields in reply]

    async def carry(
        self,
        turn: Turn,
        to: Revision,
        records: Sequence[Record],
        dispatches: Sequence[Dispatch],
        missed: str = "",
    ) -> Carried:
        arguments: list[Argument] = [
            self.node,
            "" if turn.cursor is None else str(turn.cursor),
            str(to),
            turn.version,
            self._limits.deliveries,
            self._limits.bytes,
            missed,
            len(records),
        ]
        for record in records:
            arguments += record
        for event, subscriptions in dispatches:
            arguments += (event.id, event.type, event.subject, event.body, len(subscriptions))
            arguments += subscriptions
        reply = await self._run("fan_out", *arguments)
        match reply[0]:
            case b"carried":
                return Carried("carried", int(reply[1]), int(reply[2]))
            case b"lost":
                return Carried("lost")
            case b"changed":
                return Carried("changed")
            case other:
                raise ValueError(f"fan_out.lua answered {other!r}")

    # --- delivering

    async def claim(
        self, limit: int, each: int, lease: timedelta, room: Mapping[str, int]
    ) -> Claimed:
        """At most `limit`, and `each` for one subscription, or what `room` says for it."""
        pairs: list[Argument] = []
        for name, takes in room.items():
            pairs += (name, takes)
        reply = await self._run(
            "webhook_claim",
            next(self._tokens),
            limit,
            each,
            int(lease.total_seconds() * 1000),
            *pairs,
        )
        deliveries = []
        for _, hook, delivery, item, token, body in zip(*(iter(reply[1:]),) * 6, strict=True):
            fields = json.loads(item)
            deliveries.append(
                Delivery(
                    Subscription.decode(hook),
                    delivery.decode(),
                    fields["event"],
                    fields["type"],
                    fields["subject"],
                    int(fields["attempts"]),
                    token.decode(),
                    body,
                )
            )
        due = timedelta(milliseconds=int(reply[0])) if reply[0] else None
        return Claimed(due, deliveries)

    async def report(
        self,
        delivery: Delivery,
        outcome: Literal["delivered", "retry", "dead", "gone"],
        attempt: bytes,
        *,
        pause: timedelta = timedelta(0),
        error: str = "",
    ) -> str:
        """`noted`, `stale` (the claim was another's by then) or `unknown` (the subscription is gone)."""
        reply = await self._run(
            "webhook_report",
            delivery.to.id,
            delivery.id,
            delivery.token,
            outcome,
            int(pause.total_seconds() * 1000),
            attempt,
            error,
            ATTEMPTS_KEPT,
        )
        return str(reply[0].decode())

    # --- subscriptions

    async def subscriptions(self) -> dict[str, Subscription]:
        """By id, the oldest first."""
        raw: dict[bytes, bytes] = await self._connection.call("HGETALL", self._hooks)
        held = [Subscription.decode(one) for one in raw.values()]
        return {one.id: one for one in sorted(held, key=lambda one: (one.created_at, one.id))}

    async def enabled(self) -> list[Subscription]:
        held = await self.subscriptions()
        disabled = await self._connection.call("HKEYS", self._keys.events[-2])
        return [one for one in held.values() if one.id.encode() not in disabled]

    async def subscription(self, identity: str) -> Held | None:
        raw = await self._connection.call("HGET", self._hooks, identity)
        return None if raw is None else Held(Subscription.decode(raw), raw)

    async def put(
        self,
        subscription: Subscription,
        record: bytes,
        *,
        before: Held | None = None,
        disabled: str | None = None,
    ) -> str:
        """`put`, `full`, `unknown` or `changed` (it is no longer as `before`). `disabled` says why it is,
        "" enables it, None leaves it as it is."""
        reason = "keep" if disabled is None else disabled
        reply = await self._run(
            "webhook_put",
            subscription.id,
            subscription.encode(),
            b"" if before is None else before.raw,
            json.dumps({"reason": reason}) if disabled else reason,
            record,
            MAX_SUBSCRIPTIONS,
        )
        return str(reply[0].decode())

    async def drop(self, identity: str, record: bytes) -> bool:
        reply = await self._run("webhook_drop", identity, record)
        return bool(reply[0] == b"dropped")

    async def figures(self, identities: Sequence[str]) -> dict[str, Figures]:
        found: dict[str, Figures] = {}
        for start in range(0, len(identities), CHUNK):
            chunk = identities[start : start + CHUNK]
            rows = await self._run("webhook_status", *chunk)
            found |= {name: _figures(row) for name, row in zip(chunk, rows, strict=True)}
        return found

    async def attempts(self, identity: str) -> list[dict[str, Any]]:
        raw = await self._connection.call("LRANGE", self._keys.webhook(identity, "attempts"), 0, -1)
        return [json.loads(one) for one in raw]

    async def letters(self, identity: str, offset: int, limit: int) -> list[Letter]:
        """Deliveries given up, the latest first."""
        names = await self._connection.call(
            "ZREVRANGE", self._keys.webhook(identity, "dead"), offset, offset + limit - 1
        )
        if not names:
            return []
        items = await self._connection.call("HMGET", self._keys.webhook(identity, "items"), *names)
        bodies = await self._connection.call(
            "HMGET", self._keys.webhook(identity, "bodies"), *names
        )
        return [
            Letter(name.decode(), json.loads(item), body)
            for name, item, body in zip(names, items, bodies, strict=True)
            if item is not None and body is not None  # replayed in between
        ]

    async def replay(self, identity: str, deliveries: Sequence[str] | None) -> tuple[int, int]:
        """Queues the named dead letters, or all, anew: (how many, how many are left)."""
        total, left = 0, 0
        chunks = [
            deliveries[start : start + REPLAY_AT_ONCE]
            for start in range(0, len(deliveries or ()), REPLAY_AT_ONCE)
            if deliveries
        ] or [()]
        for chunk in chunks:
            while True:
                reply = await self._run(
                    "webhook_replay", identity, REPLAY_AT_ONCE, self._limits.deliveries, *chunk
                )
                if reply[0] == b"unknown":
                    return total, 0
                count, left = int(reply[1]), int(reply[2])
                total += count
                if chunk or not count or not left:
                    break
        return total, left

    # --- history

    async def history(
        self, service: str, before: str, count: int
    ) -> list[tuple[str, dict[str, Any]]]:
        """Entries older than the position `before` ("+" for the newest), the newest first."""
        key = self._keys.history(service) if service else self._keys.audit
        reply = await self._connection.call(
            "XREVRANGE", key, before if before == "+" else f"({before}", "-", "COUNT", count
        )
        return [(position.decode(), json.loads(fields[b"e"])) for position, fields in reply]

    async def lease_left(self, identity: str) -> timedelta | None:
        """How long the lease of an instance runs, None when there is none."""
        left = int(await self._connection.call("PTTL", self._keys.instance(identity)))
        return timedelta(milliseconds=left) if left >= 0 else None

    async def removed_at_ms(self, identity: str) -> int | None:
        """When an instance was removed, as long as the store remembers that."""
        raw = await self._connection.call("HGET", self._keys.tombstones, identity)
        return None if raw is None else int(json.loads(raw)["at"])


def _position(raw: bytes | None) -> Revision | None:
    if not raw:
        return None
    epoch, _, rev = raw.partition(b"-")
    return Revision(int(epoch), int(rev))


def _figures(row: Sequence[Any]) -> Figures:
    waiting, dead, oldest, disabled, *counts, last, missed = row
    delivered, failed, died, forgotten = (int(count or 0) for count in counts)
    return Figures(
        waiting=int(waiting),
        dead=int(dead),
        oldest_ms=int(oldest) if oldest != b"" else None,
        disabled=json.loads(disabled)["reason"] if disabled else "",
        delivered=delivered,
        failed=failed,
        died=died,
        forgotten=forgotten,
        last_ms=int(last) if last else None,
        missed=json.loads(missed) if missed else None,
    )
