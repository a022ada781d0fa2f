"""No answer shows a caller with prefixes a byte of what is another's, and no call of his changes it.

Every route of the daemon is called here; one that is new has to say, in `TRIES` or `HARMLESS`, how it is
to be tried, unless its scope settles that.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from callers import HeaderAccess
from daemons import Answer, Api, running
from sse import listening

from registryd.app import openapi_document
from registryd.metrics import Metrics
from registryd.storage.connection import Connection

MARK = "zq7x"
OURS, THEIRS, NOBODYS = "team-a.shop", f"team-b.{MARK}-svc", f"team-b.{MARK}-nil"
THEIR_ID = f"{MARK}-id"
OWNER = {"X-Caller": "team-a;admin;team-a."}
"""The highest role: what refuses is the prefix alone."""


@dataclass(frozen=True)
class Try:
    """A call that might get at team B's, and what it has to end in."""

    query: str = ""
    body: object = None
    status: int = 200


def body_of(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "endpoint": "http://10.9.9.9:80", "instanceId": "a", **fields}


BEATS = [{"name": OURS, "instanceId": "a"}, {"name": THEIRS, "instanceId": THEIR_ID}]
FILTERED = (
    "", "view=instances", "limit=1", "limit=10000&view=instances", "sort=-name", "sort=updatedAt",
    "fields=name,metadata", f"name={MARK}", "name=.", f"capability={MARK}-cap", f"tags={MARK}-tag",
    "health=unknown", "version=9.9.9", f"environment={MARK}-env", f"zone={MARK}-zone",
    f"model={MARK}-model", f"dependsOn={MARK}-dep", "filter=weight%20!=%200", "consistency=strong",
    "filter=metadata.owner%20is%20not%20empty", "since=1-1&wait=10ms",
)  # fmt: skip

TRIES: dict[str, tuple[Try, ...]] = {
    "registerInstance": (
        Try(body=body_of(THEIRS), status=403),
        Try(body=body_of(THEIRS, instanceId=THEIR_ID), status=403),
        Try(body=body_of(NOBODYS), status=403),
    ),
    "listServices": tuple(Try(f"?{query}") for query in FILTERED),
    "heartbeatBatch": (
        Try(body={"heartbeats": BEATS}, status=403),
        Try(body={"heartbeats": [BEATS[1] | {"incarnation": "x"}]}, status=403),
    ),
    "getStats": (Try(), Try("?consistency=strong")),
    "listCapabilities": (Try(), Try("?limit=1"), Try(f"?cursor={MARK[:2]}")),
    "register": (
        Try(body={"service_name": THEIRS, "service_url": "http://10.9.9.9"}, status=403),
        Try(body={"service_name": NOBODYS, "service_url": "http://10.9.9.9"}, status=403),
    ),
    "deregister": (
        Try(f"?service_name={THEIRS}&instance_id={THEIR_ID}", status=403),
        Try(f"?service_name={NOBODYS}&instance_id=x", status=403),
    ),
    "watch": (Try(f"?service={THEIRS}", status=403), Try(f"?service={OURS},{THEIRS}", status=403)),
    "events": (Try(f"?service={THEIRS}", status=403), Try(f"?service={OURS},{THEIRS}", status=403)),
    "getHistory": (
        Try(),
        Try("?types=service:*"),
        Try("?since=2000-01-01T00:00:00Z&limit=1"),
        Try(f"?service={OURS}"),
        Try(f"?service={THEIRS}", status=403),
        Try(f"?service={THEIRS}&instance={THEIR_ID}", status=403),
    ),
    "explain": (
        Try(f"?service={OURS}"),
        Try("?service=team-a.nobody"),
        Try(f"?service=team-a.{MARK[1:]}-svc"),  # like a name of theirs
        Try(f"?service={OURS}&instance={THEIR_ID[1:]}"),
        Try(f"?service={THEIRS}", status=403),
        Try(f"?service={THEIRS}&instance={THEIR_ID}", status=403),
    ),
}
"""For each operation that narrows by itself, by its id."""
HARMLESS = {"alive", "livez", "readyz", "registryHealth", "openapi", "asyncapi", "getMonitoring"}
"""Operations about no service at all."""

OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, item in openapi_document()["paths"].items()
    for method, operation in item.items()
    if method in {"get", "put", "post", "patch", "delete"}
}


def scoped(scope: str) -> list[str]:
    return sorted(o for o, (_, _, one) in OPERATIONS.items() if one["x-registryd-scope"] == scope)


def test_every_operation_is_tried() -> None:
    assert set(scoped("narrowed")) == TRIES.keys()
    assert set(scoped("none")) == HARMLESS
    for operation in scoped("named"):
        assert "{name}" in OPERATIONS[operation][1]


