"""Events reach those who subscribed: signed, in order as far as it goes, again and again until taken."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from daemons import Api, eventually, running
from receivers import Receiver, receiving
from standardwebhooks.webhooks import WebhookVerificationError

HOOKS = "/api/v1/webhooks"


async def subscribed(api: Api, receiver: Receiver, *types: str, **fields: Any) -> Any:
    body = {"url": receiver.url(), "types": list(types) or ["*"], **fields}
    answer = await api.post(HOOKS, body)
    assert answer.status == 201, answer.body
    return answer.json


async def status_of(api: Api, hook: Any) -> Any:
    answer = await api.get(f"{HOOKS}/{hook['id']}")
    assert answer.status == 200, answer.body
    return answer.json["status"]


async def test_an_event_arrives_signed_as_a_cloud_event(hooked: Api, receiver: Receiver) -> None:
    hook = await subscribed(hooked, receiver, "service:*")
    registered = await hooked.register("chat", "a")
    await receiver.until(lambda: receiver.calls)
    (call,) = receiver.calls
    event = call.verified_by(hook["secret"])
    assert event["type"] == "service:registered"
    assert event["subject"] == "chat/a"
    assert event["id"] == registered["revision"]
    assert event["data"]["instance"]["endpoint"] == registered["endpoint"]
    assert call.headers["Content-Type"] == "application/cloudevents+json"
    with pytest.raises(WebhookVerificationError):
        call.verified_by("whsec_" + "A" * 44)


async def test_only_wanted_types_and_services_arrive(hooked: Api, receiver: Receiver) -> None:
    await subscribed(hooked, receiver, "service:unregistered", services=["chat-*"])
    await hooked.register("chat-1", "a")
    await hooked.register("other", "a")
    assert (await hooked.delete("/services/other")).status == 204
    assert (await hooked.delete("/services/chat-1")).status == 204
    await receiver.until(lambda: receiver.calls)
    await eventually(lambda: _all_delivered(hooked))
    assert [event["subject"] for event in receiver.events] == ["chat-1/a"]


async def _all_delivered(api: Api) -> bool:
    # In this order: what was carried on is queued.
    upto = (await api.get("/history?limit=1")).json["upTo"]
    hooks = (await api.get(HOOKS)).json["webhooks"]
    return upto == str(api.seen) and all(one["status"]["queued"] == 0 for one in hooks)


async def test_a_receiver_that_fails_three_times_then_accepts_gets_it_once_more_each_time(
    hooked: Api, receiver: Receiver
) -> None:
    receiver.answers = [500, 503, 302]
    hook = await subscribed(hooked, receiver, "service:registered")
    await hooked.register("chat", "a")
    await receiver.until(lambda: len(receiver.calls) == 4)
    assert len({call.id for call in receiver.calls}) == 1
    await eventually(lambda: _all_delivered(hooked))
    attempts = (await hooked.get(f"{HOOKS}/{hook['id']}/deliveries")).json["deliveries"]
    assert [
        (one["attempt"], one["outcome"], one["httpStatus"], one["error"]) for one in attempts
    ] == [
        (4, "delivered", 204, None),
        (3, "retry", 302, "HTTP 302"),
        (2, "retry", 503, "HTTP 503"),
        (1, "retry", 500, "HTTP 500"),
    ]
    status = await status_of(hooked, hook)
    assert (status["delivered"], status["failedAttempts"], status["deadLetters"]) == (1, 3, 0)


async def test_the_metrics_count_what_came_of_it(hooked: Api, receiver: Receiver) -> None:
    receiver.answers = [500]
    await subscribed(hooked, receiver, "service:registered")
    await hooked.register("chat", "a")
    await eventually(lambda: _all_delivered(hooked))
    text = (await hooked.get("/metrics")).body.decode()
    assert 'registryd_webhook_deliveries_total{result="delivered"} 1.0' in text
    assert 'registryd_webhook_deliveries_total{result="retry"} 1.0' in text
    assert "registryd_webhook_queue 0.0" in text


async def test_what_is_never_taken_becomes_a_dead_letter_that_can_be_sent_again(
    hooked: Api, receiver: Receiver
) -> None:
    receiver.answers = [500] * 5
    hook = await subscribed(hooked, receiver, "service:registered")
    await hooked.register("chat", "a")
    await receiver.until(lambda: len(receiver.calls) == 5)

    async def dead() -> bool:
        return bool((await status_of(hooked, hook))["deadLetters"] == 1)

    await eventually(dead)
    letters = (await hooked.get(f"{HOOKS}/{hook['id']}/dead-letters")).json
    (letter,) = letters["deadLetters"]
    assert (letter["attempts"], letter["error"], letters["total"]) == (5, "HTTP 500", 1)
    assert letter["event"]["subject"] == "chat/a"

    answer = await hooked.post(f"{HOOKS}/{hook['id']}/dead-letters/replay", {"ids": [letter["id"]]})
    assert answer.json == {"replayed": 1, "left": 0}
    await receiver.until(lambda: len(receiver.calls) == 6)
    assert receiver.calls[5].id == receiver.calls[0].id
    await eventually(lambda: _all_delivered(hooked))
    assert (await status_of(hooked, hook))["deadLetters"] == 0


async def test_a_receiver_that_is_gone_is_left_alone(hooked: Api, receiver: Receiver) -> None:
    receiver.answers = [410]
    hook = await subscribed(hooked, receiver, "service:*")
    await hooked.register("chat", "a")

    async def disabled() -> bool:
        return not (await hooked.get(f"{HOOKS}/{hook['id']}")).json["enabled"]

    await eventually(disabled)
    shown = (await hooked.get(f"{HOOKS}/{hook['id']}")).json
    assert shown["disabledReason"] == "the receiver answered 410 Gone"
    await hooked.register("chat", "b")
    await eventually(lambda: _all_delivered(hooked))
    assert len(receiver.calls) == 1

    assert (await hooked.patch(f"{HOOKS}/{hook['id']}", {"enabled": True})).json["enabled"]
    await hooked.register("chat", "c")
    await receiver.until(lambda: len(receiver.calls) == 2)
    assert receiver.events[1]["subject"] == "chat/c"


async def test_a_slow_receiver_holds_up_nobody_else(hooked: Api, receiver: Receiver) -> None:
    async with receiving() as slow:
        slow.hold = asyncio.Event()
        await subscribed(hooked, slow, "service:registered")
        await subscribed(hooked, receiver, "service:registered")
        for number in range(30):
            await hooked.register("chat", f"i{number}")
        await receiver.until(lambda: len(receiver.calls) == 30)
        assert slow.most_under_way <= 4
        slow.hold.set()


async def test_a_subscription_hears_of_nothing_before_it(hooked: Api, receiver: Receiver) -> None:
    await hooked.register("chat", "a")
    await eventually(lambda: _all_delivered(hooked))
    await subscribed(hooked, receiver)
    await hooked.register("chat", "b")
    await receiver.until(lambda: receiver.calls)
    assert receiver.events[0]["subject"] == "chat/b"


async def test_what_waits_survives_the_daemon(
    store_url: str, prefix: str, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.answers = [500]
    patient = {"timeout": "1s", "retryBase": "600ms", "retryCap": "600ms"}
    async with running(store_url, prefix, tmp_path, webhooks=patient) as first:
        hook = await subscribed(first, receiver, "service:registered")
        await first.register("chat", "a")
        await receiver.until(lambda: receiver.calls)

        async def noted() -> bool:
            return bool((await status_of(first, hook))["failedAttempts"] == 1)

        await eventually(noted)
    async with running(store_url, prefix, tmp_path, webhooks=patient):
        await receiver.until(lambda: len(receiver.calls) == 2)
    assert receiver.calls[0].id == receiver.calls[1].id


async def test_several_daemons_send_each_event_once(
    hooked: Api, store_url: str, prefix: str, tmp_path: Path, receiver: Receiver
) -> None:
    async with running(store_url, prefix, tmp_path) as second:
        await subscribed(hooked, receiver, "service:registered")
        for number in range(40):
            await (hooked, second)[number % 2].register("chat", f"i{number}")
        await receiver.until(lambda: len(set(receiver.ids_of("service:registered"))) == 40)
        await eventually(lambda: _all_delivered(hooked))
    assert len(receiver.calls) == 40


async def test_a_daemon_that_does_not_deliver_leaves_it_to_others(
    store_url: str, prefix: str, tmp_path: Path, receiver: Receiver
) -> None:
    async with running(store_url, prefix, tmp_path, webhooks={"enabled": False}) as silent:
        hook = await subscribed(silent, receiver, "service:registered")
        await silent.register("chat", "a")

        async def waits() -> bool:
            return bool((await status_of(silent, hook))["queued"] == 1)

        await eventually(waits)
        assert not receiver.calls
        async with running(store_url, prefix, tmp_path):
            await receiver.until(lambda: receiver.calls)


async def test_test_sends_one_event_now_and_tells_the_outcome(
    hooked: Api, receiver: Receiver
) -> None:
    hook = await subscribed(hooked, receiver, "service:registered", enabled=False)
    receiver.answers = [204, 418]
    answer = await hooked.post(f"{HOOKS}/{hook['id']}/test")
    assert (answer.json["success"], answer.json["httpStatus"]) == (True, 204)
    assert receiver.calls[0].verified_by(hook["secret"])["type"] == "webhook:test"
    answer = await hooked.post(f"{HOOKS}/{hook['id']}/test")
    assert (answer.json["success"], answer.json["error"]) == (False, "HTTP 418")


async def test_a_replaced_secret_signs_beside_the_new_one(hooked: Api, receiver: Receiver) -> None:
    hook = await subscribed(hooked, receiver)
    changed = (await hooked.patch(f"{HOOKS}/{hook['id']}", {"secret": None})).json
    assert changed["secret"] not in {None, hook["secret"]}
    await hooked.register("chat", "a")
    await receiver.until(lambda: receiver.calls)
    assert receiver.calls[0].verified_by(hook["secret"]) == receiver.calls[0].verified_by(
        changed["secret"]
    )


async def test_the_secret_shows_up_nowhere_but_in_the_first_answer(
    hooked: Api, receiver: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.answers = [204, 500]
    hook = await subscribed(hooked, receiver, "*")
    path = f"{HOOKS}/{hook['id']}"
    given = "whsec_" + "QUJD" * 12
    said = [
        await hooked.patch(path, {"secret": given, "description": "x"}),
        await hooked.patch(path, {"secret": "whsec_" + "Q" * 7}),
        await hooked.post(f"{path}/test"),
    ]
    await hooked.register("chat", "a")
    await receiver.until(lambda: len(receiver.calls) >= 3)
    await eventually(lambda: _all_delivered(hooked))
    places = (HOOKS, path, f"{path}/deliveries", f"{path}/dead-letters", "/history", "/metrics")
    said += [await hooked.get(at) for at in places]
    assert said[1].status == 422
    logged = "".join(capfd.readouterr())
    everything = [answer.body.decode() for answer in said]
    everything += [logged, *(call.body.decode() for call in receiver.calls)]
    everything += [str(dict(call.headers)) for call in receiver.calls]
    for secret in (hook["secret"], given, "Q" * 7):
        assert not [text for text in everything if secret.removeprefix("whsec_") in text]


async def test_changes_that_left_the_stream_unseen_are_told_of(
    hooked: Api, receiver: Receiver, connection: Any
) -> None:
    hook = await subscribed(hooked, receiver, "service:registered")
    await hooked.register("chat", "a")
    await eventually(lambda: _all_delivered(hooked))
    prefix = hooked.prefix
    # As if everything that carries had slept while the stream went on and was cut.
    at = hooked.seen
    await connection.call("HSET", f"{prefix}:webhooks:state", "cursor", f"{at.epoch}-{at.rev - 1}")
    await connection.call("XTRIM", f"{prefix}:stream", "MAXLEN", 0)
    await hooked.register("chat", "b")

    async def told() -> Any:
        return (await status_of(hooked, hook))["missed"]

    await eventually(told)
    missed = await told()
    assert missed["before"] == str(hooked.seen)
    await receiver.until(lambda: [e for e in receiver.events if e["subject"] == "chat/b"])
    assert b"registryd_webhook_gaps_total 1.0" in (await hooked.get("/metrics")).body


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"types": ["*"]}, ["/url"]),
        ({"url": "ftp://h/", "types": ["*"]}, ["/url"]),
        ({"url": "http://user:pw@h/", "types": ["*"]}, ["/url"]),
        ({"url": "http:///x", "types": ["*"]}, ["/url"]),
        ({"url": "http://h/#f", "types": ["*"]}, ["/url"]),
        ({"url": "http://h/"}, ["/types"]),
        ({"url": "http://h/", "types": []}, ["/types"]),
        ({"url": "http://h/", "types": ["Service *"]}, ["/types/0"]),
        ({"url": "http://h/", "types": ["*"], "services": ["a b"]}, ["/services/0"]),
        ({"url": "http://h/", "types": ["*"], "secret": "whsec_short"}, ["/secret"]),
        ({"url": "http://h/", "types": ["*"], "colour": 1}, ["/colour"]),
    ],
)
async def test_a_wrong_subscription_is_refused_with_the_place(
    hooked: Api, body: Any, pointers: list[str]
) -> None:
    answer = await hooked.post(HOOKS, body)
    assert answer.status == 422
    assert answer.pointers == pointers
    if body.get("url", "").startswith("http://user"):
        assert b"pw" not in answer.body


async def test_webhooks_are_listed_page_by_page_and_go_when_deleted(hooked: Api) -> None:
    made = [
        (await hooked.post(HOOKS, {"url": f"http://h/{n}", "types": ["x:y"]})).json
        for n in range(3)
    ]
    page = (await hooked.get(f"{HOOKS}?limit=2")).json
    rest = (await hooked.get(f"{HOOKS}?limit=2&cursor={page['next']}")).json
    assert rest["next"] is None
    assert {one["id"] for one in page["webhooks"] + rest["webhooks"]} == {one["id"] for one in made}
    assert page["total"] == 3
    assert (await hooked.delete(f"{HOOKS}/{made[0]['id']}")).status == 204
    for path in ("", "/deliveries", "/dead-letters"):
        assert (await hooked.get(f"{HOOKS}/{made[0]['id']}{path}")).status == 404
    assert (await hooked.delete(f"{HOOKS}/{made[0]['id']}")).status == 404
    assert (await hooked.patch(f"{HOOKS}/{made[0]['id']}", {})).status == 404
    assert (await hooked.post(f"{HOOKS}/{made[0]['id']}/test")).status == 404


async def test_a_deleted_webhook_leaves_nothing_behind(
    hooked: Api, receiver: Receiver, connection: Any
) -> None:
    receiver.answers = [500] * 100
    hook = await subscribed(hooked, receiver, "*")
    await hooked.register("chat", "a")
    await receiver.until(lambda: receiver.calls)
    assert (await hooked.delete(f"{HOOKS}/{hook['id']}")).status == 204

    async def nothing() -> bool:
        names = [n async for n in connection.scan(f"{hooked.prefix}:webhooks:{hook['id']}", 100)]
        return not names

    await asyncio.sleep(0.2)  # reports of attempts that were under way
    assert await nothing()
    assert json.dumps(hook["id"]) not in (await hooked.get(HOOKS)).body.decode()
