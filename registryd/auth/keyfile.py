"""A file of API keys, for those whom some other tool gives their keys: YAML (JSON is YAML too).

A list of rows: `id`, `role`, one of `sha256` (64 hexadecimal digits) and `key`, and if wanted `prefixes`
and `expires` (RFC 3339). Reads one text; which file, and when, others say.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from registryd.auth import apikey
from registryd.auth.types import ROLES, ApiKey, Rejected

SHORTEST: Final = 16
"""Characters of a key that was made elsewhere."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS: Final = frozenset({"id", "role", "sha256", "key", "prefixes", "expires"})


def read(text: str) -> tuple[ApiKey, ...]:
    """The keys. Raises ValueError with a line that names the row and never quotes a key."""
    try:
        rows = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"is not YAML{where}") from None
    except (YAMLError, ValueError):
        raise ValueError("is not YAML") from None
    if rows is None:
        return ()
    if not isinstance(rows, list):
        raise ValueError("has to be a list of keys")  # noqa: TRY004  of the file, not of a caller
    keys = tuple(_key(number, row) for number, row in enumerate(rows, 1))
    for number, key in enumerate(keys, 1):
        if any(key.id == other.id for other in keys[: number - 1]):
            raise ValueError(f"row {number}: the id {key.id} stands there twice")
    return keys


def checked_prefixes(values: object) -> tuple[str, ...]:
    """The beginnings of names that a key is limited to. Raises ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError("prefixes has to be a list")  # noqa: TRY004  of the file
    for value in values:
        if not isinstance(value, str) or not _PREFIX.fullmatch(value):
            raise ValueError(
                f"prefix {value!r}: has to be the beginning of a service's name, in plain text without *"
            )
    return tuple(values)


def _key(number: int, row: object) -> ApiKey:
    if not isinstance(row, dict):
        raise ValueError(f"row {number}: has to hold id, role, and sha256 or key")  # noqa: TRY004
    try:
        _check(row)
        return ApiKey(
            row["id"],
            bytes.fromhex(row["sha256"]) if "sha256" in row else apikey.digest(row["key"]),
            ROLES[row["role"]],
            checked_prefixes(row.get("prefixes") or ()),
            expires_at=_moment(row.get("expires")),
        )
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from None


def _check(row: dict[Any, Any]) -> None:
    if (problem := next(_problems(row), None)) is not None:
        raise ValueError(problem)


def _problems(row: dict[Any, Any]) -> Iterator[str]:
    if unknown := row.keys() - _FIELDS:
        yield f"unknown field {min(map(str, unknown))!r}"
    if not isinstance(row.get("id"), str) or not _ID.fullmatch(row["id"]):
        yield "id: has to be 1 to 64 letters, digits, '.', '_' or '-'"
    if row.get("role") not in list(ROLES):
        yield f"role: has to be one of {', '.join(ROLES)}"
    if ("sha256" in row) is ("key" in row):
        yield "has to hold either sha256 or key"
    if "sha256" in row and not _SHA256.fullmatch(str(row["sha256"])):
        yield "sha256: has to be 64 hexadecimal digits; write it in quotes"
    if "key" in row:
        yield from _wrong_key(row["key"])


def _wrong_key(text: object) -> Iterator[str]:
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or " " in text:
        yield "key: has to be text of visible ASCII characters"
    elif len(text) < SHORTEST:
        yield f"key: is too short to be safe; at least {SHORTEST} characters"
    else:
        try:
            apikey.identity_of(text)
        except Rejected as error:
            yield f"key: {error.detail}"


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    moment = value if isinstance(value, datetime) else None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
    if moment is None:
        raise ValueError("expires: has to be a time such as 2030-01-31T12:00:00Z")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
