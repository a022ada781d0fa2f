"""Nothing that clients make up grows without a bound: what is registered, and what is measured of it."""

import re
from pathlib import Path

import pytest
from callers import HeaderAccess
from changes import History, view_of
from daemons import Api, running

from registryd.config import RegistryLimits
from registryd.errors import RateLimited
from registryd.registry.quota import Quota, admit

ROOMY = Quota(services=9, services_per_caller=9, instances=9, instances_per_service=9)


@pytest.mark.parametrize(
    ("quota", "identity", "prefixes", "limit"),
    [
        (Quota(9, 9, 4, 9), "a.new:1", (), "instances"),
        (Quota(9, 9, 4, 9), "a.x:3", (), "instances"),
        (Quota(3, 9, 9, 9), "a.new:1", (), "services"),
        (Quota(9, 9, 9, 2), "a.x:3", (), "instancesPerService"),
        (Quota(9, 2, 9, 9), "a.new:1", ("a.",), "servicesPerCaller"),
        (Quota(9, 2, 9, 9), "a.new:1", ("a.n", "a.", "c."), "servicesPerCaller"),
    ],
)
def test_one_too_many_is_refused_by_the_limit_it_meets(
    quota: Quota, identity: str, prefixes: tuple[str, ...], limit: str
) -> None:
    view = view_of(registered())
    with pytest.raises(RateLimited, match=rf"registry\.limits\.{limit}\)"):
        admit(view, quota, identity, prefixes)
    admit(view, ROOMY, identity, prefixes)


@pytest.mark.parametrize(
    ("quota", "identity", "prefixes"),
    [
        (Quota(1, 1, 1, 1), "a.x:1", ("a.",)),  # it is there: it renews
        (Quota(3, 2, 5, 2), "b.x:2", ("b.",)),  # of a service that is there
        (Quota(4, 2, 5, 2), "b.new:1", ("b.",)),
        (Quota(4, 2, 5, 2), "a.new:1", ()),  # callers without prefixes have the whole
    ],
)
def test_what_has_room_is_let_in(quota: Quota, identity: str, prefixes: tuple[str, ...]) -> None:
    admit(view_of(registered()), quota, identity, prefixes)


def registered() -> History:
    history = History()
    for service, instance_id in (("a.x", "1"), ("a.x", "2"), ("a.y", "1"), ("b.x", "1")):
        history.register(service, instance_id)
    return history


async def test_a_full_service_is_told_so_and_goes_on(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    limits = {"instancesPerService": 2, "servicesPerCaller": 1}
    caller = {"X-Caller": "a;writer;a."}
    async with running(
        store_url, prefix, tmp_path, access=HeaderAccess(), registry={"limits": limits}
    ) as api:
        for instance_id in "12":
            await api.register("a.x", instance_id)
        body = {"name": "a.x", "endpoint": "http://10.0.0.1:1", "instanceId": "3"}
        legacy = {"service_name": "a.x", "service_url": "http://10.0.0.1:3"}
        for method, path, sent in (
            ("POST", "/services", body),
            ("PUT", "/services/a.x/instances/3", body),
            ("POST", "/register", legacy),
        ):
            answer = await api(method, path, sent)
            assert (answer.status, answer.problem["code"]) == (429, "rate_limited"), path
            assert "a.x has 2 instances" in answer.problem["detail"]
            assert "registry.limits.instancesPerService" in answer.problem["detail"]
        await api.register("a.x", "2", weight=5)  # who is there may change
        await api.delete("/services/a.x/instances/1")
        await api.register("a.x", "3")
        for method, path, sent in (
            ("POST", "/services", body | {"name": "a.y"}),
            ("PUT", "/services/a.y/instances/3", body | {"name": "a.y"}),
            ("POST", "/register", legacy | {"service_name": "a.y"}),
        ):
            answer = await api(method, path, sent, headers=caller)
            assert answer.status == 429, path
            assert "servicesPerCaller" in answer.problem["detail"]
        assert await api.listed("") == ["a.x"]
        await api.register("a.y", "1")  # without prefixes there is room


async def test_a_limit_can_be_raised_while_running(
    store_url: str, prefix: str, tmp_path: Path
) -> None:
    async with running(store_url, prefix, tmp_path, registry={"limits": {"instances": 1}}) as api:
        await api.register("chat", "a")
        body = {"name": "chat", "endpoint": "http://10.0.0.1:1", "instanceId": "b"}
        assert (await api.post("/services", body)).status == 429
        before = api.daemon.settings
        raised = before.registry.model_copy(update={"limits": RegistryLimits(instances=2)})
        api.daemon.apply(before.model_copy(update={"registry": raised}))
        assert (await api.post("/services", body)).status == 201


@pytest.mark.parametrize(
    ("field", "most", "value"),
    [
        ("capabilities", 128, lambda count: [f"c{number}" for number in range(count)]),
        ("models", 256, lambda count: [f"m{number}" for number in range(count)]),
        ("dependsOn", 128, lambda count: [f"d{number}" for number in range(count)]),
        ("metadata", 64, lambda count: {"tags": [f"t{number}" for number in range(count)]}),
        ("metadata", 256, lambda count: {f"k{number}": number for number in range(count)}),
    ],
    ids=["capabilities", "models", "dependencies", "tags", "metadata"],
)
async def test_an_instance_has_so_many_of_each_and_no_more(api: Api, field, most, value) -> None:
    await api.register(**{field: value(most)})
    body = {"name": "chat", "endpoint": "http://10.0.0.1:8080", field: value(most + 1)}
    answer = await api.post("/services", body)
    assert (answer.status, answer.problem["code"]) == (422, "validation")
    assert answer.pointers[0].startswith(f"/{field}")
    assert str(most) in answer.body.decode()


async def test_a_million_tags_are_not_even_read(api: Api) -> None:
    tags = b",".join(b'"t%d"' % number for number in range(100_000))
    body = b'{"name":"chat","endpoint":"http://10.0.0.1","metadata":{"tags":[%b]}}' % tags
    answer = await api("POST", "/services", raw=body)
    assert (answer.status, answer.problem["code"]) == (413, "payload_too_large")


async def series(api: Api) -> set[str]:
    answer = await api.get("/metrics")
    return set(re.findall(r"^registryd_[^ ]+", answer.body.decode(), re.MULTILINE))


async def traffic(api: Api, word: str) -> None:
    """Calls whose every part is somebody's invention."""
    capability = {"name": f"c-{word}", "version": f"1.0.0-{word}"}
    await api.register(
        f"s-{word}",
        f"i-{word}",
        zone=word,
        capabilities=[capability],
        models=[word],
        metadata={"tags": [word], "environment": word, word: word},
    )
    for method in ("GET", "PUT", f"X{word.upper()}"):
        await api(method, f"/nothing/{word}")
        await api(method, f"/services/{word}?tags={word}")
    await api.put(f"/services/s-{word}/heartbeat", {"status": "healthy"})
    await api.get(f"/services?tags={word}&capability=c-{word}")
    await api("POST", "/services", raw=word.encode(), headers={"X-Request-ID": word})
    await api.delete(f"/services/s-{word}")
    await api.get("/history")  # until all of it is carried on


async def test_no_caller_can_make_a_series_of_its_own(api: Api) -> None:
    await traffic(api, "first")
    await series(api)
    known = await series(api)
    for number in range(20):
        await traffic(api, f"w{number}")
    assert await series(api) == known
    assert "first" not in str(known)
