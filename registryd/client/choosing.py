"""Which instance of several: who is a candidate, and the strategies. Pure: dice, turns and measurements
come from outside.

The order is the registry's own (`GET /services/{name}/url`): healthy before degraded before unknown,
suspects last in each, never unhealthy, maintained or draining ones.
"""

import hashlib
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from registryd.client.types import Strategy
from registryd.registry.types import (
    OFFERED,
    PREFERENCE,
    AdminState,
    HealthStatus,
    InstanceShown,
    identity,
)


class Measured(Protocol):
    """What the caller has seen of an instance."""

    def load(self, instance_id: str) -> float:
        """Seconds that a call is expected to take, times the calls it would be among; 0.0 unmeasured."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a strategy may go by. `turn` counts the choices so far."""

    key: str
    turn: int
    dice: random.Random
    measured: Measured


Chooser = Callable[[Sequence[InstanceShown], Choice], InstanceShown]


def offered(instance: InstanceShown) -> bool:
    draining = instance.admin is not None and instance.admin.state is AdminState.DRAINING
    return instance.health.status in OFFERED and not draining


def rank(instance: InstanceShown) -> tuple[int, bool]:
    """Less is better."""
    return PREFERENCE[instance.health.status], instance.lease.state == "suspect"


def candidates(
    instances: Sequence[InstanceShown],
    *,
    rejected: Collection[str] = (),
    zone: str | None = None,
) -> list[InstanceShown]:
    """The equally good best, by id. Those in `rejected` (ids, by the caller's own experience) only if
    there is no other; weight 0 only if no other has one; of `zone` if there are any."""
    able = [one for one in instances if offered(one)]
    able = [one for one in able if one.instance_id not in rejected] or able
    if not able:
        return []
    best = min(rank(one) for one in able)
    able = [one for one in able if rank(one) == best]
    able = [one for one in able if one.weight > 0] or able
    near = [one for one in able if zone is not None and one.zone == zone]
    return sorted(near or able, key=lambda one: one.instance_id)


def why_none(instances: Sequence[InstanceShown]) -> dict[str, object]:
    """Counts for who got none, as the registry gives them."""
    reasons: dict[str, int] = {}
    for one in instances:
        draining = one.admin is not None and one.admin.state is AdminState.DRAINING
        word = "draining" if draining else one.health.status.value
        reasons[word] = reasons.get(word, 0) + 1
    healthy = sum(one.health.status is HealthStatus.HEALTHY for one in instances)
    return {"registered": len(instances), "healthy": healthy, "reasons": reasons}


def _random(able: Sequence[InstanceShown], choice: Choice) -> InstanceShown:
    return choice.dice.choice(able)


def _round_robin(able: Sequence[InstanceShown], choice: Choice) -> InstanceShown:
    return able[choice.turn % len(able)]


def _weighted(able: Sequence[InstanceShown], choice: Choice) -> InstanceShown:
    return choice.dice.choices(able, [one.weight or 1 for one in able])[0]


def _consistent(able: Sequence[InstanceShown], choice: Choice) -> InstanceShown:
    return max(able, key=lambda one: _score(one, choice.key))


def _score(instance: InstanceShown, key: str) -> float:
    """Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005), by the registry's formula: a key
    finds the same instance whether it is chosen here or there."""
    text = f"{identity(instance.name, instance.instance_id)}\0{key}"
    digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
    uniform = (int.from_bytes(digest) + 1) / (2**48 + 1)
    return -(instance.weight or 1) / math.log(uniform)


def _least_latency(able: Sequence[InstanceShown], choice: Choice) -> InstanceShown:
    """Who has not been measured yet is, first."""
    return min(able, key=lambda one: (choice.measured.load(one.instance_id), choice.dice.random()))


def _p2c(able: Sequence[InstanceShown], choice: Choice) -> InstanceShown:
    """The better of two drawn at random (Mitzenmacher, "The Power of Two Choices", 2001): near the best,
    without everybody running to the same one."""
    two = choice.dice.sample(able, 2) if len(able) > 1 else able
    return min(two, key=lambda one: choice.measured.load(one.instance_id))


CHOOSERS: Final[Mapping[Strategy, Chooser]] = MappingProxyType(
    {
        Strategy.WEIGHTED: _weighted,
        Strategy.ROUND_ROBIN: _round_robin,
        Strategy.RANDOM: _random,
        Strategy.CONSISTENT: _consistent,
        Strategy.LEAST_LATENCY: _least_latency,
        Strategy.P2C: _p2c,
    }
)
