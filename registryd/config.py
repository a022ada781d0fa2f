"""Settings: YAML file, then secret files, then environment, then flags; checked once, at the start.

`load` reads the four sources into one tree that remembers where each value came from, so that every
complaint names its place, and all of them are told at once. A value is never quoted in a complaint
unless it is known to be no secret.

What does not happen here: finding the configuration file, watching it, and applying a changed
setting to a running part (`reload_diff` only tells which settings can be).
"""

import difflib
import ipaddress
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from registryd.errors import StartupRefused
from registryd.kit.duration import duration_text, parse_duration
from registryd.kit.logs import MASK, Format, Level, mask_secrets

SHORTEST_TTL: Final = timedelta(seconds=2)
"""No lease is shorter; `registry.leaseClockCap` is checked against it."""

ENV_PREFIX: Final = "REGISTRYD_"

NOT_SETTINGS: Final = frozenset({"CONFIG", "URL", "API_KEY"})
"""Variables with our prefix which are no settings: they belong to the command line."""

RELOADABLE: Final = (
    "logging.level",
    "registry.defaultTtlSeconds",
    "registry.guard",
    "registry.limits",
    "view.maxStale",
    "webhooks.timeout",
    "webhooks.attempts",
    "webhooks.retryBase",
    "webhooks.retryCap",
)
"""The settings that a reload applies; a section stands for all it holds."""

_OTHER_WORDS: Final[Mapping[str, tuple[str, str]]] = types.MappingProxyType(
    dict.fromkeys(("host", "port", "address", "bind"), ("server", "listen"))
)
"""What other programs call a setting, for suggestions only."""

FLAGS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "data_dir": "data_dir",
        "redis_url": "redis.url",
        "reuse_port": "server.reuse_port",
        "log_level": "logging.level",
        "host": "server.listen",
        "port": "server.listen",
    }
)
"""Flags of the command line, by their Python names, and the settings they set."""


class ConfigError(StartupRefused):
    """The settings are wrong; `detail` holds one line for each problem, `problems` the same lines."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


# --- values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. An empty `host` is every interface; port 0 is any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]*)):(?P<port>\d{1,5})")
_WORD = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]|\*")
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_CAPABILITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_URL_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def _wrong(detail: str) -> PydanticCustomError:
    # The detail goes in as a value: in a template, its braces would be taken for placeholders.
    return PydanticCustomError("setting", "{detail}", {"detail": detail})


def _conflict(detail: str, *settings: str) -> PydanticCustomError:
    """For a rule over several settings: the place shown is the first of them that was set."""
    return PydanticCustomError("setting", "{detail}", {"detail": detail, "settings": settings})


def _read_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    try:
        return parse_duration("" if isinstance(value, bool) else str(value))
    except ValueError as error:
        raise _wrong(str(error)) from None


def _positive(value: timedelta) -> timedelta:
    if not value:
        raise _wrong("must be longer than zero")
    return value


def parse_address(value: object) -> Address:
    """`127.0.0.1:8082`, `[::1]:8082`, `localhost:8082`, or `:8082` for every interface."""
    if isinstance(value, Address):
        return value
    match = _ADDRESS.fullmatch(str(value))
    if match is None:
        raise _wrong(
            "not host:port; write 127.0.0.1:8082, [::1]:8082, or :8082 for every interface"
        )
    if int(match["port"]) > 65535:
        raise _wrong(f"{match['port']} is not a port; the highest is 65535")
    if match["v6"] is None:
        return Address(match["host"], int(match["port"]))
    try:
        return Address(str(ipaddress.IPv6Address(match["v6"])), int(match["port"]))
    except ValueError:
        raise _wrong(f"{match['v6']} is not an IPv6 address") from None


def _one_or_many(value: object) -> object:
    """A single address, or several with commas as an environment variable has to write them."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


