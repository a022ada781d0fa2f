"""How an instance reads as JSON: the client's part as stored, then what the registry knows of it.

The same bytes are composed by `document` in lua/lib.lua for the expiring keys and messages; a test
holds the two together. Nothing here parses the client's part.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from registryd.feed.revision import Revision
from registryd.registry.types import AdminState, HealthStatus, InstanceFields, renew_interval


class Row(NamedTuple):
    """The registry's own part of an instance, as the store keeps it (cjson, key `ossa:inst`)."""

    ttl_ms: int
    incarnation: str
    revision: Revision
    health: str
    since: str
    extra: str
    registered_at: str
    updated_at: str
    endpoint: str
    terms: tuple[str, ...]
    discovered: str = ""
    """What probes found it to offer, as JSON; see `Offer`."""

    @staticmethod
    @lru_cache(maxsize=1024)
    def decode(raw: bytes) -> "Row":
        """Remembers the latest: a write reads its row in the answer, and again when the stream brings it."""
        row: dict[str, Any] = json.loads(raw)
        return Row(
            ttl_ms=int(row["ttl"]),
            incarnation=row["inc"],
            revision=Revision(int(row["epoch"]), int(row["rev"])),
            health=row["health"],
            since=row["since"],
            extra=row["extra"],
            registered_at=row["registered"],
            updated_at=row["updated"],
            endpoint=row["endpoint"],
            terms=tuple(json.loads(row["terms"])),
            discovered=row.get("discovered", ""),
        )

    @property
    def ttl_seconds(self) -> int:
        return self.ttl_ms // 1000


class Offer(NamedTuple):
    """What probes found an instance to offer beside what it declares: capabilities as (name, version),
    and models, both sorted. A capability whose name is declared stands as it was declared."""

    capabilities: tuple[tuple[str, str], ...] = ()
    models: tuple[str, ...] = ()

    @classmethod
    def decode(cls, text: str) -> "Offer":
        if not text:
            return cls()
        fields: dict[str, Any] = json.loads(text)
        capabilities = tuple((one["name"], one["version"]) for one in fields["capabilities"])
        return cls(capabilities, tuple(fields["models"]))

    def encode(self) -> str:
        """The text that stands in a row and in an instance's JSON; "" for nothing."""
        if not self.capabilities and not self.models:
            return ""
        capabilities = [{"name": name, "version": version} for name, version in self.capabilities]
        fields = {"capabilities": capabilities, "models": self.models}
        return json.dumps(fields, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Admin:
    """What an operator has set on an instance, and the JSON bytes that say so (`b""` for nothing)."""

    raw: bytes = b""
    state: AdminState | None = None

    @classmethod
    def decode(cls, raw: bytes) -> "Admin":
        return cls(raw, AdminState(json.loads(raw)["state"])) if raw else cls()


def effective_health(row: Row, admin: Admin) -> HealthStatus:
    """What callers see: an operator's maintenance hides what the instance says."""
    if admin.state is AdminState.MAINTENANCE:
        return HealthStatus.MAINTENANCE
    return HealthStatus(row.health)


def compose(
    document: bytes, row: Row, admin: Admin, *, suspect: bool, expires_at: str | None = None
) -> bytes:
    """The instance as the API shows it; `expires_at` only in answers to writes."""
    expiry = f'"expiresAt":"{expires_at}",' if expires_at else ""
    found = f',"discovered":{row.discovered}' if row.discovered else ""
    ours = (
        f',"health":{{"status":"{effective_health(row, admin)}","since":"{row.since}"{row.extra}{found}}}'
        f',"registeredAt":"{row.registered_at}","updatedAt":"{row.updated_at}"'
        f',"incarnation":"{row.incarnation}","lease":{{"ttlSeconds":{row.ttl_seconds},{expiry}'
        f'"renewIntervalSeconds":{renew_interval(row.ttl_seconds)},"state":"{"suspect" if suspect else "live"}"}}'
        f',"revision":"{row.revision}"'
    ).encode()
    if admin.raw:
        return b'%b%b,"admin":%b}' % (document[:-1], ours, admin.raw)
    return b"%b%b}" % (document[:-1], ours)


def encode(fields: InstanceFields) -> bytes:
    """The client's part as it is stored: canonical JSON of what was given and of our defaults."""
    free = fields.metadata.model_extra or {}
    if None in free.values():
        # Nulls in what is free form are the client's, and mean something to him.
        shown = fields.model_dump(by_alias=True, exclude_none=True, mode="json", include=_STORED)
        shown["metadata"] |= free
        text = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    else:
        text = fields.model_dump_json(by_alias=True, exclude_none=True, include=_STORED)
    if fields.health_check is None and "health_check" in fields.model_fields_set:
        # No check is not the default one.
        text = text[:-1] + ',"healthCheck":null}'
    return text.encode()


_STORED = set(InstanceFields.model_fields)


def terms_of(fields: InstanceFields) -> list[str]:
    """The index terms of the client's part; `health:` is derived from the rest where it is needed."""
    terms = {f"capability:{capability.name}" for capability in fields.capabilities}
    terms |= {f"tag:{tag}" for tag in fields.metadata.tags or ()}
    if fields.metadata.environment is not None:
        terms.add(f"environment:{fields.metadata.environment}")
    if fields.version is not None:
        terms.add(f"version:{fields.version}")
    return sorted(terms)


def claims_of(fields: InstanceFields) -> list[str]:
    """What an instance claims, as `name@version`."""
    return sorted(f"{capability.name}@{capability.version}" for capability in fields.capabilities)
