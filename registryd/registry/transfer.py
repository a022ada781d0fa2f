"""The registry as a file: how it is written, which older layouts are read, and what an import would change.

Pure. Format 1.0 is a JSON object: `version`, `timestamp`, `services` (name → `instances`) and `llm_models`.
An instance stands there as the API shows it, without what is no backup's business: revision and deadline.
Leases begin anew when it is read, and the health is what the instance claims of itself until a probe knows.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import to_json

from registryd.errors import FieldError, Invalid, RateLimited
from registryd.kit.clock import rfc3339
from registryd.registry.bodies import parse, parse_registration
from registryd.registry.quota import Quota
from registryd.registry.registrar import admin_json
from registryd.registry.sealed import Sealed, Server, is_masked, restored
from registryd.registry.store import Entry, Importing
from registryd.registry.types import (
    NAME_RE,
    AdminState,
    Answer,
    Incarnation,
    Line,
    Registration,
    Shape,
    Time,
    TtlSeconds,
    default_instance_id,
    identity,
    split_identity,
)
from registryd.registry.view import Instance, View

VERSION: Final = "1.0"
MAX_ERRORS: Final = 100
LISTED: Final = 1_000
"""Names of a kind that a difference gives; the counts are always whole."""

Document = dict[str, Any]


class RegistryFile(BaseModel):
    """What is exported and imported: of each service its `instances`, as the API shows them. Older layouts
    have lists, or other values."""

    model_config = ConfigDict(extra="allow")

    version: str | None = VERSION
    timestamp: str | None = None
    services: dict[str, Any] | list[Any] = {}
    llm_models: dict[str, Any] = {}


# --- writing


def opening(now: datetime) -> bytes:
    return b'{\n  "version": "%b",\n  "timestamp": "%b",\n  "services": {' % (
        VERSION.encode(),
        rfc3339(now).encode(),
    )


def exported(instances: Sequence[Instance], last: str | None) -> bytes:
    """These, which are in the order of their services and ids; `last` is the service that the piece before
    ended in, None for the first piece."""
    out = []
    for instance in instances:
        if instance.service == last:
            out.append(b",\n        ")
        else:
            out.append(b"\n" if last is None else b"\n      ]\n    },\n")
            out.append(b'    "%b": {\n      "instances": [\n        ' % instance.service.encode())
            last = instance.service
        out.append(to_json(shown(instance), indent=2).replace(b"\n", b"\n        "))
    return b"".join(out)


def closing(*, empty: bool) -> bytes:
    return (b"}" if empty else b"\n      ]\n    }\n  }") + b',\n  "llm_models": {}\n}\n'


def shown(instance: Instance) -> Document:
    """An instance as a file has it."""
    fields: Document = json.loads(instance.fragment)
    fields["health"] = {"status": fields["health"]["status"]}
    fields["lease"] = {"ttlSeconds": fields["lease"]["ttlSeconds"]}
    del fields["revision"]
    return fields


def kept(view: View) -> list[Instance]:
    """What a file holds of a view, in the order of names and ids: all but who is about to leave."""
    contents = view.contents
    return [one for name in contents.names for one in contents.services[name] if not one.draining]


# --- older layouts

Migration = Callable[[Document], Document]


def _of_list(document: Document) -> Document:
    """Layout 0.8: `services` is a list of service definitions, each with its endpoint."""
    services: Document = {}
    for index, service in enumerate(_list(document.get("services", []), "/services")):
        where = f"/services/{index}"
        name = _object(service, where).get("name")
        if not isinstance(name, str):
            raise _wrong(f"{where}/name", "is required")
        if name in services:
            raise _wrong(f"{where}/name", f"{name!r} stands there twice")
        services[name] = service
    return {**document, "services": services}


def _of_flat(document: Document) -> Document:
    """Layout 0.9: `services` maps names to the metadata of one instance each."""
    services = _object(document.get("services", {}), "/services")
    return {
        **document,
        "services": {
            name: one
            if "instances" in _object(one, f"/services/{name}")
            else {"instances": [_instance_of(name, one)]}
            for name, one in services.items()
        },
    }


_SAME: Final = (
    "endpoint",
    "version",
    "models",
    "metadata",
    "apiVersion",
    "api_version",
    "resourceLimits",
    "resource_limits",
    "registeredAt",
    "updatedAt",
    "instanceId",
    "healthCheck",
    "dependsOn",
)


def _instance_of(name: str, service: Document) -> Document:
    instance: Document = {"name": name}
    instance |= {key: service[key] for key in _SAME if service.get(key) not in (None, "")}
    if "endpoint" not in instance and isinstance(service.get("url"), str):
        instance["endpoint"] = service["url"]
    if "endpoint" not in instance:
        raise _wrong(
            f"/services/{name}/endpoint",
            "is required: the file is of a layout that did not need one; add where the service is reached",
        )
    if isinstance(moment := service.get("last_updated"), str) and "updatedAt" not in instance:
        # Those files were written without an offset, in UTC.
        aware = moment.endswith("Z") or "+" in moment
        instance["updatedAt"] = moment if aware else f"{moment}Z"
    health = service.get("health")
    status = health.get("status") if isinstance(health, dict) else service.get("status", health)
    if isinstance(status, str):
        instance["health"] = {"status": status}
    instance["capabilities"] = _capabilities(service.get("capabilities", []))
    return instance


def _capabilities(given: Any) -> Any:
    """A list of names or objects, or a map from name to what is claimed of it."""
    if not isinstance(given, dict):
        return given
    return [
        {"name": name, **claim} if isinstance(claim, dict) else {"name": name}
        for name, claim in given.items()
    ]


MIGRATIONS: Final[Mapping[str, tuple[str, Migration]]] = {
    "0.8": ("0.9", _of_list),
    "0.9": (VERSION, _of_flat),
}
"""From a version to the next one. A file without a version is told by its layout."""


def version_of(document: Document) -> str:
    """The layout of a file, as one of the versions known here. Raises Invalid, naming an unknown one."""
    given, services = document.get("version"), document.get("services")
    if given is not None and given != VERSION and given not in MIGRATIONS:
        raise _wrong(
            "/version",
            f"{given!r} is not known here, only {', '.join((*MIGRATIONS, VERSION))}: use the "
            "registryd that wrote the file, or a newer one",
        )
    if given in MIGRATIONS:
        return str(given)
    if isinstance(services, list):
        return "0.8"
    # The first registries wrote maps of metadata, and 1.0 as the version.
    if isinstance(services, dict) and any(
        isinstance(one, dict) and "instances" not in one for one in services.values()
    ):
        return "0.9"
    return VERSION


def migrated(document: Document) -> tuple[Document, str]:
    """The document in the present layout, and the version it came in."""
    found = version = version_of(document)
    while version != VERSION:
        version, migrate = MIGRATIONS[version]
        document = migrate(document)
    return document, found


# --- reading


class Maintained(Shape):
    """What an operator had set."""

    state: Literal[AdminState.MAINTENANCE]
    by: Line = ""
    reason: Line | None = None
    until: Time | None = None


class _Lease(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    ttl_seconds: TtlSeconds


class _Beside(BaseModel):
    """What stands beside the fields of a registration."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")

    registered_at: Time | None = None
    updated_at: Time | None = None
    incarnation: Incarnation | None = None
    lease: _Lease | None = None
    admin: Maintained | None = None


