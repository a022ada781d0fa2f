"""How an instance reads as JSON."""

import json
from typing import Any

import pytest
from changes import History

from registryd.feed.revision import Revision
from registryd.registry.bodies import parse_registration
from registryd.registry.document import (
    Admin,
    Row,
    claims_of,
    compose,
    effective_health,
    encode,
    terms_of,
)
from registryd.registry.types import HealthStatus, Registration


def registration(**fields: Any) -> Registration:
    return parse_registration({"endpoint": "http://h:1", **fields}, service="chat", instance_id="i")


def stored(**fields: Any) -> Any:
    return json.loads(encode(registration(**fields)))


def test_what_was_given_is_stored_with_our_defaults_and_nothing_else() -> None:
    assert stored() == {
        "name": "chat",
        "instanceId": "i",
        "endpoint": "http://h:1",
        "weight": 1,
        "capabilities": [],
        "metadata": {},
    }


def test_the_registrys_own_part_and_what_fences_are_not_stored() -> None:
    document = stored(incarnation="x", health={"status": "healthy"}, revision="1-1", lease={})
    assert document.keys() == stored().keys()


def test_nulls_in_free_form_parts_are_the_clients_and_stay() -> None:
    free = {"a": None, "b": {"c": None}, "d": [None]}
    document = stored(
        metadata=free, resourceLimits=free, capabilities=[{"name": "c", "inputs": free}]
    )
    assert document["metadata"] == document["resourceLimits"] == free
    assert document["capabilities"] == [{"name": "c", "version": "1.0.0", "inputs": free}]


def test_a_check_switched_off_is_told_from_none_given() -> None:
    assert "healthCheck" not in stored()
    assert stored(healthCheck=None)["healthCheck"] is None
    assert stored(health_check=None)["healthCheck"] is None
    assert stored(healthCheck={"path": "/x"})["healthCheck"]["path"] == "/x"


def test_the_same_body_is_stored_as_the_same_bytes_whatever_its_style_and_order() -> None:
    one = registration(ttlSeconds=5, zone="z", metadata={"tags": ["a"], "x": 1})
    other = registration(metadata={"tags": ["a"], "x": 1}, zone="z", ttl_seconds=5)
    assert encode(one) == encode(other)


def test_letters_beyond_ascii_are_stored_as_they_are() -> None:
    assert "漢".encode() in encode(registration(metadata={"é": "漢"}))


def test_terms_are_what_the_indexes_of_the_store_know() -> None:
    body = registration(
        version="1.2",
        metadata={"tags": ["b", "a"], "environment": "prod"},
        capabilities=["chat", {"name": "chat", "version": "2.0.0"}],
        zone="z",
    )
    assert terms_of(body) == [
        "capability:chat",
        "environment:production",
        "tag:a",
        "tag:b",
        "version:1.2",
    ]


@pytest.fixture
def history() -> History:
    history = History()
    history.register("chat", health="healthy", ttl=10)
    return history


def test_a_row_reads_as_the_store_wrote_it(history: History) -> None:
    row = Row.decode(history.held["chat:i1"].row)
    assert (row.ttl_seconds, row.revision) == (10, Revision(history.epoch, 1))
    assert (row.health, row.endpoint, row.terms) == ("healthy", "http://10.0.0.1:80", ())


@pytest.mark.parametrize(
    ("state", "health"), [("maintenance", "maintenance"), ("draining", "healthy"), ("", "healthy")]
)
def test_maintenance_hides_what_an_instance_says(history: History, state: str, health: str) -> None:
    history.administer("chat:i1", state)
    held = history.held["chat:i1"]
    row, admin = Row.decode(held.row), Admin.decode(held.admin)
    assert effective_health(row, admin) is HealthStatus(health)
    document = json.loads(compose(held.doc, row, admin, suspect=False))
    assert document["health"]["status"] == health
    assert document.get("admin", {}).get("state", "") == state


def test_only_answers_to_writes_say_when_a_lease_ends(history: History) -> None:
    held = history.held["chat:i1"]
    row = Row.decode(held.row)
    lease = json.loads(compose(held.doc, row, Admin(), suspect=True))["lease"]
    assert lease == {"ttlSeconds": 10, "renewIntervalSeconds": 3, "state": "suspect"}
    shown = compose(held.doc, row, Admin(), suspect=False, expires_at="2030-01-01T00:00:00.000Z")
    assert json.loads(shown)["lease"]["expiresAt"] == "2030-01-01T00:00:00.000Z"


def test_claims_are_names_with_versions_in_order() -> None:
    body = registration(capabilities=["tts", {"name": "chat", "version": "2.0.0"}, "chat"])
    assert claims_of(body) == ["chat@1.0.0", "chat@2.0.0", "tts@1.0.0"]
