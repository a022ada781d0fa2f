"""The description of the events says what they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from daemons import Api
from jsonschema import Draft7Validator, Draft202012Validator
from sse import listening

from registryd import __version__
from registryd.app import TITLE
from registryd.events.asyncapi import document
from registryd.events.types import DATA, LOCAL

DOCUMENT = document(title=TITLE, version=__version__, prefix="ossa")
FILE = Path(__file__).parents[2] / "docs" / "asyncapi.json"
OFFICIAL = Path(__file__).parent / "vendor" / "asyncapi-3.0.0.json"


def validate(message: str, payload: Any) -> None:
    """Checks a payload against a message of the description."""
    schema = DOCUMENT["components"]["messages"][message]["payload"]
    components = {"components": DOCUMENT["components"]}
    Draft202012Validator({**schema, **components}).validate(payload)


def test_the_description_in_the_documentation_is_the_present_one() -> None:
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(DOCUMENT)), (
        "docs/asyncapi.json is out of date: run `make openapi`"
    )


def test_the_description_is_valid_by_the_official_schema() -> None:
    official = Draft7Validator(json.loads(OFFICIAL.read_text()))
    shown = json.loads(FILE.read_text())
    assert [(error.json_path, error.message) for error in official.iter_errors(shown)] == []
    shown["channels"]["events"]["adress"] = "/events"
    assert [error.json_path for error in official.iter_errors(shown)] == ["$.channels.events"]


async def test_the_node_gives_the_description(api: Api) -> None:
    answer = await api.get("/asyncapi.json")
    shown = document(title=TITLE, version=__version__, prefix=api.prefix)
    assert answer.status == 200
    assert answer.json == json.loads(json.dumps(shown))


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        found = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return found + [one for value in node.values() for one in references(value)]
    if isinstance(node, list):
        return [one for value in node for one in references(value)]
    return []


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert len(set(references(DOCUMENT))) > 20


def test_every_type_has_its_channel_and_its_message_but_local_ones_no_channel_in_the_store() -> (
    None
):
    addresses = {channel["address"] for channel in DOCUMENT["channels"].values()}
    for kind in DATA:
        assert (f"ossa:events:{kind}" in addresses) == (kind not in LOCAL)
        assert kind.replace(":", "_") in DOCUMENT["channels"]["events"]["messages"]


@pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])
def test_examples_are_what_they_show(name: str) -> None:
    for example in DOCUMENT["components"]["messages"][name]["examples"]:
        validate(name, example["payload"])


async def test_every_event_that_is_told_is_as_described(api: Api) -> None:
    told = set()
    async with listening(api, "/events") as source, listening(api, "/watch?service=s") as watch:
        await api.register("s", "a", capabilities=["x"], ttlSeconds=2)
        await api.register("s", "a", capabilities=[{"name": "x", "version": "2.0.0"}], ttlSeconds=2)
        await api.put("/services/s/heartbeat", {"status": "degraded", "details": {"load": 1}})
        await api.put("/services/s/maintenance", {"enabled": True, "reason": "ä/"})
        await api.register("s", "b")
        await api.register("s", "b", capabilities=["y"])
        await api.delete("/services/s/instances/b")
        await api.post("/import", {"services": [{"name": "i", "endpoint": "http://10.0.0.1:80"}]})
        await api.daemon.store.sweep(None)
        api.daemon.follower.trouble("feed_gap", "a gap")
        while told < set(DATA) - {"service:restored", "registry:preserving"}:
            event = await source.event(within=4)
            validate(event.name.replace(":", "_"), event.json)
            told.add(event.name)
        for _ in range(4):
            block = await watch.event()
            validate(block.name, block.json)
