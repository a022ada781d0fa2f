"""The record of access, for admins."""

from typing import Final

from registryd.auth.store import AuthStore
from registryd.errors import Malformed
from registryd.registry.reads import known_parameters
from registryd.registry.types import Answer as Shown
from registryd.web import codec
from registryd.web.caller import Permission, Scope
from registryd.web.reply import Reply
from registryd.web.request import Request
from registryd.web.routing import Answer, Param, Route

MAX_LIMIT: Final = 1_000
DEFAULT_LIMIT: Final = 100


class AccessEntry(Shown):
    """`outcome` is `done` for what an admin did, the code of the refusal, with `detail` saying why, or that of
    the error in which an admin's request ended. `count` is how many refusals alike came within half a second;
    `requestId` is that of the first."""

    time: str
    by: str
    request_id: str
    method: str
    path: str
    outcome: str
    detail: str | None
    count: int


class AccessRecord(Shown):
    """The newest first."""

    entries: list[AccessEntry]


class AuditRoutes:
    def __init__(self, store: AuthStore) -> None:
        self._store = store

    async def audit(self, request: Request) -> Reply:
        text = known_parameters(request, "limit").get("limit") or str(DEFAULT_LIMIT)
        legal = text.isascii() and text.isdigit() and len(text) <= 4
        if not legal or not 1 <= int(text) <= MAX_LIMIT:
            raise Malformed(
                f"limit: expected a number from 1 to {MAX_LIMIT}, found {codec.shown(text)}"
            )
        answer = {"entries": await self._store.recorded(int(text))}
        return Reply(200, codec.dumps(answer), headers=[("Cache-Control", "no-store")])

    def table(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/audit",
                handler=self.audit,
                permission=Permission.ADMIN,
                scope=Scope.WHOLE,
                operation_id="getAudit",
                summary="Who was refused, and what admins did",
                tag="access",
                query=(
                    Param(
                        "limit",
                        f"How many (default {DEFAULT_LIMIT})",
                        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
                    ),
                ),
                answers={200: Answer("The newest first", AccessRecord)},
            )
        ]
