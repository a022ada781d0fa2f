"""What the registry speaks of, as it stands on the wire: names, instances, their parts.

Pure: shapes and their validation, no store, no HTTP. camelCase on the wire, snake_case here; both are
accepted. Case conversion never enters `metadata`, `parameters`, `constraints`, `inputs`, `outputs`.
"""

import hashlib
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from registryd.probing import conditions

NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
INSTANCE_ID: Final = r"[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}"
TAG: Final = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"

NAME_RE: Final = re.compile(NAME)
INSTANCE_ID_RE: Final = re.compile(INSTANCE_ID)
TAG_RE: Final = re.compile(TAG)
VERSION_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")

MIN_TTL_SECONDS: Final = 2
MAX_TTL_SECONDS: Final = 86_400
MAX_DOCUMENT_BYTES: Final = 64 * 1024
MAX_CAPABILITIES: Final = 128
MAX_TAGS: Final = 64
MAX_METADATA: Final = 256
MAX_MODELS: Final = 256
MAX_DEPENDENCIES: Final = 128
MAX_BATCH: Final = 10_000

SCHEMES: Final = {
    "http": 80,
    "https": 443,
    "ws": 80,
    "wss": 443,
    "grpc": 80,
    "grpcs": 443,
    "tcp": None,
    "tls": None,
    "udp": None,
    "redis": 6379,
    "rediss": 6379,
    "amqp": 5672,
    "amqps": 5671,
    "postgres": 5432,
    "postgresql": 5432,
    "mysql": 3306,
    "mongodb": 27017,
    "kafka": 9092,
    "nats": 4222,
    "mqtt": 1883,
}
"""Endpoint schemes and their ports. A closed list: an endpoint ends up in browsers and clients."""

ENVIRONMENTS: Final = {
    "prod": "production",
    "dev": "development",
    "stage": "staging",
    "stg": "staging",
}
"""Aliases of environment names; any other word stands for itself."""

READ_ONLY: Final = frozenset(
    {"registeredAt", "updatedAt", "revision", "lease", "url", "instances", "admin"}
)
"""Fields of an answer that are ignored when they come back in a body."""


class HealthStatus(StrEnum):
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"
    MAINTENANCE = "maintenance"


PREFERENCE: Final = {
    HealthStatus.HEALTHY: 0,
    HealthStatus.DEGRADED: 1,
    HealthStatus.UNKNOWN: 2,
    HealthStatus.MAINTENANCE: 3,
    HealthStatus.UNHEALTHY: 4,
}
"""Which instance is better: less is. It orders choices and makes a service's health its best instance's."""

CLAIMS: Final = frozenset({HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY})
"""What an instance may claim of itself when it registers."""

OFFERED: Final = frozenset({HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNKNOWN})
"""Statuses in which an instance may be chosen for a caller."""


def canonical_environment(text: str) -> str:
    return ENVIRONMENTS.get(text.lower(), text)


def identity(service: str, instance_id: str) -> str:
    """How the store names an instance; splits one way at the first colon."""
    return f"{service}:{instance_id}"


def split_identity(text: str) -> tuple[str, str]:
    service, _, instance_id = text.partition(":")
    return service, instance_id


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise PydanticCustomError(
                "illegal_name",
                "{what} must be 1 to 128 letters, digits or any of {allowed}, starting with a letter or digit",
                {"what": what, "allowed": _ALLOWED[pattern]},
            )
        return text

    return AfterValidator(check)


