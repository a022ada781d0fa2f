"""The OpenAPI document against the route table it is made from."""

import json
import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel
from wired import route

from registryd.web.caller import Permission, Scope
from registryd.web.openapi import document
from registryd.web.routing import REGISTRY_PREFIX, Answer, Mount, Param


class Check(BaseModel):
    path: str = "/health"


class Thing(BaseModel):
    name: str
    check: Check = Check()


class Things(BaseModel):
    things: list[Thing]


ROUTES = (
    route(
        "GET",
        "/things",
        mount=Mount.REGISTRY,
        operation_id="listThings",
        permission=Permission.READER,
        query=(Param("limit", "How many.", {"type": "integer", "maximum": 10}, example=3),),
        answers={200: Answer("The things.", Things)},
        problems=(412,),
    ),
    route(
        "PUT",
        "/things/{id}",
        mount=Mount.REGISTRY,
        scope=Scope.NAMED,
        operation_id="putThing",
        permission=Permission.WRITER,
        segments={"id": re.compile("[a-z]+")},
        body=Thing,
        body_media=("application/json", "application/merge-patch+json"),
        answers={201: Answer("New.", Thing), 200: Answer("Known.", Thing)},
    ),
    route(
        "DELETE",
        "/things/{id}",
        mount=Mount.REGISTRY,
        operation_id="deleteThing",
        answers={204: Answer("Gone.")},
    ),
    route(
        "GET",
        "/health",
        operation_id="health",
        answers={200: Answer("Well.", content_type="text/plain")},
    ),
    route(
        "GET",
        "/health",
        mount=Mount.PREFIX_ONLY,
        operation_id="longHealth",
        answers={200: Answer("Well.")},
    ),
)


@pytest.fixture(scope="module")
def spec():
    return json.loads(json.dumps(document(ROUTES, title="Test", version="1.2.3")))


def test_the_document_is_valid_openapi_3_1(spec):
    OpenAPIV31SpecValidator(spec).validate()


def test_both_forms_are_servers(spec):
    assert [server["url"] for server in spec["servers"]] == [REGISTRY_PREFIX, "/"]


def test_a_route_of_one_place_has_servers_of_its_own(spec):
    assert [server["url"] for server in spec["paths"]["/health"]["servers"]] == ["/"]
    assert [s["url"] for s in spec["paths"][REGISTRY_PREFIX + "/health"]["servers"]] == ["/"]
    assert "servers" not in spec["paths"]["/things"]


def test_path_parameters_carry_their_pattern(spec):
    [parameter] = spec["paths"]["/things/{id}"]["put"]["parameters"]
    assert parameter == {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "pattern": "^(?:[a-z]+)$"},
    }


def test_query_parameters_are_listed(spec):
    [parameter] = spec["paths"]["/things"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["example"]) == ("limit", "query", 3)


def test_bodies_are_listed_by_media_type(spec):
    content = spec["paths"]["/things/{id}"]["put"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "application/merge-patch+json"}


def test_permissions_and_tags_are_told(spec):
    operation = spec["paths"]["/things/{id}"]["put"]
    assert operation["x-registryd-permission"] == "writer"
    assert operation["x-registryd-scope"] == "named"
    assert operation["tags"] == ["test"]


def test_problems_of_the_route_and_of_all_routes_are_listed(spec):
    responses = spec["paths"]["/things"]["get"]["responses"].keys()
    assert responses == {"200", "400", "401", "403", "412", "429", "500", "503"}


def test_an_open_route_cannot_answer_401(spec):
    assert "401" not in spec["paths"]["/health"]["get"]["responses"]


def test_a_route_with_a_body_can_answer_what_bodies_bring(spec):
    assert {"413", "415", "422"} <= spec["paths"]["/things/{id}"]["put"]["responses"].keys()


def test_an_answer_without_a_model_has_no_content(spec):
    assert "content" not in spec["paths"]["/things/{id}"]["delete"]["responses"]["204"]


def test_two_documents_of_one_table_are_the_same_bytes():
    first = json.dumps(document(ROUTES, title="Test", version="1"))
    assert first == json.dumps(document(ROUTES, title="Test", version="1"))


def test_credentials_are_described_and_asked_for_where_they_are(spec):
    assert set(spec["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    assert {} in spec["security"]  # auth.mode may be none
    assert spec["paths"]["/things/{id}"]["delete"]["security"] == []
    assert "security" not in spec["paths"]["/things"]["get"]
