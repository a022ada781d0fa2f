"""Conditions on what a probe has found, in the syntax of Gatus: `[BODY].status == UP`.

    condition     operand OP operand, with a space on each side of OP
    OP            ==  !=  <  <=  >  >=
    placeholders  [STATUS] [RESPONSE_TIME] [IP] [BODY] [CONNECTED] [CERTIFICATE_EXPIRATION] [DNS_RCODE]
    paths         [BODY].user.name    [BODY].data[0].id    [BODY][0]
    functions     len([BODY].path)   has([BODY].path)   pat(glob with *)   any(a, b, …)
    values        everything else: 200, UP, john doe, 500ms, 48h

What a value is compared as: by number where one side is a number (a length of time counts in
milliseconds) and the other can be read as one, else by its characters. A path that leads nowhere, and
a placeholder that the probe does not know, make a condition false, whatever its operator; only `has`
asks for that. `len` counts the members of a list, the characters of anything else (of its compact JSON,
where it is no string). In `pat`, `*` stands for any characters, and every other character for itself.

Wider than Gatus: numbers keep their fractions, `null` can be compared with. Narrower: whatever Gatus
would take for 0, or for a text that happens to look like a placeholder, is refused when it is written.
Deliberately absent: [DOMAIN_EXPIRATION], which would ask strangers about the target.
"""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final, Literal, NoReturn

from registryd.kit.duration import parse_duration

MAX_LENGTH: Final = 512
MAX_STEPS: Final = 32
MAX_OPTIONS: Final = 64

Op = Literal["==", "!=", "<", "<=", ">", ">="]
Name = Literal["STATUS", "RESPONSE_TIME", "IP", "CONNECTED", "CERTIFICATE_EXPIRATION", "DNS_RCODE"]
Step = str | int