def _shown_as(pattern: re.Pattern[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": f"^{pattern.pattern}$"})


_ALLOWED: Final = {
    NAME_RE: '". _ -"',
    INSTANCE_ID_RE: '". _ - : ~"',
    TAG_RE: '". _ - : /"',
    VERSION_RE: '". _ + ~ -"',
}


def _endpoint(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        # What urlsplit says quotes the URL, and what it takes for a port may be half a password.
        raise PydanticCustomError(
            "endpoint", "not a URL: its host or port cannot be read", {}
        ) from None
    if parts.scheme.lower() not in SCHEMES or not host:
        raise PydanticCustomError(
            "endpoint",
            "expected an absolute URL such as http://10.0.0.7:8080; known schemes are {schemes}",
            {"schemes": ", ".join(SCHEMES)},
        )
    if port == 0:
        raise PydanticCustomError("endpoint", "nothing listens on port 0", {})
    if parts.username is not None or parts.password is not None:
        raise PydanticCustomError("endpoint", "a URL here must not carry a user or password", {})
    if not text.isascii() or any(c <= " " or c in '"<>\\^`{|}' for c in text):
        raise PydanticCustomError("endpoint", "illegal character in URL; percent-encode it", {})
    return text


def _plain_text(text: str) -> str:
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise PydanticCustomError("control_character", "control characters are not allowed", {})
    return text


def _condition(text: str) -> str:
    try:
        conditions.parse(text)
    except ValueError as error:
        raise PydanticCustomError("condition", "{why}", {"why": str(error)}) from None
    return text


def _or_none(value: Any) -> Any:
    """The microservice clients send "" for what they do not know."""
    return None if value == "" else value


def _known_status(value: Any) -> Any:
    return HealthStatus.UNHEALTHY if value == "down" else value


def _flag(value: Any) -> Any:
    """Some clients have no booleans; words such as "yes" or "off" are more likely a mistake."""
    return bool(value) if type(value) is int and value in (0, 1) else value


def _time_text(value: Any) -> Any:
    """Numbers, also such as text, could be seconds or milliseconds: pydantic would guess."""
    if not (isinstance(value, str) and _TIME_RE.match(value)):
        raise PydanticCustomError("time", "expected a time such as 2030-01-31T12:00:00Z", {})
    return value


_TIME_RE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise PydanticCustomError("naive_time", "give an offset, such as Z or +02:00", {})
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("time", "is too far away", {}) from None


Name = Annotated[str, _matching(NAME_RE, "a name"), _shown_as(NAME_RE)]
InstanceId = Annotated[str, _matching(INSTANCE_ID_RE, "an instance id"), _shown_as(INSTANCE_ID_RE)]
Tag = Annotated[str, _matching(TAG_RE, "a tag or capability"), _shown_as(TAG_RE)]
Environment = Annotated[Name, AfterValidator(canonical_environment)]
Endpoint = Annotated[str, StringConstraints(max_length=2048), AfterValidator(_endpoint)]
Line = Annotated[str, StringConstraints(max_length=1024), AfterValidator(_plain_text)]
Version = Annotated[str, _matching(VERSION_RE, "a version"), _shown_as(VERSION_RE)]
Status = Annotated[HealthStatus, BeforeValidator(_known_status)]
Incarnation = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]{1,64}$")]
Flag = Annotated[
    bool,
    BeforeValidator(_flag),
    Field(strict=True),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}]}),
]
Time = Annotated[
    datetime,
    BeforeValidator(_time_text),
    AfterValidator(_utc),
    Field(description="RFC 3339 with an offset"),
]
WholeNumber = Annotated[int, Field(strict=True)]
Condition = Annotated[
    str,
    StringConstraints(min_length=1, max_length=512),
    AfterValidator(_condition),
    Field(examples=["[STATUS] == 200", "[RESPONSE_TIME] < 500"]),
]
TtlSeconds = Annotated[WholeNumber, Field(ge=MIN_TTL_SECONDS, le=MAX_TTL_SECONDS)]


