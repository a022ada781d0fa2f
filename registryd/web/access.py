"""Who may call what: the question a route asks. Which credentials exist is not known here."""

from typing import Protocol

from registryd.web.request import Request
from registryd.web.routing import Permission
from registryd.web.shortcut import Headers


class Access(Protocol):
    def authorize(self, request: Request, permission: Permission) -> str:
        """The name of the actor. Raises Unauthenticated or Forbidden."""

    def known(self, headers: Headers, permission: Permission) -> str | None:
        """The name of the actor, where the headers of an ordinary request are enough to tell at once."""


class OpenAccess:
    """Everybody may do everything, under one name."""

    def authorize(self, request: Request, permission: Permission) -> str:
        return "anonymous"

    def known(self, headers: Headers, permission: Permission) -> str | None:
        return "anonymous"
