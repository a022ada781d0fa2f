"""Whatever can be registered comes back from a file as it was: documents, lease, health and maintenance."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from registryd.feed.revision import Revision
from registryd.registry.document import Admin, Row, encode, terms_of
from registryd.registry.registrar import admin_json
from registryd.registry.store import Entry, entry_of
from registryd.registry.transfer import Mode, closing, exported, opening, plan, read
from registryd.registry.types import AdminState, Registration, identity
from registryd.registry.view import Instance

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DEFAULT_TTL_MS = 300_000

words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
objects = st.dictionaries(texts, values, max_size=3)
bodies = st.fixed_dictionaries(
    {"name": words, "instance_id": words, "endpoint": st.just("http://10.0.0.1:80")},
    optional={
        "version": words,
        "weight": st.integers(0, 65_535),
        "ttl_seconds": st.integers(2, 86_400),
        "capabilities": st.lists(
            st.fixed_dictionaries({"name": words}, optional={"parameters": objects}),
            max_size=2,
            unique_by=lambda one: one["name"],
        ),
        "resource_limits": objects,
        "metadata": objects.map(
            lambda one: {k: v for k, v in one.items() if k not in {"tags", "environment"}}
        ),
        "health_check": st.sampled_from([None, {"type": "tcp"}, {"interval_ms": 500}]),
    },
)
healths = st.sampled_from(["healthy", "degraded", "unhealthy", "unknown"])
admins = st.none() | st.tuples(
    st.none() | texts.filter(str.isprintable),
    st.none() | st.integers(1, 10**6).map(lambda n: NOW + timedelta(seconds=n)),
)


def entry(registration: Registration) -> Entry:
    name = identity(registration.name, registration.instance_id)
    ttl = registration.ttl_seconds
    ttl_ms = DEFAULT_TTL_MS if ttl is None else 1000 * ttl
    return entry_of(name, registration, encode(registration), ttl_ms)


def held(body: dict[str, Any], health: str, admin: Any, ttl_ms: int) -> Instance:
    registration = Registration.model_validate(body)
    made = entry(registration)
    row = Row(
        ttl_ms, "inc", Revision(1, 1), health, "2026-01-31T11:00:00.000Z", "",
        "2026-01-31T10:00:00.123Z", "2026-01-31T11:00:00.456Z", registration.endpoint,
        tuple(terms_of(registration)),
    )  # fmt: skip
    raw = admin_json(AdminState.MAINTENANCE, admin[0], "op", admin[1]) if admin else b""
    return Instance(made.id, row, made.document, Admin.decode(raw), suspect=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(bodies, healths, admins), max_size=4, unique_by=lambda one: (one[0]["name"], one[0]["instance_id"])),
    st.integers(2, 86_400),
    st.integers(1, 3),
)  # fmt: skip
def test_what_is_written_is_read_back_as_it_was(rows: Any, ttl: int, piece: int) -> None:
    there = [
        held(body, health, admin, 1000 * body.get("ttl_seconds", ttl))
        for body, health, admin in rows
    ]
    there.sort(key=lambda one: (one.service, one.id))
    text, last = opening(NOW), None
    for start in range(0, len(there), piece):
        text += exported(there[start : start + piece], last)
        last = there[start : start + piece][-1].service
    text += closing(empty=not there)
    parsed = json.loads(text)
    file = read(parsed, entry, NOW, {})
    assert list(file.instances) == [one.id for one in there]
    for one in there:
        filed = file.instances[one.id]
        assert filed.entry.document == one.document
        assert filed.entry.ttl_ms == one.ttl_ms
        assert (filed.incarnation, filed.registered_at) == ("inc", one.registered_at)
        shown = json.loads(one.fragment)
        status = shown["health"]["status"]
        assert filed.claim == (status if status not in {"unknown", "maintenance"} else "")
        assert (json.loads(filed.admin) if filed.admin else None) == shown.get("admin")
    same = plan(file, {one.id: one for one in there}, Mode.REPLACE)
    assert (same.unchanged, same.items) == (len(there), [])
