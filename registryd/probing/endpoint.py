"""Where a target that is no web page listens: host, port and TLS, read from its URL."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

PORTS: Final = {"http": 80, "https": 443}
SECURE: Final = frozenset({"https", "tls", "ssl", "tcps", "grpcs"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoint_of(url: str) -> Endpoint:
    """Raises ValueError with a sentence for people."""
    host, port, scheme = _split(url)
    port = port if port is not None else PORTS.get(scheme)
    if not port:
        raise ValueError("the target names no port")
    return Endpoint(host, port, scheme in SECURE)


def host_of(url: str) -> str:
    """Raises ValueError with a sentence for people."""
    return _split(url)[0]


def _split(url: str) -> tuple[str, int | None, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError("the target cannot be read as a URL") from error
    if not host:
        raise ValueError("the target names no host")
    return host, port, parts.scheme