@dataclass(frozen=True, slots=True)
class Filed:
    """An instance of a file, ready for the store."""

    entry: Entry
    incarnation: str
    claim: str
    admin: bytes
    admin_end_ms: int | None
    registered_at: str
    updated_at: str
    incomplete: bool = False
    """Its health check lacks values that no export tells, and that are not known here."""


@dataclass(frozen=True, slots=True)
class File:
    version: str
    """The layout it came in."""
    instances: dict[str, Filed]
    models: int
    """Models that stand in it, and are left out."""


EntryOf = Callable[[Registration], Entry]
Secrets = Mapping[str, tuple[Sealed, Server]]
"""What is held of the values that exports mask, by `service:instance`, and whom it is meant for."""


def read(document: Any, entry_of: EntryOf, now: datetime, secrets: Secrets) -> File:
    """A file, validated as a whole. Raises Invalid with what is wrong, where. `entry_of` raises Invalid."""
    parse(RegistryFile, document)
    document, version = migrated(document)
    if unknown := document.keys() - RegistryFile.model_fields.keys():
        raise Invalid(
            f"nothing is imported: {', '.join(sorted(unknown))[:200]} is no part of such a file; known are "
            f"{', '.join(RegistryFile.model_fields)}",
            errors=[FieldError(f"/{name}", "unknown part") for name in sorted(unknown)],
        )
    instances: dict[str, Filed] = {}
    wrong: list[FieldError] = []
    for name, where, one in _instances(document):
        try:
            filed = _filed(name, one, entry_of, now, secrets)
        except Invalid as error:
            found = error.errors or [FieldError("", error.detail)]
            wrong += [FieldError(where + each.pointer, each.detail) for each in found]
            if len(wrong) >= MAX_ERRORS:
                break
            continue
        if filed.entry.id in instances:
            wrong.append(FieldError(f"{where}/instanceId", f"{filed.entry.id} stands there twice"))
        instances[filed.entry.id] = filed
    if wrong:
        others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise Invalid(
            f"nothing is imported: {wrong[0].pointer}: {wrong[0].detail}{others}",
            errors=wrong[:MAX_ERRORS],
        )
    return File(version, instances, len(document.get("llm_models", ())))


