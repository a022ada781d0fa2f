"""JSON Web Tokens: verified with keys told by others, against rules that the operator has set.

What a token says of itself decides nothing before its signature holds: the algorithm has to be one of
the rules', the key id is only looked up among keys held already, and `jku`, `x5u` or `jwk` are not read.
Each key serves only algorithms of its own kind, so that a public key is never taken for an HMAC secret.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.types import Options

from registryd.auth.types import ROLES, Reason, Rejected, Verified, printable
from registryd.web.caller import Caller, Permission

LONGEST: Final = 8 * 1024
"""Characters of a token. Other headers stand beside it, and the whole head has to fit."""
SHORTEST_RSA_BITS: Final = 2048

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_SIGNATURE_ALONE: Final[Options] = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}
"""The claims are looked at below, by our own clock."""
_CURVES: Final[Mapping[str, str]] = {
    "secp256r1": "ES256",
    "secp384r1": "ES384",
    "secp521r1": "ES512",
}


class UnknownKey(Rejected):
    """No key held has the token's key id; a newer set may."""

    def __init__(self, key_id: str) -> None:
        super().__init__(
            Reason.UNKNOWN, "the token is signed with a key that is not known here (kid)"
        )
        self.key_id = key_id


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRules:
    """What a token has to be. `algorithms` are the only ones that count."""

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    role_claim: str = "role"
    prefixes_claim: str | None = None
    leeway: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """One key, and the algorithms it serves. No `id`: it serves tokens whatever key they name."""

    id: str | None
    algorithms: frozenset[str]
    key: Any = field(repr=False)


TokenKeys = tuple[TokenKey, ...]


# --- keys


def of_jwks(text: str) -> TokenKeys:
    """The public keys of a JSON Web Key Set that serve to verify. Raises ValueError for what is none, or
    holds no such key."""
    try:
        document = json.loads(text)
        rows = document["keys"]
        if not isinstance(rows, list):
            raise TypeError  # noqa: TRY301  said below, as of every other shape
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('is no JSON Web Key Set: {"keys": […]}') from None
    keys = tuple(_usable(rows))
    if not keys:
        raise ValueError("holds no public key of a kind that is known here (RSA, EC, Ed25519)")
    return keys


def of_pem(text: str) -> TokenKeys:
    """The key of a PEM file: a public key or a certificate. Raises ValueError."""
    data = text.encode()
    try:
        if b"BEGIN CERTIFICATE" in data:
            key: Any = load_pem_x509_certificate(data).public_key()
        else:
            key = load_pem_public_key(data)
    except ValueError:
        raise ValueError("is no public key or certificate in PEM") from None
    algorithms = _algorithms(key)
    if not algorithms:
        raise ValueError(
            f"holds no key of a kind that is known here (RSA of {SHORTEST_RSA_BITS} bits or more, EC, "
            "Ed25519)"
        )
    return (TokenKey(None, algorithms, key),)


def of_secret(secret: str) -> TokenKeys:
    """A secret shared with the issuer; `config.py` has seen to its length."""
    return (TokenKey(None, frozenset({"HS256", "HS384", "HS512"}), secret.encode()),)


def _usable(rows: Sequence[Any]) -> Iterator[TokenKey]:
    """Symmetric keys have no place in a set that is published, and are passed over with the unknown."""
    for row in rows:
        if not isinstance(row, dict) or row.get("kty") not in {"RSA", "EC", "OKP"}:
            continue
        if row.get("use", "sig") != "sig" or "verify" not in row.get("key_ops", ("verify",)):
            continue
        public = {name: value for name, value in row.items() if name not in {"alg", "d"}}
        try:
            key = jwt.PyJWK(public).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        algorithms = _algorithms(key)
        if (named := row.get("alg")) is not None:
            algorithms &= {str(named)}
        if algorithms:
            identity = row.get("kid")
            yield TokenKey(identity if isinstance(identity, str) else None, algorithms, key)


def _algorithms(key: object) -> frozenset[str]:
    match key:
        case RSAPublicKey():
            return frozenset(_RSA if key.key_size >= SHORTEST_RSA_BITS else ())
        case EllipticCurvePublicKey():
            return frozenset({_CURVES[key.curve.name]} if key.curve.name in _CURVES else ())
        case Ed25519PublicKey():
            return frozenset({"EdDSA"})
        case _:
            return frozenset()


# --- tokens


