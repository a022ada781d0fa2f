"""The one way out: every connection that the daemon opens to others is judged, bounded and timed here.

Whoever registers a service or a webhook tells the daemon where to connect; without this module that
would lend them the daemon's place in the network. `refusal` decides, on addresses alone. It is asked
for every address a name resolves to, and again for the address really dialled, so nothing is gained by
a name that changes its mind, by an odd spelling of an address, or by a redirect (none is followed).

Deliberately absent: proxies, cookies, kept connections, decompression and retries. The store's
connections do not pass here: their address is the operator's, not a client's.
"""

import asyncio
import errno
import os
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDictProxy
from yarl import URL

from registryd import __version__
from registryd.errors import EgressDenied, OutboundFailed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Lookup = Callable[[str], Sequence[str]]
"""A host name's addresses, in the order to try them. Called in a thread; raises socket.gaierror."""

EVERYWHERE: Final[tuple[Network, ...]] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
MAX_BODY: Final = 64 * 1024
"""Bytes of an answer that are read unless the caller says otherwise."""

_NEVER_4: Final = (
    ("unspecified", "0.0.0.0/8"),
    ("link-local", "169.254.0.0/16"),
    ("multicast", "224.0.0.0/4"),
    ("broadcast", "255.255.255.255/32"),
    ("reserved", "240.0.0.0/4"),
    ("a cloud metadata address", "100.100.100.200/32"),  # Alibaba
    ("a cloud metadata address", "168.63.129.16/32"),  # Azure
    ("a cloud metadata address", "192.0.0.192/32"),  # Oracle
)
_NEVER_6: Final = (
    ("unspecified", "::/128"),
    ("link-local", "fe80::/10"),
    ("multicast", "ff00::/8"),
    ("a cloud metadata address", "fd00:ec2::254/128"),  # Amazon
    ("a cloud metadata address", "fd20:ce::254/128"),  # Google
    ("a cloud metadata address", "fd00:42::42/128"),  # Scaleway
    # Which IPv4 address stands in it depends on how the operator has cut the prefix.
    ("a local translation address", "64:ff9b:1::/48"),
)


def _ranges(never: Iterable[tuple[str, str]]) -> tuple[tuple[int, int, str], ...]:
    """First and last address as numbers, which compare ten times faster than networks."""
    networks = [(why, ip_network(text)) for why, text in never]
    return tuple((int(one[0]), int(one[-1]), why) for why, one in networks)


_RANGES_4: Final = _ranges(_NEVER_4)
_RANGES_6: Final = _ranges(_NEVER_6)
_SENDABLE: Final = re.compile(r"[!-~]+")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Where connections may go: into the `allowed` networks, and to this machine only with `loopback`.

    Link-local, metadata, multicast, broadcast and unspecified addresses are never dialled, whatever is
    allowed. `loopback` is meant for a daemon that itself listens on loopback alone.
    """

    allowed: tuple[Network, ...] = EVERYWHERE
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class OutboundLimits:
    """What all connections together may take."""

    connections: int = 512
    """At a time."""
    per_peer: int = 32
    """At a time to one host and port."""
    addresses: int = 8
    """Of one name, that are looked at."""
    lookups: int = 16
    """Names looked up at a time, each in a thread: one that gets no answer holds its thread for long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundReply:
    """An HTTP answer. `body` is as it came over the wire (never decompressed) and is cut, with
    `truncated` set, where it was longer than the caller wanted. `address` is the one that answered."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    truncated: bool
    address: str
    certificate_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundConnection:
    """An open TCP or TLS connection to `address`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    address: str
    certificate_expires_at: datetime | None = None


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks in CIDR notation. Raises ValueError."""
    found = tuple(ip_network(text) for text in texts)
    return EVERYWHERE if found == EVERYWHERE else found


@lru_cache(maxsize=16_384)
def _address(text: str) -> Address:
    """`ip_address`, remembered: the same few are read several times in every exchange."""
    return ip_address(text)


def refusal(address: Address, policy: EgressPolicy) -> str | None:
    """Why `address` must not be dialled, to stand after "is": `link-local`. None: it may be.

    An IPv6 address that carries an IPv4 address leads there, and is judged by it.
    """
    if isinstance(address, IPv6Address) and (carried := embedded(address)):
        return next((why for one in carried if (why := refusal(one, policy))), None)
    value = int(address)
    for first, last, why in _RANGES_4 if address.version == 4 else _RANGES_6:
        if first <= value <= last:
            return why
    if value == 1 if address.version == 6 else value >> 24 == 127:
        return None if policy.loopback else "loopback"
    if policy.allowed is EVERYWHERE or any(address in network for network in policy.allowed):
        return None
    return "in no allowed network"


def embedded(address: IPv6Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that packets to `address` may end at: mapped, compatible, translated (SIIT,
    NAT64), 6to4, Teredo (server and client) and ISATAP forms."""
    value = int(address)
    prefix, last = value >> 32, IPv4Address(value & 0xFFFF_FFFF)
    if prefix in (0xFFFF, 0xFFFF_0000) or address in _NAT64 or prefix & 0xFFFF_FFFF in _ISATAP:
        return (last,)
    if prefix == 0 and value > 1:
        return (last,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo or ()


def not_after(certificate: bytes) -> datetime | None:
    """When an X.509 certificate (DER) expires; None if that cannot be read.

    The ssl module parses only certificates that it has verified, and a probe that does not verify
    wants to know all the same.
    """
    try:
        _, at, _ = _der(certificate, 0)  # Certificate
        _, at, _ = _der(certificate, at)  # TBSCertificate
        tag, _, end = _der(certificate, at)
        if tag == 0xA0:  # the version, which may be left out
            _, _, end = _der(certificate, end)
        for _ in range(2):  # after the serial number: signature algorithm, issuer
            _, _, end = _der(certificate, end)
        _, at, _ = _der(certificate, end)  # Validity
        _, _, at = _der(certificate, at)  # notBefore
        tag, at, end = _der(certificate, at)
        text = certificate[at:end].decode("ascii")
        if tag == 0x17:  # UTCTime: years 1950 to 2049
            text = ("20" if text < "5" else "19") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (IndexError, ValueError):
        return None


def _der(data: bytes, at: int) -> tuple[int, int, int]:
    """The element at `at`: its tag, and where its content starts and ends."""
    tag, length, at = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[at : at + size], "big"), at + size
    if at + length > len(data):
        raise IndexError("the element is longer than the data")
    return tag, at, at + length


