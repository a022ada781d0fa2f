"""Filters over JSON objects in the grammar of HashiCorp's go-bexpr, as Consul's `filter=` has it.

    expression  and, or, not, ( ); `not` binds closer than `and`, `and` closer than `or`
    terms       sel == v        sel contains v        v in sel        sel is empty
                sel != v        sel not contains v    v not in sel    sel is not empty
                sel matches "RE2"                     sel not matches "RE2"
    selectors   metadata.tags    metadata["a-b"].c    "/metadata/a-b" (a JSON pointer)
    values      plain (letters, digits and _./:@~+*%-)    "with \\n, \\", \\u00e9"    `raw`

Keywords are lower case; `and`, `or` and `not` cannot be plain values, nor stand alone as selectors:
write "not" and "/not". A value has no type of its own: `port == "80"` says what `port == 80` says.
Wider than go-bexpr: plain values such as eu-1 and 2.1.0, `\"` in a text, no space needed before
a parenthesis, `matches` and names through lists; narrower: no `/` in plain names.

What a selector finds, and what is asked of it:

- In an object a name leads to the member of that name. In a list a number leads to the member at
  that place (`capabilities.0`), any other name goes on in each of its objects: so a selector may
  find several values. JSON null and what is not there are no value at all.
- `==`, `in`, `contains` and `matches` ask whether *any* value found answers, so they are false where
  there is none. `is empty` asks that *every* value found be "", [] or {}, so it is true where there
  is none. `!=` and the forms with `not` are the exact opposite: `a != 1` is true without an `a`.
- `==` compares a number by its value (80 == 80.0), a boolean with `true` and `false`, a string by
  its characters. A whole list or object equals nothing: ask with `in`.
- `in` and `contains` look for a part of a string, for a member of a list, for a key of an object.
  An object in a list counts by its "name": `chat in capabilities`.
- `matches` searches a string, or each string of a list; unanchored, minding case.

It deliberately does not know the fields of any resource (the caller may name the roots), has no
ordering operators and no `any`/`all` loops, and never fails on a document: every limit and every
regular expression is settled in `parse`.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NoReturn

from registryd.errors import Malformed
from registryd.registry.patterns import Pattern, compile_pattern

MAX_LENGTH = 4096
MAX_NESTING = 64
MAX_TERMS = 200
MAX_PATTERNS = 8
"""Compiling one hostile pattern may take 30 ms; a filter must not hold up the loop for long."""


class Expression(ABC):
    """A parsed filter. Equal filters are equal and hash alike; `str` gives one canonical text."""

    __slots__ = ()

    @abstractmethod
    def matches(self, document: Mapping[str, object]) -> bool:
        """Whether `document`, a decoded JSON object, is what the filter asks for."""


class Term(Expression):
    """An expression without parts: one question about one selector."""

    __slots__ = ()

    @abstractmethod
    def text(self, *, negated: bool = False) -> str:
        """The term as written, or its opposite by the operator's own `not`."""

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True, slots=True)
class Selector:
    """Names from the document's root inwards; at least one, none of them empty."""

    path: tuple[str, ...]

    def values(self, document: Mapping[str, object]) -> list[object]:
        found = document.get(self.path[0])
        for depth in range(1, len(self.path)):
            # dict, not Mapping: a decoded document holds no other, and it is quicker to tell
            if not isinstance(found, dict):
                return _spread(found, self.path[depth:])
            found = found.get(self.path[depth])
        return [] if found is None else [found]

    def __str__(self) -> str:
        first, *rest = self.path
        if not _IDENTIFIER.fullmatch(first) or first in _RESERVED:
            pointer = "".join("/" + _escape_pointer(name) for name in self.path)
            return _quoted(pointer)
        return first + "".join(
            f".{name}"
            if _IDENTIFIER.fullmatch(name) or _INDEX.fullmatch(name)
            else f"[{_quoted(name)}]"
            for name in rest
        )