def verify(token: str, keys: TokenKeys, rules: JwtRules, now: datetime) -> Verified:
    """Who a token says its bearer is. Raises Rejected, UnknownKey where a newer set of keys may help."""
    if len(token) > LONGEST:
        raise Rejected(Reason.MALFORMED, f"the token is longer than {LONGEST} characters")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, UnicodeEncodeError):  # bytes of the header that are no UTF-8
        raise Rejected(Reason.MALFORMED, "the token cannot be read") from None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in list(rules.algorithms):
        raise Rejected(
            Reason.ALGORITHM,
            f"the token's algorithm is not accepted; {', '.join(rules.algorithms)} would be",
        )
    claims = _claims(token, str(algorithm), _candidates(keys, str(algorithm), key_id))
    expires_at = _check_times(claims, now, rules.leeway)
    _check_origin(claims, rules)
    caller = Caller(_name(claims), _role(claims, rules), _prefixes(claims, rules))
    return Verified(caller, expires_at)


def _candidates(keys: TokenKeys, algorithm: str, key_id: object) -> list[TokenKey]:
    """Keys for a token: the one it names, or all of its kind where it names none."""
    fitting = [key for key in keys if algorithm in key.algorithms]
    if isinstance(key_id, str):
        fitting = [key for key in fitting if key.id is None or key.id == key_id]
        if not fitting:
            raise UnknownKey(key_id)
    return fitting


def _claims(token: str, algorithm: str, candidates: Sequence[TokenKey]) -> dict[str, Any]:
    for candidate in candidates:
        try:
            return jwt.decode(
                token,
                candidate.key,
                algorithms=[algorithm],
                options=_SIGNATURE_ALONE,
            )
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Rejected(Reason.MALFORMED, "the token cannot be read") from None
    raise Rejected(Reason.SIGNATURE, "the token's signature does not hold")


def _check_times(claims: Mapping[str, Any], now: datetime, leeway: timedelta) -> datetime:
    expires_at = _moment(claims, "exp")
    if expires_at is None:
        raise Rejected(Reason.CLAIMS, "the token has no expiry (exp)")
    ends_at = expires_at + leeway
    if ends_at <= now:
        raise Rejected(Reason.EXPIRED, "the token has expired")
    begins_at = _moment(claims, "nbf")
    if begins_at is not None and begins_at - leeway > now:
        raise Rejected(Reason.NOT_YET, "the token is not valid yet (nbf)")
    issued_at = _moment(claims, "iat")
    if issued_at is not None and issued_at - leeway > now:
        raise Rejected(Reason.NOT_YET, "the token was issued in the future (iat)")
    return ends_at


def _moment(claims: Mapping[str, Any], name: str) -> datetime | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Rejected(Reason.CLAIMS, f"the token's {name} is not a number")
    try:
        # Leaves room for the leeway on both sides.
        return datetime.fromtimestamp(min(max(value, 86_400), 32_503_680_000), UTC)
    except (ValueError, OverflowError):  # NaN
        raise Rejected(Reason.CLAIMS, f"the token's {name} is not a time") from None


def _check_origin(claims: Mapping[str, Any], rules: JwtRules) -> None:
    if claims.get("iss") != rules.issuer:
        raise Rejected(Reason.ISSUER, "the token is from another issuer (iss)")
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not any(one == each for one in named for each in rules.audience):
        raise Rejected(Reason.AUDIENCE, "the token is for another audience (aud)")


def _name(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub") or claims.get("client_id") or claims.get("azp")
    if not isinstance(subject, str):
        raise Rejected(Reason.CLAIMS, "the token names no subject (sub)")
    return f"jwt:{printable(subject)}"


def _role(claims: Mapping[str, Any], rules: JwtRules) -> Permission:
    """The highest role among the words of the claim; OPEN, which suffices for nothing, without one."""
    value = _claim(claims, rules.role_claim)
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    roles = [ROLES[word] for word in words if isinstance(word, str) and word in ROLES]
    return max(roles, default=Permission.OPEN)


def _prefixes(claims: Mapping[str, Any], rules: JwtRules) -> tuple[str, ...]:
    """Where the rules name a claim a token has to have it: one that an issuer forgot must not open
    everything. An empty text among the prefixes is no limit, and has to be said."""
    if rules.prefixes_claim is None:
        return ()
    value = _claim(claims, rules.prefixes_claim)
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(one, str) for one in words):
        raise Rejected(
            Reason.CLAIMS, f"the token has no prefixes of names ({rules.prefixes_claim})"
        )
    return () if "" in words else tuple(words)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path with dots as in `realm_access.roles`."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
