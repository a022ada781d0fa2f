"""The scripts against a plain Python model of the registry, step by step, on a clock of our own."""

from collections.abc import Iterator
from importlib.resources import files

import fakeredis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from redis import Redis
from script_machine import machine

from registryd.storage.scripts import load

pytestmark = pytest.mark.timeout(60)

PHASES = [Phase.generate, Phase.shrink]
"""Without the one that explains: it traces every line, and takes minutes over a store."""

LUA = files("registryd.registry") / "lua"


@pytest.fixture
def valkey(store_url: str) -> Iterator[Redis]:
    with Redis.from_url(store_url) as client:
        yield client


def test_the_scripts_do_what_the_model_says_on_a_real_store(valkey: Redis) -> None:
    run_state_machine_as_test(
        machine(valkey, load(LUA, flags=True)),
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
            report_multiple_bugs=False,
        ),
    )


def test_the_scripts_do_what_the_model_says_on_fakeredis() -> None:
    run_state_machine_as_test(
        machine(fakeredis.FakeRedis(), load(LUA, flags=False)),
        settings=settings(
            max_examples=8,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
            report_multiple_bugs=False,
        ),
    )
