"""API keys as text: made, recognised and compared. Decides; what is known of keys is told by the caller.

A key is `rgd_<id>_<secret><check>`: ten characters that name it, 32 random bytes, and a CRC-32 of all
before, so that a typing mistake, or somebody else's token, is told from a key without a look-up, also
by scanners that look for leaked ones. 256 random bits need no slow hash: SHA-256 is what is kept.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from registryd.auth.types import ApiKey, Reason, Rejected
from registryd.web.caller import Permission

MARK: Final = "rgd_"

_ID_ALPHABET: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 10
_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECRET_BYTES: Final = 32
_SECRET_LENGTH: Final = 43
_CHECK_LENGTH: Final = 6
_KEY: Final = re.compile(
    rf"({MARK}([a-z0-9]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_CHECK_LENGTH}}})"
)
_NOBODY: Final = bytes(32)
"""Compared with where no key has the id: no SHA-256 is known to be this."""
_NOT_KNOWN: Final = "this API key is not known here"


def make(
    role: Permission,
    prefixes: tuple[str, ...],
    *,
    name: str,
    now: datetime,
    expires_at: datetime | None,
) -> tuple[str, ApiKey]:
    """A new key: its text, which is nowhere kept, and what is."""
    identity = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    secret = _base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_LENGTH)
    body = f"{MARK}{identity}_{secret}"
    text = body + _check(body)
    return text, ApiKey(identity, digest(text), role, prefixes, name, now, expires_at)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def identity_of(text: str) -> str | None:
    """The id in the text of a key that was made here; None for any other text. Raises Rejected for one
    that cannot be right."""
    if not text.startswith(MARK):
        return None
    parts = _KEY.fullmatch(text)
    if parts is None or _check(parts[1]) != parts[3]:
        raise Rejected(
            Reason.MALFORMED,
            "this API key cannot be right: a character is wrong, missing or too many",
        )
    return parts[2]


@dataclass(frozen=True, slots=True)
class KeySet:
    """All keys that are known: those in the store by their id, and those of the keys file, whose texts
    need not have been made here."""

    stored: Mapping[str, ApiKey] = field(default_factory=dict)
    filed: tuple[ApiKey, ...] = ()

    def __len__(self) -> int:
        return len(self.stored) + len(self.filed)

    def find(self, text: str) -> ApiKey | None:
        """The key with this text, whether or not it still holds; of two, that of the file. Raises
        Rejected for a text that cannot be right.

        Takes as long for an id that exists as for one that does not.
        """
        if not text.isascii():
            # A header's bytes that are no UTF-8 come as what cannot even be encoded again.
            raise Rejected(Reason.MALFORMED, "an API key is all ASCII characters")
        identity, shown, found = identity_of(text), digest(text), None
        for key in (self.stored.get(identity or ""), *self.filed):
            if hmac.compare_digest(shown, _NOBODY if key is None else key.digest):
                found = key
        return found


def judge(found: ApiKey | None, now: datetime) -> ApiKey:
    """The key that was found, if it holds. Raises Rejected."""
    if found is None:
        raise Rejected(Reason.UNKNOWN, _NOT_KNOWN)
    if found.revoked_at is not None:
        raise Rejected(Reason.REVOKED, f"the API key {found.id} was revoked")
    if found.expires_at is not None and found.expires_at <= now:
        raise Rejected(Reason.EXPIRED, f"the API key {found.id} has expired")
    return found


def _check(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK_LENGTH)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
