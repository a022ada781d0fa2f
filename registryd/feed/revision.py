"""A position in the history of one store."""

from typing import NamedTuple

from registryd.errors import Malformed


class Revision(NamedTuple):
    """`<epoch>-<rev>`: a new epoch begins when a store lost or forked its history; revs count within."""

    epoch: int
    rev: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.rev}"


NOWHERE = Revision(0, 0)
"""Before the first change of an empty store."""


def parse_revision(text: str, *, what: str = "revision") -> Revision:
    """Reads a token as `X-Registry-Revision` gives it. Raises Malformed, naming `what`."""
    epoch, dash, rev = text.partition("-")
    if (
        dash
        and epoch.isascii()
        and rev.isascii()
        and epoch.isdigit()
        and rev.isdigit()
        and len(text) <= 40
    ):
        return Revision(int(epoch), int(rev))
    raise Malformed(
        f"{what}: expected a revision token as X-Registry-Revision gives it, such as 1700000000000-42"
    )