class Shape(BaseModel):
    """Base of everything read from the wire: camelCase or snake_case in, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(alias=to_camel),
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )


class Capability(Shape):
    """What an instance claims it can do. Identity is name and major version."""

    name: Tag
    version: Version = "1.0.0"
    description: Line | None = None
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    constraints: dict[str, Any] | None = None


def _capability(value: Any) -> Any:
    """A bare name is short for a capability of that name."""
    return {"name": value} if isinstance(value, str) else value


class Metadata(Shape):
    """Free form beside two fields that discovery knows."""

    model_config = ConfigDict(extra="allow", alias_generator=None)

    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None
    environment: Environment | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if len(self.model_extra or ()) > MAX_METADATA:
            raise PydanticCustomError(
                "too_many", "at most {most} fields of one's own", {"most": MAX_METADATA}
            )
        return self

    @field_validator("tags")
    @classmethod
    def _without_repeats(cls, tags: list[str] | None) -> list[str] | None:
        return None if tags is None else list(dict.fromkeys(tags))


class HealthCheck(Shape):
    """How an instance is probed. `path` is relative to the endpoint, `url` stands for itself."""

    type: Literal["http", "tcp", "grpc", "ttl", "dns"] = "http"
    path: Annotated[str, StringConstraints(max_length=1024, pattern=r"^/[!-~]*$")] | None = None
    url: Endpoint | None = None
    method: Literal["GET", "HEAD", "POST"] = "GET"
    headers: (
        Annotated[
            dict[str, Line],
            Field(
                max_length=32,
                description="Sent with the probe, and shown to nobody: answers have **** for the values. "
                "Sent back so it means the value that is held, for a check of the same server",
            ),
        ]
        | None
    ) = None
    body: (
        Annotated[
            str,
            StringConstraints(max_length=8192),
            Field(description="Sent with the probe, and shown to nobody, as `headers`"),
        ]
        | None
    ) = None
    expected_status_codes: (
        Annotated[
            list[Annotated[WholeNumber, Field(ge=100, le=599)]], Field(min_length=1, max_length=64)
        ]
        | None
    ) = None
    interval_ms: Annotated[WholeNumber, Field(ge=100, le=86_400_000)] = 30_000
    timeout_ms: Annotated[WholeNumber, Field(ge=1, le=300_000)] = 5_000
    failure_threshold: Annotated[WholeNumber, Field(ge=1, le=100)] = 3
    success_threshold: Annotated[WholeNumber, Field(ge=1, le=100)] = 2
    retries: (
        Annotated[
            WholeNumber,
            Field(
                ge=0, le=10, description="Further attempts inside one probe, before it has failed"
            ),
        ]
        | None
    ) = None
    startup_grace_ms: (
        Annotated[
            WholeNumber,
            Field(
                ge=0,
                le=3_600_000,
                description="Failures do not count for so long after the registration, or until the "
                "first success",
            ),
        ]
        | None
    ) = None
    conditions: (
        Annotated[
            list[Condition],
            Field(min_length=1, max_length=32, description="All must hold, else it is unhealthy"),
        ]
        | None
    ) = None
    degraded_conditions: (
        Annotated[
            list[Condition],
            Field(min_length=1, max_length=32, description="All must hold, else it is degraded"),
        ]
        | None
    ) = None
    degraded_ms: (
        Annotated[
            WholeNumber,
            Field(ge=1, le=300_000, description="Slower than this, though passing, is degraded"),
        ]
        | None
    ) = None
    tls_skip_verify: Flag | None = None
    tls_server_name: (
        Annotated[str, StringConstraints(max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")] | None
    ) = None
    grpc_service: Annotated[str, StringConstraints(max_length=256, pattern=r"^[!-~]*$")] | None = (
        None
    )

    def over(self, default: "HealthCheck") -> "HealthCheck":
        """The same check, with the figures that it leaves open taken from `default`."""
        timing = ("interval_ms", "timeout_ms", "failure_threshold", "success_threshold")
        given = self.model_fields_set
        figures = {name: getattr(default, name) for name in timing if name not in given}
        if all(getattr(self, name) == figure for name, figure in figures.items()):
            return self
        check = self.model_copy(update=figures)
        timeout = check.timeout_ms
        if "timeout_ms" not in given:
            timeout = min(timeout, check.interval_ms // 2)
        elif timeout >= check.interval_ms:
            # The default interval is short; who wants to wait for long is asked less often.
            check = check.model_copy(update={"interval_ms": 2 * timeout})
        return check.model_copy(update={"timeout_ms": timeout})

    @field_validator("headers")
    @classmethod
    def _header_names(cls, headers: dict[str, str] | None) -> dict[str, str] | None:
        for name in headers or {}:
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", name):
                raise PydanticCustomError("header_name", "illegal header name", {})
        return headers

    @model_validator(mode="after")
    def _timeout_within_interval(self) -> Self:
        if "timeout_ms" not in self.model_fields_set:
            # A short interval alone is no mistake: the default gives way.
            object.__setattr__(self, "timeout_ms", min(self.timeout_ms, self.interval_ms // 2))
        if self.timeout_ms >= self.interval_ms:
            raise PydanticCustomError(
                "timeout",
                "timeoutMs ({timeout}) must be less than intervalMs ({interval})",
                {"timeout": self.timeout_ms, "interval": self.interval_ms},
            )
        if self.degraded_ms is not None and self.degraded_ms >= self.timeout_ms:
            raise PydanticCustomError(
                "degraded",
                "degradedMs ({degraded}) must be less than timeoutMs ({timeout})",
                {"degraded": self.degraded_ms, "timeout": self.timeout_ms},
            )
        return self


class ReportedHealth(Shape):
    """What an instance says of itself. Everything but `status` is ours, and ignored on the way in."""

    model_config = ConfigDict(extra="ignore")

    status: Status = HealthStatus.UNKNOWN


class InstanceFields(Shape):
    """The client's part of an instance: what is stored, byte for byte, as its document."""

    name: Name
    instance_id: InstanceId
    endpoint: Endpoint
    version: Version | None = None
    api_version: Version | None = None
    zone: Name | None = None
    weight: Annotated[WholeNumber, Field(ge=0, le=65_535)] = 1
    capabilities: Annotated[
        list[Annotated[Capability, BeforeValidator(_capability)]],
        Field(max_length=MAX_CAPABILITIES),
    ] = []
    models: Annotated[list[Tag], Field(max_length=MAX_MODELS)] | None = None
    resource_limits: dict[str, Any] | None = None
    depends_on: Annotated[list[Name], Field(max_length=MAX_DEPENDENCIES)] | None = None
    metadata: Metadata = Metadata()
    health_check: HealthCheck | None = None
    ttl_seconds: TtlSeconds | None = None

    @field_validator("capabilities")
    @classmethod
    def _distinct(cls, capabilities: list[Capability]) -> list[Capability]:
        seen = set()
        for index, capability in enumerate(capabilities):
            key = (capability.name, capability.version)
            if key in seen:
                raise PydanticCustomError(
                    "repeated",
                    "capability {index} repeats {name} {version}",
                    {"index": index, "name": capability.name, "version": capability.version},
                )
            seen.add(key)
        return capabilities


