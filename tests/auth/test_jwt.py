"""Tokens: which are believed, and what is made of their claims."""

import json
from datetime import timedelta
from typing import Any

import pytest
from credentials import (
    AUDIENCE,
    ISSUER,
    MovedClock,
    claims,
    ec_key,
    ed_key,
    forged,
    jwk,
    jwks,
    pem,
    rsa_key,
    token,
)

from registryd.auth import jwt
from registryd.auth.jwt import JwtRules, UnknownKey
from registryd.auth.types import Reason, Rejected
from registryd.web.caller import Permission

NOW = MovedClock().now()
RULES = JwtRules(issuer=ISSUER, audience=(AUDIENCE,), algorithms=("RS256", "ES256", "EdDSA"))
KEYS = jwt.of_jwks(jwks(jwk(rsa_key(), kid="one"), jwk(rsa_key(1), kid="two", alg="RS256")))


def verified(text: str, keys: jwt.TokenKeys = KEYS, **rules: Any) -> jwt.Verified:
    merged = {name: getattr(RULES, name) for name in RULES.__dataclass_fields__} | rules
    return jwt.verify(text, keys, JwtRules(**merged), NOW)


def reason(text: str, keys: jwt.TokenKeys = KEYS, **rules: Any) -> Reason:
    with pytest.raises(Rejected) as caught:
        verified(text, keys, **rules)
    assert text not in caught.value.detail
    return caught.value.reason


def good(**changed: Any) -> dict[str, Any]:
    return claims(NOW, **changed)


def test_a_good_token_names_its_bearer_until_it_expires() -> None:
    found = verified(token(good()))
    assert (found.caller.name, found.caller.role, found.caller.prefixes) == (
        "jwt:ci", Permission.WRITER, (),
    )  # fmt: skip
    assert found.expires_at == NOW + timedelta(seconds=90)


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS256", rsa_key()), ("ES256", ec_key()), ("EdDSA", ed_key())]
)
def test_each_kind_of_key_verifies_from_a_set_and_from_pem(algorithm: str, key: Any) -> None:
    text = token(good(), key, algorithm)
    for keys in (jwt.of_jwks(jwks(jwk(key, kid="one"))), jwt.of_pem(pem(key))):
        assert verified(text, keys).caller.name == "jwt:ci"


def test_a_shared_secret_verifies_and_a_public_key_is_never_taken_for_one() -> None:
    secret = "s" * 32
    text = token(good(), secret, "HS256")
    keys = jwt.of_secret(secret)
    assert verified(text, keys, algorithms=("HS256",)).caller.name == "jwt:ci"
    public = pem(rsa_key())
    attack = forged(good(), {"alg": "HS256", "typ": "JWT"}, public.encode())
    assert reason(attack, jwt.of_pem(public)) is Reason.ALGORITHM
    # Even where both are accepted: the key serves its own algorithms alone.
    both = ("RS256", "HS256")
    assert reason(attack, jwt.of_pem(public), algorithms=both) is Reason.SIGNATURE


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 5, ["RS256"]])
def test_an_unsigned_token_is_never_believed(algorithm: Any) -> None:
    assert reason(forged(good(), {"alg": algorithm})) in {Reason.ALGORITHM, Reason.MALFORMED}
    assert reason(forged(good(), {})) is Reason.ALGORITHM


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"iss": "https://evil.example"}, Reason.ISSUER),
        ({"iss": None}, Reason.ISSUER),
        ({"iss": [ISSUER]}, Reason.ISSUER),
        ({"aud": "other"}, Reason.AUDIENCE),
        ({"aud": None}, Reason.AUDIENCE),
        ({"aud": ["a", "b"]}, Reason.AUDIENCE),
        ({"exp": None}, Reason.CLAIMS),
        ({"exp": "soon"}, Reason.CLAIMS),
        ({"exp": True}, Reason.CLAIMS),
        ({"exp": float("nan")}, Reason.CLAIMS),
        ({"exp": NOW.timestamp() - 30}, Reason.EXPIRED),
        ({"exp": -1e400}, Reason.EXPIRED),
        ({"nbf": NOW.timestamp() + 31}, Reason.NOT_YET),
        ({"iat": NOW.timestamp() + 31}, Reason.NOT_YET),
        ({"sub": None}, Reason.CLAIMS),
        ({"sub": 7}, Reason.CLAIMS),
    ],
)
def test_a_claim_that_is_wrong_or_missing_refuses_the_token(
    changed: dict[str, Any], expected: Reason
) -> None:
    assert reason(token(good(**changed))) is expected


