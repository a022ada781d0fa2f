"""Errors as problem documents."""

import json

import pytest

from registryd import errors
from registryd.web import problem


def subclasses(of):
    for cls in of.__subclasses__():
        yield cls
        yield from subclasses(cls)


OURS = [errors.RegistrydError, *subclasses(errors.RegistrydError)]


@pytest.mark.parametrize("cls", OURS)
def test_every_error_a_caller_may_see_has_a_status(cls):
    assert issubclass(cls, errors.StartupRefused) or cls.code in problem.STATUS


def test_every_status_belongs_to_an_error():
    assert problem.STATUS.keys() == {cls.code for cls in OURS} - {"startup_refused"}


def test_a_problem_says_everything_twice_where_older_clients_look():
    document = json.loads(problem.reply(errors.NotFound("no such service"), "r-1").body)
    assert document == {
        "type": "urn:registryd:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "no such service",
        "code": "not_found",
        "requestId": "r-1",
        "error": "no such service",
    }


def test_a_validation_problem_lists_the_fields():
    error = errors.Invalid("bad", errors=[errors.FieldError("/name", "is required")])
    document = json.loads(problem.reply(error, "r").body)
    assert document["errors"] == [{"pointer": "/name", "detail": "is required"}]


def test_a_validation_problem_has_a_list_even_when_it_is_empty():
    assert json.loads(problem.reply(errors.Invalid("bad"), "r").body)["errors"] == []


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.MethodNotAllowed("no", allowed=["GET", "PUT"]), ("Allow", "GET, PUT")),
        (errors.Unauthenticated("who?"), ("WWW-Authenticate", 'Bearer realm="registryd"')),
        (errors.StorageUnavailable("down"), ("Retry-After", "1")),
        (errors.NotReady("behind"), ("Retry-After", "1")),
        (errors.RateLimited("slower", retry_after=0.2), ("Retry-After", "1")),
        (errors.RateLimited("slower", retry_after=2.1), ("Retry-After", "3")),
    ],
)
def test_a_problem_carries_the_header_its_status_asks_for(error, header):
    assert header in problem.reply(error, "r").headers


def test_a_detail_that_is_no_unicode_does_not_break_the_answer():
    assert problem.reply(errors.Malformed("\udcff"), "r").body.isascii()


def test_further_members_stand_beside_the_others_and_replace_none():
    error = errors.NotFound("none fits", members={"unhealthy": 3, "status": 200})
    document = json.loads(problem.reply(error, "r").body)
    assert (document["unhealthy"], document["status"]) == (3, 404)