class Registration(InstanceFields):
    """The body of a registration. `instanceId` may be missing: it is then made from the endpoint."""

    instance_id: InstanceId | None = None  # type: ignore[assignment]  # filled in before it is stored
    incarnation: Incarnation | None = None
    health: ReportedHealth | None = None

    @property
    def claim(self) -> str:
        """The health it claims for itself, or "". Unknown claims nothing; maintenance is an operator's
        word, and comes back here only because somebody sent what he had read."""
        if self.health is None or self.health.status not in CLAIMS:
            return ""
        return self.health.status.value


class AdminState(StrEnum):
    MAINTENANCE = "maintenance"
    DRAINING = "draining"


class Maintenance(Shape):
    """Body of `PUT …/maintenance`."""

    enabled: Flag
    reason: Line | None = None
    until: Time | None = None


class Drain(Shape):
    """Body of `PUT …/drain`."""

    seconds: Annotated[WholeNumber, Field(ge=0, le=86_400)] = 30


class Heartbeat(Shape):
    """Optional body of a heartbeat."""

    status: Status | None = None
    details: dict[str, Any] | None = None
    incarnation: Incarnation | None = None
    instance_id: InstanceId | None = None


class HeartbeatItem(Shape):
    name: Name
    instance_id: InstanceId
    incarnation: Incarnation | None = None


class HeartbeatBatch(Shape):
    """Body of `PUT /heartbeats`."""

    heartbeats: Annotated[list[HeartbeatItem], Field(max_length=MAX_BATCH)]


class LegacyRegistration(BaseModel):
    """Body of `POST /register`: the microservice clients' contract, snake_case, unknown fields ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    service_name: Name
    service_url: Endpoint
    health_check_url: Annotated[Endpoint | None, BeforeValidator(_or_none)] = None
    service_metadata: dict[str, Any] = {}


class Lease(BaseModel):
    """What a renewal answers with."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    ttl_seconds: int
    expires_at: str
    renew_interval_seconds: int


