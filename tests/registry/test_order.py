"""The kept order of lists, while instances come and go."""

import random
from dataclasses import dataclass

from registryd.registry.order import Order


@dataclass(frozen=True)
class One:
    service: str
    id: str


def test_it_stays_in_order_whatever_comes_and_goes() -> None:
    dice = random.Random(7)
    taken: list[One] = []
    order = Order(taken, [])
    free: list[int] = []
    for _ in range(600):
        living = sorted(set(range(len(taken))) - set(free))
        if living and dice.random() < 0.4:
            slot = dice.choice(living)
            order.leave(slot)
            free.append(slot)
        else:
            service = dice.choice(["a", "a.b", "a-b", "b"])
            one = One(service, f"{service}:{dice.randrange(10**6)}")
            if free:
                taken[slot := free.pop()] = one
            else:
                slot = len(taken)
                taken.append(one)
            order.enter(slot)
        living = sorted(set(range(len(taken))) - set(free))
        expected = sorted(living, key=lambda slot: (taken[slot].service, taken[slot].id))
        assert list(order.sequence) == expected
        some = dice.sample(living, dice.randrange(len(living) + 1))
        # Often enough that ranks get made between two changes, too.
        for _ in range(dice.choice([1, 5])):
            assert order.sorted(some, len(some)) == [slot for slot in expected if slot in some]


def test_a_name_stands_before_those_it_begins() -> None:
    taken = [One("a.b", "a.b:1"), One("a", "a:2"), One("a", "a:1")]
    order = Order(taken, range(3))
    assert list(order.sequence) == [2, 1, 0]
    assert order.place(order.sequence, "a", "a:15") == 1
