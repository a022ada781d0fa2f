"""What a caller looks for: the filters of `GET /services`, parsed once, matched against the view.

Pure. A query is a set of term groups (any of each, all of them together), which the view's indexes
answer, and what is left to ask of each instance. `ranges` and names are resolved against what exists
at the moment of asking.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, reduce
from operator import and_
from typing import Final, TypeVar

from pyroaring import BitMap

from registryd.errors import Malformed
from registryd.registry.expression import Expression, parse
from registryd.registry.patterns import Pattern, compile_pattern
from registryd.registry.types import NAME_RE, TAG_RE, HealthStatus, canonical_environment
from registryd.registry.versions import (
    ANY_VERSION,
    CapabilityTerm,
    Range,
    minimum,
    parse_capability,
    parse_range,
)
from registryd.registry.view import PREFIX, Contents, Instance, View

FIELDS: Final = frozenset(
    {
        "name",
        "instanceId",
        "endpoint",
        "version",
        "apiVersion",
        "zone",
        "weight",
        "capabilities",
        "models",
        "resourceLimits",
        "dependsOn",
        "metadata",
        "healthCheck",
        "health",
        "registeredAt",
        "updatedAt",
        "incarnation",
        "lease",
        "revision",
        "admin",
    }
)
"""The fields of an instance: what `filter` may ask for and `fields` may name."""

FILTERS: Final = (
    "name",
    "capability",
    "capabilitiesAll",
    "minVersion",
    "tags",
    "tagsAll",
    "health",
    "version",
    "environment",
    "zone",
    "model",
    "dependsOn",
    "filter",
)

MAX_VALUES: Final = 64

T = TypeVar("T")


@dataclass(frozen=True)
class Filters:
    """All have to hold for an instance; an empty one holds for all."""

    name: Pattern | None = None
    capability: tuple[CapabilityTerm, ...] = ()
    capabilities_all: tuple[CapabilityTerm, ...] = ()
    tags: tuple[str, ...] = ()
    tags_all: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    version: Range | None = None
    environment: tuple[str, ...] = ()
    zone: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    expression: Expression | None = None
    service: str | None = None
    """One service by its exact name; set by routes whose path names it."""
    prefixes: tuple[str, ...] = ()
    """Only services whose names begin with one of these, in the words of `shortest`; see `within`."""

    def within(self, prefixes: tuple[str, ...]) -> "Filters":
        """The same for a caller with these prefixes, if any."""
        return replace(self, prefixes=shortest(prefixes)) if prefixes else self

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The terms by which the answer can change: any of each group, all groups together."""
        if not self.prefixes:
            return self.indexed
        return (*self.indexed, tuple(f"{PREFIX}{prefix}" for prefix in self.prefixes))

    @cached_property
    def indexed(self) -> tuple[tuple[str, ...], ...]:
        """Those of them that instances have."""
        groups = [
            tuple(f"{kind}:{value}" for value in values)
            for kind, values in (
                ("tag", self.tags),
                ("health", self.health),
                ("environment", self.environment),
                ("zone", self.zone),
                ("model", self.model),
                ("dependsOn", self.depends_on),
            )
            if values
        ]
        groups += [(f"tag:{tag}",) for tag in self.tags_all]
        if self.capability:
            groups.append(tuple(f"capability:{term.name}" for term in self.capability))
        groups += [(f"capability:{term.name}",) for term in self.capabilities_all]
        if self.service is not None:
            groups.append((f"service:{self.service}",))
        return tuple(groups)

    def select(self, view: View) -> list[Instance]:
        """The instances that match, in no order."""
        return [instance for instance in self.candidates(view) if self.expresses(instance)]

    def candidates(self, view: View) -> list[Instance]:
        """Those that match but for the expression, in no order."""
        contents = view.contents
        slots = self.slots(contents)
        return list(contents.by_id.values()) if slots is None else contents.at(slots)

    def expresses(self, instance: Instance) -> bool:
        """Whether the expression, if any, holds: 20 µs or so for each instance asked."""
        return self.expression is None or self.expression.matches(json.loads(instance.fragment))

    def slots(self, contents: Contents) -> BitMap | None:
        """The slots of those that match but for the expression; None means all there are."""
        members = [_union(contents, terms) for terms in self._resolved(contents)]
        if self.name is not None or self.prefixes:
            names: Iterable[str] = contents.names_within(self.prefixes)
            if self.name is not None:
                names = filter(self.name.search, names)
            members.append(_union(contents, [f"service:{name}" for name in names]))
        if not members:
            return None
        # The fewest first: each step then has no more to look at than that.
        members.sort(key=len)
        return reduce(and_, members)

    def _resolved(self, contents: Contents) -> Iterable[tuple[str, ...]]:
        """The groups with ranges replaced by the versions that exist."""
        for terms in self.indexed:
            if not terms[0].startswith("capability:"):
                yield terms
        if self.capability:
            yield tuple(
                name for term in self.capability for name in _capability_terms(contents, term)
            )
        for term in self.capabilities_all:
            yield tuple(_capability_terms(contents, term))
        if self.version is not None:
            accepts = self.version.contains
            yield tuple(f"version:{version}" for version in contents.versions if accepts(version))


