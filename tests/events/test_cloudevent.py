"""The daemon and the scripts compose the same events."""

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from registryd.events.cloudevent import Event, events_of, source_of
from registryd.feed.revision import NOWHERE
from registryd.feed.stream import ChangeStream
from registryd.registry.bodies import parse_registration
from registryd.registry.document import encode
from registryd.registry.store import Entry, Guard, RegistryStore, Report, entry_of
from registryd.storage.connection import Connection
from registryd.storage.keys import CORE, Keys

SOURCE = source_of("test")


def entry(name: str = "a:1", *capabilities: str, **fields: Any) -> Entry:
    service, _, instance_id = name.partition(":")
    claims = [dict(zip(("name", "version"), one.split("@"), strict=False)) for one in capabilities]
    body = {"endpoint": "http://h:1", "capabilities": claims, "healthCheck": None, **fields}
    registration = parse_registration(body, service=service, instance_id=instance_id)
    return entry_of(name, registration, encode(registration), 60_000)


class Ear:
    """Hears what the scripts publish, and reads what they wrote into the stream."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._stream = ChangeStream(connection, keys)

    async def heard(self, *actions: Callable[[], Awaitable[Any]]) -> list[tuple[str, bytes]]:
        """The messages that the actions send, (type, body)."""
        async with self._connection.client.pubsub() as subscriber:
            await subscriber.psubscribe("ossa:events:*")
            await subscriber.get_message(timeout=1)
            for action in actions:
                await action()
            found = []
            while message := await subscriber.get_message(
                ignore_subscribe_messages=True, timeout=0.05
            ):
                channel = message["channel"].decode().removeprefix("ossa:events:")
                found.append((channel, message["data"]))
            return found

    async def composed(self) -> list[Event]:
        return [
            event
            for change in await self._stream.after(NOWHERE)
            for event in events_of(change, SOURCE)
        ]


@pytest.fixture
def ear(connection: Connection, keys: Keys) -> Ear:
    return Ear(connection, keys)


REASON = 'said "no"/\n\\ é \x7f \x01 \u2028'


async def test_daemon_and_scripts_compose_the_same_bytes(store: RegistryStore, ear: Ear) -> None:
    maintenance = b'{"state":"maintenance","reason":"\\u00e9/","by":"op"}'
    heard = await ear.heard(
        lambda: store.register(entry("a:1", "chat@1.0.0", "n/lp:x@2.0", metadata={"k": "ü/"})),
        lambda: store.register(entry("a:1", "chat@1.1.0", "tts@1.0.0")),
        lambda: store.report_status("a:1", "", "healthy", b',"details":{"a":[]}'),
        lambda: store.amend("a:1", reason="", admin=maintenance),
        lambda: store.report_status("a:1", "", "degraded"),
        lambda: store.amend("a:1", reason=REASON, entry=entry("a:1", "chat@1.1.0")),
        lambda: store.amend("a:1", reason="", admin="none"),
        lambda: store.amend(
            "a:1", reason="", admin=b'{"state":"draining"}', drain=timedelta(seconds=30)
        ),
        lambda: store.deregister(["a:1"], reason=REASON),
        lambda: store.register(entry("b.C-_:x:~1")),
    )
    composed = await ear.composed()
    assert [(event.type, event.body) for event in composed] == heard
    assert [event.type for event in composed] == [
        "service:registered",
        "capability:added",
        "capability:added",
        "service:updated",
        "capability:changed",
        "capability:added",
        "capability:removed",
        "service:health:changed",
        "service:health:changed",
        "service:updated",
        "service:updated",
        "capability:removed",
        "service:health:changed",
        "service:updated",
        "service:unregistered",
        "capability:removed",
        "service:registered",
    ]


async def test_what_probes_discover_is_told_in_the_same_bytes(
    store: RegistryStore, ear: Ear
) -> None:
    async def probe(capabilities: str, status: str = "") -> None:
        offer = f'{{"capabilities":[{capabilities}],"models":["m/1"]}}'
        [claim] = (await store.claim_checks(1, only="a:1")).claims
        await store.report_check(claim, Report(passed=True, status=status, discovered=offer))

    checked = entry("a:1", "chat@2.0.0", healthCheck={})
    heard = await ear.heard(
        lambda: store.register(checked),
        lambda: probe('{"name":"chat","version":"1.0.0"},{"name":"n/lp","version":"1.0.0"}'),
        lambda: store.register(entry("a:1", healthCheck={})),
        lambda: probe("", "healthy"),
        lambda: probe('{"name":"chat","version":"1.0.0"}'),
        lambda: store.deregister(["a:1"]),
    )
    composed = await ear.composed()
    assert [(event.type, event.body) for event in composed] == heard
    assert [event.type for event in composed] == [
        "service:registered",
        "capability:added",
        "service:updated",
        "capability:added",
        "service:updated",
        "capability:changed",
        "service:health:changed",
        "capability:removed",
        "capability:removed",
        "service:updated",
        "capability:added",
        "service:unregistered",
        "capability:removed",
    ]


async def test_events_of_the_expiry_guard_and_of_deaths_are_the_same_too(
    store: RegistryStore, ear: Ear
) -> None:
    store.now_ms = 4_000_000_000_000

    async def crowd() -> None:
        for number in range(6):
            await store.register(entry(f"a:{number}", "chat@1.0.0"))

    async def later() -> None:
        for _ in range(130):
            store.now_ms += 500
            await store.sweep(Guard(5, 0.15, timedelta(seconds=2)))

    heard = await ear.heard(crowd, later)
    composed = await ear.composed()
    assert [(event.type, event.body) for event in composed] == heard
    kinds = [event.type for event in composed]
    assert kinds.count("registry:preserving") == 2
    assert kinds.count("service:expired") == kinds.count("capability:removed") == 6


async def test_an_event_knows_its_id_type_and_subject(store: RegistryStore, ear: Ear) -> None:
    await store.register(entry("a:x:1", "chat@1.0.0", "chat@2.0.0"))
    registered, first, second = await ear.composed()
    assert (registered.type, registered.subject, registered.service) == (
        "service:registered",
        "a/x:1",
        "a",
    )
    assert (first.id, second.id) == (f"{registered.id}.1", f"{registered.id}.2")
    for event in (registered, first, second):
        body = json.loads(event.body)
        assert (body["id"], body["type"], body["subject"]) == (event.id, event.type, event.subject)
        assert body["data"]["instance"]["instanceId"] == "x:1"
    assert json.loads(second.body)["data"]["capability"] == {"name": "chat", "version": "2.0.0"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((), ("a@1",), [("added", "a", "1", None)]),
        (("a@1",), ("a@2",), [("changed", "a", "2", "1")]),
        (("a@1", "a@2"), ("a@2", "a@3"), [("changed", "a", "3", "1")]),
        (("a@1",), ("a@2", "a@3"), [("added", "a", "2", None), ("added", "a", "3", None), ("removed", "a", "1", None)]),
        (("a@1", "b@1"), ("b@1",), [("removed", "a", "1", None)]),
        (("a@1",), ("a@1",), []),
    ],
)  # fmt: skip
async def test_what_was_gained_and_lost(
    store: RegistryStore,
    ear: Ear,
    before: tuple[str, ...],
    after: tuple[str, ...],
    expected: list[tuple[str, str, str, str | None]],
) -> None:
    await store.register(entry("s:1", *before))
    known = len(await ear.composed())
    await store.register(entry("s:1", *after, version="2.0.0"))
    changes = [
        (event.type.removeprefix("capability:"), json.loads(event.body)["data"]["capability"])
        for event in (await ear.composed())[known + 1 :]
    ]
    assert [
        (what, one["name"], one["version"], one.get("oldVersion")) for what, one in changes
    ] == expected


async def test_a_row_of_before_claims_were_kept_tells_of_no_capability(
    store: RegistryStore, ear: Ear, connection: Connection, keys: Keys
) -> None:
    await store.register(entry("a:1", "chat@1.0.0"))
    rows = keys.core[CORE.index("inst")]
    row = json.loads(await connection.call("HGET", rows, "a:1"))
    del row["caps"]
    await connection.call("HSET", rows, "a:1", json.dumps(row))
    known = len(await ear.composed())
    await store.register(entry("a:1", "chat@2.0.0"))
    assert [event.type for event in (await ear.composed())[known:]] == ["service:updated"]