def _pairs(value: object) -> object:
    """A mapping, or `name=value` pairs with commas as an environment variable has to write them."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    return {name.strip(): text.strip() for name, _, text in pairs}


def _capability(value: str) -> str:
    if not _CAPABILITY.fullmatch(value):
        raise _wrong(
            "1 to 128 letters, digits or any of . _ : / -, starting with a letter or digit"
        )
    return value


def _distinct(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    if not addresses:
        raise _wrong("needs at least one address")
    fixed = [address for address in addresses if address.port]
    if len(set(fixed)) < len(fixed):
        raise _wrong("names the same address twice")
    return addresses


def _word(value: str) -> str:
    if not _WORD.fullmatch(value):
        raise _wrong(
            "1 to 64 letters, digits, '.', '_' or '-'; no colon, brace or wildcard, which mean "
            "something in a Redis key"
        )
    return value


def _redis_url(value: str) -> str:
    if value == "embedded":
        return value
    match = _URL_SCHEME.match(value)
    scheme = match[1].lower() if match else ""
    if scheme in {"redis+sentinel", "redis+cluster"}:
        raise _wrong(
            f"{scheme}:// is not spoken by this version; use redis://, rediss:// or unix:// with "
            "the address of the primary, or embedded"
        )
    if scheme not in {"redis", "rediss", "unix"}:
        raise _wrong("must be embedded, or begin with redis://, rediss:// or unix://")
    # What urlsplit says of a bad port quotes it, and a "bad port" may well be half a password.
    try:
        parts = urlsplit(value)
        complete = bool(parts.path if scheme == "unix" else parts.hostname)
        complete = complete and (parts.port is None or parts.port > 0)
    except ValueError:
        complete = False
    if not complete:
        example = "unix:///run/redis.sock" if scheme == "unix" else f"{scheme}://host:6379/0"
        raise _wrong(
            f"not a complete address, such as {example}; in a user name or password write "
            "/ as %2F, @ as %40, : as %3A, # as %23 and ? as %3F"
        )
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise _wrong("not a network, such as 10.0.0.0/8 or fd00::/8") from None


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise _wrong(
            "not a host as browsers send it, without a port: registry.example, 10.0.0.1, [fd00::1]; or * for any"
        )
    return value.lower()


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise _wrong(
            "not an origin as browsers send it: scheme, host in lower case, and the port if it is not the "
            "scheme's, such as https://ui.example"
        )
    return value


def _text(value: object) -> object:
    """YAML reads 1.2 as a number."""
    return str(value) if isinstance(value, float) else value


def _jwks_url(value: str) -> str:
    """What keys are believed from has to be the right server: https, or this machine."""
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
    except ValueError:
        raise _wrong("not a URL") from None
    if parts.scheme == "https" and host:
        return value
    if parts.scheme == "http" and Address(host, 0).is_loopback:
        return value
    raise _wrong("must begin with https:// (http:// only for this machine)")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_AnyDuration = Annotated[timedelta, BeforeValidator(_read_duration)]
_Duration = Annotated[_AnyDuration, AfterValidator(_positive)]
_Listen = Annotated[
    tuple[Annotated[Address, BeforeValidator(parse_address)], ...],
    BeforeValidator(_one_or_many),
    AfterValidator(_distinct),
]
_Word = Annotated[str, AfterValidator(_word)]
_Networks = Annotated[
    tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_one_or_many)
]
_Role = Literal["reader", "writer", "admin"]
_Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "HS256", "HS384", "HS512",
]  # fmt: skip


# --- settings ---------------------------------------------------------------------------------
# What each one means to its user is told in config.example.yaml, which a test holds complete.


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        loc_by_alias=False,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
    )


class Tls(_Section):
    """Certificates of the listening side; plain HTTP without a certificate."""

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    client_certificates: Literal["none", "optional", "required"] = "none"
    min_version: Annotated[Literal["1.2", "1.3"], BeforeValidator(_text)] = "1.2"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.cert_file is None and (self.key_file or self.client_ca_file):
            raise _conflict(
                "server.tls needs server.tls.certFile",
                "server.tls.key_file",
                "server.tls.client_ca_file",
            )
        if (self.client_certificates == "none") != (self.client_ca_file is None):
            raise _conflict(
                "server.tls.clientCaFile and server.tls.clientCertificates (optional or required) go together: "
                "certificates have to be verified against somebody",
                "server.tls.client_certificates",
                "server.tls.client_ca_file",
            )
        return self


class Cors(_Section):
    """The web pages of others that may use the API."""

    origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_one_or_many)
    ] = ()


class Server(_Section):
    listen: _Listen = (Address("127.0.0.1", 8082),)
    reuse_port: bool = False
    shutdown_grace: _AnyDuration = timedelta(seconds=10)
    keepalive_timeout: _Duration = timedelta(seconds=30)
    body_timeout: _Duration = timedelta(seconds=8)
    tls: Tls = Tls()
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_one_or_many)
    ] = ()
    cors: Cors = Cors()
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...], BeforeValidator(_one_or_many)
    ] = ()


class RedisTls(_Section):
    """For a store at rediss://."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    check_hostname: bool = True