@dataclass(frozen=True)
class Value:
    """What a selector's findings are compared with; which type it has is theirs to say."""

    text: str

    @cached_property
    def number(self) -> int | float | None:
        if not _NUMBER.fullmatch(self.text):
            return None
        return int(self.text) if self.text.lstrip("-").isdigit() else float(self.text)

    def equals(self, found: object) -> bool:
        match found:
            case str():
                return found == self.text
            case bool():  # before int, which bool is a kind of
                return self.text == ("true" if found else "false")
            case int() | float():
                return found == self.number
            case _:
                return False

    def within(self, found: object) -> bool:
        match found:
            case str() | dict():
                return self.text in found
            case list():
                return any(
                    self.equals(item.get("name") if isinstance(item, dict) else item)
                    for item in found
                )
            case _:
                return False

    def __str__(self) -> str:
        return _quoted(self.text)


@dataclass(frozen=True, slots=True)
class Equal(Term):
    selector: Selector
    value: Value

    def matches(self, document: Mapping[str, object]) -> bool:
        return any(map(self.value.equals, self.selector.values(document)))

    def text(self, *, negated: bool = False) -> str:
        return f"{self.selector} {'!=' if negated else '=='} {self.value}"


@dataclass(frozen=True, slots=True)
class Member(Term):
    """`value in selector`, also written `selector contains value`."""

    value: Value
    selector: Selector

    def matches(self, document: Mapping[str, object]) -> bool:
        return any(map(self.value.within, self.selector.values(document)))

    def text(self, *, negated: bool = False) -> str:
        return f"{self.value} {'not in' if negated else 'in'} {self.selector}"


@dataclass(frozen=True, slots=True)
class Empty(Term):
    selector: Selector

    def matches(self, document: Mapping[str, object]) -> bool:
        return all(
            isinstance(found, str | list | dict) and not found
            for found in self.selector.values(document)
        )

    def text(self, *, negated: bool = False) -> str:
        return f"{self.selector} {'is not empty' if negated else 'is empty'}"


@dataclass(frozen=True, slots=True)
class Matches(Term):
    selector: Selector
    pattern: Pattern

    def matches(self, document: Mapping[str, object]) -> bool:
        return any(
            isinstance(item, str) and self.pattern.search(item)
            for found in self.selector.values(document)
            for item in (found if isinstance(found, list) else [found])
        )

    def text(self, *, negated: bool = False) -> str:
        operator = "not matches" if negated else "matches"
        return f"{self.selector} {operator} {_quoted(self.pattern.text)}"


@dataclass(frozen=True, slots=True)
class Not(Expression):
    operand: Expression

    def matches(self, document: Mapping[str, object]) -> bool:
        return not self.operand.matches(document)

    def __str__(self) -> str:
        match self.operand:
            case Term():
                return self.operand.text(negated=True)
            case Not():
                return f"not {self.operand}"
            case _:
                return f"not ({self.operand})"


@dataclass(frozen=True, slots=True)
class And(Expression):
    operands: tuple[Expression, ...]

    def matches(self, document: Mapping[str, object]) -> bool:
        return all(operand.matches(document) for operand in self.operands)

    def __str__(self) -> str:
        return " and ".join(
            [f"({part})" if isinstance(part, And | Or) else str(part) for part in self.operands]
        )


@dataclass(frozen=True, slots=True)
class Or(Expression):
    operands: tuple[Expression, ...]

    def matches(self, document: Mapping[str, object]) -> bool:
        return any(operand.matches(document) for operand in self.operands)

    def __str__(self) -> str:
        return " or ".join(
            [f"({part})" if isinstance(part, Or) else str(part) for part in self.operands]
        )


def parse(text: str, *, roots: frozenset[str] | None = None) -> Expression:
    """Reads a filter; Malformed names the position, counted from 1, and what was expected there.

    With `roots`, a selector that begins with any other name is refused. The canonical text parses
    back to an equal expression, unless quoting plain values took it past the limit of length.
    """
    if len(text) > MAX_LENGTH:
        _refuse(MAX_LENGTH + 1, f"a filter may hold at most {MAX_LENGTH} characters")
    if surrogate := _SURROGATE.search(text):
        _refuse(surrogate.start() + 1, "half a surrogate pair is no character")
    return _Parser(list(_tokens(text)), roots).whole()


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INDEX = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_RESERVED = frozenset({"and", "or", "not"})

_TOKEN = re.compile(
    r"""  (?P<word>   [\w./:@~+*%-]+ )
        | (?P<symbol> == | != | [()\[\]] )
        | "(?P<quoted> (?: [^"\\] | \\. )* )"
        | `(?P<raw>    [^`]* )` """,
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"',
}  # fmt: skip
_TO_QUOTE = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