def _capability_terms(contents: Contents, term: CapabilityTerm) -> Iterable[str]:
    name = f"capability:{term.name}"
    if term.range == ANY_VERSION:
        return (name,)
    return tuple(
        f"{name}@{version}"
        for version in contents.capability_versions.get(name, ())
        if term.range.contains(version)
    )


def _union(contents: Contents, terms: Sequence[str]) -> BitMap:
    found = [members for term in terms if (members := contents.index.get(term)) is not None]
    if len(found) == 1:
        return found[0]
    return BitMap.union(*found) if found else BitMap()


WHOLE: Final = Filters()
"""All there is."""


@lru_cache(maxsize=1024)
def shortest(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """What these prefixes mean, in one way: in order, without those that begin with another."""
    kept: list[str] = []
    for prefix in sorted(prefixes):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)


@lru_cache(maxsize=1024)
def spelled(prefixes: tuple[str, ...]) -> str:
    """The same as text, equal for equal meanings: `["team-a.","team-b."]`. JSON in ASCII."""
    return json.dumps(shortest(prefixes), separators=(",", ":"))


_NO_TERMS: Final[tuple[CapabilityTerm, ...]] = ()


def parse_filters(parameters: Mapping[str, str]) -> Filters:
    """Reads the filters among query parameters. Raises Malformed, naming the parameter."""
    capability = _parsed(parameters, "capability", _capabilities, _NO_TERMS)
    capabilities_all = _parsed(parameters, "capabilitiesAll", _all_capabilities, _NO_TERMS)
    if text := parameters.get("minVersion"):
        if not capability and not capabilities_all:
            raise Malformed(
                "minVersion: says how new a capability must be, so name one with capability="
            )
        least = minimum(text)
        capability = _at_least(capability, least)
        capabilities_all = _at_least(capabilities_all, least)
    return Filters(
        name=_parsed(parameters, "name", _parse_name, None),
        capability=capability,
        capabilities_all=capabilities_all,
        tags=_words(parameters, "tags"),
        tags_all=_words(parameters, "tagsAll"),
        health=_statuses(parameters),
        version=_parsed(parameters, "version", parse_range, None),
        environment=tuple(map(canonical_environment, _words(parameters, "environment"))),
        zone=_words(parameters, "zone"),
        model=_words(parameters, "model"),
        depends_on=_words(parameters, "dependsOn"),
        expression=_parsed(parameters, "filter", _parse_expression, None),
    )


def _parsed(parameters: Mapping[str, str], name: str, read: Callable[[str], T], without: T) -> T:
    """An empty parameter, as forms send it, is none."""
    text = parameters.get(name)
    return read(text) if text else without


def _parse_name(text: str) -> Pattern:
    return compile_pattern(text, ignore_case=True)


def _parse_expression(text: str) -> Expression:
    return parse(text, roots=FIELDS)


def _capabilities(text: str) -> tuple[CapabilityTerm, ...]:
    return tuple(parse_capability(text))


def _all_capabilities(text: str) -> tuple[CapabilityTerm, ...]:
    return tuple(parse_capability(text, what="capabilitiesAll"))


def _at_least(terms: Iterable[CapabilityTerm], least: Range) -> tuple[CapabilityTerm, ...]:
    return tuple(CapabilityTerm(term.name, term.range & least) for term in terms)


def _words(parameters: Mapping[str, str], name: str) -> tuple[str, ...]:
    """A comma list of plain names, sorted so that their order makes no other query."""
    text = parameters.get(name)
    if not text:
        return ()
    words = {word.strip() for word in text.split(",")} - {""}
    pattern = TAG_RE if name in {"tags", "tagsAll", "model"} else NAME_RE
    for word in sorted(words):
        if not pattern.fullmatch(word):
            position = text.find(word) + 1
            raise Malformed(f"{name}: position {position}: {word[:60]!r} cannot be the name of any")
    if len(words) > MAX_VALUES:
        raise Malformed(f"{name}: at most {MAX_VALUES} values")
    return tuple(sorted(words))


def _statuses(parameters: Mapping[str, str]) -> tuple[str, ...]:
    words = _words(parameters, "health")
    known = [status.value for status in HealthStatus]
    for word in words:
        if word not in known:
            raise Malformed(f"health: {word!r} is none of {', '.join(known)}")
    return words
