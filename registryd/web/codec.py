"""Query strings, bodies and JSON, decoded strictly: what is ambiguous or absurd is refused.

Deliberately knows no field of any resource: a value that parses but is wrong is pydantic's
business, and `invalid` only turns its findings into our error.
"""

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import unquote_to_bytes

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import MultiDict, MultiDictProxy
from pydantic import ValidationError

from registryd import errors
from registryd.web.wire import CONTINUE

MAX_PARAMETERS: Final = 100
MAX_DEPTH: Final = 64
MAX_DIGITS: Final = 300
MAX_FIELD_ERRORS: Final = 100

_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, decompressed, and how long it may take to arrive."""

    size: int = 256 * 1024
    seconds: float = 10.0


DEFAULT_LIMITS: Final = BodyLimits()


def shown(text: str, limit: int = _SHOWN) -> str:
    """A foreign value fit for an error message: quoted, escaped where odd, and cut."""
    if len(text) > limit:
        text = text[:limit] + "…"
    return repr(text)


def percent_decode(text: str, what: str) -> str:
    """Strict: a bad escape, bytes that are not UTF-8 and control characters are Malformed.

    `what` names the value in the error. Raw non-ASCII bytes, as aiohttp hands them on
    (surrogateescape), count as if they had been escaped.
    """
    if bad := _BAD_PERCENT.search(text):
        raise errors.Malformed(f"{what}: bad percent-encoding at position {bad.start() + 1}")
    try:
        value = unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeDecodeError:
        raise errors.Malformed(f"{what}: not valid UTF-8") from None
    if bad := _CONTROL.search(value):
        raise errors.Malformed(
            f"{what}: control character U+{ord(bad.group()):04X} at position {bad.start() + 1}"
        )
    return value


def parse_query(raw: web.BaseRequest) -> MultiDictProxy[str]:
    return decode_query(raw.rel_url.raw_query_string)


def decode_query(text: str) -> MultiDictProxy[str]:
    """The parameters of a raw query string, in order; `+` means a space, as forms send it."""
    query: MultiDict[str] = MultiDict()
    if text:
        pairs = [pair for pair in text.split("&") if pair]
        if len(pairs) > MAX_PARAMETERS:
            raise errors.Malformed(f"more than {MAX_PARAMETERS} query parameters")
        for pair in pairs:
            raw_name, _, raw_value = pair.partition("=")
            name = percent_decode(raw_name.replace("+", " "), "the name of a query parameter")
            if not name:
                raise errors.Malformed("a query parameter has no name")
            value = percent_decode(raw_value.replace("+", " "), f"query parameter {shown(name)}")
            query.add(name, value)
    return MultiDictProxy(query)


def single(query: MultiDictProxy[str], name: str) -> str | None:
    """The one value of a parameter, None when it is absent; Malformed when it is repeated."""
    values = query.getall(name, None)
    if values is None:
        return None
    if len(values) > 1:
        raise errors.Malformed(f"query parameter {shown(name)} is given {len(values)} times")
    return values[0]


async def read_body(raw: web.BaseRequest, limits: BodyLimits = DEFAULT_LIMITS) -> bytes:
    """The whole body, decompressed. Raises Malformed, PayloadTooLarge or RequestTimeout."""
    if not raw.body_exists:
        return b""
    if (raw.content_length or 0) > limits.size:
        raise _too_large(limits)
    content = raw.content
    if not content.is_eof() and raw.transport is not None and _expects_continue(raw):
        raw.transport.write(CONTINUE)
    try:
        if content.is_eof():
            body = content.read_nowait()
        else:
            parts = bytearray()
            async with asyncio.timeout(limits.seconds):
                while part := await content.readany():
                    parts += part
                    if len(parts) > limits.size:
                        raise _too_large(limits)
            body = bytes(parts)
    except TimeoutError:
        raise errors.RequestTimeout(
            f"the body did not arrive within {limits.seconds:g} seconds"
        ) from None
    except (HttpProcessingError, web.RequestPayloadError):
        raise errors.Malformed(
            "the body is broken: its chunks or its compression cannot be read"
        ) from None
    except ConnectionError:
        raise errors.Malformed("the connection closed before the body was complete") from None
    if len(body) > limits.size:
        raise _too_large(limits)
    return body


def _expects_continue(raw: web.BaseRequest) -> bool:
    # The server level of aiohttp leaves this to us; curl waits a second for it.
    return raw.version >= (1, 1) and raw.headers.get("Expect", "").lower() == "100-continue"


def _too_large(limits: BodyLimits) -> errors.PayloadTooLarge:
    return errors.PayloadTooLarge(f"the body is larger than {limits.size} bytes")


async def read_json(
    raw: web.BaseRequest, *, empty_is_none: bool = False, limits: BodyLimits = DEFAULT_LIMITS
) -> Any:
    """The body as JSON. Raises what `read_body` and `loads` raise, and UnsupportedMediaType."""
    text = await read_json_text(raw, limits, empty=empty_is_none)
    return loads(text) if text else None


async def read_json_text(
    raw: web.BaseRequest, limits: BodyLimits = DEFAULT_LIMITS, *, empty: bool = False
) -> bytes:
    """The body, said to be JSON and not decoded. Raises what `read_body` does, UnsupportedMediaType and,
    unless it may be `empty`, Malformed."""
    body = await read_body(raw, limits)
    if body:
        _require_json(raw)
    elif not empty:
        raise errors.Malformed("the body is empty; a JSON document was expected")
    return body


def _require_json(raw: web.BaseRequest) -> None:
    encoding = raw.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate", "br", "zstd"):
        # aiohttp has decoded the ones it knows and refused broken ones.
        raise errors.UnsupportedMediaType("Content-Encoding: send the body plain or as gzip")
    header = raw.headers.get("Content-Type", "")
    if not header.strip():
        return
    media, _, parameters = header.partition(";")
    media = media.strip().lower()
    if media == "application/x-www-form-urlencoded":
        raise errors.UnsupportedMediaType(
            "the body is declared as a form (curl -d does that by itself); "
            "send the header 'Content-Type: application/json'"
        )
    if media != "application/json" and not (
        media.startswith("application/") and media.endswith("+json")
    ):
        raise errors.UnsupportedMediaType(
            "the body has to be JSON; send the header 'Content-Type: application/json'"
        )
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in (
            "utf-8",
            "utf8",
        ):
            raise errors.UnsupportedMediaType("JSON is UTF-8; other charsets are not read")


def loads(body: bytes) -> Any:
    """JSON as RFC 8259 has it, UTF-8 only; raises Malformed with line and column where known.

    Refused beyond the grammar: duplicate keys, numbers without a finite double or with more than
    300 digits, half surrogate pairs (they could never be sent back), nesting beyond 64.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise errors.Malformed("not JSON: starts with a byte order mark (line 1, column 1)")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        before = body[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise errors.Malformed(f"not UTF-8 (line {line}, byte {column})") from None
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise errors.Malformed(
            f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise _too_deep() from None
    # A document of few brackets cannot be deep, so that most bodies are not walked at all.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(document)
    # UTF-8 has no half pairs, so that they can only come from escapes.
    if _SURROGATE_ESCAPE.search(body):
        try:
            dumps(document)
        except UnicodeEncodeError:
            raise errors.Malformed("a string holds half of a surrogate pair") from None
    return document


def _check_depth(document: Any) -> None:
    level: list[Any] = [document] if isinstance(document, (dict, list)) else []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = [
            value
            for container in level
            for value in (container.values() if isinstance(container, dict) else container)
            if isinstance(value, (dict, list))
        ]


def _too_deep() -> errors.Malformed:
    return errors.Malformed(f"the document is nested more than {MAX_DEPTH} levels deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise errors.Malformed(f"duplicate key {shown(key)}")
            seen.add(key)
    return document


def _integer(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        raise errors.Malformed(f"a number has more than {MAX_DIGITS} digits")
    return int(literal)


def _number(literal: str) -> float:
    if len(literal) > MAX_DIGITS:
        raise errors.Malformed(f"a number has more than {MAX_DIGITS} digits")
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise errors.Malformed(f"the number {shown(literal)} is out of range")
    return value


def _constant(literal: str) -> NoReturn:
    raise errors.Malformed(f"{literal} is not JSON")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dumps(document: Any) -> bytes:
    return _ENCODER.encode(document).encode("utf-8")


def invalid(error: ValidationError, document: Any) -> errors.Invalid:
    """What pydantic found wrong with `document`, as pointers into that very document.

    pydantic's locations name fields by their first alias and put the branches of unions between
    them; walking the document along shows which steps are real and how the client spelt them.
    """
    found: dict[str, list[str]] = {}
    for one in error.errors(include_url=False, include_input=False):
        kind, message = one["type"], one["msg"]
        context: dict[str, Any] = one.get("ctx") or {}
        pointer = _pointer(_steps(one["loc"], document, missing=kind == "missing"))
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            pointer += _pointer([str(context.get("discriminator", "")).strip("'")])
        details = found.setdefault(pointer, [])
        detail = _detail(kind, message, context)
        if detail not in details:
            details.append(detail)
        if len(found) > MAX_FIELD_ERRORS:
            del found[pointer]
            break
    fields = [
        errors.FieldError(pointer, "; or ".join(details)) for pointer, details in found.items()
    ]
    first = fields[0]
    others = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    where = first.pointer or "the body"
    return errors.Invalid(f"{where}: {first.detail}{others}", errors=fields)


def _detail(kind: str, message: str, context: dict[str, Any]) -> str:
    match kind:
        case "missing" | "union_tag_not_found":
            return "is required"
        case "extra_forbidden":
            return "is not a known field"
        case "union_tag_invalid":
            detail = f"should be one of {context.get('expected_tags', '')}"
        case _:
            detail = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
            detail = detail.replace("Input should be ", "should be ", 1)
    return detail if len(detail) <= 300 else detail[:299] + "…"


def _steps(loc: Iterable[int | str], document: Any, *, missing: bool) -> list[int | str]:
    steps: list[int | str] = []
    here = document
    path = list(loc)
    for position, step in enumerate(path):
        last = position == len(path) - 1
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            steps.append(step)
            here = here[step]
        elif isinstance(here, dict) and (key := _spelt(str(step), here)) is not None:
            if last and step == "[key]":
                continue
            steps.append(key)
            here = here[key]
        elif last and missing:
            steps.append(step)
        # Anything else is the branch of a union, or pydantic's own name for a validator.
    return steps


def _spelt(name: str, document: dict[str, Any]) -> str | None:
    """The key of `document` that means the field `name`: exactly, or in the other case style."""
    if name in document:
        return name
    plain = name.replace("_", "").lower()
    return next((key for key in document if key.replace("_", "").lower() == plain), None)


def _pointer(steps: Iterable[int | str]) -> str:
    tokens = (str(step)[:128].replace("~", "~0").replace("/", "~1") for step in steps)
    return "".join(f"/{token}" for token in tokens)
