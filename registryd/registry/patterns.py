"""Regular expressions written by users, matched by RE2: time linear in the text, memory bounded.

Meant for query parameters and for `matches` in a filter. It deliberately has no `re` fallback: what
RE2 refuses (lookaround, back-references, huge repetitions) we refuse, naming the fault. It finds
out whether a pattern occurs, not where: no groups, no replacing, no anchoring beyond `^` and `$`.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import re2

from registryd.errors import Malformed

MAX_LENGTH = 256
_MAX_MEMORY = 1 << 20

# RE2 says what it met; people ask why their pattern, fine elsewhere, is refused here.
_REASONS = {
    "invalid perl operator": "RE2 has no lookahead, lookbehind or atomic groups",
    "invalid escape sequence": "RE2 has no back-references",
    "invalid repetition size": "repetitions may add up to at most 1000",
    "pattern too large - compile failed": "use fewer or smaller repetitions",
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern, equal to any other of the same text and case rule."""

    text: str
    ignore_case: bool
    # google-re2 ships no types
    _compiled: Any = field(repr=False, compare=False)

    def search(self, text: str) -> bool:
        """Whether the pattern occurs anywhere in `text`."""
        # Bytes spare RE2's wrapper the way back from byte to character offsets. A lone surrogate
        # (JSON may carry one) is then some odd bytes, not an exception.
        return self._compiled.search(text.encode("utf-8", "surrogatepass")) is not None


def compile_pattern(text: str, *, what: str = "name", ignore_case: bool = False) -> Pattern:
    """Compiles `text`; `what` names the parameter in the sentence of a Malformed."""
    if len(text) > MAX_LENGTH:
        raise Malformed(
            f"{what}: position {MAX_LENGTH + 1}: a pattern may hold at most {MAX_LENGTH} characters"
        )
    if (nul := text.find("\0")) >= 0:
        raise Malformed(f"{what}: position {nul + 1}: a pattern cannot hold a NUL character")
    try:
        return _compile(text, ignore_case)
    except UnicodeEncodeError as error:
        raise Malformed(
            f"{what}: position {error.start + 1}: a pattern cannot hold half a surrogate pair"
        ) from None
    except re2.error as error:
        raise Malformed(f"{what}: {_fault(text, error)}") from None


@lru_cache(maxsize=64)  # a compiled pattern may take a megabyte
def _compile(text: str, ignore_case: bool) -> Pattern:
    options = re2.Options()
    options.max_mem = _MAX_MEMORY
    options.log_errors = False  # the fault goes to the caller, not to stderr
    options.case_sensitive = not ignore_case
    options.never_capture = True  # we never ask for groups, and matching without them is faster
    return Pattern(text, ignore_case, re2.compile(text, options))


def _fault(text: str, error: Exception) -> str:
    """RE2's `kind: fragment` as a sentence with the position of the fragment."""
    message = error.args[0]
    if isinstance(message, bytes):
        message = message.decode("utf-8", "replace")
    kind, _, fragment = str(message).partition(": ")
    if kind == "missing )":  # RE2 quotes the whole pattern; what is missing is missing at its end
        return f"position {len(text) + 1}: missing )"
    if kind == "unexpected )":  # here, too, RE2 quotes the whole pattern
        return "one ) too many"
    reason = f" ({_REASONS[kind]})" if kind in _REASONS else ""
    if not fragment or fragment not in text:
        return f"{kind}{reason}"
    return f"position {text.index(fragment) + 1}: {kind}: {fragment}{reason}"
