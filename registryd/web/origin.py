"""Which hosts this node answers to and which web pages may use it, told from a request's headers alone.

A browser asks on behalf of whatever page it shows. The Host keeps out pages whose name was made to
point here (DNS rebinding); Origin and Sec-Fetch-Site keep out the pages of others. Programs that are
no browsers send neither of these two, and are not concerned.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from multidict import istr

from registryd import errors
from registryd.web.reply import Header

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a browser calls the machine it runs on: no other machine's page can have such a host."""

# Looked up in every request: as istr a name is not put into lower case each time.
_HOST: Final = istr("Host")
_ORIGIN: Final = istr("Origin")
_FETCH_SITE: Final = istr("Sec-Fetch-Site")

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_PAGE: Final = frozenset({"same-origin", "none"})
_PREFLIGHT_SECONDS: Final = 600
_SENDABLE: Final = (
    "Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID, Prefer, X-API-Key, "
    "X-Request-ID"
)
_EXPOSED: Final = (
    "ETag, Link, Location, Preference-Applied, Retry-After, X-Registry-Revision, "
    "X-Registry-Stale-Ms, X-Request-ID"
)


@dataclass(frozen=True, slots=True)
class Origins:
    """`hosts` in lower case, without ports, IPv6 ones in brackets; None is any. `pages` are the origins,
    `https://ui.example`, whose pages may use the API (CORS)."""

    hosts: frozenset[str] | None = None
    pages: frozenset[str] = frozenset()

    def unremarkable(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers is let in whatever it asks for, and answered without CORS."""
        return (
            "origin" not in headers
            and "sec-fetch-site" not in headers
            and (self.hosts is None or host_of(headers.get("host", "")) in self.hosts)
        )

    def check(self, headers: Mapping[str, str], method: str, *, public: bool) -> None:
        """Raises Forbidden for a foreign host, or for a foreign page. `public` is what everybody may read:
        pages of others may show it too, as they do with badges."""
        host = headers.get(_HOST)
        # Only HTTP/1.0 can do without, which no browser speaks.
        if self.hosts is not None and host is not None and host_of(host) not in self.hosts:
            raise errors.Forbidden(
                f"this node does not answer to the host {host[:100]!r}; if it is one of its names, add it "
                "to server.allowedHosts"
            )
        if self._foreign(headers, method) and not (public and method in SAFE):
            page = headers.get(_ORIGIN, "another site")
            raise errors.Forbidden(
                f"a page of {page[:100]} may not use this registry; if it should, add its origin to "
                "server.cors.origins"
            )

    def cors(self, headers: Mapping[str, str]) -> list[Header]:
        """What lets the page that asks read the answer; nothing where no page may."""
        origin = headers.get(_ORIGIN)
        if origin is None or origin not in self.pages:
            return []
        return [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _EXPOSED),
        ]

    def preflight(
        self, headers: Mapping[str, str], method: str, answered: Iterable[Header]
    ) -> list[Header]:
        """What a browser has to be told before it sends more than a simple request, when it asks for that
        with OPTIONS; `answered` are the headers of the answer, with `Allow`."""
        if method != "OPTIONS" or "Access-Control-Request-Method" not in headers:
            return []
        return [
            ("Access-Control-Allow-Methods", dict(answered).get("Allow", "")),
            ("Access-Control-Allow-Headers", _SENDABLE),
            ("Access-Control-Max-Age", str(_PREFLIGHT_SECONDS)),
        ]

    def _foreign(self, headers: Mapping[str, str], method: str) -> bool:
        origin = headers.get(_ORIGIN)
        if origin in self.pages:
            return False
        site = headers.get(_FETCH_SITE)
        if site is not None:
            return site not in _OWN_PAGE and not _follows_a_link(headers, method)
        if origin is None:
            return False
        # The scheme is not compared: behind a proxy that ends TLS it is not ours.
        return origin.partition("://")[2].lower() != headers.get(_HOST, "").lower()


ANYWHERE: Final = Origins()
"""Any host, and no page but its own."""


@lru_cache(maxsize=1024)
def host_of(value: str) -> str:
    """The host of a Host header, without its port."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[: value.find("]") + 1]
    return value.partition(":")[0].removesuffix(".")


def _follows_a_link(headers: Mapping[str, str], method: str) -> bool:
    """Somebody clicked on a link to us: the page it stood on learns nothing of the answer."""
    return (
        method in SAFE
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest", "document") == "document"
    )