def system_lookup(host: str) -> list[str]:
    """What the operating system makes of `host`: hosts file, DNS, and old spellings such as 0x7f.1."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Outbound:
    """Opens connections. Raises EgressDenied, which is final, and OutboundFailed for everything that
    can go wrong on the way; nothing else but CancelledError.

    `lookup` and `trust` are for whoever knows better than the operating system what a name means and
    whose certificates to accept.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        limits: OutboundLimits = OutboundLimits(),
        lookup: Lookup = system_lookup,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self.policy = policy
        self._limits = limits
        self._lookups = _Lookups(lookup, limits.lookups)
        self._trust = trust
        self._contexts: dict[tuple[bool, tuple[str, ...]], ssl.SSLContext] = {}
        self._slots = _Slots(limits.connections, limits.per_peer)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        url: str,
        *,
        timeout: timedelta,  # noqa: ASYNC109  of the whole exchange, and told in the error
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_body: int = MAX_BODY,
        verify_tls: bool = True,
        server_name: str | None = None,
    ) -> OutboundReply:
        """One HTTP exchange on a connection of its own. Any status is an answer, also a redirect.

        `server_name` is the name that TLS asks for and verifies, where it is not the URL's host.
        """
        target, host, port = _http_url(url)
        secure: dict[str, Any] = {}
        if target.scheme == "https":
            secure = {"ssl": self._context(verify_tls, ()), "server_hostname": server_name}
        async with self._within(timeout, host, port):
            try:
                async with self._client().request(
                    method, target, headers=headers, data=body, allow_redirects=False, **secure
                ) as answer:
                    assert isinstance(answer, _Answer)  # noqa: S101  the session's response class
                    self._judge(host, _address(answer.address))
                    received, truncated = await _bounded(answer.content, max_body)
                    return OutboundReply(
                        status=answer.status,
                        headers=answer.headers,
                        body=received,
                        truncated=truncated,
                        address=answer.address,
                        certificate_expires_at=answer.certificate_expires_at,
                    )
            except aiohttp.ClientError as error:
                raise OutboundFailed(_client_reason(error)) from error
            except ValueError as error:  # a line end in a header, a method that is no token
                raise OutboundFailed("the request holds what HTTP does not allow") from error

    @asynccontextmanager
    async def connect(
        self,
        host: str,
        port: int,
        *,
        timeout: timedelta,  # noqa: ASYNC109  of everything, the caller's block included
        tls: bool = False,
        verify_tls: bool = True,
        server_name: str | None = None,
        alpn: tuple[str, ...] = (),
    ) -> AsyncIterator[OutboundConnection]:
        """A TCP or TLS connection for the length of the block, which has to end within `timeout` too."""
        async with self._within(timeout, host, port):
            ends_at = asyncio.get_running_loop().time() + timeout.total_seconds()
            sock = await self._dial(host, port, ends_at)
            address = _peer(sock.getpeername())
            context = self._context(verify_tls, alpn) if tls else None
            name = (server_name or host).rstrip(".") if tls else None
            try:
                reader, writer = await asyncio.open_connection(
                    sock=sock, ssl=context, server_hostname=name
                )
            except BaseException:
                sock.close()
                raise
            try:
                yield OutboundConnection(
                    reader=reader,
                    writer=writer,
                    address=address,
                    certificate_expires_at=_expiry(writer.transport),
                )
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)  # the loop closes the socket in its next round

    async def resolve(
        self,
        host: str,
        *,
        timeout: timedelta,  # noqa: ASYNC109  told in the error
    ) -> tuple[Address, ...]:
        """The addresses of `host` that may be dialled, at least one."""
        async with self._timed(timeout, _Phase()):
            return await self._permitted(host)

    @asynccontextmanager
    async def _within(self, timeout: timedelta, host: str, port: int) -> AsyncIterator[None]:  # noqa: ASYNC109
        phase = _Phase("waiting for a free connection")
        async with self._timed(timeout, phase), self._slots.take((host, port)):
            phase.name = ""
            yield

    @asynccontextmanager
    async def _timed(self, timeout: timedelta, phase: "_Phase") -> AsyncIterator[None]:  # noqa: ASYNC109
        """Ends the block after `timeout`; turns what the network raises into OutboundFailed."""
        seconds = timeout.total_seconds()
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                yield
        except OSError as error:  # TimeoutError is one
            if scope.expired():
                spent = f"timed out after {seconds * 1000:g} ms"
                raise OutboundFailed(f"{spent} {phase.name}".rstrip()) from None
            raise OutboundFailed(_os_reason(error)) from error

    async def _permitted(self, host: str) -> tuple[Address, ...]:
        found = await self._addresses(host)
        permitted = tuple(one for one in found if refusal(one, self.policy) is None)
        if not permitted:
            self._judge(host, found[0])
        return permitted

    async def _addresses(self, host: str) -> tuple[Address, ...]:
        try:
            return (_address(host),)
        except ValueError:
            pass  # a name
        try:
            found = await self._lookups.find(host)
        except (OSError, ValueError) as error:
            raise _unresolved(host, error) from error
        addresses = tuple(_address(text) for text in found[: self._limits.addresses])
        if not addresses:
            raise _unresolved(host, socket.gaierror(socket.EAI_FAIL, "no address"))
        return addresses

    def _judge(self, host: str, address: Address) -> None:
        if why := refusal(address, self.policy):
            shown = str(address) if host == str(address) else f"{_printable(host)} ({address})"
            raise EgressDenied(f"egress_denied: {shown} is {why}")

    async def _dial(self, host: str, port: int, ends_at: float) -> socket.socket:
        """A connected socket: the addresses are tried in turn, none for longer than its share of the
        time that is left, so that one that swallows packets does not hide the next."""
        loop = asyncio.get_running_loop()
        failure: OSError = OSError(errno.EHOSTUNREACH, "no address")
        left = await self._permitted(host)
        for tried, address in enumerate(left):
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            sock = self._socket((family, socket.SOCK_STREAM, 0, "", (str(address), port)))
            try:
                sock.setblocking(False)
                share = loop.time() + (ends_at - loop.time()) / (len(left) - tried)
                # The last one is ended by the time limit of the whole, which words it.
                async with asyncio.timeout_at(share if tried + 1 < len(left) else None):
                    await loop.sock_connect(sock, (str(address), port))
                self._judge(host, _address(_peer(sock.getpeername())))
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The socket for one address about to be dialled. Every TCP connection passes here."""
        family, kind, proto, _, sockaddr = info
        address = _address(sockaddr[0])
        self._judge(str(address), address)
        return socket.socket(family, kind, proto)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # bounded by _slots, which covers bare connections too
                    force_close=True,
                    use_dns_cache=False,
                    resolver=_Resolver(self._permitted),
                    socket_factory=self._socket,
                ),
                response_class=_Answer,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                headers={
                    "User-Agent": f"registryd/{__version__}",
                    "Accept-Encoding": "identity",
                },
                timeout=aiohttp.ClientTimeout(),  # none of its own: `_timed` is the one limit
            )
        return self._session

    def _context(self, verify: bool, alpn: tuple[str, ...]) -> ssl.SSLContext:
        context = self._contexts.get((verify, alpn))
        if context is None:
            if verify:
                context = self._trust()
            else:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if alpn:
                context.set_alpn_protocols(list(alpn))
            self._contexts[verify, alpn] = context
        return context


@dataclass(slots=True)
class _Phase:
    """What is being waited for, to be told when the time is up."""

    name: str = ""


@dataclass(slots=True)
class _Gate:
    semaphore: asyncio.Semaphore
    users: int = 0


class _Slots:
    """Bounds the connections in total and to each peer; remembers only peers in use."""

    def __init__(self, total: int, per_peer: int) -> None:
        self._total = asyncio.Semaphore(total)
        self._per_peer = per_peer
        self._gates: dict[tuple[str, int], _Gate] = {}

    @asynccontextmanager
    async def take(self, peer: tuple[str, int]) -> AsyncIterator[None]:
        gate = self._gates.get(peer)
        if gate is None:
            gate = self._gates[peer] = _Gate(asyncio.Semaphore(self._per_peer))
        gate.users += 1
        try:
            async with gate.semaphore, self._total:
                yield
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[peer]


class _Lookups:
    """Looks names up in threads, so many at a time.

    Neither the loop's threads (uvloop has four, and four dead names would hold them all) nor an
    executor's, whose end the interpreter waits for: a name server that does not answer must not hold
    up the stop of the daemon.
    """

    def __init__(self, lookup: Lookup, limit: int) -> None:
        self._lookup = lookup
        self._free = asyncio.Semaphore(limit)

    async def find(self, host: str) -> Sequence[str]:
        """Raises what the lookup raises. Given up, it goes on in its thread and keeps its place."""
        loop = asyncio.get_running_loop()
        await self._free.acquire()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def look() -> None:
            found: Sequence[str] = ()
            failure: Exception | None = OSError("the lookup broke off")
            try:
                found, failure = self._lookup(host), None
            except (OSError, ValueError) as error:
                failure = error
            finally:
                try:
                    loop.call_soon_threadsafe(self._deliver, answer, found, failure)
                except RuntimeError:
                    pass  # the loop has ended meanwhile

        try:
            threading.Thread(target=look, name="lookup", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            self._free.release()
            raise OSError(str(error)) from error
        return await answer

    def _deliver(
        self,
        answer: "asyncio.Future[Sequence[str]]",
        found: Sequence[str],
        failure: Exception | None,
    ) -> None:
        self._free.release()
        if answer.done():  # given up
            return
        if failure is not None:
            answer.set_exception(failure)
        else:
            answer.set_result(found)


class _Resolver(AbstractResolver):
    """aiohttp's view of our lookups: only addresses that may be dialled."""

    def __init__(self, permitted: Callable[[str], Any]) -> None:
        self._permitted = permitted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._permitted(host)
        ]

    async def close(self) -> None:
        """The lookups are not ours to close."""


