"""Who keeps an id that two have registered. Pure.

Every registration of the SDK names its incarnation, which tells when it began. Where two hold one id,
the later start wins, for it is the successor: a restart whose predecessor still hangs, the new copy of
a rolling update. So two of the SDK never take an id from each other by turns. An incarnation that is
not the SDK's, such as the one an operator's edit makes, is replaced, a few times.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from registryd.registry.types import InstanceShown

TAKEOVERS: Final = 3
"""How often one registration replaces somebody who is not its successor."""

_LIFE: Final = re.compile(r"sdk~([0-9]{13})~([a-z0-9]{6})~([0-9]{1,6})")


@dataclass(frozen=True, slots=True, order=True)
class Life:
    """Began at `started_ms` (Unix milliseconds); `mark` tells two apart that began together; `number`
    counts the incarnations of this one."""

    started_ms: int
    mark: str
    number: int = 1

    def __str__(self) -> str:
        return f"sdk~{self.started_ms:013d}~{self.mark}~{self.number}"

    def next(self) -> "Life":
        return replace(self, number=self.number + 1)


def parse_life(text: str) -> Life | None:
    """None: not an incarnation of the SDK's."""
    found = _LIFE.fullmatch(text)
    return Life(int(found[1]), found[2], int(found[3])) if found else None


def after_superseded(
    ours: Life, endpoint: str, holder: InstanceShown | None
) -> Literal["register", "yield", "rename"]:
    """What somebody does who was told that another incarnation holds his id.

    `register` again under the same id, with the next incarnation; `yield` to a successor at the same
    endpoint; or, when a successor serves at another one, both live: `rename` oneself.
    """
    if holder is None:
        return "register"
    theirs = parse_life(holder.incarnation)
    successor = theirs is not None and (theirs.started_ms, theirs.mark) > (
        ours.started_ms,
        ours.mark,
    )
    if not successor and ours.number <= TAKEOVERS:
        return "register"
    return "yield" if holder.endpoint == endpoint else "rename"
