"""Callers by a header of the request: what stands for credentials where only what they allow is tested.

`X-Caller: <name>;<role>;<prefix>,<prefix>…`; without it the caller may do everything.
"""

from registryd.web.access import Attempt
from registryd.web.caller import Caller, Peer, Permission
from registryd.web.shortcut import Headers


class HeaderAccess:
    def __init__(self) -> None:
        self.noted: list[Attempt] = []

    async def identify(self, headers: Headers, peer: Peer) -> Caller:
        return self.known(headers, peer)

    def known(self, headers: Headers, peer: Peer) -> Caller:
        text = headers.get("x-caller")
        if text is None:
            return Caller("test", Permission.ADMIN)
        name, role, prefixes = text.split(";")
        return Caller(name, Permission[role.upper()], tuple(filter(None, prefixes.split(","))))

    def note(self, attempt: Attempt) -> None:
        self.noted.append(attempt)
