"""Daemons over the session's store, each test's in a place of its own, and a receiver of webhooks."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from daemons import Api, running
from receivers import Receiver, receiving

_PREFIXES = (f"e{number}" for number in itertools.count(1))

IMPATIENT = {"timeout": "1s", "attempts": 5, "retryBase": "10ms", "retryCap": "40ms"}


@pytest.fixture
def prefix() -> str:
    """A place of the test's own in the store that all share."""
    return next(_PREFIXES)


@pytest.fixture
async def api(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, prefix, tmp_path) as api:
        yield api


@pytest.fixture
async def other(api: Api, store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    """A second daemon over the store of `api`."""
    async with running(store_url, prefix, tmp_path) as other:
        yield other


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def hooked(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, prefix, tmp_path, webhooks=IMPATIENT) as api:
        yield api