class Redis(_Section):
    url: Annotated[str, AfterValidator(_redis_url)] = Field("embedded", repr=False)
    password: SecretStr | None = None
    key_prefix: _Word = "ossa"
    deployment: _Word | None = None
    connect_timeout: _Duration = timedelta(seconds=5)
    command_timeout: _Duration = timedelta(seconds=5)
    max_connections: int = Field(64, ge=4)
    appendfsync: Literal["everysec", "always"] = "everysec"
    tls: RedisTls = RedisTls()

    @property
    def embedded(self) -> bool:
        return self.url == "embedded"

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password is not None and urlsplit(self.url).password is not None:
            raise _conflict(
                "redis.url holds a password too; keep one of them", "redis.password", "redis.url"
            )
        return self

    @model_validator(mode="after")
    def _tls_where_it_is_spoken(self) -> Self:
        if self.tls != RedisTls() and not self.url.lower().startswith("rediss://"):
            raise _conflict(
                "redis.tls is for a store at rediss://",
                "redis.tls.ca_file",
                "redis.tls.cert_file",
                "redis.tls.key_file",
                "redis.tls.check_hostname",
            )
        return self


class Guard(_Section):
    enabled: bool = True
    min_due: int = Field(5, ge=1)
    fraction: float = Field(0.15, gt=0, le=1)
    max_hold: _Duration = timedelta(minutes=5)


class RegistryLimits(_Section):
    """How much may be registered."""

    services: int = Field(100_000, ge=1)
    services_per_caller: int = Field(10_000, ge=1)
    instances: int = Field(500_000, ge=1)
    instances_per_service: int = Field(100_000, ge=1)


class Registry(_Section):
    default_ttl_seconds: int = Field(300, ge=int(SHORTEST_TTL.total_seconds()))
    sweep_interval: _Duration = timedelta(milliseconds=200)
    lease_clock_cap: _Duration = timedelta(milliseconds=600)
    guard: Guard = Guard()
    limits: RegistryLimits = RegistryLimits()
    stream_max_len: int = Field(100_000, ge=1_000)
    tombstone_retention: _Duration = timedelta(hours=24)

    @model_validator(mode="after")
    def _clock_keeps_pace(self) -> Self:
        """A sweep or two may come late without slowing the lease clock, which no lease may outrun."""
        if self.lease_clock_cap < 3 * self.sweep_interval:
            raise _conflict(
                f"registry.leaseClockCap ({duration_text(self.lease_clock_cap)}) must be at least "
                f"three times registry.sweepInterval ({duration_text(self.sweep_interval)})",
                "registry.lease_clock_cap",
                "registry.sweep_interval",
            )
        if 3 * self.lease_clock_cap > SHORTEST_TTL:
            raise _conflict(
                f"registry.leaseClockCap ({duration_text(self.lease_clock_cap)}) must be at most a "
                f"third of the shortest lease, {duration_text(SHORTEST_TTL)}",
                "registry.lease_clock_cap",
            )
        return self


