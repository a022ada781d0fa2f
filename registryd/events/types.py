"""What event streams carry: positions, server-sent events as bytes, and their shapes for the API's description."""

import re
import types
from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel

from registryd.errors import Malformed
from registryd.feed.revision import Revision
from registryd.registry.listing import array
from registryd.registry.types import Answer, HealthStatus, InstanceShown
from registryd.registry.view import BY_ID, Instance

WHOLE: Final = 9999
"""The number in a position that comes after every event of its change: no change has so many."""

_POSITION: Final = re.compile(r"([0-9]{1,20})-([0-9]{1,18})(?:\.([0-9]{1,4}))?")


class Position(NamedTuple):
    """Just after one event: `<epoch>-<rev>` the first of a change, `<epoch>-<rev>.<n>` a further one."""

    at: Revision
    number: int = 0

    def __str__(self) -> str:
        return f"{self.at}.{self.number}" if self.number else str(self.at)

    @property
    def whole(self) -> bool:
        """All events of the change have been seen."""
        return self.number >= WHOLE


def parse_position(text: str, *, what: str) -> Position:
    """Reads an event's id. Raises Malformed, naming `what`."""
    found = _POSITION.fullmatch(text)
    if found is None:
        raise Malformed(
            f"{what}: expected the id of an event or a revision, such as 1700000000000-42 or "
            f"1700000000000-42.1, found {text[:60]!r}"
        )
    epoch, rev, number = found.groups()
    return Position(Revision(int(epoch), int(rev)), int(number or 0))


def sse(event: str, event_id: str, data: bytes) -> bytes:
    """One server-sent event. `data` is JSON on one line."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), event.encode(), data)


def opening(event_id: str, retry_ms: int) -> bytes:
    """Tells a client, before any event, where it stands and how soon to come back when cut off."""
    return b"retry: %d\nid: %b\n\n" % (retry_ms, event_id.encode())


def ping(event_id: str) -> bytes:
    """A comment that keeps the connection open, with the position that everything so far amounts to, so
    that a client who hears little does not fall behind what can be resumed."""
    return b"id: %b\n: ping\n\n" % event_id.encode()


def snapshot(revision: Revision, instances: Iterable[Instance]) -> bytes:
    """The data of `snapshot` and `reset`: what there is, by name and id."""
    ordered = sorted(instances, key=BY_ID)
    return b'{"revision":"%b","instances":%b}' % (str(revision).encode(), array(ordered))


class Snapshot(Answer):
    """The whole result: the data of `snapshot` and `reset`."""

    revision: str
    instances: list[InstanceShown]


class Left(Answer):
    """An instance that the result no longer holds."""

    name: str
    instance_id: str
    reason: str


class ResultChange(Answer):
    """What one change did to the result of a watch."""

    revision: str
    added: list[InstanceShown]
    changed: list[InstanceShown]
    removed: list[Left]


class Bye(Answer):
    """The last event of a stream that the node ends."""

    reason: Literal["shutting down"]


class Gone(Answer):
    instance_id: str
    reason: str | None = None


class CapabilityClaim(Answer):
    name: str
    version: str
    old_version: str | None = None


class Present(Answer):
    """The data of an event of an instance that is there: the whole instance, and why where it is known."""

    service: str
    instance: InstanceShown
    reason: str | None = None


class HealthChanged(Present):
    old: HealthStatus
    new: HealthStatus


class Departed(Answer):
    """The data of an event of an instance that is gone."""

    service: str
    instance: Gone


class CapabilityChanged(Answer):
    """The data of an event of a capability: its instance as it is now, or as it went."""

    service: str
    instance: InstanceShown | Gone
    capability: CapabilityClaim


class Preserving(Answer):
    """The data of `registry:preserving`: the instances, as `<service>:<instance>`, that are held."""

    reason: str
    instances: list[str]


class ImportDone(Answer):
    """The data of `registry:imported`; each instance has had an event of its own before."""

    reason: str
    instances: list[str]


class NodeError(Answer):
    """The data of `registry:error`, which stays on the node where it happened."""

    code: str
    detail: str


DATA: Final[Mapping[str, type[BaseModel]]] = types.MappingProxyType(
    {
        "service:registered": Present,
        "service:updated": Present,
        "service:restored": Present,
        "service:health:changed": HealthChanged,
        "service:unregistered": Departed,
        "service:expired": Departed,
        "capability:added": CapabilityChanged,
        "capability:changed": CapabilityChanged,
        "capability:removed": CapabilityChanged,
        "registry:preserving": Preserving,
        "registry:imported": ImportDone,
        "registry:error": NodeError,
    }
)
"""The types of events there are, and the shapes of their data."""

LOCAL: Final = frozenset({"registry:error"})
"""Types that stay on the node where they happen: no message is published."""
