"""The values of a check's headers: probes send them, and they outlive being read and sent back."""

from typing import Any

from daemons import Api, eventually
from peers import listening
from test_routes import QUICK

PATH = "/services/chat/instances/a"


def check(value: str, **more: Any) -> dict[str, Any]:
    return {**QUICK, "headers": {"Authorization": value}, **more}


async def probed(api: Api, port: int, heads: list[str]) -> str:
    """The Authorization that the next probe comes with."""
    before = len(heads)
    await eventually(lambda: len(heads) > before)
    lines = heads[-1].split("\r\n")
    return next(line for line in lines if line.lower().startswith("authorization:"))


async def test_what_was_read_and_sent_back_is_probed_as_before(api: Api) -> None:
    heads: list[str] = []

    async def serve(reader: Any, writer: Any) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with listening(serve) as peer:
        url = f"http://127.0.0.1:{peer.port}"
        first = await api.register(endpoint=url, healthCheck=check("Bearer one"))
        assert first["healthCheck"]["headers"] == {"Authorization": "****"}
        assert await probed(api, peer.port, heads) == "Authorization: Bearer one"

        # A second registration with the same value is a renewal, one with another is a change.
        again = await api.register(endpoint=url, healthCheck=check("Bearer one"))
        assert again["revision"] == first["revision"]
        other = await api.register(endpoint=url, healthCheck=check("Bearer two"))
        assert other["revision"] != first["revision"]
        assert await probed(api, peer.port, heads) == "Authorization: Bearer two"

        read = await api.instance()
        assert read["healthCheck"]["headers"] == {"Authorization": "****"}
        read.pop("health")
        back = await api.put(PATH, read)
        assert (back.status, back.json["revision"]) == (200, read["revision"])
        patched = await api.patch(PATH, {"weight": 7})
        assert patched.status == 200, patched.body
        assert await probed(api, peer.port, heads) == "Authorization: Bearer two"

        stolen = await api.patch(PATH, {"endpoint": "http://127.0.0.1:9"})
        assert stolen.status == 422
        assert stolen.pointers == ["/healthCheck/headers/Authorization"]
        fresh = {"endpoint": "http://127.0.0.1:9", "healthCheck": check("Bearer three")}
        assert (await api.patch(PATH, fresh)).status == 200


async def test_a_mask_for_an_instance_that_is_not_there_is_refused(api: Api) -> None:
    body = {"endpoint": "http://127.0.0.1:9", "healthCheck": check("****", body="****")}
    answer = await api.put(PATH, body)
    assert answer.status == 422
    assert answer.pointers == ["/healthCheck/headers/Authorization", "/healthCheck/body"]
