"""Who is behind a proxy: the client's address from X-Forwarded-For or Forwarded, if the proxy is trusted.

Own code, because libraries for this are middlewares of aiohttp's Application, which is not used here.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from multidict import CIMultiDictProxy

from registryd import errors
from registryd.web.caller import Peer

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

X_FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED: Final = "Forwarded"

_KEPT: Final = 4096
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?")
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = re.compile(rf'({_WORD})=(?:({_WORD})|"([^"\\]*)")')
_SEPARATOR: Final = re.compile(r"[ \t]*([,;])[ \t]*")


class Proxies:
    """The proxies that are believed, by their networks."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        # The same clients ask again and again.
        self._behind = lru_cache(_KEPT)(self._find)
        self.trusts = lru_cache(_KEPT)(self._trusts)

    def client(self, peer: Peer, headers: "Mapping[str, str] | CIMultiDictProxy[str]") -> Peer:
        """The peer with the address of the client that it speaks for; itself, if it is no proxy of ours or
        says nothing. Raises Malformed."""
        if not self.trusts(peer.address):
            return peer
        address = self._behind(_values(headers, X_FORWARDED_FOR), _values(headers, FORWARDED))
        return peer if address is None else replace(peer, address=address)

    def _trusts(self, address: str) -> bool:
        try:
            return self._ours(ipaddress.ip_address(address))
        except ValueError:
            return False

    def _ours(self, ip: Ip) -> bool:
        ip = _unmapped(ip)
        return any(ip in network for network in self._networks)

    def _find(self, listed: str, forwarded: str) -> str | None:
        found = [
            str(self._outermost(hops))
            for text, parse in ((listed, _listed_hops), (forwarded, _forwarded_hops))
            if text and (hops := parse(text))
        ]
        if len(set(found)) > 1:
            # Most proxies write one of the two and pass the other on as the client sent it.
            raise errors.Malformed(f"{X_FORWARDED_FOR} and {FORWARDED} name different clients")
        return found[0] if found else None

    def _outermost(self, hops: Sequence[Ip]) -> Ip:
        """The last one that is no proxy of ours: what stands before it, anybody may have written."""
        return next((ip for ip in reversed(hops) if not self._ours(ip)), hops[0])


def _values(headers: "Mapping[str, str] | CIMultiDictProxy[str]", name: str) -> str:
    """All values of a header in one; the fast lane has each at most once, in lower case."""
    if isinstance(headers, CIMultiDictProxy):
        return ",".join(headers.getall(name, ()))
    return headers.get(name.lower(), "")


def _listed_hops(text: str) -> list[Ip]:
    return [_address(part.strip(), X_FORWARDED_FOR) for part in text.split(",")]


def _forwarded_hops(text: str) -> list[Ip]:
    """RFC 7239: elements with commas between, in each `name=value` with semicolons between."""
    hops: list[Ip] = []
    names: set[str] = set()
    position = 0
    while True:
        pair = _PAIR.match(text, position)
        name = pair[1].lower() if pair else ""
        if pair is None or name in names:
            raise errors.Malformed(f"{FORWARDED}: position {position + 1}: expected name=value")
        names.add(name)
        if name == "for":
            hops.append(_address(pair[2] if pair[3] is None else pair[3], FORWARDED))
        position = pair.end()
        if position == len(text.rstrip()):
            break
        separator = _SEPARATOR.match(text, position)
        if separator is None:
            raise errors.Malformed(f"{FORWARDED}: position {position + 1}: expected , or ;")
        if separator[1] == ",":
            names = set()
        position = separator.end()
    return hops


def _address(text: str, header: str) -> Ip:
    """An address, perhaps with a port; IPv6 also bare, as X-Forwarded-For has it."""
    node = _NODE.fullmatch(text)
    try:
        return _unmapped(ipaddress.ip_address((node[1] or node[2]) if node else text))
    except ValueError:
        raise errors.Malformed(f"{header}: {text[:60]!r} is not an IP address") from None


def _unmapped(ip: Ip) -> Ip:
    """::ffff:10.0.0.1 is 10.0.0.1."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip
