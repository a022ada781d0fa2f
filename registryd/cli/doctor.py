"""`registryd doctor NAME`: asks the registry and the instances themselves, and prints what is found."""

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from registryd.cli.diagnosis import (
    Answered,
    Dialled,
    Facts,
    Finding,
    InstanceFacts,
    RegistryFacts,
    Wanted,
    diagnose,
    utc,
)
from registryd.cli.printing import DOCUMENTS
from registryd.cli.services import NameArgument
from registryd.cli.session import Session, asking
from registryd.errors import (
    Forbidden,
    NotFound,
    OutboundFailed,
    RegistrydError,
    StorageUnavailable,
    Unauthenticated,
)

if TYPE_CHECKING:
    from registryd.client import RegistryClient
    from registryd.registry.types import HealthCheck, InstanceShown

MOST: Final = 50
"""Instances that are looked at."""
AT_ONCE: Final = 10
PATIENCE: Final = 3.0
"""Seconds that an address may take to be connected to."""
LONGEST: Final = 10.0
"""Seconds that a health endpoint may take."""
SIGNS: Final = {"ok": "✓", "note": "!", "fault": "✗"}
HISTORY: Final = 40
_REGISTERED: Final = frozenset({"service:registered", "service:updated"})


@asking
async def doctor(
    session: Session,
    name: NameArgument,
    *,
    capability: Annotated[
        str, typer.Option("--capability", help="What you ask for, such as chat@>=2.")
    ] = "",
    version: Annotated[str, typer.Option("--version", help="The version you ask for.")] = "",
) -> None:
    """Find out why a service is not found or not reached, and what to do; the exit code is 1 for a fault."""
    found = diagnose(await examine(session.client, name, capability, version))
    if session.printer.output in DOCUMENTS:
        session.printer.document([asdict(one) for one in found])
    else:
        typer.echo("\n".join(map(line, found)))
    if any(one.mark == "fault" for one in found):
        raise typer.Exit(1)


def line(finding: Finding) -> str:
    advice = f" → {finding.advice}" if finding.advice else ""
    return f"{SIGNS[finding.mark]} {finding.about}: {finding.text}{advice}"


# --- the facts


async def examine(client: "RegistryClient", name: str, capability: str, version: str) -> Facts:
    """Asks the registry, and the endpoints of the service's instances, from here."""
    registry = await _registry(client)
    now = datetime.now(UTC)
    if registry.problem:
        return Facts(name=name, now=now, registry=registry)
    try:
        explanation = await client.explain(name)
        instances = await _instances(client, name)
        by = await _registered_by(client, name)
        matching = await _matching(client, name, capability, version)
    except RegistrydError as error:
        problem = "forbidden" if isinstance(error, Forbidden) else "failed"
        registry = RegistryFacts(client.transport.base, problem, error.detail)
        return Facts(name=name, now=now, registry=registry)
    told = {one["instance"]: one for one in explanation.get("instances", ())}
    slots = asyncio.Semaphore(AT_ONCE)

    async def seen(one: "InstanceShown") -> InstanceFacts:
        async with slots:
            dialled, answered = await _dialled(one.endpoint), None
            check = health_url(one)
            if dialled.kind == "ok" and check is not None:
                answered = await _answered(check, one.health_check)
        return _facts(one, told.get(one.instance_id, {}), dialled, answered, by)

    return Facts(
        name=name,
        now=now,
        registry=registry,
        explanation=explanation,
        instances=await asyncio.gather(*map(seen, instances[:MOST])),
        wanted=Wanted(capability=capability, version=version, matching=matching)
        if capability or version
        else None,
    )


def _facts(
    one: "InstanceShown",
    explanation: Mapping[str, Any],
    dialled: Dialled,
    answered: Answered | None,
    by: Mapping[str, Sequence[tuple[datetime, str]]],
) -> InstanceFacts:
    capabilities: dict[str, list[str]] = {}
    for claim in one.capabilities:
        capabilities.setdefault(claim.name, []).append(claim.version)
    timeout_ms = one.health_check.timeout_ms if one.health_check else 5_000
    return InstanceFacts(
        instance_id=one.instance_id,
        endpoint=one.endpoint,
        updated_at=utc(one.updated_at),
        capabilities=capabilities,
        version=one.version or "",
        timeout=timedelta(milliseconds=timeout_ms),
        explanation=explanation,
        dialled=dialled,
        answered=answered,
        registered_by=by.get(one.instance_id, ()),
    )


