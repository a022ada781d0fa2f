"""Who a service says it is: from its environment, and ids that hold in containers. Pure."""

import random
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from registryd.errors import Invalid
from registryd.registry.types import SCHEMES

DEFAULT_URL: Final = "http://127.0.0.1:8082"
DEFAULT_PORT: Final = "8090"
ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"


def base_urls(environ: Mapping[str, str]) -> list[str]:
    """`REGISTRYD_URL`, several separated by commas, else `CONFIG_SERVICE_URL`, else this machine.
    Empty means absent."""
    text = environ.get("REGISTRYD_URL") or environ.get("CONFIG_SERVICE_URL") or DEFAULT_URL
    return [url.strip() for url in text.split(",") if url.strip()]


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the environment says of a service. `instance_id` None: `default_id` makes one."""

    name: str
    endpoint: str
    instance_id: str | None


def from_environment(environ: Mapping[str, str]) -> ServiceSettings:
    """Reads `SERVICE_NAME`, `SERVICE_PUBLIC_URL` or else `SERVICE_HOST` (default: the name) and
    `SERVICE_PORT` (8090), and `SERVICE_INSTANCE_ID`. Empty means absent. Raises Invalid without a name."""
    name = environ.get("SERVICE_NAME") or ""
    if not name:
        raise Invalid("SERVICE_NAME is not set. Set it, or give `name` and `endpoint` yourself.")
    public = (environ.get("SERVICE_PUBLIC_URL") or "").rstrip("/")
    host = environ.get("SERVICE_HOST") or name
    port = environ.get("SERVICE_PORT") or DEFAULT_PORT
    return ServiceSettings(
        name, public or f"http://{host}:{port}", environ.get("SERVICE_INSTANCE_ID") or None
    )


def default_id(name: str, endpoint: str, dice: random.Random, *, host: str = "") -> str:
    """`name-hostname-port-random`: containers share names, process ids and often host names."""
    parts = urlsplit(endpoint)
    port = parts.port or SCHEMES.get(parts.scheme.lower()) or 0
    where = re.sub(r"[^A-Za-z0-9.-]", "-", host or socket.gethostname())[:40]
    return f"{name[:60]}-{where}-{port}-{token(dice)}"


def token(dice: random.Random, length: int = 6) -> str:
    return "".join(dice.choice(ALPHABET) for _ in range(length))
