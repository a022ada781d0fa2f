"""Chooses one instance for a caller. Pure: the dice and the turn counter come from outside."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

from registryd.registry.types import OFFERED, HealthStatus
from registryd.registry.view import BY_ID, Instance


class Strategy(StrEnum):
    WEIGHTED = "weighted"
    RANDOM = "random"
    ROUND_ROBIN = "round_robin"
    CONSISTENT = "consistent"


@dataclass(frozen=True, slots=True)
class Wish:
    """How a caller wants the choice made. `zone` is preferred, not demanded; `key` is what a
    consistent choice is made for."""

    strategy: Strategy = Strategy.WEIGHTED
    key: str = ""
    zone: str | None = None
    exclude: frozenset[str] = frozenset()


def offered(instance: Instance) -> bool:
    return instance.health in OFFERED and not instance.draining


def candidates(instances: Sequence[Instance], wish: Wish) -> list[Instance]:
    """The equally good best: healthy before degraded before unknown, suspects last in each, then those
    with a weight, then those of the wished zone. In the order of their ids."""
    able = [i for i in instances if offered(i) and i.instance_id not in wish.exclude]
    if not able:
        return []
    best = min(instance.rank for instance in able)
    able = [instance for instance in able if instance.rank == best]
    # Weight 0 means "only if there is no other", in whichever zone that other stands.
    able = [instance for instance in able if instance.weight > 0] or able
    near = [instance for instance in able if wish.zone is not None and instance.zone == wish.zone]
    return sorted(near or able, key=BY_ID)


def choose(able: Sequence[Instance], wish: Wish, *, dice: random.Random, turn: int) -> Instance:
    """One of `able`, which is not empty. `turn` counts the choices made for the service so far."""
    match wish.strategy:
        case Strategy.RANDOM:
            return dice.choice(able)
        case Strategy.ROUND_ROBIN:
            return able[turn % len(able)]
        case Strategy.WEIGHTED:
            weights = [instance.weight or 1 for instance in able]
            return dice.choices(able, weights)[0]
        case Strategy.CONSISTENT:
            return max(able, key=lambda instance: _score(instance, wish.key))


def _score(instance: Instance, key: str) -> float:
    """Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables",
    2005): when an instance comes or goes only the keys that choose it move."""
    # 48 bits: more would round to 1.0 now and then, whose logarithm is 0.
    digest = hashlib.blake2b(f"{instance.id}\0{key}".encode(), digest_size=6).digest()
    uniform = (int.from_bytes(digest) + 1) / (2**48 + 1)
    return -(instance.weight or 1) / math.log(uniform)


class Shortfall(TypedDict):
    registered: int
    healthy: int
    reasons: dict[str, int]


def why_none(instances: Sequence[Instance], wish: Wish) -> Shortfall:
    """Counts for a caller that got none: how many there are, and what is the matter with them."""
    reasons: Counter[str] = Counter()
    for instance in instances:
        if instance.draining:
            reasons["draining"] += 1
        elif instance.health not in OFFERED:
            reasons[instance.health.value] += 1
        elif instance.instance_id in wish.exclude:
            reasons["excluded"] += 1
    healthy = sum(instance.health is HealthStatus.HEALTHY for instance in instances)
    return {"registered": len(instances), "healthy": healthy, "reasons": dict(reasons)}
