"""The API as methods, against real daemons."""

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from daemons import Api, eventually, running

from registryd import errors
from registryd.client import NoneOffered, RegistryClient
from registryd.registry.types import HealthStatus, HeartbeatItem

ENDPOINT = "http://10.0.0.1:8080"


async def test_a_registration_answers_with_the_instance_and_is_found(
    client: RegistryClient,
) -> None:
    shown = await client.register("chat", ENDPOINT, instance_id="a", capabilities=["greeting"])
    assert (shown.name, shown.instance_id, shown.endpoint) == ("chat", "a", ENDPOINT)
    found = await client.discover("chat")
    assert [one.instance_id for one in found] == ["a"]
    assert (found.stale_for, found.source, found.doubt) == (0.0, "registry", "")
    assert (await client.get("chat")).url == ENDPOINT
    assert (await client.get_instance("chat", "a")).capabilities[0].name == "greeting"


async def test_without_an_id_the_registry_makes_it(client: RegistryClient) -> None:
    assert (await client.register("chat", ENDPOINT)).instance_id == "10.0.0.1-8080"


async def test_renewals_tell_the_lease_and_who_is_unknown(client: RegistryClient) -> None:
    shown = await client.register("chat", ENDPOINT, instance_id="a", ttl_seconds=60)
    lease = await client.renew("chat", "a", incarnation=shown.incarnation)
    assert (lease.ttl_seconds, lease.renew_interval_seconds) == (60, 20)
    items = [
        HeartbeatItem(name="chat", instance_id="a"),
        HeartbeatItem(name="chat", instance_id="nobody"),
        HeartbeatItem(name="chat", instance_id="a", incarnation="another"),
    ]
    assert await client.renew_many(items) == ["renewed", "unknown", "superseded"]
    with pytest.raises(errors.InstanceUnknown, match=r"Register the instance again\.$"):
        await client.renew("chat", "nobody")


async def test_deregistering_tells_whether_there_was_anything(client: RegistryClient) -> None:
    await client.register("chat", ENDPOINT, instance_id="a")
    with pytest.raises(errors.Superseded):
        await client.deregister("chat", "a", incarnation="another")
    assert await client.deregister("chat", "a") is True
    assert await client.deregister("chat", "a") is False


async def test_services_and_instances_come_in_as_many_pages_as_it_takes(
    api: Api, client: RegistryClient
) -> None:
    for number in range(12):
        await api.register(f"s{number:02}", "a", metadata={"tags": ["many"]})
    page = await client.transport.call("GET", "/services", query=[("limit", "5")])
    assert page.json["next"] is not None
    names = [one.name async for one in client.services(tags=["many", "other"])]
    assert names == [f"s{number:02}" for number in range(12)]
    assert len(await client.instances(tags_all="many")) == 12
    assert len(await client.instances(name="^s0")) == 10


async def test_an_instance_can_be_changed_maintained_and_drained(client: RegistryClient) -> None:
    await client.register("chat", ENDPOINT, instance_id="a", health={"status": "healthy"})
    assert (await client.update("chat", "a", weight=7)).weight == 7
    until = datetime.now(UTC) + timedelta(hours=1)
    shown = await client.maintenance("chat", "a", reason="disk", until=until)
    assert shown.admin is not None
    assert shown.admin.reason == "disk"
    with pytest.raises(NoneOffered, match=r"healthy again\.$") as caught:
        await client.url("chat")
    assert caught.value.members["reasons"] == {"maintenance": 1}
    await client.maintenance("chat", enabled=False)
    assert (await client.url("chat", strategy="random")).instance_id == "a"
    assert (await client.drain("chat", "a", seconds=60)).admin is not None
    assert len(await client.discover("chat")) == 0


async def test_what_is_known_of_the_registry_can_be_read(client: RegistryClient) -> None:
    await client.register("chat", ENDPOINT, instance_id="a", capabilities=["greeting"])
    assert (await client.stats()).total_instances == 1
    assert [one.name for one in await client.capabilities()] == ["greeting"]
    assert (await client.health("chat")).status is HealthStatus.UNKNOWN
    assert (await client.instance_health("chat", "a")).instance_id == "a"
    assert (await client.registry_health()).status == "healthy"
    assert await client.cleanup() == 0
    explained = await client.explain("chat", "a")
    assert "chat" in str(explained)

    async def recorded() -> bool:
        return "service:registered" in [one["type"] async for one in client.history("chat")]

    await eventually(recorded)


async def test_errors_have_the_class_of_their_code_and_say_what_to_do(
    client: RegistryClient,
) -> None:
    with pytest.raises(errors.Invalid, match=r"in `errors`\.$") as caught:
        await client.register("chat", "nowhere")
    assert [one.pointer for one in caught.value.errors] == ["/endpoint"]
    with pytest.raises(errors.NotFound, match=r"until it has registered\.$"):
        await client.get("nobody")
    with pytest.raises(errors.Malformed):
        await client.instances(name="(")


async def test_a_watch_tells_the_result_and_each_change_to_it(client: RegistryClient) -> None:
    await client.register("chat", ENDPOINT, instance_id="a")
    async with aclosing(client.watch("chat")) as steps:
        first = await anext(steps)
        assert (first.kind, list(first.instances)) == ("snapshot", [("chat", "a")])
        await client.register("other", ENDPOINT, instance_id="x")
        await client.register("chat", ENDPOINT, instance_id="b")
        second = await anext(steps)
        assert (second.kind, [one.instance_id for one in second.added]) == ("change", ["b"])
        await client.deregister("chat", "a")
        third = await anext(steps)
        assert [(one.instance_id, one.reason) for one in third.removed] == [("a", "deregistered")]
        assert list(third.instances) == [("chat", "b")]


async def test_a_watch_goes_on_where_its_daemon_stopped(
    api: Api, store_url: str, prefix: str, tmp_path: Path
) -> None:
    async with (
        running(store_url, prefix, tmp_path) as second,
        RegistryClient([second.base, api.base], environ={}) as client,
    ):
        await client.register("chat", ENDPOINT, instance_id="a")
        steps = client.watch("chat")
        assert list((await anext(steps)).instances) == [("chat", "a")]
        await second.daemon.stop()
        await api.register("chat", "b")
        step = await anext(steps)
        assert (step.kind, [one.instance_id for one in step.added]) == ("change", ["b"])
        assert list(step.instances) == [("chat", "a"), ("chat", "b")]
        await steps.aclose()


async def test_events_come_by_type_and_after_a_position(client: RegistryClient) -> None:
    shown = await client.register("chat", ENDPOINT, instance_id="a")
    await client.register("chat", ENDPOINT, instance_id="b")
    await client.deregister("chat", "a")
    async with aclosing(client.events("service:*", since=shown.revision)) as events:
        seen = [await anext(events) for _ in range(2)]
    assert [one.type for one in seen] == ["service:registered", "service:unregistered"]
    assert [one.subject for one in seen] == ["chat/b", "chat/a"]


async def test_a_long_poll_ends_with_the_change(client: RegistryClient) -> None:
    shown = await client.register("chat", ENDPOINT, instance_id="a")
    page = await client.wait_for_change(shown.revision, wait=0.1)
    assert page.total == 1
    await client.register("chat", ENDPOINT, instance_id="b")
    page = await client.wait_for_change(shown.revision, wait=30)
    assert page.services is not None
    assert len(page.services[0]["instances"]) == 2
