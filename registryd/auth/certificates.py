"""Client certificates: which role the holder of one has. The TLS layer has verified it; this only reads."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from registryd.auth.types import printable
from registryd.web.caller import Caller, Permission

_LONG: Final[Mapping[str, str]] = {
    "CN": "commonName",
    "O": "organizationName",
    "OU": "organizationalUnitName",
    "C": "countryName",
    "ST": "stateOrProvinceName",
    "L": "localityName",
    "DC": "domainComponent",
    "UID": "userId",
    "SERIALNUMBER": "serialNumber",
}
_PART: Final = re.compile(r"\s*([A-Za-z]+)\s*=((?:[^,\\]|\\.)*)(?:,|$)")
_SAN: Final = re.compile(r"(DNS|URI|email|IP Address):(.+)")

Attribute = tuple[str, str]


@dataclass(frozen=True, slots=True)
class CertificateRule:
    """A certificate fits when its subject has all of `subject`, and its alternative names `san`."""

    role: Permission
    subject: frozenset[Attribute] = frozenset()
    san: Attribute | None = None
    prefixes: tuple[str, ...] = ()

    def fits(self, certificate: Mapping[str, Any]) -> bool:
        names = certificate.get("subjectAltName", ())
        return self.subject <= _subject(certificate) and (self.san is None or self.san in names)


def subject(text: str) -> frozenset[Attribute]:
    """`CN=billing,O=Example` as attributes. Raises ValueError. A comma in a value is written `\\,`."""
    found, at = set(), 0
    while at < len(text):
        part = _PART.match(text, at)
        if part is None or (name := _LONG.get(part[1].upper())) is None:
            known = ", ".join(_LONG)
            raise ValueError(f"not a subject such as CN=billing,O=Example (known are {known})")
        found.add((name, re.sub(r"\\(.)", r"\1", part[2]).strip()))
        at = part.end()
    if not found:
        raise ValueError("not a subject such as CN=billing,O=Example")
    return frozenset(found)


def san(text: str) -> Attribute:
    """`DNS:billing.internal` or `URI:spiffe://example/billing` as an alternative name. Raises ValueError."""
    parts = _SAN.fullmatch(text)
    if parts is None:
        raise ValueError("not an alternative name such as DNS:billing.internal or URI:spiffe://…")
    return parts[1], parts[2]


def caller_of(certificate: Mapping[str, Any], rules: Iterable[CertificateRule]) -> Caller | None:
    """The caller that the first fitting rule makes of a certificate, given as `getpeercert` does."""
    for rule in rules:
        if rule.fits(certificate):
            return Caller(f"cert:{_name(certificate)}", rule.role, rule.prefixes)
    return None


def _subject(certificate: Mapping[str, Any]) -> frozenset[Attribute]:
    groups: Sequence[Sequence[Attribute]] = certificate.get("subject", ())
    return frozenset(attribute for group in groups for attribute in group)


def _name(certificate: Mapping[str, Any]) -> str:
    """The common name, else the first alternative name."""
    names = [value for name, value in _subject(certificate) if name == "commonName"]
    names += [value for _, value in certificate.get("subjectAltName", ())]
    return printable(names[0]) if names else "unnamed"
