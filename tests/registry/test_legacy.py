"""The microservice clients' registration."""

from typing import Any

import pytest

from registryd.errors import Invalid
from registryd.registry.bodies import parse
from registryd.registry.legacy import registration_of
from registryd.registry.types import LegacyRegistration, Registration


def read(metadata: Any = None, **fields: Any) -> Registration:
    body = {"service_name": "chat", "service_url": "http://h:1/", **fields}
    if metadata is not None:
        body["service_metadata"] = metadata
    return registration_of(parse(LegacyRegistration, body))


def test_a_bare_registration_has_name_and_endpoint_without_its_last_slash() -> None:
    registration = read()
    assert (registration.name, registration.endpoint) == ("chat", "http://h:1")
    assert registration.instance_id is None
    assert "health_check" not in registration.model_fields_set


def test_id_and_status_are_taken_from_the_metadata_and_the_rest_stays() -> None:
    registration = read({"instance_id": "chat-7", "status": "healthy", "team": "nlp", "x": None})
    assert (registration.instance_id, registration.claim) == ("chat-7", "healthy")
    assert registration.metadata.model_extra == {"team": "nlp", "x": None}


@pytest.mark.parametrize("status", ["maintenance", "starting", "", None, 1, [], {"a": 1}])
def test_a_status_that_is_no_claim_claims_nothing(status: Any) -> None:
    assert read({"status": status}).claim == ""


@pytest.mark.parametrize("empty", ["", None])
def test_what_is_empty_is_absent(empty: Any) -> None:
    registration = read({"instance_id": empty}, health_check_url=empty)
    assert (registration.instance_id, registration.health_check) == (None, None)


def test_a_check_url_becomes_the_check() -> None:
    check = read(health_check_url="http://h:1/health").health_check
    assert check is not None
    assert (check.type, check.url) == ("http", "http://h:1/health")


def test_unknown_fields_are_ignored() -> None:
    assert read(service_version="2", registered_at=5).name == "chat"


@pytest.mark.parametrize(
    ("metadata", "pointer"),
    [
        ({"instance_id": "a b"}, "/service_metadata/instance_id"),
        ({"instance_id": 0}, "/service_metadata/instance_id"),
        ({"instance_id": ["a"]}, "/service_metadata/instance_id"),
        ({"tags": "a"}, "/service_metadata/tags"),
        ({"tags": ["a b"]}, "/service_metadata/tags/0"),
    ],
)
def test_what_is_wrong_is_pointed_at_in_the_body_as_it_came(metadata: Any, pointer: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(metadata)
    assert [error.pointer for error in caught.value.errors] == [pointer]
    assert "/metadata/" not in caught.value.detail