class Health(_Section):
    """Probing: what this node does, and what holds for instances that do not say."""

    enabled: bool = True
    interval_ms: int = Field(30_000, ge=100, le=86_400_000)
    timeout_ms: int = Field(5_000, ge=1, le=300_000)
    failure_threshold: int = Field(3, ge=1, le=100)
    success_threshold: int = Field(2, ge=1, le=100)
    concurrency: int = Field(256, ge=1, le=10_000)
    concurrency_per_host: int = Field(8, ge=1, le=10_000)
    features: Annotated[
        Mapping[
            Annotated[str, AfterValidator(_capability)], Annotated[str, AfterValidator(_capability)]
        ],
        BeforeValidator(_pairs),
    ] = Field(
        default_factory=lambda: {
            "txt2img": "image_generation",
            "img2img": "image_generation",
            "txt2vid": "video_generation",
            "img2vid": "video_generation",
            "txt2audio": "audio_generation",
        }
    )

    @model_validator(mode="after")
    def _timeout_within_interval(self) -> Self:
        if self.timeout_ms >= self.interval_ms:
            raise _conflict(
                f"health.timeoutMs ({self.timeout_ms}) must be less than health.intervalMs "
                f"({self.interval_ms})",
                "health.timeout_ms",
                "health.interval_ms",
            )
        return self


class Egress(_Section):
    """Where the daemon itself may connect to, on behalf of who registers checks and webhooks."""

    allowed: _Networks = ("0.0.0.0/0", "::/0")


class View(_Section):
    max_stale: _AnyDuration = timedelta(0)
    result_cache_bytes: int = Field(64 * 1024 * 1024, ge=0)
    snapshot_chunk: int = Field(500, ge=1, le=10_000)


class Events(_Section):
    max_streams: int = Field(10_000, ge=1)
    buffer_bytes: int = Field(1024 * 1024, ge=16 * 1024)


class Anonymous(_Section):
    """Whom callers without a credential are taken for, by where they come from."""

    role: _Role | None = None
    cidrs: _Networks = ()

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.role is None) is bool(self.cidrs):
            raise _conflict(
                "auth.anonymous needs both a role and the networks (cidrs) it is for",
                "auth.anonymous.role",
                "auth.anonymous.cidrs",
            )
        return self


