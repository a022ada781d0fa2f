"""What is wrong with a service, and what to do about it. Pure: the facts come from outside (`doctor.py`)."""

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any, Final, Literal
from urllib.parse import urlsplit

Mark = Literal["ok", "note", "fault"]

CLOCKS_APART: Final = timedelta(seconds=5)
"""Beyond this the times in answers and logs mislead; leases run on the store's clock alone."""
SLOW: Final = timedelta(seconds=1)
RECENT: Final = timedelta(minutes=10)
RIVALS: Final = 3
"""Registrations of one id by turns, from which on two processes are at it."""

CONTAINER_ID: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}")
BESIDE: Final = re.compile(r"(.+)~[0-9a-z]{6,8}")
"""The id that a newcomer gets where the one it wanted is in use."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`note` is worth knowing and hinders nobody; a `fault` does. `advice` "" where nothing is to be done."""

    mark: Mark
    about: str
    code: str
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class RegistryFacts:
    url: str
    problem: str = ""
    """"" it answers; else `unreachable`, `no_registry`, `unauthenticated` or `forbidden`."""
    detail: str = ""
    state: str = "ready"
    ahead: timedelta = timedelta()
    """How far its clock is ahead of ours, as far as can be told."""
    guard_holds: bool = False


@dataclass(frozen=True, slots=True)
class Dialled:
    """What came of asking a name or an address: `error` "" for well, and a word for what kind it is."""

    kind: Literal["ok", "dns", "refused", "timeout", "failed"]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a health endpoint answered us."""

    url: str
    status: int = 0
    took: timedelta = timedelta()
    location: str = ""
    error: str = ""
    expected: Sequence[int] = ()
    """What the check takes for well; empty for 2xx."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceFacts:
    instance_id: str
    endpoint: str
    updated_at: datetime
    capabilities: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Versions by name."""
    version: str = ""
    timeout: timedelta = SLOW
    """How long its own check waits."""
    explanation: Mapping[str, Any] = field(default_factory=dict)
    """What `GET /explain` says of it."""
    dialled: Dialled | None = None
    answered: Answered | None = None
    registered_by: Sequence[tuple[datetime, str]] = ()
    """When it was registered or changed lately, and by whom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller asks for besides the name, and which instances match that."""

    capability: str = ""
    version: str = ""
    matching: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    name: str
    now: datetime
    registry: RegistryFacts
    explanation: Mapping[str, Any] | None = None
    """What `GET /explain` says of the service; None where the registry did not tell."""
    instances: Sequence[InstanceFacts] = ()
    wanted: Wanted | None = None


def diagnose(facts: Facts) -> list[Finding]:
    """Everything that was found, what is wrong before what is well."""
    found = [*_registry(facts)]
    if facts.explanation is not None:
        found += _service(facts)
        for one in facts.instances:
            found += _instance(facts, one)
        found += _rivals(facts)
        if facts.wanted is not None and facts.instances:
            found += _wanted(facts, facts.wanted)
    order: list[Mark] = ["fault", "note", "ok"]
    return sorted(found, key=lambda finding: order.index(finding.mark))


# --- the registry

_PROBLEMS: Final = {
    "unreachable": "check that it runs there, that the URL is right, and that no firewall is between",
    "no_registry": "something else answers there; correct the URL (--url, REGISTRYD_URL)",
    "unauthenticated": "give a key that holds in REGISTRYD_API_KEY (`registryd keys create`)",
    "forbidden": "use a key whose prefixes cover this service",
    "failed": "look at the log of the registry",
}


def _registry(facts: Facts) -> Iterator[Finding]:
    registry = facts.registry
    if registry.problem:
        said = f"{registry.url}: {registry.detail}"
        yield Finding("fault", "registry", registry.problem, said, _PROBLEMS[registry.problem])
        return
    if registry.state == "ready":
        yield Finding("ok", "registry", "registry", f"{registry.url} answers and is ready")
    else:
        yield Finding(
            "note", "registry", "registry_state", f"{registry.url} is {registry.state}",
            "see its /readyz?verbose; answers may be older than they should be",
        )  # fmt: skip
    if abs(registry.ahead) > CLOCKS_APART:
        word = "ahead of" if registry.ahead > timedelta() else "behind"
        yield Finding(
            "note", "registry", "daemon_clock",
            f"its clock is {abs(registry.ahead).total_seconds():.0f} s {word} this machine's",
            "run NTP on both; leases do not mind, tokens and times in logs do",
        )  # fmt: skip
    newest = max((one.updated_at for one in facts.instances), default=None)
    if newest is not None and newest - (facts.now + registry.ahead) > CLOCKS_APART:
        apart = newest - (facts.now + registry.ahead)
        yield Finding(
            "note", "registry", "store_clock",
            f"the store's clock is at least {apart.total_seconds():.0f} s ahead of the daemon's",
            "run NTP where the store runs",
        )  # fmt: skip
    if registry.guard_holds:
        yield Finding(
            "note", "registry", "guard", "the expiry guard holds instances whose leases have ended",
            "look for a network fault; POST /cleanup?force=true lets them go",
        )  # fmt: skip


# --- the service

_WORDS: Final[Mapping[str, tuple[Mark, str]]] = {
    "healthy": ("ok", ""),
    "degraded": ("note", "look at what its health check complains of"),
    "unknown": ("note", "wait for the first probe, or let it report itself"),
    "unhealthy": ("fault", "see that its health endpoint answers 200 in time"),
    "maintenance": ("fault", "end it with `registryd maintenance {} --off`"),
    "draining": ("fault", "it is leaving; let it register again to keep it"),
    "suspect": ("note", "a heartbeat clears it: see that the service still runs and sends some"),
    "lease_ending": ("fault", "send heartbeats at a third of the ttl; the SDK does"),
    "checks_paused": ("note", "resume with `registryd monitoring on`"),
    "not_checked": ("ok", ""),
    "weight_zero": ("note", "raise its weight if it is to be chosen"),
    "expired": ("fault", "its heartbeats stopped: see that it runs, and let it register again"),
    "deregistered": ("fault", "if it should be there, let it register again"),
    "removed": ("fault", "let it register again"),
    "never_registered": ("fault", "check the name, and whether it registers with this registry"),
}
"""The reasons of `GET /explain`: how bad they are, and what to do."""


def _service(facts: Facts) -> Iterator[Finding]:
    explanation = facts.explanation or {}
    if not facts.instances:
        for reason in explanation["reasons"]:
            yield _reason(facts.name, reason)
    elif explanation["offered"]:
        yield Finding("ok", facts.name, "offered", explanation["summary"])
    else:
        yield Finding(
            "fault", facts.name, "not_offered", explanation["summary"], "see its instances below"
        )


def _reason(about: str, reason: Mapping[str, str]) -> Finding:
    mark, advice = _WORDS.get(reason["code"], ("note", ""))
    return Finding(
        mark, about, reason["code"], reason["text"], advice.format(about.replace("/", " "))
    )


# --- an instance


def _instance(facts: Facts, one: InstanceFacts) -> Iterator[Finding]:
    about = f"{facts.name}/{one.instance_id}"
    for reason in one.explanation.get("reasons", ()):
        yield _reason(about, reason)
    host = urlsplit(one.endpoint).hostname or ""
    yield from _address(about, host, facts.registry.url)
    if one.dialled is not None:
        yield _reachable(about, one.endpoint, host, one.dialled)
    if one.answered is not None:
        yield _health_endpoint(about, one.answered, one.timeout)


def _address(about: str, host: str, registry: str) -> Iterator[Finding]:
    advice = (
        "let it register the address by which others reach it (SERVICE_HOST, SERVICE_PUBLIC_URL)"
    )
    if _is(host, "unspecified"):
        text = f"its endpoint is {host}, where a server listens but nobody can connect to"
        yield Finding("fault", about, "wildcard", text, advice)
    elif _is(host, "loopback") and not _is(urlsplit(registry).hostname or "", "loopback"):
        text = f"its endpoint is {host}, which for everybody else is their own machine"
        yield Finding("fault", about, "loopback", text, advice)
    elif CONTAINER_ID.fullmatch(host):
        text = (
            f"its endpoint's host {host} looks like a container's id, which only its network knows"
        )
        yield Finding("note", about, "container_id", text, advice)


def _is(host: str, what: Literal["loopback", "unspecified"]) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return what == "loopback"
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback if what == "loopback" else address.is_unspecified


def _reachable(about: str, endpoint: str, host: str, dialled: Dialled) -> Finding:
    match dialled.kind:
        case "ok":
            return Finding("ok", about, "port", f"{endpoint} takes connections from here")
        case "dns":
            return Finding(
                "fault", about, "dns", f"{host} does not resolve here: {dialled.error}",
                "correct the endpoint, or the DNS or network of the two",
            )  # fmt: skip
        case "refused":
            return Finding(
                "fault", about, "port_closed", f"{endpoint} refuses connections",
                "see that the service runs, on that port, and not on 127.0.0.1 only",
            )  # fmt: skip
        case "timeout":
            return Finding(
                "fault", about, "port_filtered", f"{endpoint} does not answer at all",
                "look for a firewall, a security group or a wrong address",
            )  # fmt: skip
        case "failed":
            return Finding(
                "fault", about, "port_failed", f"{endpoint} cannot be reached: {dialled.error}",
                "check address, network and routes",
            )  # fmt: skip


def _health_endpoint(about: str, answered: Answered, timeout: timedelta) -> Finding:
    where, took = answered.url, answered.took.total_seconds()
    if answered.error:
        return Finding(
            "fault", about, "health_failed", f"GET {where} failed: {answered.error}",
            "the health endpoint has to answer over HTTP; see healthCheck",
        )  # fmt: skip
    well = answered.status in answered.expected or (
        not answered.expected and 200 <= answered.status < 300
    )
    if not well and 300 <= answered.status < 400:
        return Finding(
            "fault", about, "health_redirects",
            f"GET {where} answers {answered.status} and sends on to {answered.location or 'nowhere'}",
            "register the final URL in healthCheck.path or .url: probes do not follow",
        )  # fmt: skip
    if not well:
        return Finding(
            "fault", about, "health_status", f"GET {where} answers {answered.status}",
            "let it answer 200, or name what it answers in healthCheck.expectedStatusCodes",
        )  # fmt: skip
    if answered.took > timeout:
        return Finding(
            "fault", about, "health_slow",
            f"GET {where} took {took:.1f} s, and its check waits {timeout.total_seconds():g} s",
            "make it cheaper, or raise healthCheck.timeoutMs",
        )  # fmt: skip
    if answered.took > SLOW:
        return Finding(
            "note", about, "health_slow", f"GET {where} took {took:.1f} s",
            "a health endpoint should not wait for others",
        )  # fmt: skip
    return Finding("ok", about, "health", f"GET {where} answers {answered.status}")


# --- ids


def _rivals(facts: Facts) -> Iterator[Finding]:
    advice = "give each process an id of its own (SERVICE_INSTANCE_ID, or none at all)"
    ids = {one.instance_id for one in facts.instances}
    for one in facts.instances:
        about = f"{facts.name}/{one.instance_id}"
        if (beside := BESIDE.fullmatch(one.instance_id)) and beside[1] in ids:
            text = f"it wanted the id {beside[1]}, which another instance has"
            yield Finding("note", about, "same_id", text, advice)
        late = [by for at, by in sorted(one.registered_by) if facts.now - at <= RECENT]
        turns = sum(before != after for before, after in itertools.pairwise(late))
        if turns + 1 >= RIVALS:
            names = " and ".join(sorted(set(late)))
            text = f"it is registered by turns, by {names}: two processes have the same id"
            yield Finding("fault", about, "same_id", text, advice)


# --- what is asked for


def _wanted(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    asked = " and ".join(
        f"{word} {text!r}"
        for word, text in (("capability", wanted.capability), ("version", wanted.version))
        if text
    )
    if wanted.matching:
        text = f"{len(wanted.matching)} of {len(facts.instances)} instances match {asked}"
        yield Finding("ok", facts.name, "matching", text)
        return
    claimed = {name for one in facts.instances for name in one.capabilities}
    name = re.split(r"[@,]", wanted.capability)[0]
    if name and name not in claimed:
        near = difflib.get_close_matches(name.lower(), [word.lower() for word in claimed], n=1)
        spelled = next((word for word in claimed if near and word.lower() == near[0]), "")
        meant = f"; did you mean {spelled!r}?" if spelled else ""
        has = ", ".join(sorted(claimed)) or "nothing"
        yield Finding(
            "fault", facts.name, "capability", f"no instance claims {name!r}, only {has}{meant}",
            "ask for what they claim, or let them claim it",
        )  # fmt: skip
        return
    has = ", ".join(
        sorted({one.version or "none" for one in facts.instances})
        if wanted.version
        else sorted({v for one in facts.instances for v in one.capabilities.get(name, ())})
    )
    yield Finding(
        "fault", facts.name, "version", f"no instance matches {asked}; the versions are {has}",
        "widen the range, or register the version that is meant",
    )  # fmt: skip


def utc(text: str) -> datetime:
    """A time of the API."""
    return datetime.fromisoformat(text).astimezone(UTC)
