"""Versions, ranges of versions, and the `capability` parameter that joins them to a name.

A version is a semantic version, read generously: `1` and `1.2` are filled up with zeros, a leading
`v` and leading zeros (`2024.05.1`) are dropped. What still is none, such as `2024-05-beta`, is kept
as it is: it is in `*` and in the range that is spelled exactly the same, in no other, and sorts last.

Ranges are those of semantic_version's SimpleSpec, clauses joined by a comma that means "and", with
one rule of our own in front: outside `^`, `~`, `~=` a partial version is filled up with zeros, so
`1.0` is exactly 1.0.0 and `>1.2` begins at 1.2.1. `1.x` and `1.*` are the whole of major 1, and
`^0`, `^0.0` are `~0`, `~0.0`, as elsewhere (SimpleSpec has them mean 0.0.0 alone).

Pre-releases follow SimpleSpec: 1.3.0-rc.1 is in `^1.2` and in `>=1.2`; 2.0.0-rc.1 is in `>=1.2`, but
neither in `^1.2` nor in `<2`. Build metadata counts only where the range itself names some.

It deliberately knows no `||`, no `1.0 - 2.0` and none of npm's other spellings, and it does not
judge which versions a service may register.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NoReturn

from semantic_version import SimpleSpec, Version

from registryd.errors import Malformed

MAX_LENGTH = 256
MAX_TERMS = 64


@dataclass(frozen=True)
class Range:
    """A set of versions, made by `parse_range` or `minimum`; `str` is its canonical text."""

    text: str
    literal: bool = False
    """The text is no semantic version, and the only version in the range."""

    def contains(self, version: str) -> bool:
        if self.literal or self.text == _ANY:
            return self.text in (_ANY, version)
        # Longer ones are no versions, and would only fill the cache.
        return len(version) <= MAX_LENGTH and _contains(self, version)

    def __and__(self, other: "Range") -> "Range":
        """The versions that are in both."""
        if self == other or other.text == _ANY:
            return self
        if self.text == _ANY:
            return other
        if self.literal or other.literal:  # what is no version is in no second range
            return _NOTHING
        return Range(f"{self.text},{other.text}")

    @cached_property
    def _spec(self) -> SimpleSpec:
        return SimpleSpec(self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class CapabilityTerm:
    """A capability by name, in a version of the range."""

    name: str
    range: Range

    def accepts(self, name: str, version: str) -> bool:
        return name == self.name and self.range.contains(version)

    def __str__(self) -> str:
        if self.range == ANY_VERSION:
            return self.name
        return f"{self.name}@{self.range.text.replace(',', ';')}"


_ANY = "*"
ANY_VERSION = Range(_ANY)
_NOTHING = Range(">0.0.0,<0.0.0")

_VERSION = re.compile(
    r"v?(?P<major>[0-9]+)(\.(?P<minor>[0-9]+)(\.(?P<patch>[0-9]+)"
    r"(?P<suffix>(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?))?)?"
)
_WILDCARD = re.compile(r"v?(?P<fixed>([0-9]+\.){0,2})[xX*](\.[xX*]){0,2}")
_CLAUSE = re.compile(r"\s*(?P<operator>==|=|!=|>=|>|<=|<|\^|~=|~)?\s*(?P<version>[^\s]*)\s*")
_LITERAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:/-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def parse_range(text: str, *, what: str = "version") -> Range:
    """Reads a requirement; `what` names the parameter in the sentence of a Malformed."""
    return _parse_range(text, what, 1)


def minimum(text: str, *, what: str = "minVersion") -> Range:
    """That version or a newer one which should still understand us: of the same major, in 0.x of
    the same minor.
    """
    if len(text) > MAX_LENGTH:
        _refuse(what, MAX_LENGTH + 1, f"a version may hold at most {MAX_LENGTH} characters")
    version = _version(text.strip())
    if version is None:
        _refuse(what, 1, f'expected a version such as 1.2 or 1.2.3, found "{_short(text)}"')
    # not Version.next_major(): after 2.0.0-rc.1 that is 2.0.0
    breaking = f"{version.major + 1}.0.0" if version.major else f"0.{version.minor + 1}.0"
    return Range(f">={version.truncate('prerelease')},<{breaking}")


def parse_capability(text: str, *, what: str = "capability") -> list[CapabilityTerm]:
    """Reads `name`, `name@range` or several joined by a comma, of which any will do.

    As the comma is taken, `;` is the "and" inside a range: `chat@>=2;<3,embeddings`.
    """
    terms: list[CapabilityTerm] = []
    position = 1
    for part in text.split(","):
        if len(terms) == MAX_TERMS:
            _refuse(what, position, f"at most {MAX_TERMS} capabilities may be named")
        name, at, requirement = part.partition("@")
        bare = name.strip()
        if not _NAME.fullmatch(bare):
            found = f', found "{_short(bare)}"' if bare else ""
            hint = ' (inside a range, "and" is written ;)' if bare and terms else ""
            _refuse(what, position, f"expected the name of a capability{found}{hint}")
        accepted = ANY_VERSION
        if at:
            start = position + len(name) + 1
            accepted = _parse_range(requirement.replace(";", ","), what, start)
        terms.append(CapabilityTerm(bare, accepted))
        position += len(part) + 1
    return terms


SortKey = tuple[int, int, int, int, int, tuple[tuple[int, int, str], ...], str]


def sort_key(version: str) -> SortKey:
    """Orders versions upwards by semantic precedence, those that are none last.

    Versions of equal precedence (`1.0`, `1.0.0+build`) follow their texts, so that the order is
    total and the same everywhere.
    """
    parsed = _version(version)
    if parsed is None:
        return (1, 0, 0, 0, 0, (), version)
    # A release is newer than its pre-releases; among their parts, numbers stand below words.
    parts = tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in parsed.prerelease
    )
    released = 0 if parts else 1
    return (0, parsed.major, parsed.minor, parsed.patch, released, parts, version)


@lru_cache(maxsize=1024)
def _parse_range(text: str, what: str, start: int) -> Range:
    if len(text) > MAX_LENGTH:
        _refuse(what, start + MAX_LENGTH, f"a range may hold at most {MAX_LENGTH} characters")
    bare = text.strip()
    if _LITERAL.fullmatch(bare) and not _WILDCARD.fullmatch(bare) and _version(bare) is None:
        return Range(bare, literal=True)
    clauses: list[str] = []
    position = start
    for part in text.split(","):
        clauses.append(_clause(part, what, position))
        position += len(part) + 1
    # "*" beside other clauses adds nothing
    return Range(",".join([clause for clause in clauses if clause != _ANY]) or _ANY)


def _clause(part: str, what: str, position: int) -> str:
    """One clause in the spelling that makes SimpleSpec read it as we mean it."""
    found = _CLAUSE.fullmatch(part)
    if found is None or not found["version"]:
        several = " (several are joined by a comma)" if found is None else ""
        sentence = f'expected a version or a range such as >=1.2{several}, found "{_short(part)}"'
        _refuse(what, position, sentence)
    operator = found["operator"] or "=="
    text = found["version"]
    position += found.start("version")
    exact = operator in ("=", "==")
    if wildcard := _WILDCARD.fullmatch(text):
        fixed = [str(int(number)) for number in wildcard["fixed"].split(".") if number]
        if not exact and (operator != "!=" or not fixed):
            _refuse(what, position, f"a wildcard cannot follow {operator}")
        return ("" if exact else operator) + ".".join([*fixed, "*"])
    version = _version(text)
    if version is None:
        _refuse(what, position, f'expected a version such as 1.2 or 1.2.3, found "{_short(text)}"')
    if exact:
        return str(version)
    if version.build and operator != "!=":
        _refuse(what, position, f"build metadata has no order, so it cannot follow {operator}")
    given = text.removeprefix("v").split(".")
    if operator in ("^", "~", "~=") and len(given) < 3:  # how much was given decides the upper end
        if operator == "^" and version.major == version.minor == 0:
            operator = "~"
        return operator + ".".join(str(int(number)) for number in given)
    return f"{operator}{version}"


@lru_cache(maxsize=8192)
def _contains(range_: Range, version: str) -> bool:
    parsed = _version(version)
    return parsed is not None and parsed in range_._spec


def _version(text: str) -> Version | None:
    found = _VERSION.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if found is None:
        return None
    numbers = ".".join(str(int(found[name] or 0)) for name in ("major", "minor", "patch"))
    try:
        return Version(numbers + (found["suffix"] or ""))
    except ValueError:  # an empty part in the suffix, or a number there with leading zeros
        return None


def _short(text: str) -> str:
    """Fit for a sentence: not too long, and without half a surrogate pair, which none can encode."""
    sound = text[:40].encode("utf-8", "replace").decode()
    return sound if len(text) <= 40 else f"{sound}…"


def _refuse(what: str, position: int, sentence: str) -> NoReturn:
    raise Malformed(f"{what}: position {position}: {sentence}")
