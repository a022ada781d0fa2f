"""The question a request asks before it is let in. Which credentials exist is not known here."""

from dataclasses import dataclass
from typing import Protocol

from registryd.web.caller import Caller, Peer, Permission
from registryd.web.shortcut import Headers


@dataclass(frozen=True, slots=True)
class Attempt:
    """What the audit keeps of a request: one that was refused, or an admin's.

    `path` is the route's template, "" where none matched. `outcome` is `done`, or the refusal's code.
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
