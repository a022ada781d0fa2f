"""Which queries a change concerns, and what it does to their results: against a naive list."""

import random
from typing import Any
from urllib.parse import parse_qsl

import pytest
from changes import History, view_of

from registryd.events.recent import Recent
from registryd.events.types import Position
from registryd.events.watch import Watches, WatchQuery, differences, matches
from registryd.feed.broadcast import Broadcast, Ring
from registryd.metrics import Metrics
from registryd.registry.query import parse_filters
from registryd.registry.view import Move, View

QUERIES = [
    "",
    "name=^c",
    "capability=x",
    "capability=x@>=2,y",
    "capability=x&minVersion=1.0",
    "capabilitiesAll=x,y@1",
    "tags=t1,t2",
    "tagsAll=t1,t2",
    "health=healthy",
    "health=healthy,degraded&zone=z1",
    "version=^1.2",
    "version=2.0.0",
    "environment=prod",
    "zone=z1,z2",
    "model=m1",
    "dependsOn=db",
    "filter=weight != 1",
    "tags=t1&filter=weight == 5",
    "service=chat",
    "service=chat,nosuch&health=unknown",
    "within=ch",
    "within=t,db&zone=z1",
    "service=db,tts&within=d",
]


def query(text: str) -> WatchQuery:
    parameters = dict(parse_qsl(text.replace("+", "%2B")))
    services = frozenset(filter(None, parameters.pop("service", "").split(",")))
    prefixes = tuple(filter(None, parameters.pop("within", "").split(",")))
    return WatchQuery(text, parse_filters(parameters).within(prefixes), services)


def some(dice: random.Random, *choices: Any) -> list[Any]:
    return [choice for choice in choices if dice.random() < 0.5]


def step(history: History, dice: random.Random) -> None:
    """A random change."""
    held = sorted(history.held)
    name = dice.choice(held) if held else ""
    match dice.randrange(8) if held else 0:
        case 0 | 1 | 2 | 3:
            fields: dict[str, Any] = {
                "weight": dice.choice([1, 5]),
                "capabilities": [
                    {"name": one, "version": dice.choice(["1.0.0", "1.2.0", "2.0.0"])}
                    for one in some(dice, "x", "y")
                ],
                "models": some(dice, "m1", "m2"),
                "dependsOn": some(dice, "db"),
                "metadata": {"tags": some(dice, "t1", "t2"), "environment": "production"},
            }
            if dice.random() < 0.5:
                fields["version"] = dice.choice(["1.2.0", "1.3.0", "2.0.0"])
            if dice.random() < 0.7:
                fields["zone"] = dice.choice(["z1", "z2"])
            history.register(dice.choice(["chat", "tts", "db"]), dice.choice("abc"), **fields)
        case 4:
            history.health(name, dice.choice(["healthy", "degraded", "unhealthy"]))
        case 5:
            history.administer(name, dice.choice(["maintenance", "draining", ""]))
        case 6:
            history.preserve(*some(dice, *held))
        case _:
            history.remove(name)


class Heard:
    """A sink that hears, and what a client would make of it."""

    def __init__(self) -> None:
        self.events = 0
        self.data = b""

    def offer(self, framed: bytes, limit: int) -> bool:
        self.data += framed
        self.events += framed.count(b"event: ")
        return True

    def abort(self) -> None:
        raise AssertionError

    def end(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("seed", range(8))
def test_an_instance_matches_by_itself_as_it_does_by_the_indexes(seed: int) -> None:
    dice, history = random.Random(seed), History()
    for _ in range(60):
        step(history, dice)
    view = view_of(history)
    for text in QUERIES:
        one = query(text)
        found = {instance.id for instance in one.candidates(view)}
        expressed = {i.id for i in one.candidates(view) if one.filters.expresses(i)}
        naive = {i.id for i in view.contents.by_id.values() if one.holds(i)}
        assert naive == expressed, text
        assert naive <= found


@pytest.mark.parametrize("seed", range(8))
async def test_each_query_is_told_exactly_what_its_result_did(seed: int) -> None:
    """Everybody, from everywhere: a copy kept by changes, and one that comes back at any point, hold the
    daemon's own result; and nobody is woken for nothing."""
    dice, history, view = random.Random(seed), History(), View()
    broadcast = Broadcast(Metrics(), most=100, limit=1 << 30)
    recent = Recent(view, Ring(count=25))
    watches = Watches(view, recent, broadcast)
    heard = {}
    for text in QUERIES:
        heard[text] = Heard()
        broadcast.live(broadcast.join(watches.topic(query(text)), heard[text]))
    results: list[dict[str, dict[str, int]]] = []
    woken = dict.fromkeys(QUERIES, 0)
    for _ in range(80):
        step(history, dice)
        change = history.changes[-1]
        moves = view.apply(change)
        recent.changed(change, moves)
        watches.changed(change, moves)
        before = results[-1] if results else {text: {} for text in QUERIES}
        results.append(
            {
                text: {i.id: i.rev for i in view.contents.by_id.values() if query(text).holds(i)}
                for text in QUERIES
            }
        )
        await broadcast.turn() if broadcast.busy else None
        for text in QUERIES:
            woken[text] += results[-1][text] != before[text]
            assert heard[text].events == woken[text], (text, change)
        for text in QUERIES:
            for rev in (0, max(0, change.at.rev - 25), change.at.rev - 1, change.at.rev):
                check_resumed(watches, query(text), view, results, rev)


def check_resumed(
    watches: Watches, wanted: WatchQuery, view: View, results: list[Any], rev: int
) -> None:
    position = Position(view.revision._replace(rev=rev))
    missed = watches.since(wanted, position)
    known = results[rev - 1][wanted.key] if rev else {}
    now = results[-1][wanted.key]
    if missed is None:
        assert view.revision.rev - rev > 25
        return
    assert bool(missed) == (known != now)
    text = missed.decode()
    for name in known.keys() | now.keys():
        service, _, instance_id = name.partition(":")
        gone = f'{{"name":"{service}","instanceId":"{instance_id}","reason":'
        assert (gone in text) == (name in known and name not in now)
        here = name in now and known.get(name) != now[name]
        assert (f'"{view.revision.epoch}-{now.get(name)}"' in text.partition('"added"')[2]) >= here


def test_what_changes_nothing_in_a_result_is_no_difference() -> None:
    history = History()
    history.register("chat", "a", zone="z1")
    view = view_of(history)
    [instance] = view.of_service("chat")
    filters = parse_filters({"zone": "z2"})
    assert not matches(filters, instance)
    moves = [(Move(None, instance), ""), (Move(instance, None), "x"), (Move(None, None), "")]
    assert not differences(lambda one: matches(filters, one), moves)
    assert differences(lambda one: True, moves)