def renew_interval(ttl_seconds: int) -> int:
    """When to send the next heartbeat: a third of the lease, so that two may be lost."""
    return max(1, ttl_seconds // 3)


def default_instance_id(endpoint: str) -> str:
    """`host-port` of an endpoint, so that a restart renews and a second replica joins."""
    parts = urlsplit(endpoint)
    port = parts.port or SCHEMES.get(parts.scheme.lower())
    host = parts.hostname or ""
    text = re.sub(r"[^A-Za-z0-9._-]", "-", f"{host}-{port}" if port else host)
    text = text if text[:1].isalnum() else f"i{text}"
    if len(text) <= 128:
        return text
    # Cut off, the ports of one long host would be one instance.
    return f"{text[:119]}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


class Answer(BaseModel):
    """Base of what the API answers with; more fields may come, so clients ignore those they do not know."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")


class CapabilityFound(Answer):
    name: Tag
    version: Version


class OfferShown(Answer):
    """What probes found an instance to offer, beside what it declares; it is found by these like by the
    declared ones. A capability of a name that it declares stands as declared."""

    capabilities: list[CapabilityFound] = []
    models: list[str] = []


class HealthShown(Answer):
    status: HealthStatus
    since: str
    details: dict[str, Any] | None = None
    last_check: str | None = None
    response_time: float | None = None
    error: str | None = None
    discovered: OfferShown | None = None


class LeaseShown(Answer):
    ttl_seconds: int
    renew_interval_seconds: int
    state: Literal["live", "suspect"]
    expires_at: str | None = None


class AdminShown(Answer):
    state: AdminState
    by: str
    reason: str | None = None
    until: str | None = None


class InstanceShown(Answer):
    name: Name
    instance_id: InstanceId
    endpoint: str
    version: str | None = None
    api_version: str | None = None
    zone: str | None = None
    weight: int
    capabilities: list[Capability]
    models: list[str] | None = None
    resource_limits: dict[str, Any] | None = None
    depends_on: list[str] | None = None
    metadata: dict[str, Any]
    health_check: HealthCheck | None = None
    ttl_seconds: int | None = None
    health: HealthShown
    registered_at: str
    updated_at: str
    incarnation: str
    lease: LeaseShown
    revision: str
    admin: AdminShown | None = None


class ServiceShown(InstanceShown):
    """A service: the fields of its best instance, and all its instances."""

    url: str
    instances: list[InstanceShown]


class InstanceArray(RootModel[list[InstanceShown]]):
    """A bare array of instances."""


class ServiceOrInstances(RootModel[ServiceShown | list[InstanceShown]]):
    """A service, or with `view=instances` its instances."""


class Change(RootModel[dict[str, Any]]):
    """Fields of an instance to merge into it (RFC 7386); null takes a field away, but `healthCheck:
    null` switches checking off."""


class ServiceList(Answer):
    """`services`, or `instances` with `view=instances`. With `fields`, their objects hold only those."""

    services: list[dict[str, Any]] | None = None
    instances: list[dict[str, Any]] | None = None
    total: int
    revision: str
    next: str | None


class HeartbeatResults(Answer):
    results: list[Literal["renewed", "unknown", "superseded"]]


class Chosen(Answer):
    url: str
    service: str
    instance_id: str
    health: HealthStatus
    version: str | None = None
    zone: str | None = None


class Stats(Answer):
    total_services: int
    healthy_services: int
    unhealthy_services: int
    degraded_services: int
    unknown_services: int
    services_in_maintenance: int
    unique_capabilities: int
    average_capabilities_per_service: float
    total_instances: int
    instances_by_health: dict[HealthStatus, int]


class CapabilityShown(Answer):
    name: str
    versions: list[str]
    services: list[str]
    defined: bool


class CapabilityList(Answer):
    capabilities: list[CapabilityShown]
    total: int
    next: str | None


class CleanupResult(Answer):
    removed: int


class LegacyRegistered(BaseModel):
    instance_id: str


class LegacyStatus(BaseModel):
    status: Literal["ok"]


class LifeSign(Answer):
    status: Literal["healthy"]


class RegistryHealth(Answer):
    status: Literal["healthy", "degraded", "unhealthy"]
    state: Literal["ready", "degraded", "loading", "stale", "draining"]
    version: str
    store: dict[str, Any]
    view: dict[str, Any]
    expiry_guard: dict[str, Any]
    loops: dict[str, dict[str, Any]]


class Readiness(Answer):
    status: Literal["ready", "degraded", "loading", "stale", "draining"]
    checks: dict[str, dict[str, Any]] | None = None