class Jwt(_Section):
    """Tokens that others issue. Switched on by saying where their keys are."""

    jwks_url: Annotated[str, AfterValidator(_jwks_url)] | None = Field(None, repr=False)
    jwks_file: Path | None = None
    public_key_file: Path | None = None
    secret: SecretStr | None = None
    issuer: str | None = None
    audience: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = ()
    algorithms: Annotated[
        tuple[_Algorithm, ...], BeforeValidator(_one_or_many), Field(min_length=1)
    ] = ("RS256", "ES256")
    role_claim: str = Field("role", min_length=1)
    prefixes_claim: str | None = Field(None, min_length=1)
    leeway: _AnyDuration = timedelta(seconds=30)
    refresh_interval: _Duration = timedelta(minutes=5)

    @property
    def enabled(self) -> bool:
        return bool(self._sources())

    def _sources(self) -> list[str]:
        names = ("jwks_url", "jwks_file", "public_key_file", "secret")
        return [f"auth.jwt.{name}" for name in names if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        sources = self._sources()
        if len(sources) > 1:
            raise _conflict(
                "auth.jwt takes its keys from one place: jwksUrl, jwksFile, publicKeyFile or secret",
                *sources,
            )
        if not sources:
            if self.issuer or self.audience:
                raise _conflict(
                    "auth.jwt needs jwksUrl, jwksFile, publicKeyFile or secret to verify tokens with",
                    "auth.jwt.issuer",
                    "auth.jwt.audience",
                )
            return self
        if not self.issuer or not self.audience or not all(self.audience):
            raise _conflict(
                "auth.jwt needs issuer and audience: without them any token that the same keys have "
                "signed, for whatever service, would do",
                *sources,
            )
        self._fitting_algorithms()
        if self.leeway > timedelta(minutes=5):
            raise _conflict("auth.jwt.leeway: at most 5m", "auth.jwt.leeway")
        return self

    def _fitting_algorithms(self) -> None:
        """A shared secret and public keys are never both accepted: one would be taken for the other."""
        shared = [name for name in self.algorithms if name.startswith("HS")]
        if self.secret is None:
            if shared:
                raise _conflict(
                    f"{', '.join(shared)} needs auth.jwt.secret; public keys take RS256, PS256, ES256, "
                    "EdDSA and their longer forms",
                    "auth.jwt.algorithms",
                )
            return
        if len(shared) < len(self.algorithms):
            raise _conflict(
                "with auth.jwt.secret auth.jwt.algorithms has to be HS256, HS384 or HS512",
                "auth.jwt.algorithms",
                "auth.jwt.secret",
            )
        needed = max(int(name[2:]) // 8 for name in shared)
        if len(self.secret.get_secret_value().encode()) < needed:
            raise _conflict(
                f"too short for {max(shared)}: at least {needed} bytes", "auth.jwt.secret"
            )


class Certificate(_Section):
    """Which client certificates have a role. `subject` and `san` both have to fit where both stand."""

    subject: str | None = Field(None, min_length=1)
    san: str | None = Field(None, min_length=1)
    role: _Role
    prefixes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.subject is None and self.san is None:
            raise _wrong("needs subject, such as CN=billing, or san, such as DNS:billing.internal")
        return self


class Auth(_Section):
    mode: Literal["none", "required"] = "none"
    insecure: bool = False
    keys_file: Path | None = None
    anonymous: Anonymous = Anonymous()
    jwt: Jwt = Jwt()
    certificates: tuple[Certificate, ...] = ()


class PerCaller(_Section):
    """What one caller may use; rates are a second's."""

    reads: float = Field(1000, gt=0, le=1_000_000)
    writes: float = Field(200, gt=0, le=1_000_000)
    streams: int = Field(1000, ge=1)


class PerAddress(_Section):
    """What one address may use, and nobody but it: of IPv6 a /64 counts as one."""

    reads: float = Field(2000, gt=0, le=1_000_000)
    writes: float = Field(400, gt=0, le=1_000_000)
    streams: int = Field(1000, ge=1)
    connections: int = Field(1000, ge=1)
    denied_per_minute: float = Field(60, gt=0, le=1_000_000)


class Limits(_Section):
    enabled: bool | None = None
    connections: int = Field(20_000, ge=1)
    burst: _Duration = timedelta(seconds=10)
    per_caller: PerCaller = PerCaller()
    per_address: PerAddress = PerAddress()


class Webhooks(_Section):
    enabled: bool = True
    timeout: _Duration = timedelta(seconds=10)
    attempts: int = Field(8, ge=1, le=50)
    retry_base: _Duration = timedelta(seconds=5)
    retry_cap: _Duration = timedelta(hours=1)


class Logging(_Section):
    level: Annotated[Level, BeforeValidator(_lower)] = "info"
    format: Annotated[Format, BeforeValidator(_lower)] = "auto"


class Settings(_Section):
    data_dir: Path = Path("data")
    secrets_dir: Path | None = None
    server: Server = Server()
    redis: Redis = Redis()
    registry: Registry = Registry()
    health: Health = Health()
    egress: Egress = Egress()
    view: View = View()
    events: Events = Events()
    auth: Auth = Auth()
    limits: Limits = Limits()
    webhooks: Webhooks = Webhooks()
    logging: Logging = Logging()

    @property
    def limited(self) -> bool:
        """Limits are for strangers: without authentication everybody is as good as the next."""
        return self.auth.mode == "required" if self.limits.enabled is None else self.limits.enabled

    @model_validator(mode="after")
    def _nobody_listens_unguarded(self) -> Self:
        """Without authentication whoever reaches the port may change the registry."""
        exposed = [str(address) for address in self.server.listen if not address.is_loopback]
        if exposed and self.auth.mode == "none" and not self.auth.insecure:
            raise _conflict(
                f"{', '.join(exposed)} can be reached from other machines while auth.mode is none, "
                "so anybody could change the registry; listen on loopback (127.0.0.1, ::1, "
                "localhost), set auth.mode: required, or auth.insecure: true if the network keeps "
                "strangers out",
                "server.listen",
                "auth.insecure",
                "auth.mode",
            )
        return self


# --- what the rest of the program asks ---------------------------------------------------------


def load(path: Path | None, *, flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The settings from the file at `path` (None: no file), secret files, `environ` and `flags`.

    `flags` has the keys of `FLAGS`; one that is None was not given. Raises ConfigError.
    """
    file = _Source()
    if path is not None:
        _read_file(path, file)
    environment = _Source()
    _read_environment(environ, environment)
    secrets = _Source()
    for source in (environment, file):
        if directory := source.values.get(("secrets_dir",)):
            _read_secrets(Path(str(directory)), secrets)
            break

    given = _Source()
    for source in (file, secrets, environment):
        given.update(source)
    _read_flags(flags, given)
    problems = given.problems
    try:
        settings = Settings.model_validate(given.tree())
    except ValidationError as error:
        problems += [given.explain(mistake) for mistake in error.errors(include_input=False)]
    else:
        if not problems:
            return settings
    # Outside of the except clause: pydantic's own error holds the input, secrets included, and
    # must not come along as the context of ours.
    raise ConfigError(problems)


def describe(settings: Settings) -> dict[str, object]:
    """The settings in use as the file would write them, with every secret masked."""

    return _shown(settings)


def _shown(section: BaseModel) -> dict[str, object]:
    return {to_camel(name): _printable(value) for name, value in section}


def reload_diff(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Which settings differ: those a reload applies, and those that need a restart."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    changed = [name for name, value in after.items() if value != before[name]]
    reloadable = [
        name for name in changed if any(f"{name}.".startswith(f"{part}.") for part in RELOADABLE)
    ]
    return reloadable, [name for name in changed if name not in reloadable]


def _leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{to_camel(name)}.")
        else:
            yield f"{prefix}{to_camel(name)}", value


def _printable(value: object) -> object:
    match value:
        case BaseModel():
            return _shown(value)
        case SecretStr():
            return MASK
        case timedelta():
            return duration_text(value)
        case tuple():
            return [_shown(one) if isinstance(one, BaseModel) else str(one) for one in value]
        case Path():
            return str(value)
        case str():
            return mask_secrets(value)
        case _:
            return value


# --- sources ----------------------------------------------------------------------------------

_Name = tuple[str | int, ...]
"""A setting by its field names, `("redis", "key_prefix")`; a number at the end is a list's item."""


@dataclass(slots=True)
class _Source:
    """Values by setting, where each was found, and what was wrong while reading."""

    values: dict[_Name, object] = field(default_factory=dict)
    places: dict[_Name, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def set(self, name: _Name, value: object, place: str) -> None:
        self.values[name] = value
        # Where the items of an overridden list stood is of no interest any more.
        for known in [known for known in self.places if known[: len(name)] == name]:
            del self.places[known]
        self.places[name] = place

    def update(self, later: "_Source") -> None:
        for name, value in later.values.items():
            self.set(name, value, later.places[name])
        self.places.update(later.places)
        self.problems += later.problems

    def tree(self) -> dict[str, Any]:
        root: dict[str, Any] = {}
        for name, value in self.values.items():
            branch = root
            for part in name[:-1]:
                branch = branch.setdefault(str(part), {})
            branch[str(name[-1])] = value
        return root

    def explain(self, mistake: Mapping[str, Any]) -> str:
        """One line for what pydantic found wrong, with the place the value came from."""
        text = mistake["msg"].removeprefix("Value error, ")
        for setting in mistake.get("ctx", {}).get("settings", ()):
            name: _Name = tuple(setting.split("."))
            if name in self.places:
                return f"{self.places[name]}: {_dotted(name)}: {text}"
        name = tuple(mistake["loc"])
        while name and name not in self.places:
            name = name[:-1]
        return f"{self.places.get(name, 'defaults')}: {_dotted(name or mistake['loc'])}: {text}"


def _dotted(name: _Name) -> str:
    return ".".join(to_camel(part) if isinstance(part, str) else str(part) for part in name)


def _read_file(path: Path, source: _Source) -> None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        source.problems.append(f"{path}: cannot be read: {error.strerror}")
        return
    except UnicodeDecodeError as error:
        source.problems.append(f"{path}: is not UTF-8 text: wrong byte at offset {error.start}")
        return
    try:
        document = YAML(typ="rt", pure=True).load(text)
    except YAMLError as error:
        source.problems.append(_yaml_problem(path, error))
        return
    if isinstance(document, CommentedMap):
        _read_mapping(document, path, (), source)
    elif document is not None:
        source.problems.append(f"{path}:1:1: must hold settings, as `key: value` lines")


def _yaml_problem(path: Path, error: YAMLError) -> str:
    """The parser's complaint without what it quotes of the file: it may be quoting a secret."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{path}: is not YAML: it holds a character that YAML does not allow"
    place = f"{path}:{error.problem_mark.line + 1}:{error.problem_mark.column + 1}"
    problem = error.problem or "is not YAML"
    if isinstance(error, DuplicateKeyError):
        key = re.match(r'found duplicate key "([\w.-]+)"', problem)
        return f"{place}: {key[1] if key else 'a key'}: duplicate key; it stands here twice"
    return f"{place}: is not YAML: " + re.sub(r"(['\"])(?!<)[^'\"]{4,}\1", "…", problem)


def _read_mapping(mapping: CommentedMap, path: Path, prefix: _Name, source: _Source) -> None:
    fields = _section_at(prefix).model_fields
    names = {spelling: name for name in fields for spelling in (name, to_camel(name))}
    for key, value in mapping.items():
        place = _place(path, mapping, key)
        field_name = names.get(key) if isinstance(key, str) else None
        if field_name is None:
            dotted = ".".join([*map(to_camel, map(str, prefix)), str(key)])
            source.problems.append(f"{place}: {dotted}: unknown key; {_suggest_key(prefix, key)}")
            continue
        name = (*prefix, field_name)
        if name in source.places:
            source.problems.append(f"{place}: {_dotted(name)}: stands here twice, in two spellings")
        elif value is None:
            continue  # `redis:` with all its keys commented out, or a key without a value: not set
        elif not _is_section(name):
            source.set(name, value, place)
            if isinstance(value, CommentedSeq):
                for index in range(len(value)):
                    line, column = value.lc.item(index)
                    source.places[(*name, index)] = f"{path}:{line + 1}:{column + 1}"
        elif isinstance(value, CommentedMap):
            source.places[name] = place
            _read_mapping(value, path, name, source)
        else:
            keys = ", ".join(map(to_camel, _section_at(name).model_fields))
            source.problems.append(f"{place}: {_dotted(name)}: must hold keys: {keys}")


def _place(path: Path, mapping: CommentedMap, key: object) -> str:
    try:
        line, column = mapping.lc.key(key)
    except KeyError:  # came in by a merge key (`<<`): the mapping's own place is the nearest
        line, column = mapping.lc.line, mapping.lc.col
    return f"{path}:{line + 1}:{column + 1}"


def _read_environment(environ: Mapping[str, str], source: _Source) -> None:
    names = {_squashed(name): name for name in _all_settings()}
    for variable in sorted(environ):
        rest = variable.upper().removeprefix(ENV_PREFIX)
        if rest == variable.upper() or rest in NOT_SETTINGS or not environ[variable]:
            continue
        if _is_service_link(rest, environ[variable]):
            continue
        place = f"environment {variable}"
        name = names.get(_squashed(tuple(rest.split("__"))))
        if name is None:
            source.problems.append(f"{place}: unknown setting; {_suggest_variable(rest)}")
        elif name in source.values:
            source.problems.append(f"{place}: sets the same as {source.places[name]}")
        else:
            source.set(name, environ[variable], place)


def _is_service_link(rest: str, value: str) -> bool:
    """Kubernetes gives each pod such variables for a Service that is called `registryd`."""
    if "__" in rest:
        return False
    links = r"(.+_)?SERVICE_(HOST|PORT(_.+)?)|(.+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
    if re.fullmatch(links, rest):
        return True
    is_port = rest == "PORT" or rest.endswith("_PORT")
    return is_port and value.startswith(("tcp://", "udp://", "sctp://"))


def _read_secrets(directory: Path, source: _Source) -> None:
    """Files named `redis/password`, `redis.password` or `redis__password` below `directory`.

    A file whose name begins with no section of ours is somebody else's: the directory may be
    shared, as `/run/secrets` is. Hidden ones are skipped; Kubernetes keeps its copies in them.
    """
    if not directory.is_dir():
        source.problems.append(f"secrets directory {directory}: does not exist")
        return
    names = {_squashed(name): name for name in _all_settings()}
    for file in sorted(directory.rglob("*")):
        relative = file.relative_to(directory)
        if any(part.startswith(".") for part in relative.parts) or not file.is_file():
            continue
        parts = tuple(re.split(r"/|\.|__", relative.as_posix()))
        if len(parts) < 2 or to_camel(parts[0].lower()) not in map(to_camel, Settings.model_fields):
            continue
        place = f"secret {relative}"
        name = names.get(_squashed(parts))
        if name is None:
            source.problems.append(
                f"{place}: unknown setting; {_suggest_key((parts[0],), parts[-1])}"
            )
        elif name in source.values:
            source.problems.append(f"{place}: sets the same as {source.places[name]}")
        else:
            try:
                source.set(name, file.read_text("utf-8").rstrip("\r\n"), place)
            except (OSError, UnicodeDecodeError):
                source.problems.append(f"{place}: cannot be read as UTF-8 text")


def _read_flags(flags: Mapping[str, object], source: _Source) -> None:
    given = {flag: value for flag, value in flags.items() if value is not None}
    for flag, value in given.items():
        setting = FLAGS[flag]
        if flag not in {"host", "port"}:
            source.set(tuple(setting.split(".")), value, f"--{flag.replace('_', '-')}")
    if not given.keys() & {"host", "port"}:
        return
    # The two replace the whole list by one address; the half that is not given is taken from the
    # first address configured, if that one can be read at all.
    try:
        configured = _one_or_many(source.values.get(("server", "listen"), Server().listen))
        first = parse_address(configured[0] if isinstance(configured, Sequence) else configured)
    except (PydanticCustomError, IndexError):
        first = Server().listen[0]
    host, port = str(given.get("host", first.host)), given.get("port", first.port)
    place = " ".join(f"--{flag}" for flag in ("host", "port") if flag in given)
    bare = host.removeprefix("[").removesuffix("]")
    address = f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"
    source.set(("server", "listen"), [address], place)


# --- names ------------------------------------------------------------------------------------


def _subsection(section: type[BaseModel], part: str | int) -> type[BaseModel] | None:
    annotation = section.model_fields[str(part)].annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def _section_at(name: _Name) -> type[BaseModel]:
    section: type[BaseModel] = Settings
    for part in name:
        section = _subsection(section, part) or section
    return section


def _is_section(name: _Name) -> bool:
    return _subsection(_section_at(name[:-1]), name[-1]) is not None


def _all_settings(prefix: _Name = ()) -> Iterator[_Name]:
    for part in _section_at(prefix).model_fields:
        name = (*prefix, part)
        if _is_section(name):
            yield from _all_settings(name)
        else:
            yield name


def _squashed(name: _Name) -> tuple[str, ...]:
    """Underscores and case do not count in a variable: KEY_PREFIX and keyPrefix are one."""
    return tuple(str(part).replace("_", "").lower() for part in name)


def _variable(name: _Name) -> str:
    return "__".join(str(part).upper() for part in name)


def _suggest_key(prefix: _Name, key: object) -> str:
    keys = [to_camel(name) for name in _section_at(prefix).model_fields]
    others = [word for word, (section, _) in _OTHER_WORDS.items() if (section,) == prefix]
    if close := difflib.get_close_matches(str(key), [*keys, *others], n=1):
        meant = _OTHER_WORDS[close[0]][1] if close[0] in others else close[0]
        return f'did you mean "{meant}"?'
    for name in _all_settings():
        if name[-1] == key or to_camel(str(name[-1])) == key:
            return f'did you mean "{_dotted(name)}"?'
    if isinstance(key, str) and key in _OTHER_WORDS:
        return f'did you mean "{_dotted(_OTHER_WORDS[key])}"?'
    return f"known here: {', '.join(keys)}"


def _suggest_variable(rest: str) -> str:
    meant = {_variable(name): name for name in _all_settings()}
    meant |= {
        _variable((section, word)): (section, key) for word, (section, key) in _OTHER_WORDS.items()
    }
    close = difflib.get_close_matches(rest, meant, n=1) or [
        variable for variable in meant if variable.endswith(f"__{rest}")
    ]
    if close:
        return f"did you mean {ENV_PREFIX}{_variable(meant[close[0]])}?"
    return f"a setting is {ENV_PREFIX}<SECTION>__<KEY>, such as {ENV_PREFIX}REDIS__URL"