class _Answer(aiohttp.ClientResponse):
    """Remembers the other end: the connection is gone as soon as a short body has been read."""

    address = ""
    certificate_expires_at: datetime | None = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        transport = connection.transport
        if transport is None or (peer := transport.get_extra_info("peername")) is None:
            raise aiohttp.ServerDisconnectedError
        self.address = _peer(peer)
        self.certificate_expires_at = _expiry(transport)
        return await super().start(connection)


async def _bounded(content: aiohttp.StreamReader, limit: int) -> tuple[bytes, bool]:
    """At most `limit` bytes of a body, and whether there would have been more."""
    received = bytearray()
    while len(received) <= limit:
        part = await content.read(limit + 1 - len(received))
        if not part:
            return bytes(received), False
        received += part
    return bytes(received[:limit]), True


def _http_url(text: str) -> tuple[URL, str, int]:
    try:
        # A URL that is already as it goes over the wire is left alone: signatures may cover it.
        url = URL(text, encoded=_SENDABLE.fullmatch(text) is not None)
        host, port = url.host, url.port
    except ValueError as error:
        raise OutboundFailed("the URL cannot be read") from error
    if url.scheme not in ("http", "https") or not host or not port:
        raise OutboundFailed("the URL has to start with http:// or https:// and name a host")
    return url, host, port