def _instances(document: Document) -> Iterator[tuple[str, str, Document]]:
    """Name, pointer and fields of each instance."""
    for name, service in _object(document.get("services", {}), "/services").items():
        where = f"/services/{name.replace('~', '~0').replace('/', '~1')}"
        if not NAME_RE.fullmatch(name):
            raise _wrong(where, f"{name[:60]!r} cannot be the name of a service")
        members = _object(service, where).get("instances", [])
        for index, one in enumerate(_list(members, f"{where}/instances")):
            place = f"{where}/instances/{index}"
            yield name, place, _object(one, place)


def _filed(
    name: str, fields: Document, entry_of: EntryOf, now: datetime, secrets: Secrets
) -> Filed:
    registration, whole = parse_registration(fields, service=name), True
    if (check := registration.health_check) is not None and is_masked(check):
        instance_id = registration.instance_id or default_instance_id(registration.endpoint)
        known, meant_for = secrets.get(identity(name, instance_id), ({}, None))
        check, whole = restored(registration.endpoint, check, known, meant_for)
        registration = registration.model_copy(update={"health_check": check})
    beside = parse(_Beside, fields)
    entry = entry_of(registration)
    if registration.ttl_seconds is None and beside.lease is not None:
        entry = replace(entry, ttl_ms=1000 * beside.lease.ttl_seconds)
    admin, end = b"", None
    if (held := beside.admin) is not None and (held.until is None or held.until > now):
        admin = admin_json(AdminState.MAINTENANCE, held.reason, held.by, held.until)
        end = None if held.until is None else int(held.until.timestamp() * 1000)
    return Filed(
        entry,
        beside.incarnation or "",
        registration.claim,
        admin,
        end,
        rfc3339(beside.registered_at) if beside.registered_at else "",
        rfc3339(beside.updated_at) if beside.updated_at else "",
        not whole,
    )


