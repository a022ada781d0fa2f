"""The question a request asks before it is let in. Which credentials exist is not known here."""

import re
from dataclasses import dataclass
from typing import Final, Protocol

from registryd.errors import Malformed
from registryd.web.caller import Caller, Peer, Permission
from registryd.web.shortcut import Headers

DONE: Final = "done"
REFUSALS: Final = frozenset({"unauthenticated", "forbidden"})
"""Codes of the errors by which access is denied."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the audit keeps of a request: one that was refused, or an admin's.

    `path` is the route's template, "" where none matched. `outcome` is DONE, or the code of the refusal
    or of the error that an admin's request ended with.
    """

    signature: str
    request_id: str
    method: str
    path: str
    outcome: str
    detail: str = ""


class Access(Protocol):
    async def identify(self, headers: Headers, peer: Peer) -> Caller:
        """Who calls, by the credential in the headers or the peer's certificate. Raises Unauthenticated.

        Where neither is there: whoever callers without credentials are, Unauthenticated if nobody.
        """

    def known(self, headers: Headers, peer: Peer) -> Caller | None:
        """The same without waiting and without raising; None where that cannot be told at once."""

    def note(self, attempt: Attempt) -> None:
        """Takes note for the audit; does not wait, raises nothing."""


class OpenAccess:
    """Everybody may do everything, under one name."""

    EVERYBODY = Caller("anonymous", Permission.ADMIN)

    async def identify(self, headers: Headers, peer: Peer) -> Caller:
        return self.EVERYBODY

    def known(self, headers: Headers, peer: Peer) -> Caller | None:
        return self.EVERYBODY

    def note(self, attempt: Attempt) -> None:
        """Nobody is refused, and nobody is an admin more than others."""


_IN_QUERY: Final = re.compile(r"[?&](access_token|api[_-]?key|token)=", re.IGNORECASE)


def refuse_in_query(target: str) -> None:
    """Raises Malformed for a request target with a credential in its query, where proxies, histories
    and logs would keep it. `key` is none: it is what `/services/{name}/url` hashes."""
    if (found := _IN_QUERY.search(target)) is not None:
        raise Malformed(
            f"{found[1].lower()}: credentials do not belong in the URL; send Authorization: Bearer …, "
            "and change this one, which others may have seen"
        )