def _peer(sockaddr: Any) -> str:
    """The address of a socket's other end, without port and scope."""
    return str(sockaddr[0]).partition("%")[0]


def _expiry(transport: asyncio.BaseTransport) -> datetime | None:
    secured = transport.get_extra_info("ssl_object")
    certificate = secured.getpeercert(binary_form=True) if secured is not None else None
    return not_after(certificate) if certificate else None


def _unresolved(host: str, error: Exception) -> OutboundFailed:
    """`members["rcode"]` is the DNS response code that the resolver's answer amounts to."""
    name = _printable(host)
    code = error.errno if isinstance(error, socket.gaierror) else None
    if isinstance(error, ValueError):
        detail, rcode = f"{name} is not a host name", "FORMERR"
    elif code == socket.EAI_NONAME:
        detail, rcode = f"the name {name} does not exist", "NXDOMAIN"
    elif code is not None and code == getattr(socket, "EAI_NODATA", None):
        detail, rcode = f"the name {name} has no address", "NOERROR"
    else:
        detail, rcode = f"the name {name} could not be looked up", "SERVFAIL"
    return OutboundFailed(detail, members={"rcode": rcode})


def _printable(host: str) -> str:
    """A host as it may stand in a sentence."""
    return host if host.isascii() and host.isprintable() and len(host) <= 255 else ascii(host[:60])


def _client_reason(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _os_reason(error.certificate_error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer"
    if isinstance(error, aiohttp.ClientConnectorError):
        return _os_reason(error.os_error)
    if isinstance(error, OSError):
        return _os_reason(error)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection was closed in the middle of the answer"
    if isinstance(error, aiohttp.ClientResponseError):
        # aiohttp has one type for all of it; a peer that quotes these words gains a wrong sentence.
        if "Got more than" in error.message or "Too many headers" in error.message:
            return "the answer's header is too large"
        return "the answer is not HTTP"
    if isinstance(error, aiohttp.InvalidURL):
        return "the URL cannot be read"
    return "the request failed"


def _os_reason(error: Exception) -> str:
    """What the operating system or TLS has to say, as a sentence without addresses."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate refused: {_printable_text(error.verify_message)}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "handshake failed").replace("_", " ").lower()
        return f"TLS failed: {_printable_text(reason)}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError):
        return "the connection was closed by the other side"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return "the connection failed"


def _printable_text(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)[:200]
