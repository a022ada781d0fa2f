"""The HTTP face of webhooks."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from registryd.errors import Conflict, Malformed, NotFound
from registryd.events.history import deed
from registryd.events.webhook_store import Held, Letter, WebhookStore
from registryd.events.webhook_types import (
    MAX_SUBSCRIPTIONS,
    Attempts,
    DeadLetters,
    NewWebhook,
    Replay,
    Replayed,
    Subscription,
    Tested,
    WebhookChange,
    WebhookChanged,
    WebhookCreated,
    WebhookList,
    WebhookShown,
    amend,
    shown,
    subscribe,
)
from registryd.events.webhooks import Courier
from registryd.kit.clock import Clock, from_ms, rfc3339
from registryd.registry.bodies import parse
from registryd.registry.reads import known_parameters
from registryd.web import codec
from registryd.web.caller import Permission, Scope
from registryd.web.reply import Header, Reply
from registryd.web.request import Request
from registryd.web.routing import API_PREFIX, Answer, Mount, Param, Route

WEBHOOK_ID: Final = re.compile(r"wh_[0-9a-f]{16}")
SEGMENTS: Final = {"id": WEBHOOK_ID}
ATTEMPTS: Final = 5
MAX_LIMIT: Final = 1_000
TEST: Final = "webhook:test"


class WebhookRoutes:
    def __init__(
        self, store: WebhookStore, courier: Courier, clock: Clock, *, source: Callable[[], str]
    ) -> None:
        self._store = store
        self._courier = courier
        self._clock = clock
        self._source = source

    # --- subscriptions

    async def create(self, request: Request) -> Reply:
        wish = parse(NewWebhook, await request.json())
        by = request.signature()
        new = subscribe(wish, by=by, now=self._clock.now())
        record = deed("webhook:created", new.id, by=by, now=self._clock.now())
        outcome = await self._store.put(new, record, disabled="" if wish.enabled else "by request")
        if outcome == "full":
            raise Conflict(f"there are {MAX_SUBSCRIPTIONS} webhooks already, and no more are kept")
        body = await self._shown(new) | {"secret": new.secret}
        return Reply(
            201,
            codec.dumps(body),
            headers=[("Location", f"{API_PREFIX}/webhooks/{new.id}"), NO_STORE],
        )

    async def list(self, request: Request) -> Reply:
        parameters = known_parameters(request, "limit", "cursor")
        offset, limit = _page(parameters)
        held = await self._store.subscriptions()
        page = list(held.values())[offset : offset + limit]
        figures = await self._store.figures([one.id for one in page])
        following = str(offset + limit) if offset + limit < len(held) else None
        body = {
            "webhooks": [shown(one, figures[one.id]) for one in page],
            "total": len(held),
            "next": following,
        }
        return Reply(200, codec.dumps(body), headers=_headers(request, following, limit))

    async def get(self, request: Request) -> Reply:
        known_parameters(request)
        held = await self._held(request)
        return Reply(200, codec.dumps(await self._shown(held.subscription)), headers=[NO_STORE])

    async def change(self, request: Request) -> Reply:
        body = await request.json()
        wish = parse(WebhookChange, body)
        by = request.signature()
        for _ in range(ATTEMPTS):
            held = await self._held(request)
            now = self._clock.now()
            changed = amend(held.subscription, wish, now=now)
            disabled = None
            if wish.enabled is not None:
                disabled = "" if wish.enabled else "by request"
            # Names of what was changed; values might hold what only the owner should know.
            what = ", ".join(sorted(wish.model_fields_set)) or "nothing"
            record = deed("webhook:updated", changed.id, by=by, now=now, reason=what)
            outcome = await self._store.put(changed, record, before=held, disabled=disabled)
            if outcome == "put":
                self._courier.hear()
                answer = await self._shown(changed)
                if "secret" in wish.model_fields_set and wish.secret is None:
                    answer["secret"] = changed.secret
                return Reply(200, codec.dumps(answer), headers=[NO_STORE])
        raise Conflict("the webhook is being changed by others all the time; try again")

    async def delete(self, request: Request) -> Reply:
        known_parameters(request)
        identity = request.params["id"]
        record = deed("webhook:deleted", identity, by=request.signature(), now=self._clock.now())
        if not await self._store.drop(identity, record):
            raise _unknown(identity)
        return Reply(204)

    # --- deliveries

    async def test(self, request: Request) -> Reply:
        known_parameters(request)
        to = (await self._held(request)).subscription
        now = self._clock.now()
        event_id = f"test-{int(now.timestamp() * 1000)}"
        event = {
            "specversion": "1.0",
            "id": event_id,
            "source": self._source(),
            "type": TEST,
            "time": rfc3339(now),
            "datacontenttype": "application/json",
            "data": {"webhook": to.id},
        }
        receipt = await self._courier.send(to, event_id, TEST, codec.dumps(event))
        answer = {
            "success": receipt.outcome == "delivered",
            "httpStatus": receipt.status,
            "durationMs": receipt.duration_ms,
            "error": receipt.error,
        }
        return Reply(200, codec.dumps(answer), headers=[NO_STORE])

    async def deliveries(self, request: Request) -> Reply:
        known_parameters(request)
        to = (await self._held(request)).subscription
        answer = {"deliveries": await self._store.attempts(to.id)}
        return Reply(200, codec.dumps(answer), headers=[NO_STORE])

    async def dead_letters(self, request: Request) -> Reply:
        offset, limit = _page(known_parameters(request, "limit", "cursor"))
        to = (await self._held(request)).subscription
        figures = (await self._store.figures([to.id]))[to.id]
        letters = await self._store.letters(to.id, offset, limit)
        following = str(offset + limit) if offset + limit < figures.dead else None
        answer = {
            "deadLetters": [_letter(one) for one in letters],
            "total": figures.dead,
            "next": following,
        }
        return Reply(200, codec.dumps(answer), headers=_headers(request, following, limit))

    async def replay(self, request: Request) -> Reply:
        known_parameters(request)
        body = await request.optional_json()
        wish = Replay() if body is None else parse(Replay, body)
        to = (await self._held(request)).subscription
        replayed, left = await self._store.replay(to.id, wish.ids)
        self._courier.hear()
        return Reply(200, codec.dumps({"replayed": replayed, "left": left}), headers=[NO_STORE])

    # --- what they share

    async def _held(self, request: Request) -> Held:
        identity = request.params["id"]
        held = await self._store.subscription(identity)
        if held is None:
            raise _unknown(identity)
        return held

    async def _shown(self, held: Subscription) -> dict[str, Any]:
        return shown(held, (await self._store.figures([held.id]))[held.id])

    def table(self) -> Sequence[Route]:
        admin = Permission.ADMIN
        page = (
            Param(
                "limit",
                "How many (default 100)",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
            ),
            Param("cursor", "Where the page before ended: its `next`"),
        )
        return [
            Route(
                method="POST",
                path="/webhooks",
                mount=Mount.API,
                handler=self.create,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="createWebhook",
                summary="Have events sent to a URL",
                description="Deliveries are signed as Standard Webhooks asks; the secret is shown here "
                "and never again.",
                tag="webhooks",
                body=NewWebhook,
                answers={201: Answer("The webhook with its secret", WebhookCreated)},
                problems=(409,),
            ),
            Route(
                method="GET",
                path="/webhooks",
                mount=Mount.API,
                handler=self.list,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="listWebhooks",
                summary="The webhooks and how they fare",
                tag="webhooks",
                query=page,
                answers={200: Answer("The webhooks, the oldest first", WebhookList)},
            ),
            Route(
                method="GET",
                path="/webhooks/{id}",
                mount=Mount.API,
                handler=self.get,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="getWebhook",
                summary="One webhook",
                tag="webhooks",
                segments=SEGMENTS,
                answers={200: Answer("The webhook", WebhookShown)},
                problems=(404,),
            ),
            Route(
                method="PATCH",
                path="/webhooks/{id}",
                mount=Mount.API,
                handler=self.change,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="changeWebhook",
                summary="Change a webhook, or replace its secret",
                tag="webhooks",
                segments=SEGMENTS,
                body=WebhookChange,
                body_media=("application/json", "application/merge-patch+json"),
                answers={200: Answer("The webhook", WebhookChanged)},
                problems=(404, 409),
            ),
            Route(
                method="DELETE",
                path="/webhooks/{id}",
                mount=Mount.API,
                handler=self.delete,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="deleteWebhook",
                summary="Send nothing there any more; what waits is dropped",
                tag="webhooks",
                segments=SEGMENTS,
                answers={204: Answer("Gone")},
                problems=(404,),
            ),
            Route(
                method="POST",
                path="/webhooks/{id}/test",
                mount=Mount.API,
                handler=self.test,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="testWebhook",
                summary="Send one event of type webhook:test now, and say what came of it",
                tag="webhooks",
                segments=SEGMENTS,
                answers={200: Answer("What came of it", Tested)},
                problems=(404,),
            ),
            Route(
                method="GET",
                path="/webhooks/{id}/deliveries",
                mount=Mount.API,
                handler=self.deliveries,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="listDeliveries",
                summary="The latest attempts to deliver",
                tag="webhooks",
                segments=SEGMENTS,
                answers={200: Answer("The attempts, the latest first", Attempts)},
                problems=(404,),
            ),
            Route(
                method="GET",
                path="/webhooks/{id}/dead-letters",
                mount=Mount.API,
                handler=self.dead_letters,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="listDeadLetters",
                summary="Deliveries that were given up",
                tag="webhooks",
                segments=SEGMENTS,
                query=page,
                answers={200: Answer("The dead letters, the latest first", DeadLetters)},
                problems=(404,),
            ),
            Route(
                method="POST",
                path="/webhooks/{id}/dead-letters/replay",
                mount=Mount.API,
                handler=self.replay,
                permission=admin,
                scope=Scope.WHOLE,
                operation_id="replayDeadLetters",
                summary="Send what was given up once more: all, or the named",
                tag="webhooks",
                segments=SEGMENTS,
                body=Replay,
                body_required=False,
                answers={200: Answer("How many", Replayed)},
                problems=(404,),
            ),
        ]


NO_STORE: Final[Header] = ("Cache-Control", "no-store")


def _unknown(identity: str) -> NotFound:
    return NotFound(f"there is no webhook {identity}")


def _page(parameters: Mapping[str, str]) -> tuple[int, int]:
    """Offset and length of a page."""
    offset, limit = parameters.get("cursor") or "0", parameters.get("limit") or "100"
    for name, text in (("cursor", offset), ("limit", limit)):
        if not (text.isascii() and text.isdigit() and len(text) <= 6):
            raise Malformed(f"{name}: expected a number, found {codec.shown(text)}")
    if not 1 <= int(limit) <= MAX_LIMIT:
        raise Malformed(f"limit: expected a number from 1 to {MAX_LIMIT}, found {limit}")
    return int(offset), int(limit)


def _headers(request: Request, following: str | None, limit: int) -> list[Header]:
    if following is None:
        return [NO_STORE]
    query = urlencode({"limit": limit, "cursor": following})
    return [NO_STORE, ("Link", f'<{request.raw.rel_url.raw_path}?{query}>; rel="next"')]


def _letter(letter: Letter) -> dict[str, Any]:
    item = letter.item
    return {
        "id": letter.id,
        "eventId": item["event"],
        "type": item["type"],
        "subject": item["subject"],
        "queuedAt": rfc3339(from_ms(int(item["queued"]))),
        "diedAt": rfc3339(from_ms(int(item["died"]))),
        "attempts": int(item["attempts"]),
        "error": item["error"],
        "event": json.loads(letter.body),
    }
