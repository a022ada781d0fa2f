"""An issuer of tokens with keys of its own, and a clock that tests move."""

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://id.example"
AUDIENCE = "registryd"


class MovedClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2030, 1, 1, tzinfo=UTC)
        self.seconds = 1000.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.seconds

    def move(self, by: timedelta) -> None:
        self.moment += by
        self.seconds += by.total_seconds()


@cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    data: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return data.decode()


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    kinds: list[tuple[type, Any]] = [
        (rsa.RSAPrivateKey, RSAAlgorithm),
        (ec.EllipticCurvePrivateKey, ECAlgorithm),
        (ed25519.Ed25519PrivateKey, OKPAlgorithm),
    ]
    [algorithm] = [made for kind, made in kinds if isinstance(key, kind)]
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **more}


def jwks(*rows: dict[str, Any]) -> str:
    return json.dumps({"keys": rows})


def claims(now: datetime | None = None, **changed: Any) -> dict[str, Any]:
    """Good claims; what is None in `changed` is left out."""
    moment = time.time() if now is None else now.timestamp()
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ci", "exp": moment + 60, "role": "writer"}
    return {name: value for name, value in (good | changed).items() if value is not None}


def token(body: dict[str, Any], key: Any = None, algorithm: str = "RS256", **header: Any) -> str:
    """A signed token with whatever claims; a header that is None is left out."""
    headers = {
        name: value for name, value in ({"kid": "one"} | header).items() if value is not None
    }
    return jwt.PyJWS().encode(json.dumps(body).encode(), key or rsa_key(), algorithm, headers)


def forged(body: dict[str, Any], header: dict[str, Any], secret: bytes | None = None) -> str:
    """A token put together by hand, as no library would: signed by HMAC with `secret`, or not at all."""
    parts = b".".join(_encoded(json.dumps(part).encode()) for part in (header, body))
    signature = b"" if secret is None else hmac.digest(secret, parts, hashlib.sha256)
    return (parts + b"." + _encoded(signature)).decode()


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