def test_clocks_may_differ_a_little() -> None:
    at = NOW.timestamp()
    assert verified(token(good(exp=at - 29, nbf=at + 29, iat=at + 29)))


def test_one_of_several_audiences_suffices() -> None:
    assert verified(token(good(aud=["x", AUDIENCE])))


def test_a_key_id_is_only_looked_up() -> None:
    assert reason(token(good(), rsa_key(1))) is Reason.SIGNATURE
    assert verified(token(good(), rsa_key(1), kid="two"))
    for strange in ("three", "../../../../dev/null", "http://evil.example/keys", ""):
        with pytest.raises(UnknownKey):
            verified(token(good(), kid=strange))


def test_a_token_without_a_key_id_is_tried_with_every_key_of_its_kind() -> None:
    assert verified(token(good(), rsa_key(1), kid=None))
    assert reason(token(good(), rsa_key(2), kid=None)) is Reason.SIGNATURE


def test_keys_that_a_token_brings_along_are_not_read() -> None:
    evil = jwk(rsa_key(2), kid="evil")
    with pytest.raises(UnknownKey):
        verified(token(good(), rsa_key(2), kid="evil", jwk=evil, jku="http://evil.example"))


@pytest.mark.parametrize("text", ["a.b.c", "..", "e30.e30.", "x" * 9000, "ü.ü.ü", "e30..e30.e30"])
def test_what_is_no_token_is_refused(text: str) -> None:
    assert reason(text) in {Reason.MALFORMED, Reason.ALGORITHM}


def test_an_unknown_critical_header_refuses_the_token() -> None:
    assert reason(token(good(), crit=["exp2"], exp2=1)) is Reason.MALFORMED


@pytest.mark.parametrize(
    ("claim", "value", "role"),
    [
        ("role", "admin", Permission.ADMIN),
        ("role", ["reader", "writer", 5], Permission.WRITER),
        ("role", "openid reader", Permission.READER),
        ("role", "Admin", Permission.OPEN),
        ("role", {"admin": True}, Permission.OPEN),
        ("https://x.example/role", "reader", Permission.READER),
        ("realm_access.roles", ["admin"], Permission.ADMIN),
    ],
)
def test_the_role_is_the_highest_word_of_the_claim(
    claim: str, value: Any, role: Permission
) -> None:
    outer, _, inner = claim.partition(".")
    nested = claim.startswith("realm")
    body = good(**{outer: {inner: value}} if nested else {claim: value})
    if claim != "role":
        body.pop("role")
    assert verified(token(body), role_claim=claim).caller.role is role


@pytest.mark.parametrize(
    ("value", "prefixes"),
    [("a-", ("a-",)), (["a-", "b-"], ("a-", "b-")), ([""], ()), (["a-", ""], ())],
)
def test_prefixes_come_from_their_claim(value: Any, prefixes: tuple[str, ...]) -> None:
    text = token(good(teams=value))
    assert verified(text, prefixes_claim="teams").caller.prefixes == prefixes
    assert verified(text).caller.prefixes == ()


@pytest.mark.parametrize("value", [None, [], {}, 5, ["a", 5]])
def test_a_token_whose_issuer_forgot_the_prefixes_opens_nothing(value: Any) -> None:
    assert reason(token(good(teams=value)), prefixes_claim="teams") is Reason.CLAIMS


def test_a_name_from_a_token_is_fit_for_a_log() -> None:
    name = verified(token(good(sub="a\r\nb\u202e" + "x" * 200))).caller.name
    assert name.startswith("jwt:a??b?x")
    assert len(name) == 4 + 128


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"keys": {}}', '{"keys": []}', '{"keys": [{"kty": "oct", "k": "eA"}]}'],
)
def test_what_holds_no_public_key_is_no_set(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        jwt.of_jwks(text)


def test_a_set_is_read_without_what_cannot_serve() -> None:
    rows = [
        jwk(rsa_key(), kid="enc", use="enc"),
        jwk(rsa_key(), kid="weak") | jwk(rsa_key(9, 1024)),
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
        "nonsense",
        jwk(rsa_key(), kid="good", use="sig", key_ops=["verify"]),
    ]
    assert [key.id for key in jwt.of_jwks(json.dumps({"keys": rows}))] == ["good"]


@pytest.mark.parametrize("text", ["", "secret", pem(rsa_key(9, 1024))])
def test_a_file_without_a_fit_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"PEM|2048"):
        jwt.of_pem(text)
