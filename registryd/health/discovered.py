"""What an instance tells of itself in the body of its health answer, kept apart from what it declared.

Pure. All that it told is stored as it was told last. Of that, capabilities and models count: the instance
is found by them like by declared ones, each until `ABSENT` passing probes in a row have not named it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from registryd.registry.document import Offer
from registryd.registry.types import (
    MAX_CAPABILITIES,
    MAX_MODELS,
    TAG_RE,
    VERSION_RE,
    Capability,
)

ABSENT: Final = 3
MAX_LIMITS_BYTES: Final = 4096

KNOWN: Final = frozenset(
    {
        "audio_generation",
        "chat",
        "image_generation",
        "text_generation",
        "video_generation",
        "voice_cloning",
    }
)
"""Features that are capabilities by their own name, whatever the settings say of others."""

VERSION: Final[str] = Capability.model_fields["version"].default
"""Of a discovered capability: a feature has none, so it is that of one declared without."""

T = TypeVar("T", str, tuple[str, str])


class Seen(NamedTuple):
    """What the last probes saw: the digest of what is stored, and how many since saw nothing of it."""

    digest: str = ""
    absent: int = 0
    at: str = ""
    missing: str = ""
    """A digit for each capability that counts, then for each model: how many passing probes in a row
    have not named it. "" when the last one named all."""


def read(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parts of a body that are well-formed: version, apiVersion, features, models, limits."""
    if body is None:
        return {}
    told: dict[str, Any] = {}
    for name, given in (("version", "version"), ("apiVersion", "api_version")):
        text = body.get(given, body.get(name))
        if isinstance(text, str) and VERSION_RE.fullmatch(text):
            told[name] = text
    for name, most in (("features", MAX_CAPABILITIES), ("models", MAX_MODELS)):
        words = _words(body.get(name), most)
        if words:
            told[name] = words
    limits = body.get("limits")
    if isinstance(limits, dict) and limits and len(json.dumps(limits)) <= MAX_LIMITS_BYTES:
        told["limits"] = limits
    return told


def _words(value: Any, most: int) -> list[str]:
    """A list of words, or the keys of an object whose values are true."""
    if isinstance(value, dict):
        value = [key for key, held in value.items() if held]
    if not isinstance(value, list):
        return []
    words = {word for word in value if isinstance(word, str) and TAG_RE.fullmatch(word)}
    return sorted(words)[:most]


def note(seen: Seen, told: dict[str, Any], *, now: str) -> tuple[Seen, str]:
    """After a passing probe that told this: the memory, and what is to be stored anew ("" when it is
    as before, "none" when it is no more)."""
    if not told:
        if not seen.digest:
            return seen, ""
        if seen.absent + 1 >= ABSENT:
            return Seen(missing=seen.missing), "none"
        return seen._replace(absent=seen.absent + 1), ""
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return Seen(digest, 0, now, seen.missing), "" if digest == seen.digest else text


def offered(told: Mapping[str, Any], mapping: Mapping[str, str]) -> Offer:
    """What a body names that counts. `mapping` says which capability a feature stands for; a feature that
    it does not have and that is not `KNOWN` is skipped."""
    names = {
        mapping.get(word, word)
        for word in told.get("features", ())
        if word in mapping or word in KNOWN
    }
    capabilities = tuple((name, VERSION) for name in sorted(names))
    return Offer(capabilities, tuple(told.get("models", ())))


def standing(before: Offer, missing: str, named: Offer) -> tuple[Offer, str]:
    """What counts after a passing probe that named `named`, and for how long each has been missing
    (`Seen.missing`), when `before` counted until now."""
    if before == named:
        return named, ""
    places = len(before.capabilities) + len(before.models)
    ages = [int(digit) for digit in missing] if len(missing) == places else [0] * places
    split = len(before.capabilities)
    capabilities = _aged(before.capabilities, ages[:split], named.capabilities, MAX_CAPABILITIES)
    models = _aged(before.models, ages[split:], named.models, MAX_MODELS)
    digits = "".join(str(age) for _, age in (*capabilities, *models))
    offer = Offer(tuple(one for one, _ in capabilities), tuple(one for one, _ in models))
    return offer, digits if digits.strip("0") else ""


def _aged(
    before: Sequence[T], ages: Sequence[int], named: Sequence[T], most: int
) -> list[tuple[T, int]]:
    """What is named now, and what was and may stand a while longer, with how long it was missing; in
    order."""
    aged = dict.fromkeys(named, 0)
    for one, age in zip(before, ages, strict=True):
        if one not in aged and age + 1 < ABSENT and len(aged) < most:
            aged[one] = age + 1
    return sorted(aged.items())