@dataclass(frozen=True, slots=True)
class _Token:
    kind: Literal["word", "symbol", "text", "end"]
    text: str
    position: int


def _refuse(position: int, sentence: str) -> NoReturn:
    raise Malformed(f"filter: position {position}: {sentence}")


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while True:
        space = _SPACE.match(text, at)
        at = space.end() if space else at
        if at == len(text):
            yield _Token("end", "", at + 1)
            return
        found = _TOKEN.match(text, at)
        if found is None:
            if text[at] in '"`':
                _refuse(at + 1, f"expected a closing {text[at]} for the text that begins here")
            hint = ", write ==" if text[at] == "=" else ""
            _refuse(at + 1, f'"{text[at]}" is no part of the grammar{hint}')
        match found.lastgroup:
            case "word" | "symbol" as kind:
                yield _Token(kind, found[0], at + 1)
            case "quoted":
                yield _Token("text", _unescaped(found["quoted"], at + 2), at + 1)
            case _:
                yield _Token("text", found["raw"], at + 1)
        at = found.end()


def _unescaped(text: str, position: int) -> str:
    def character(escape: re.Match[str]) -> str:
        code = escape[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) > 1:
            point = int(code[1:], 16)
            if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:
                return chr(point)
        return _refuse(
            position + escape.start(),
            f"unknown escape {escape[0]}, write \\\\ for a backslash or use `raw text`",
        )

    return _ESCAPE.sub(character, text)


