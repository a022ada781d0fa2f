"""Figures that do not wander with the machine: cache hits under change, and what an instance takes."""

import random
import tracemalloc

from daemons import Api

from registryd.feed.revision import Revision
from registryd.registry.bodies import parse_registration
from registryd.registry.document import Admin, Row, encode, terms_of
from registryd.registry.view import Contents, Instance

QUERIES, ASKED, CHANGE_EVERY = 60, 600, 10


async def test_seven_of_ten_answers_come_from_the_cache_while_every_tenth_query_meets_a_change(
    api: Api,
) -> None:
    for number in range(QUERIES):
        await api.register("chat", f"i{number}", capabilities=[f"c{number}"], weight=1)
    lookups = api.daemon.metrics.registry.get_sample_value
    dice, weights = random.Random(7), [1] * QUERIES
    for turn in range(ASKED):
        if turn % CHANGE_EVERY == 0:
            number = dice.randrange(QUERIES)
            weights[number] += 1
            await api.patch(f"/services/chat/instances/i{number}", {"weight": weights[number]})
        number = dice.randrange(QUERIES)
        shown = await api.get(f"/services?capability=c{number}&view=instances")
        assert [one["weight"] for one in shown.json["instances"]] == [weights[number]]
    hits = lookups("registryd_result_cache_lookups_total", {"outcome": "hit"}) or 0.0
    assert hits / ASKED >= 0.7


def _instance(number: int) -> tuple[Instance, int]:
    fields = parse_registration(
        {
            "name": f"svc-{number % 10}",
            "instanceId": f"i-{number:06d}",
            "endpoint": f"http://10.0.{number >> 8}.{number & 255}:8080",
            "version": "2.1.0",
            "zone": f"zone-{number % 3}",
            "capabilities": [{"name": f"cap-{number % 10}", "version": "2.0.0"}],
            "metadata": {"tags": [f"tag-{number % 7}", "bulk"], "environment": "production",
                         "note": "x" * 310},
        }
    )  # fmt: skip
    document = encode(fields)
    moment = "2026-01-01T00:00:00.000Z"
    row = Row(
        300_000, f"{number:014x}", Revision(1_700_000_000_000, number + 1), "healthy", moment, "",
        moment, moment, fields.endpoint, tuple(terms_of(fields)),
    )  # fmt: skip
    name = f"{fields.name}:{fields.instance_id}"
    return Instance(name, row, document, Admin(), suspect=False), len(document)


def test_an_instance_takes_less_than_three_times_its_document() -> None:
    count = 1_000
    _instance(0)  # whatever is made once and kept
    tracemalloc.start()
    contents, documents = Contents(), 0
    before, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        instance, size = _instance(number)
        contents.put(instance)
        documents += size
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert documents / count > 500
    assert (after - before) / documents < 3.0
