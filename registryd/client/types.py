"""What the SDK answers with beyond the API's own shapes. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, TypedDict

from registryd.errors import NotFound, OutboundFailed
from registryd.registry.types import InstanceShown


class Unreachable(OutboundFailed):
    """No base URL gave an answer within the client's patience."""


class UnexpectedAnswer(OutboundFailed):
    """Something answered that does not speak registryd's API, or broke off."""


class NoneOffered(NotFound):
    """No instance may be chosen just now; `members` counts why."""


class Strategy(StrEnum):
    """How one instance of several is chosen. The last two go by the caller's own measurements."""

    WEIGHTED = "weighted"
    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    CONSISTENT = "consistent"
    LEAST_LATENCY = "least_latency"
    P2C = "p2c"


class Matching(TypedDict, total=False):
    """What an instance has to be, as keyword arguments; several values are a comma list or a sequence."""

    capability: str | Sequence[str]
    capabilities_all: str | Sequence[str]
    min_version: str
    tags: str | Sequence[str]
    tags_all: str | Sequence[str]
    health: str | Sequence[str]
    version: str
    environment: str | Sequence[str]
    model: str | Sequence[str]
    depends_on: str | Sequence[str]
    filter: str


class Filters(Matching, total=False):
    """The filters of a list. Where one service is meant `name` is its name, not a pattern, and `zone` a
    preference: there it is `Matching`."""

    name: str
    zone: str | Sequence[str]


class Removed(NamedTuple):
    name: str
    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """Instances, and how far they can be trusted.

    `stale_for`: seconds since the store is known to have agreed; 0.0 for a fresh answer.
    `source`: `registry`, or `last-known-good` when the registry gave no answer.
    `doubt`: "" or why a sudden shrink is not believed yet; the vanished are then still among
    `instances`.
    """

    instances: tuple[InstanceShown, ...]
    revision: str
    stale_for: float = 0.0
    source: Literal["registry", "last-known-good"] = "registry"
    doubt: str = ""

    def __iter__(self) -> Iterator[InstanceShown]:
        return iter(self.instances)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> InstanceShown:
        return self.instances[index]


@dataclass(frozen=True, slots=True)
class Watched:
    """One step of a watch. `instances` is the whole result, `added`, `changed` and `removed` what this
    step did to it; a `snapshot` starts anew."""

    kind: Literal["snapshot", "change"]
    revision: str
    instances: Mapping[tuple[str, str], InstanceShown]
    """By name and instance id."""
    added: Sequence[InstanceShown] = ()
    changed: Sequence[InstanceShown] = ()
    removed: Sequence[Removed] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A CloudEvent; `type` is `reset` when what came between is not known any more, and `data` then
    holds all instances."""

    id: str
    type: str
    subject: str
    time: str
    data: Mapping[str, Any]


State = Literal["waiting", "registered", "draining", "yielded", "left"]
"""Of a registration: not yet (or not any more) known to the registry, known, being drained, given up to
a successor, ended."""


@dataclass(slots=True)
class Target:
    """An instance chosen for one call. `failed` may be set by the caller, for an answer that is an error."""

    url: str
    service: str
    instance_id: str
    instance: InstanceShown
    failed: bool = False