class _Parser:
    """Recursive descent, one method a rule; its depth is bounded by MAX_NESTING."""

    def __init__(self, tokens: list[_Token], roots: frozenset[str] | None) -> None:
        self._tokens = tokens
        self._roots = roots
        self._next = 0
        self._nesting = 0
        self._terms = 0
        self._patterns = 0

    def whole(self) -> Expression:
        expression = self._or()
        if self._peek().kind != "end":
            self._expected('"and", "or" or the end')
        return expression

    def _or(self) -> Expression:
        operands = [self._and()]
        while self._take("or"):
            operands.append(self._and())
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self) -> Expression:
        operands = [self._factor()]
        while self._take("and"):
            operands.append(self._factor())
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _factor(self) -> Expression:
        position = self._peek().position
        if self._take("not"):
            self._deeper(position)
            inner: Expression = Not(self._factor())
        elif self._take("("):
            self._deeper(position)
            inner = self._or()
            if not self._take(")"):
                self._expected(f'"and", "or" or ")" for the "(" at position {position}')
        else:
            return self._term()
        self._nesting -= 1
        return inner

    def _deeper(self, position: int) -> None:
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            _refuse(position, f"a filter may nest at most {MAX_NESTING} deep")

    def _term(self) -> Expression:
        self._terms += 1
        if self._terms > MAX_TERMS:
            _refuse(self._peek().position, f"a filter may hold at most {MAX_TERMS} terms")
        if self._value_stands_first():
            value = Value(self._advance().text)
            negated = self._take("not")
            self._take("in")
            return _negated(Member(value, self._selector('"in"')), negated)
        selector = self._selector(None)
        if self._take("=="):
            return Equal(selector, self._value('"=="'))
        if self._take("!="):
            return Not(Equal(selector, self._value('"!="')))
        if self._take("is"):
            negated = self._take("not")
            if not self._take("empty"):
                self._expected('"empty"' if negated else '"empty" or "not empty"')
            return _negated(Empty(selector), negated)
        negated = self._take("not")
        if self._take("contains"):
            return _negated(Member(self._value('"contains"'), selector), negated)
        if self._take("matches"):
            return _negated(Matches(selector, self._pattern()), negated)
        if negated:
            self._expected('"in", "contains" or "matches" after "not"')
        return self._expected(
            '"==", "!=", "in", "contains", "matches" or "is empty" after the field'
        )

    def _value_stands_first(self) -> bool:
        return self._is_operand() and (
            self._is_word(1, "in") or (self._is_word(1, "not") and self._is_word(2, "in"))
        )

    def _is_operand(self) -> bool:
        """Whether a value or a selector may begin with the next token."""
        return self._peek().kind in ("word", "text") and not self._is_word(0, *_RESERVED)

    def _value(self, after: str) -> Value:
        if not self._is_operand():
            self._expected(f"a value after {after}")
        return Value(self._advance().text)

    def _pattern(self) -> Pattern:
        position = self._peek().position
        text = self._value('"matches"').text
        self._patterns += 1
        if self._patterns > MAX_PATTERNS:
            _refuse(position, f'a filter may hold at most {MAX_PATTERNS} "matches"')
        try:
            return compile_pattern(text, what="pattern")
        except Malformed as fault:
            _refuse(position, fault.detail)

    def _selector(self, after: str | None) -> Selector:
        if not self._is_operand():
            self._expected(f"a field after {after}" if after else 'a field, a value, "not" or "("')
        token = self._advance()
        path = _pointer(token) if token.kind == "text" else self._path(token)
        if self._roots is not None and path[0] not in self._roots:
            _refuse(token.position, _unknown(path[0], self._roots))
        return Selector(tuple(path))

    def _path(self, first: _Token) -> list[str]:
        root, *inner = first.text.split(".")
        if not _IDENTIFIER.fullmatch(root):
            _refuse(first.position, _no_name(root))
        path = [root, *_names(inner, first.position + len(root) + 1)]
        while self._take("["):
            key = self._peek()
            if key.kind != "text" or not key.text:
                self._expected('a quoted name after "["')
            path.append(self._advance().text)
            if not self._take("]"):
                self._expected('"]"')
            if self._peek().kind == "word" and self._peek().text.startswith("."):
                more = self._advance()
                path += _names(more.text[1:].split("."), more.position + 1)
        return path

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _advance(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _take(self, text: str) -> bool:
        """Steps over the next token if it is this keyword or symbol, not a text of that content."""
        token = self._peek()
        if token.text != text or token.kind not in ("word", "symbol"):
            return False
        self._next += 1
        return True

    def _is_word(self, ahead: int, *words: str) -> bool:
        token = self._tokens[min(self._next + ahead, len(self._tokens) - 1)]
        return token.kind == "word" and token.text in words

    def _expected(self, what: str) -> NoReturn:
        token = self._peek()
        found = "" if token.kind == "end" else f', found "{_short(token.text)}"'
        _refuse(token.position, f"expected {what}{found}")


def _negated(term: Term, negated: bool) -> Expression:
    return Not(term) if negated else term


def _pointer(token: _Token) -> list[str]:
    """The names of an RFC 6901 pointer; a `~` that escapes nothing stands for itself."""
    before, *names = token.text.split("/")
    if before or not names:
        _refuse(
            token.position, 'expected a field; a text stands after its operator, or before "in"'
        )
    if "" in names:
        _refuse(token.position, "a JSON pointer cannot hold an empty name")
    return [name.replace("~1", "/").replace("~0", "~") for name in names]


def _names(names: list[str], position: int) -> list[str]:
    """The same names, each found to be an identifier or a number."""
    for name in names:
        if not (_IDENTIFIER.fullmatch(name) or _INDEX.fullmatch(name)):
            _refuse(position, _no_name(name))
        position += len(name) + 1
    return names


def _no_name(name: str) -> str:
    return f'expected a name, found "{_short(name)}"; other names are written a["b-c"] or "/a/b-c"'


def _spread(outer: object, path: tuple[str, ...]) -> list[object]:
    """What `path` finds where it meets a list: at every name any number of values."""
    found = [outer]
    for name in path:
        found = [inner for value in found for inner in _step(value, name) if inner is not None]
    return found


def _step(value: object, name: str) -> list[object]:
    if isinstance(value, dict):
        return [value[name]] if name in value else []
    if not isinstance(value, list):
        return []
    if _INDEX.fullmatch(name):
        return value[int(name) : int(name) + 1]
    return [item[name] for item in value if isinstance(item, dict) and name in item]


def _quoted(text: str) -> str:
    return f'"{text.translate(_TO_QUOTE)}"'


def _escape_pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"


def _unknown(name: str, roots: frozenset[str]) -> str:
    """A writer of snake_case or of capitals means the same name, so both count as near."""
    plain = {root.replace("_", "").lower(): root for root in roots}
    near = difflib.get_close_matches(_short(name).replace("_", "").lower(), sorted(plain), n=1)
    hint = f'did you mean "{plain[near[0]]}"?' if near else f"there are {', '.join(sorted(roots))}"
    return f'no field "{_short(name)}"; {hint}'