def health_url(one: "InstanceShown") -> str | None:
    """What an HTTP check of the instance asks; None where it has another check, or none."""
    check = one.health_check
    if check is None and "health_check" in one.model_fields_set:
        return None
    if check is not None and check.type != "http":
        return None
    if check is not None and check.url is not None:
        return check.url
    if not one.endpoint.startswith(("http://", "https://")):
        return None
    path = (check.path if check is not None else None) or "/health"
    return one.endpoint.rstrip("/") + path


async def _registry(client: "RegistryClient") -> RegistryFacts:
    url = client.transport.base
    try:
        reply = await client.transport.call("GET", "/health")
        health = reply.json
        state = str(health["state"])
        holds = bool(health["expiryGuard"]["holding"])
    except Unauthenticated as error:
        return RegistryFacts(url, "unauthenticated", error.detail)
    except (NotFound, KeyError, TypeError):
        return RegistryFacts(url, "no_registry", "the answer is none of a registry")
    except OutboundFailed as error:
        from registryd.client import Unreachable

        word = "unreachable" if isinstance(error, Unreachable) else "no_registry"
        return RegistryFacts(url, word, error.detail)
    except RegistrydError as error:
        word = "forbidden" if isinstance(error, Forbidden) else "failed"
        return RegistryFacts(url, word, error.detail)
    date = reply.headers.get("Date")
    ahead = parsedate_to_datetime(date) - datetime.now(UTC) if date else timedelta()
    return RegistryFacts(url, state=state, ahead=ahead, guard_holds=holds)


async def _instances(client: "RegistryClient", name: str) -> "Sequence[InstanceShown]":
    """All of them, also those that are not offered."""
    try:
        return (await client.get(name)).instances
    except NotFound:
        return ()


async def _registered_by(
    client: "RegistryClient", name: str
) -> dict[str, list[tuple[datetime, str]]]:
    """Who registered or changed each instance lately, by id."""
    found: dict[str, list[tuple[datetime, str]]] = {}
    try:
        count = 0
        async for entry in client.history(name):
            count += 1
            # What was changed in place has a reason.
            if entry["type"] in _REGISTERED and entry["reason"] is None:
                found.setdefault(entry["instanceId"], []).append((utc(entry["time"]), entry["by"]))
            if count >= HISTORY:
                break
    except StorageUnavailable:
        pass  # the registry answers from memory, and has no history just now
    return found


async def _matching(
    client: "RegistryClient", name: str, capability: str, version: str
) -> frozenset[str]:
    filters: Any = {"capability": capability, "version": version}
    asked = {key: text for key, text in filters.items() if text}
    if not asked:
        return frozenset()
    found = await client.instances(**asked)
    return frozenset(one.instance_id for one in found if one.name == name)


async def _dialled(endpoint: str) -> Dialled:
    """A connection to the endpoint's host and port, from here."""
    from registryd.registry.types import SCHEMES

    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or SCHEMES.get(parts.scheme.lower()) or 0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        return Dialled("dns", getattr(error, "strerror", None) or "no answer in time")
    if parts.scheme.lower() == "udp" or not port:
        return Dialled("ok")
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()
    except ConnectionRefusedError:
        return Dialled("refused")
    except TimeoutError:
        return Dialled("timeout")
    except OSError as error:
        # Of several addresses asyncio tells all errors in one text.
        if "refused" in str(error).lower():
            return Dialled("refused")
        return Dialled("failed", error.strerror or str(error))
    return Dialled("ok")


async def _answered(url: str, check: "HealthCheck | None") -> Answered:
    """What a health endpoint answers to its check from here, redirects not followed."""
    import aiohttp

    method, headers, body = "GET", None, None
    expected: Sequence[int] = ()
    if check is not None:
        method, headers, body = check.method, check.headers, check.body
        expected = check.expected_status_codes or ()
    began = time.monotonic()
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LONGEST)) as session,
            session.request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as answer,
        ):
            took = timedelta(seconds=time.monotonic() - began)
            location = answer.headers.get("Location", "")
            return Answered(url, answer.status, took, location, expected=expected)
    except TimeoutError:
        return Answered(url, error=f"no answer within {LONGEST:g} s")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Answered(url, error=str(error) or type(error).__name__)