@pytest.fixture
async def api(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    """A registry with services of two teams; what is team B's is marked wherever it can be."""
    async with running(store_url, prefix, tmp_path, access=HeaderAccess()) as api:
        await api.register(OURS, "a", capabilities=["sell"], metadata={"owner": "us"})
        await api.register(
            THEIRS,
            THEIR_ID,
            endpoint=f"http://{MARK}.test:80",
            version="9.9.9",
            zone=f"{MARK}-zone",
            capabilities=[{"name": f"{MARK}-cap", "description": MARK}, "sell"],
            models=[f"{MARK}-model"],
            dependsOn=[f"{MARK}-dep"],
            metadata={"owner": MARK, "tags": [f"{MARK}-tag"], "environment": f"{MARK}-env"},
        )
        await api.put(f"/services/{THEIRS}/maintenance", {"enabled": True, "reason": MARK})
        await api.get("/history")  # it waits until all of that is recorded
        yield api


@pytest.fixture
async def records(api: Api, store_url: str) -> AsyncIterator["Records"]:
    connection = Connection(store_url, Metrics())
    yield Records(connection, api.prefix)
    await connection.close()


class Records:
    """What the store holds of team B: leases with their deadlines, indexes, the stream, everything."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._client = connection.client
        self._prefix = prefix

    async def theirs(self) -> list[str]:
        found: list[str] = []
        async for key in self._client.scan_iter(match=f"{self._prefix}:*", count=1000):
            entries: list[object] = []
            match await self._client.type(key):
                case b"hash":
                    entries = list((await self._client.hgetall(key)).items())
                case b"zset":
                    entries = await self._client.zrange(key, 0, -1, withscores=True)
                case b"set":
                    entries = list(await self._client.smembers(key))
                case b"stream":
                    entries = await self._client.xrange(key)
                case b"string":
                    entries = [await self._client.get(key)]
            found += [text for one in entries if MARK in (text := f"{key!r} {one!r}")]
        return sorted(found)


def check_unmarked(answer: Answer, *sent: str) -> None:
    """A refusal may repeat the service's name that came with the request, and nothing else."""
    said = f"{sorted(answer.headers.items())} {answer.body.decode()}"
    for name in (THEIRS, NOBODYS):
        if any(name in text for text in sent):
            said = said.replace(name, "")
    assert MARK not in said, (answer.method, answer.path)


async def call(api: Api, method: str, path: str, body: object = None) -> Answer:
    answer = await api(method, path, body, headers=OWNER)
    check_unmarked(answer, path, json.dumps(body))
    return answer


async def test_the_marks_are_where_a_leak_would_show_them(api: Api, records: Records) -> None:
    for path in ("/services", "/capabilities", "/history", f"/explain?service={THEIRS}"):
        assert MARK in (await api.get(path)).body.decode()
    kinds = {text.split()[0] for text in await records.theirs()}
    assert len(kinds) >= 15


@pytest.mark.parametrize("operation", sorted(TRIES))
async def test_what_narrows_leaves_out_or_refuses_what_is_another_s(
    api: Api, records: Records, operation: str
) -> None:
    method, path, _ = OPERATIONS[operation]
    before = await records.theirs()
    for one in TRIES[operation]:
        # Everybody else asks the same in between: nobody's copy is another's.
        if method == "GET" and one.status == 200:
            assert (await api.get(f"{path}{one.query}")).status == 200
        answer = await call(api, method, f"{path}{one.query}", one.body)
        assert answer.status == one.status, (one, answer.body)
        if one.status == 403:
            assert answer.problem["code"] == "forbidden"
    assert await records.theirs() == before


@pytest.mark.parametrize("operation", scoped("named"))
async def test_what_names_a_service_refuses_those_of_others_whether_they_exist_or_not(
    api: Api, records: Records, operation: str
) -> None:
    method, path, description = OPERATIONS[operation]
    before = await records.theirs()
    body = {"enabled": True} if "requestBody" in description else None
    refused = []
    for name in (THEIRS, NOBODYS):
        answer = await call(api, method, path.format(name=name, id=THEIR_ID), body)
        assert (answer.status, answer.problem["code"]) == (403, "forbidden")
        refused.append({**answer.problem, "requestId": ""})
    assert json.dumps(refused[0]) == json.dumps(refused[1]).replace(NOBODYS, THEIRS)
    own = await call(api, method, path.format(name=OURS, id="a"), body)
    assert own.status < 500
    assert own.status != 403
    assert await records.theirs() == before


@pytest.mark.parametrize("operation", scoped("whole"))
async def test_what_is_about_the_whole_registry_is_refused(
    api: Api, records: Records, operation: str
) -> None:
    method, path, _ = OPERATIONS[operation]
    before = await records.theirs()
    answer = await call(api, method, path.format(id="wh_0123456789abcdef"))
    assert (answer.status, answer.problem["code"]) == (403, "forbidden")
    assert await records.theirs() == before


@pytest.mark.parametrize("operation", sorted(HARMLESS))
async def test_what_is_about_no_service_names_none(api: Api, operation: str) -> None:
    method, path, _ = OPERATIONS[operation]
    for query in ("", "?verbose=true") if operation == "readyz" else ("",):
        assert (await call(api, method, f"{path}{query}")).status == 200


@pytest.mark.parametrize("path", ["/watch", "/watch?health=unknown", "/events", "/events?types=*"])
@pytest.mark.parametrize("last_id", ["", "first", "1-1"], ids=["fresh", "resumed", "too old"])
async def test_a_stream_carries_nothing_of_what_is_another_s(
    api: Api, path: str, last_id: str
) -> None:
    if last_id == "first":
        last_id = f"{api.seen.epoch}-0"
    async with listening(api, path, last_id=last_id, **OWNER) as source:
        assert MARK not in source.head
        for name in (THEIRS, NOBODYS):
            await api.register(name, f"{MARK}-2", capabilities=[f"{MARK}-2"])
            await api.put(f"/services/{name}/instances/{MARK}-2/heartbeat", {"status": "healthy"})
            await api.delete(f"/services/{name}")
        await api.register(OURS, "b", capabilities=["the-end"])
        text = ""
        while "the-end" not in text:
            block = await source.block()
            text += f"{block}\n"
    assert MARK not in text
    assert OURS in text


async def test_metrics_name_nobody_not_even_to_those_who_may_see_all(api: Api) -> None:
    for accept in ("", "application/openmetrics-text"):
        answer = await api.get("/metrics", Accept=accept)
        assert answer.status == 200
        check_unmarked(answer)