_NAMES: Final[dict[str, Name]] = {
    "STATUS": "STATUS",
    "RESPONSE_TIME": "RESPONSE_TIME",
    "IP": "IP",
    "CONNECTED": "CONNECTED",
    "CERTIFICATE_EXPIRATION": "CERTIFICATE_EXPIRATION",
    "DNS_RCODE": "DNS_RCODE",
}
_OPS: Final[dict[str, Op]] = {"==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_OP: Final = re.compile(r"\s(==|!=|<=|>=|<|>)(?=\s|$)")
_CALL: Final = re.compile(r"(len|has|pat|any)\(")
_PLACEHOLDER: Final = re.compile(r"\[([^\[\]]*)\]")
_STEP: Final = re.compile(r"\.([^.\[\]()\s]+)|\[(\d{1,9})\]")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NUMBER: Final = re.compile(r"-?\d{1,18}(?:\.\d{1,18})?(?:[eE][+-]?\d{1,3})?")
_INTEGER: Final = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a probe has found; None is what it does not know."""

    response_time_ms: float
    connected: bool = False
    status: int | None = None
    ip: str | None = None
    certificate_expires_in: timedelta | None = None
    dns_rcode: str | None = None
    text: str | None = None
    """The body as it came."""
    document: object = None
    """The body as JSON: decoded, and None where it is none (or null)."""


@dataclass(frozen=True, slots=True)
class Value:
    """A finding or a literal: its characters, and its number where it has a type and that is number."""

    text: str
    number: float | None = None

    @property
    def as_number(self) -> float | None:
        """The number it is or can be read as; a length of time is its milliseconds."""
        if self.number is not None:
            return self.number
        if _NUMBER.fullmatch(self.text):
            return int(self.text) if _INTEGER.fullmatch(self.text) else float(self.text)
        try:
            return parse_duration(self.text) / timedelta(milliseconds=1)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Known:
    """One of the placeholders but [BODY]."""

    name: Name


@dataclass(frozen=True, slots=True)
class Body:
    """[BODY], or what stands at a path in it, or its length, or whether it is there."""

    steps: tuple[Step, ...]
    ask: Literal["value", "len", "has"] = "value"


@dataclass(frozen=True, slots=True)
class Glob:
    """`pat(…)`: the texts between the stars."""

    parts: tuple[str, ...]

    def matches(self, text: str) -> bool:
        """In time linear in `text`: each part is looked for behind the one before, and never again."""
        if len(self.parts) == 1:
            return text == self.parts[0]
        first, *middle, last = self.parts
        if len(text) < len(first) + len(last) or not text.startswith(first):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            at = text.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return text.endswith(last)


@dataclass(frozen=True, slots=True)
class Options:
    """`any(…)`."""

    values: tuple[Value, ...]


Operand = Known | Body | Glob | Options | Value


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition; `text` as it was written."""

    text: str
    left: Operand
    op: Op
    right: Operand

    def holds(self, facts: Facts) -> bool:
        left, right = self.left, self.right
        if isinstance(left, Glob | Options):  # only == and != have them, and those are symmetric
            left, right = right, left
        found = _resolve(left, facts)
        if found is None:
            return False
        if isinstance(right, Glob):
            return right.matches(found.text) == (self.op == "==")
        if isinstance(right, Options):
            return any(_equal(found, one) for one in right.values) == (self.op == "==")
        other = _resolve(right, facts)
        return other is not None and _compare(found, self.op, other)

    def names(self, name: Name) -> bool:
        """Whether the condition is about this placeholder."""
        return Known(name) in (self.left, self.right)

    def reads(self, *steps: Step) -> bool:
        """Whether the condition is about this place in the body."""
        return any(isinstance(one, Body) and one.steps == steps for one in (self.left, self.right))


@lru_cache(maxsize=4096)
def parse(text: str) -> Condition:
    """Raises ValueError with a sentence that names the position, counted from 1."""
    if len(text) > MAX_LENGTH:
        _refuse(MAX_LENGTH, f"a condition may hold at most {MAX_LENGTH} characters")
    if odd := _UNPRINTABLE.search(text):
        _refuse(odd.start(), "a condition cannot hold control characters")
    split = next((m for m in _OP.finditer(text) if _balanced(text[: m.start()])), None)
    if split is None:
        _refuse(
            0, "expected an operator with a space on each side, as in [STATUS] == 200 (no operator)"
        )
    op = _OPS[split[1]]
    left = _operand(text, 0, split.start())
    right = _operand(text, split.end(), len(text))
    _check(text, left, op, right, split.start(1))
    return Condition(text, left, op, right)


def evaluate(texts: Sequence[str], facts: Facts) -> tuple[tuple[str, bool], ...]:
    """The outcome of every condition, in order. One that cannot be parsed does not hold."""
    outcome = []
    for text in texts:
        try:
            outcome.append((text, parse(text).holds(facts)))
        except ValueError:
            outcome.append((text, False))
    return tuple(outcome)


def _refuse(at: int, why: str) -> NoReturn:
    raise ValueError(f"position {at + 1}: {why}")


def _balanced(text: str) -> bool:
    return text.count("(") == text.count(")")


def _operand(text: str, start: int, end: int) -> Operand:
    """The operand between two positions, without the spaces around it."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start == end:
        _refuse(start, "an operand is missing")
    if call := _CALL.match(text, start, end):
        return _call(text, call, end)
    if text[start] == "[":
        return _placeholder(text, start, end)
    return Value(text[start:end])


def _call(text: str, call: re.Match[str], end: int) -> Operand:
    name, start = call[1], call.end()
    if text[end - 1] != ")":
        _refuse(end, f"{name}( lacks its )")
    inside = text[start : end - 1]
    if name == "pat":
        return Glob(tuple(inside.split("*")))
    if name == "any":
        options = tuple(Value(one.strip()) for one in inside.split(","))
        if not all(one.text for one in options):
            _refuse(start, "an option of any() is empty")
        if len(options) > MAX_OPTIONS:
            _refuse(start, f"any() may have at most {MAX_OPTIONS} options")
        return Options(options)
    operand = _operand(text, start, end - 1)
    if not isinstance(operand, Body) or operand.ask != "value":
        _refuse(start, f"{name}() works with [BODY] only")
    return Body(operand.steps, "len" if name == "len" else "has")


def _placeholder(text: str, start: int, end: int) -> Operand:
    found = _PLACEHOLDER.match(text, start, end)
    if found is None:
        _refuse(start, "[ lacks its ]")
    name = found[1].upper()
    if name == "BODY":
        return Body(_steps(text, found.end(), end))
    if name not in _NAMES:
        if name == "DOMAIN_EXPIRATION":
            _refuse(start, "[DOMAIN_EXPIRATION] is not supported")
        near = difflib.get_close_matches(name, [*_NAMES, "BODY"], 1)
        hint = f"; did you mean [{near[0]}]?" if near else ""
        _refuse(start, f"there is no placeholder [{found[1]}]{hint}")
    if found.end() != end:
        _refuse(found.end(), f"nothing can follow [{name}] but an operator")
    return Known(_NAMES[name])


def _steps(text: str, at: int, end: int) -> tuple[Step, ...]:
    steps: list[Step] = []
    while at < end:
        step = _STEP.match(text, at, end)
        if step is None:
            _refuse(at, "expected .name or [number]")
        if len(steps) == MAX_STEPS:
            _refuse(at, f"a path may have at most {MAX_STEPS} steps")
        steps.append(step[1] if step[1] is not None else int(step[2]))
        at = step.end()
    return tuple(steps)


def _check(text: str, left: Operand, op: Op, right: Operand, at: int) -> None:
    """Refuses what parses and yet can only be a mistake. `at` is where the operator stands."""
    pair = (left, right)
    if not any(isinstance(one, Known | Body) for one in pair):
        _refuse(0, "one side has to be a placeholder, such as [STATUS]")
    if op in ("==", "!="):
        if any(isinstance(one, Body) and one.ask == "has" for one in pair):
            for one in pair:
                if isinstance(one, Value) and one.text not in ("true", "false"):
                    _refuse(at, "has() is either true or false")
        return
    for one in pair:
        if isinstance(one, Glob | Options):
            _refuse(at, "pat() and any() work with == and != only")
        if isinstance(one, Value) and one.as_number is None:
            _refuse(at, f"{op} compares numbers and lengths of time, which {one.text} is not")


def _resolve(operand: Operand, facts: Facts) -> Value | None:
    match operand:
        case Value():
            return operand
        case Known(name):
            return _known(name, facts)
        case Body(steps, ask):
            return _body(steps, ask, facts)
        case Glob() | Options():  # refused on both sides at once
            return None


def _known(name: Name, facts: Facts) -> Value | None:
    match name:
        case "STATUS":
            return None if facts.status is None else Value(str(facts.status), facts.status)
        case "RESPONSE_TIME":
            return Value(f"{facts.response_time_ms:.0f}", facts.response_time_ms)
        case "IP":
            return None if facts.ip is None else Value(facts.ip)
        case "CONNECTED":
            return Value("true" if facts.connected else "false")
        case "CERTIFICATE_EXPIRATION":  # 0 where there is no certificate, as in Gatus
            left = facts.certificate_expires_in or timedelta()
            milliseconds = left / timedelta(milliseconds=1)
            return Value(f"{milliseconds:.0f}", milliseconds)
        case "DNS_RCODE":
            return None if facts.dns_rcode is None else Value(facts.dns_rcode)


def _body(
    steps: tuple[Step, ...], ask: Literal["value", "len", "has"], facts: Facts
) -> Value | None:
    if not steps and ask != "len":
        if ask == "has":
            return Value("true" if facts.text else "false")
        return None if facts.text is None else Value(facts.text.strip())
    found, there = facts.document, facts.text is not None
    for step in steps:
        there, found = _member(found, step)
    if ask == "has":
        return Value("true" if there and found is not None else "false")
    if not there:
        return None
    if ask == "value":
        return _value(found)
    if not steps and not isinstance(found, list):
        return _count(facts.text or "")
    return _count(found if isinstance(found, list | str) else _compact(found))


def _member(found: object, step: Step) -> tuple[bool, object]:
    """Whether `found` has the member, and that member."""
    if isinstance(step, str):
        return (True, found[step]) if isinstance(found, dict) and step in found else (False, None)
    return (True, found[step]) if isinstance(found, list) and step < len(found) else (False, None)


def _count(found: list[object] | str) -> Value:
    return Value(str(len(found)), len(found))


def _value(found: object) -> Value:
    if isinstance(found, str):
        return Value(found)
    if isinstance(found, int | float) and not isinstance(found, bool):
        return Value(f"{found:g}" if isinstance(found, float) else str(found), found)
    return Value(_compact(found))


def _compact(found: object) -> str:
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def _equal(left: Value, right: Value) -> bool:
    if left.number is None and right.number is None:
        if left.text == right.text:
            return True
        # 1.10 and 1.1 are two versions, but 07 and 7 are one number
        if not (_INTEGER.fullmatch(left.text) and _INTEGER.fullmatch(right.text)):
            return False
    number = left.as_number
    return number is not None and number == right.as_number


def _compare(left: Value, op: Op, right: Value) -> bool:
    if op == "==":
        return _equal(left, right)
    if op == "!=":
        return not _equal(left, right)
    a, b = left.as_number, right.as_number
    if a is None or b is None:
        return False
    match op:
        case "<":
            return a < b
        case "<=":
            return a <= b
        case ">":
            return a > b
        case ">=":
            return a >= b
