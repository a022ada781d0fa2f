"""Retries, failover and faults, against servers that misbehave."""

import random

import pytest
from servers import Clock, faulty, http, problem, stream

from registryd import errors
from registryd.client import RegistryClient, UnexpectedAnswer, Unreachable
from registryd.client.retry import pause, retry_after
from registryd.client.stream import Interrupted, Message, follow
from registryd.client.transport import Transport

OK = http(200, b'{"fine": true}')


def patient(clock: Clock, *urls: str, patience: float = 15.0) -> Transport:
    return Transport(urls, patience=patience, dice=random.Random(1), clock=clock, sleep=clock.sleep)


async def test_a_503_is_asked_again_after_the_time_it_names() -> None:
    clock = Clock()
    async with (
        faulty(problem(503, "storage_unavailable", Retry_After="7"), OK) as server,
        patient(clock, server.url) as transport,
    ):
        assert (await transport.call("GET", "/x")).json == {"fine": True}
    assert clock.slept == [7.0]


async def test_a_time_to_wait_beyond_the_patience_ends_the_call_at_once() -> None:
    clock = Clock()
    async with (
        faulty(problem(503, "not_ready", Retry_After="60")) as server,
        patient(clock, server.url) as transport,
    ):
        with pytest.raises(errors.NotReady, match=r"ask another daemon\.$"):
            await transport.call("GET", "/x")
        assert (clock.slept, len(server.requests)) == ([], 1)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("answer", [b"", problem(503, "storage_unavailable")])
async def test_what_is_not_idempotent_is_sent_once(method: str, answer: bytes) -> None:
    async with faulty(answer, OK) as server, patient(Clock(), server.url) as transport:
        with pytest.raises(errors.RegistrydError):
            await transport.call(method, "/x", body={})
        assert len(server.requests) == 1


async def test_what_is_not_idempotent_is_sent_again_when_it_was_refused_or_never_arrived() -> None:
    clock = Clock()
    async with (
        faulty(problem(429, "rate_limited", Retry_After="2"), OK) as server,
        patient(clock, "http://127.0.0.1:1", server.url) as transport,
    ):
        assert (await transport.call("POST", "/x")).status == 200
    assert len(server.requests) == 2
    assert clock.slept[0] == 2.0


async def test_another_base_url_is_asked_without_delay_and_then_kept() -> None:
    clock = Clock()
    async with (
        faulty(problem(503, "not_ready")) as broken,
        faulty(OK) as sound,
        patient(clock, broken.url, sound.url) as transport,
    ):
        for _ in range(3):
            await transport.call("GET", "/x")
    assert (len(broken.requests), len(sound.requests), clock.slept) == (1, 3, [])


async def test_who_cannot_be_reached_is_named_with_what_to_do() -> None:
    async with patient(Clock(), "http://127.0.0.1:1") as transport:
        with pytest.raises(
            Unreachable, match=r"127\.0\.0\.1:1 did not answer GET /x.*from here\.$"
        ):
            await transport.call("GET", "/x")


async def test_a_call_that_may_have_had_its_effect_says_so() -> None:
    async with faulty(b"") as server, patient(Clock(), server.url) as transport:
        with pytest.raises(Unreachable, match=r"whether the call had its effect\.$"):
            await transport.call("POST", "/x")


@pytest.mark.parametrize(
    "answer", [http(200, b"<html>"), http(200, b'{"half":'), http(502, b"<html>bad gateway")]
)
async def test_garbage_is_an_error_of_its_own(answer: bytes) -> None:
    async with (
        faulty(answer) as server,
        RegistryClient(server.url, patience=0, environ={}) as client,
    ):
        with pytest.raises(UnexpectedAnswer, match=r"in between\.$"):
            await client.stats()


async def test_an_answer_of_another_shape_is_an_error_of_its_own() -> None:
    async with (
        faulty(http(200, b'{"totalServices": "many"}')) as server,
        RegistryClient(server.url, patience=0, environ={}) as client,
    ):
        with pytest.raises(UnexpectedAnswer, match="totalServices"):
            await client.stats()


async def test_the_key_goes_to_the_registry_and_nowhere_else() -> None:
    async with faulty(OK) as elsewhere:
        moved = http(307, Location=f"{elsewhere.url}/x")
        async with faulty(moved) as server:
            environ = {"REGISTRYD_URL": server.url, "REGISTRYD_API_KEY": "k-1"}
            async with RegistryClient(environ=environ) as client:
                with pytest.raises(UnexpectedAnswer):
                    await client.stats()
            assert "Authorization: Bearer k-1\r\n" in server.requests[0]
        assert elsewhere.requests == []


async def test_a_torn_stream_goes_on_after_its_last_whole_event() -> None:
    def change(number: int) -> str:
        return (
            f'id: 1-{number}\nevent: change\ndata: {{"revision":"1-{number}",'
            f'"added":[],"changed":[],"removed":[{{"name":"a","instanceId":"{number}"}}]}}\n\n'
        )

    torn = stream(change(1) + change(2)[:40])
    async with (
        faulty(torn, stream(change(2))) as server,
        RegistryClient(server.url, environ={}) as client,
    ):
        steps = client.watch("a")
        seen = [(await anext(steps)).revision for _ in range(2)]
        await steps.aclose()
    assert seen == ["1-1", "1-2"]
    assert "Last-Event-ID: 1-1\r\n" in server.requests[1]


async def test_a_stream_that_is_refused_raises_instead_of_trying_for_ever() -> None:
    async with (
        faulty(problem(403, "forbidden")) as server,
        RegistryClient(server.url, environ={}) as client,
    ):
        with pytest.raises(errors.Forbidden):
            await anext(client.watch("a"))


async def test_a_stream_comes_back_when_it_was_told_to() -> None:
    clock = Clock()
    async with (
        faulty(problem(503, "not_ready", Retry_After="9"), stream(": ping\n\n")) as server,
        patient(clock, server.url) as transport,
    ):
        messages = follow(transport, "/watch", [], dice=random.Random(1), sleep=clock.sleep)
        assert isinstance(await anext(messages), Interrupted)
        assert isinstance(await anext(messages), Message)
        await messages.aclose()
    assert clock.slept == [9.0]


def test_without_a_usable_url_nothing_begins() -> None:
    with pytest.raises(errors.Invalid, match="REGISTRYD_URL"):
        RegistryClient("localhost:8082", environ={})


def test_pauses_are_drawn_up_to_a_ceiling_that_doubles() -> None:
    dice = random.Random(1)
    for attempt in range(40):
        ceiling = min(5.0, 0.1 * 2**attempt)
        drawn = [pause(attempt, dice) for _ in range(200)]
        assert 0 <= min(drawn) < 0.2 * ceiling
        assert 0.8 * ceiling < max(drawn) <= ceiling


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("Thu, 01 Jan 1970 00:01:40 GMT", 60), ("Thu, 01 Jan 1970 00:00:01 GMT", 0),
     (None, 0), ("", 0), ("soon", 0), ("-3", 0)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float) -> None:
    assert retry_after(text, 40.0) == seconds


async def test_what_is_refused_for_being_too_much_says_when_there_is_room_again() -> None:
    answers = [problem(429, "rate_limited", Retry_After="7")] * 2
    async with faulty(*answers) as server, patient(Clock(), server.url) as transport:
        with pytest.raises(errors.RateLimited) as refused:
            await transport.call("GET", "/services", patience=0)
    assert refused.value.retry_after == 7
    assert refused.value.members == {"retryAfterSeconds": 7.0}
