"""What an instance tells of itself in the body of its health answer, kept apart from what it declared.

Pure. It stands as long as probes find it, and `ABSENT` passing probes longer.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from registryd.registry.types import MAX_CAPABILITIES, MAX_MODELS, TAG_RE, VERSION_RE

ABSENT: Final = 3
MAX_LIMITS_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Seen:
    """What the last probes saw: the digest of what is stored, and how many since saw nothing of it."""

    digest: str = ""
    absent: int = 0
    at: str = ""


def read(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parts of a body that are well-formed: version, apiVersion, features, models, limits."""
    if body is None:
        return {}
    found: dict[str, Any] = {}
    for name, given in (("version", "version"), ("apiVersion", "api_version")):
        text = body.get(given, body.get(name))
        if isinstance(text, str) and VERSION_RE.fullmatch(text):
            found[name] = text
    for name, most in (("features", MAX_CAPABILITIES), ("models", MAX_MODELS)):
        words = _words(body.get(name), most)
        if words:
            found[name] = words
    limits = body.get("limits")
    if isinstance(limits, dict) and limits and len(json.dumps(limits)) <= MAX_LIMITS_BYTES:
        found["limits"] = limits
    return found


def _words(value: Any, most: int) -> list[str]:
    """A list of words, or the keys of an object whose values are true."""
    if isinstance(value, dict):
        value = [key for key, held in value.items() if held]
    if not isinstance(value, list):
        return []
    words = {word for word in value if isinstance(word, str) and TAG_RE.fullmatch(word)}
    return sorted(words)[:most]


def note(seen: Seen, found: dict[str, Any], *, now: str) -> tuple[Seen, str]:
    """After a passing probe that found this: the memory, and what is to be stored anew ("" when it is
    as before, "none" when it is no more)."""
    if not found:
        if not seen.digest:
            return seen, ""
        if seen.absent + 1 >= ABSENT:
            return Seen(), "none"
        return replace(seen, absent=seen.absent + 1), ""
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return Seen(digest, 0, now), "" if digest == seen.digest else text
