"""Who calls: credentials found in a request, verified, and remembered as long as they hold.

The heartbeat path asks `known`, which answers from memory: one look-up by the very text of the
credentials. Whatever withdraws a credential, such as a revoked key or a new set of token keys, empties
that memory, and every caller is verified anew.
"""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, Protocol

from multidict import CIMultiDictProxy

from registryd.auth import apikey
from registryd.auth.certificates import CertificateRule, caller_of
from registryd.auth.journal import Journal
from registryd.auth.keyring import Keyring
from registryd.auth.types import Reason, Rejected, Verified
from registryd.kit.clock import Clock
from registryd.kit.outbound import Network
from registryd.metrics import Metrics
from registryd.web.access import Attempt
from registryd.web.caller import Caller, Peer, Permission
from registryd.web.shortcut import Headers

REMEMBERED: Final = 10_000
"""Callers; many more than call one daemon within REMEMBERED_FOR."""
REMEMBERED_FOR: Final = timedelta(minutes=1)
"""After that a credential is verified again, in case the clock has jumped."""


_BEARER: Final = "bearer "


class TokenVerifier(Protocol):
    async def verify(self, token: str) -> Verified:
        """Raises Rejected."""


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Whom callers without credentials are taken for when they come from these networks."""

    role: Permission
    networks: tuple[Network, ...]

    def admits(self, address: str) -> bool:
        try:
            ip = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class _Held:
    """A caller that was verified. `until` is on the monotonic clock."""

    caller: Caller
    until: float
    key_id: str | None


class RequiredAccess:
    """Nobody enters without a credential, unless `anonymous` lets them in."""

    def __init__(
        self,
        keyring: Keyring,
        journal: Journal,
        metrics: Metrics,
        clock: Clock,
        *,
        tokens: TokenVerifier | None = None,
        certificates: Sequence[CertificateRule] = (),
        anonymous: Anonymous | None = None,
    ) -> None:
        self._keyring = keyring
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._tokens = tokens
        self._certificates = tuple(certificates)
        self._anonymous = anonymous
        self._held: dict[tuple[Any, ...], _Held] = {}
        self._forgotten = 0

    def forget(self) -> None:
        """Verifies every caller anew: what credentials rest on has changed."""
        self._held.clear()
        self._forgotten += 1

    def known(self, headers: Headers, peer: Peer) -> Caller | None:
        try:
            presented = _presented(headers, peer)
        except Rejected:
            return None
        held = self._held.get(presented)
        if held is None or held.until <= self._clock.monotonic():
            return self._holder(presented, headers, peer)
        if held.key_id is not None:
            self._keyring.used.add(held.key_id)
        return held.caller

    def _holder(self, presented: tuple[Any, ...], headers: Headers, peer: Peer) -> Caller | None:
        """Whose the API key is that came alone, if it is among those in memory: that is told at once, so
        that whoever guesses keys at the same address cannot shut its holder out."""
        authorization, text = _headers(headers)
        if peer.certificate is not None or (authorization is None) == (text is None):
            return None
        try:
            text = _bearer(authorization) if authorization is not None else text
            key = apikey.judge(self._keyring.known.find(text or ""), self._clock.now())
        except Rejected:
            return None
        self._remember(presented, Verified(key.caller, key.expires_at, key.id))
        self._keyring.used.add(key.id)
        return key.caller

    async def identify(self, headers: Headers, peer: Peer) -> Caller:
        forgotten = self._forgotten
        try:
            presented = _presented(headers, peer)
            verified = await self._verify(headers, peer)
        except Rejected as rejected:
            self._metrics.access_denied.labels(rejected.reason.value).inc()
            raise
        if verified.key_id is not None:
            self._keyring.used.add(verified.key_id)
        # Else a key that was revoked while something was waited for would be remembered.
        if forgotten == self._forgotten:
            self._remember(presented, verified)
        return verified.caller

    def note(self, attempt: Attempt) -> None:
        if attempt.outcome == "forbidden":
            self._metrics.access_denied.labels(Reason.FORBIDDEN.value).inc()
        self._journal.add(attempt)

    def _remember(self, presented: tuple[Any, ...], verified: Verified) -> None:
        lasts = REMEMBERED_FOR
        if verified.expires_at is not None:
            lasts = min(lasts, verified.expires_at - self._clock.now())
        if len(self._held) >= REMEMBERED:
            self._held.clear()
        until = self._clock.monotonic() + lasts.total_seconds()
        self._held[presented] = _Held(verified.caller, until, verified.key_id)

    async def _verify(self, headers: Headers, peer: Peer) -> Verified:
        """The one caller that all credentials stand for. Each of them has to hold."""
        found = []
        authorization, key = _headers(headers)
        if authorization is not None:
            text = _bearer(authorization)
            found.append(await self._token(text) if _like_jwt(text) else await self._key(text))
        if key is not None:
            found.append(await self._key(key))
        if peer.certificate is not None:
            found += self._certificate(peer.certificate)
        if not found:
            return self._nobody(peer)
        first = found[0]
        for other in found[1:]:
            if (other.caller.role, other.caller.prefixes) != (
                first.caller.role,
                first.caller.prefixes,
            ):
                raise Rejected(
                    Reason.CONFLICT,
                    f"two credentials that disagree: {first.caller.name} and {other.caller.name} may do "
                    "different things; send one",
                )
        return first

    async def _key(self, text: str) -> Verified:
        found = self._keyring.known.find(text)
        if found is None:
            await self._keyring.look()
            found = self._keyring.known.find(text)
        key = apikey.judge(found, self._clock.now())
        return Verified(key.caller, key.expires_at, key.id)

    async def _token(self, text: str) -> Verified:
        if self._tokens is None:
            raise Rejected(Reason.UNKNOWN, "tokens are not accepted here; use an API key")
        return await self._tokens.verify(text)

    def _certificate(self, certificate: Mapping[str, Any]) -> list[Verified]:
        """None for a certificate without a rule: it opens the connection and says nothing more."""
        caller = caller_of(certificate, self._certificates)
        if caller is None:
            return []
        ends_at = None
        if "notAfter" in certificate:  # seen to when the connection began, which may be long ago
            seconds = ssl.cert_time_to_seconds(certificate["notAfter"])
            ends_at = datetime.fromtimestamp(seconds, UTC)
            if ends_at <= self._clock.now():
                raise Rejected(Reason.EXPIRED, "the client certificate has expired")
        return [Verified(caller, ends_at)]

    def _nobody(self, peer: Peer) -> Verified:
        if self._anonymous is not None and self._anonymous.admits(peer.address):
            return Verified(Caller("anonymous", self._anonymous.role))
        raise Rejected(
            Reason.MISSING,
            "no credential came with the request: send an API key or token as Authorization: Bearer …, "
            "or an API key as X-API-Key",
        )


def _presented(headers: Headers, peer: Peer) -> tuple[Any, ...]:
    """All that a caller is told by. Raises Rejected where a header stands twice.

    Of a certificate it is what rules read; of those who show nothing, where they come from.
    """
    authorization, key = _headers(headers)
    certificate = peer.certificate
    if certificate is not None:
        shown = (certificate.get("subject"), certificate.get("subjectAltName"))
        return authorization, key, shown
    if authorization is None and key is None:
        return (peer.address,)
    return authorization, key


def _headers(headers: Headers) -> tuple[str | None, str | None]:
    """Authorization and X-API-Key. Raises Rejected where one stands twice."""
    if not isinstance(headers, CIMultiDictProxy):
        # From the fast lane: each name once, in lower case.
        return headers.get("authorization"), headers.get("x-api-key")
    authorization, key = (_only(headers, name) for name in ("Authorization", "X-API-Key"))
    return authorization, key


def _only(headers: CIMultiDictProxy[str], name: str) -> str | None:
    values = headers.getall(name, ())
    if len(values) > 1:
        raise Rejected(Reason.MALFORMED, f"several {name} headers; send one")
    return values[0] if values else None


def _bearer(authorization: str) -> str:
    """The credential. Another scheme, or none, is refused without saying what came."""
    text = authorization[len(_BEARER) :].strip()
    if authorization[: len(_BEARER)].lower() != _BEARER or not text or " " in text:
        raise Rejected(
            Reason.MALFORMED, "the Authorization header has to be: Bearer, a space, a key or token"
        )
    return text


def _like_jwt(text: str) -> bool:
    return text.count(".") == 2 and not text.startswith(apikey.MARK)
