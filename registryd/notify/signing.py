"""Signatures as Standard Webhooks asks for them: HMAC-SHA256 over id, time and body, `v1,<base64>`."""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Final

PREFIX: Final = "whsec_"
NEW_KEY_BYTES: Final = 32
MIN_KEY_BYTES: Final = 24
MAX_KEY_BYTES: Final = 64


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(NEW_KEY_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The key in a secret. Raises ValueError, without quoting it."""
    if not secret.startswith(PREFIX):
        raise ValueError(f"a secret begins with {PREFIX}")
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # Outside of the except clause, so that the context of the error does not bring the text along.
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(
            f"behind {PREFIX} a secret has the base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes"
        )
    return key


def signature(keys: Iterable[bytes], identity: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature a key, so that a receiver may hold either while
    a secret is replaced. `timestamp` is in seconds."""
    signed = f"{identity}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys
    )