def _object(value: Any, where: str) -> Document:
    if not isinstance(value, dict):
        raise _wrong(where, "expected an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(where, "expected an array")
    return value


def _wrong(where: str, detail: str) -> Invalid:
    return Invalid(
        f"nothing is imported: {where or 'the document'}: {detail}",
        errors=[FieldError(where, detail)],
    )


# --- deciding


class Mode(StrEnum):
    MERGE = "merge"
    """What is not in the file stays, and so does what has registered anew since the file was made."""
    REPLACE = "replace"
    """Afterwards there is what is in the file, but for who drains or registers meanwhile."""


@dataclass(slots=True)
class Plan:
    """What an import does, as `service:instance`; `changed` with the names of fields."""

    items: list[Importing] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    changed: list[tuple[str, list[str]]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    newer: list[str] = field(default_factory=list)
    """Instances that registered anew after the file was made, and so stay as they are."""
    leaving: int = 0
    """Instances that drain, and are left alone."""
    incomplete: list[str] = field(default_factory=list)
    """Written ones whose health checks lack what exports mask."""

    @property
    def confirmation(self) -> str:
        """Names exactly what would go; "" for nothing."""
        if not self.removed:
            return ""
        names = "\n".join(self.removed)
        return f"{len(self.removed)}-{hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"


def plan(file: File, present: Mapping[str, Instance], mode: Mode) -> Plan:
    """What makes of the instances that are there what the file says."""
    made = Plan()
    for name, filed in file.instances.items():
        held = present.get(name)
        if held is None:
            made.added.append(name)
            if filed.incomplete:
                made.incomplete.append(name)
            made.items.append(_written(name, filed, "", filed.admin or None))
        elif held.draining:
            made.leaving += 1
        elif mode is Mode.MERGE and _newer(held, filed):
            made.newer.append(name)
        elif fields := differences(held, filed, mode):
            made.changed.append((name, fields))
            if filed.incomplete:
                made.incomplete.append(name)
            admin = filed.admin if mode is Mode.REPLACE else filed.admin or None
            made.items.append(_written(name, filed, held.incarnation, admin))
        else:
            made.unchanged += 1
    if mode is Mode.REPLACE:
        for name in sorted(present.keys() - file.instances.keys()):
            if not (held := present[name]).draining:
                made.removed.append(name)
                made.items.append(Importing(name, held.incarnation))
    return made


def _written(name: str, filed: Filed, guard: str, admin: bytes | None) -> Importing:
    end = filed.admin_end_ms if admin else None
    return Importing(
        name, guard, filed.entry, filed.incarnation, filed.claim, admin, end, filed.registered_at
    )


def _newer(held: Instance, filed: Filed) -> bool:
    """Whether the service itself has said something else since: then it knows better than the file."""
    if not filed.incarnation or held.incarnation == filed.incarnation:
        return False
    return held.updated_at > filed.updated_at


def differences(held: Instance, filed: Filed, mode: Mode) -> list[str]:
    """The fields in which the file differs from what is there. Health is no such: of an instance that is
    there, more is known than the file can tell."""
    found = []
    if held.document != filed.entry.document:
        was, would = json.loads(held.document), json.loads(filed.entry.document)
        found = [key for key in {**was, **would} if was.get(key, ...) != would.get(key, ...)]
    if held.ttl_ms != filed.entry.ttl_ms and "ttlSeconds" not in found:
        found.append("ttlSeconds")
    admin = json.loads(held.fragment).get("admin") if held.admin is not None else None
    would_admin = json.loads(filed.admin) if filed.admin else None
    if admin != would_admin and (filed.admin or mode is Mode.REPLACE):
        found.append("admin")
    return found


def admit_all(view: View, quota: Quota, made: Plan) -> None:
    """Raises RateLimited where the registry would hold more than it may."""
    contents = view.contents
    more = dict.fromkeys((split_identity(name)[0] for name in made.added), 0)
    for name in made.added:
        more[split_identity(name)[0]] += 1
    for name in made.removed:
        service, _ = split_identity(name)
        more[service] = more.get(service, 0) - 1
    members = {service: len(contents.services.get(service, ())) for service in more}
    services = len(contents.names) + sum(
        (members[service] + count > 0) - (members[service] > 0) for service, count in more.items()
    )
    for limit, count, most in (
        ("instances", len(view) + sum(more.values()), quota.instances),
        ("services", services, quota.services),
    ):
        if made.added and count > most:
            raise _too_many(f"{count} {limit}", limit)
    for service, count in more.items():
        total = members[service] + count
        if count > 0 and total > quota.instances_per_service:
            raise _too_many(f"{total} instances of {service}", "instancesPerService")


def _too_many(what: str, limit: str) -> RateLimited:
    return RateLimited(
        f"nothing is imported: there would be {what}, more than registry.limits.{limit} allows",
        retry_after=60.0,
    )


# --- answering


class Counts(Answer):
    added: int
    changed: int
    removed: int
    unchanged: int
    newer: int
    leaving: Annotated[int, Field(description="Drain, and were left alone")]
    overtaken: Annotated[
        int | None, Field(description="Registered anew during the import, and left as they are")
    ] = None


class Changed(Answer):
    instance: str
    fields: list[str]


class ImportResult(Answer):
    """What an import did, or with `dryRun` would do; at most a thousand names of a kind."""

    mode: Mode
    dry_run: bool
    file_version: Annotated[str, Field(description="The layout the file came in")]
    counts: Counts
    added: list[str]
    changed: list[Changed]
    removed: list[str]
    newer: Annotated[
        list[str],
        Field(description="Registered anew since the file was made, and left as they are"),
    ]
    incomplete: Annotated[
        list[str],
        Field(
            description="Their health checks come without the headers or the body that no export tells; "
            "register them again with those"
        ),
    ]
    models_left_out: Annotated[int, Field(description="LLM models in the file, not kept here")]
    confirm: Annotated[
        str | None, Field(description="What `replace` asks for before it removes these")
    ]


def result(made: Plan, file: File, mode: Mode, *, dry_run: bool) -> ImportResult:
    return ImportResult(
        mode=mode,
        dry_run=dry_run,
        file_version=file.version,
        counts=Counts(
            added=len(made.added),
            changed=len(made.changed),
            removed=len(made.removed),
            unchanged=made.unchanged,
            newer=len(made.newer),
            leaving=made.leaving,
        ),
        added=_names(made.added),
        changed=[
            Changed(instance=name.replace(":", "/", 1), fields=fields)
            for name, fields in made.changed[:LISTED]
        ],
        removed=_names(made.removed),
        newer=_names(made.newer),
        incomplete=_names(made.incomplete),
        models_left_out=file.models,
        confirm=made.confirmation or None,
    )


def _names(names: Sequence[str]) -> list[str]:
    return [name.replace(":", "/", 1) for name in names[:LISTED]]
