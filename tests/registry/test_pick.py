"""Which instance a caller gets."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from changes import History, view_of
from hypothesis import given, settings
from hypothesis import strategies as st

from registryd.registry.pick import Strategy, Wish, candidates, choose, why_none
from registryd.registry.view import Instance


def members(history: History) -> list[Instance]:
    return view_of(history).of_service("chat")


def ids(instances: Iterable[Instance]) -> list[str]:
    return [instance.instance_id for instance in instances]


def weighted(**weights: int) -> list[Instance]:
    history = History()
    for instance_id, weight in weights.items():
        history.register("chat", instance_id, weight=weight, health="healthy")
    return members(history)


ORDER = ["healthy", "healthy-suspect", "degraded", "degraded-suspect", "unknown", "unknown-suspect"]


@given(st.sets(st.sampled_from(ORDER), min_size=1))
def test_healthy_comes_before_degraded_before_unknown_and_suspects_last_in_each(
    present: set[str],
) -> None:
    history = History()
    for kind in present:
        history.register("chat", kind, health=kind.partition("-")[0])
    history.preserve(*[f"chat:{kind}" for kind in present if kind.endswith("suspect")])
    best = next(kind for kind in ORDER if kind in present)
    assert ids(candidates(members(history), Wish())) == [best]


def test_unhealthy_maintained_and_draining_instances_are_never_chosen() -> None:
    history = History()
    history.register("chat", "sick", health="unhealthy")
    history.register("chat", "kept", health="healthy")
    history.register("chat", "drained", health="healthy")
    history.administer("chat:kept", "maintenance")
    history.administer("chat:drained", "draining")
    assert candidates(members(history), Wish()) == []
    assert why_none(members(history), Wish()) == {
        "registered": 3,
        "healthy": 1,
        "reasons": {"draining": 1, "maintenance": 1, "unhealthy": 1},
    }


def test_every_refused_instance_has_one_reason() -> None:
    history = History()
    history.register("chat", "a", health="healthy")
    history.register("chat", "b", health="unhealthy")
    wish = Wish(exclude=frozenset({"a", "b"}))
    assert candidates(members(history), wish) == []
    assert why_none(members(history), wish)["reasons"] == {"excluded": 1, "unhealthy": 1}


def test_the_wished_zone_is_preferred_and_others_serve_when_it_cannot() -> None:
    history = History()
    history.register("chat", "near", zone="z1", health="healthy")
    history.register("chat", "far", zone="z2", health="healthy")
    history.register("chat", "nowhere", health="healthy")
    wish = Wish(zone="z1")
    assert ids(candidates(members(history), wish)) == ["near"]
    assert ids(candidates(members(history), Wish())) == ["far", "near", "nowhere"]
    history.health("chat:near", "degraded")  # health goes before nearness
    assert ids(candidates(members(history), wish)) == ["far", "nowhere"]


def test_weight_goes_before_nearness() -> None:
    history = History()
    history.register("chat", "near", zone="z1", weight=0, health="healthy")
    history.register("chat", "far", zone="z2", weight=1, health="healthy")
    assert ids(candidates(members(history), Wish(zone="z1"))) == ["far"]


def test_excluded_instances_are_passed_over() -> None:
    assert ids(candidates(weighted(a=1, b=1), Wish(exclude=frozenset({"a", "x"})))) == ["b"]


def test_an_instance_without_weight_is_chosen_only_where_none_has_any() -> None:
    assert ids(candidates(weighted(a=0, b=3), Wish())) == ["b"]
    assert ids(candidates(weighted(a=0, b=0), Wish())) == ["a", "b"]


@pytest.mark.parametrize("strategy", [Strategy.WEIGHTED, Strategy.CONSISTENT])
def test_choices_follow_the_weights(strategy: Strategy) -> None:
    able, dice = weighted(a=1, b=2, c=5), random.Random(7)
    chosen = Counter(
        choose(able, Wish(strategy, key=str(n)), dice=dice, turn=n).instance_id for n in range(8000)
    )
    for instance_id, expected in (("a", 1000), ("b", 2000), ("c", 5000)):
        assert chosen[instance_id] == pytest.approx(expected, rel=0.12)  # over three deviations


def test_random_choices_pay_no_heed_to_weights() -> None:
    able, dice = weighted(a=1, b=9), random.Random(7)
    wish = Wish(Strategy.RANDOM)
    chosen = Counter(choose(able, wish, dice=dice, turn=0).instance_id for _ in range(4000))
    assert chosen["a"] == pytest.approx(2000, rel=0.1)


def test_round_robin_takes_each_in_turn() -> None:
    able, wish, dice = weighted(b=1, a=5, c=1), Wish(Strategy.ROUND_ROBIN), random.Random(7)
    chosen = [choose(able, wish, dice=dice, turn=turn).instance_id for turn in range(5)]
    assert chosen == ["a", "b", "c", "a", "b"]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 5), min_size=2),
    st.data(),
)
def test_when_an_instance_leaves_only_the_keys_that_chose_it_move(
    weights: dict[str, int], data: st.DataObject
) -> None:
    able, dice = weighted(**weights), random.Random(7)
    gone = data.draw(st.sampled_from(sorted(weights)))
    left = [instance for instance in able if instance.instance_id != gone]
    for number in range(100):
        wish = Wish(Strategy.CONSISTENT, key=f"user-{number}")
        before = choose(able, wish, dice=dice, turn=0)
        after = choose(left, wish, dice=dice, turn=1)
        assert after == before or before.instance_id == gone


def test_a_consistent_choice_is_the_same_on_every_node() -> None:
    one, other = weighted(a=1, b=2, c=1), weighted(c=1, b=2, a=1)
    for number in range(50):
        wish = Wish(Strategy.CONSISTENT, key=str(number))
        assert (
            choose(one, wish, dice=random.Random(1), turn=1).id
            == choose(other[::-1], wish, dice=random.Random(2), turn=2).id
        )
