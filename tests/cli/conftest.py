"""A daemon over the session's store, and the command line as a process that talks to it."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from daemons import Api, running

_PREFIXES = (f"cli{number}" for number in itertools.count(1))


@pytest.fixture
def prefix() -> str:
    """A place of the test's own in the store that all share."""
    return next(_PREFIXES)


@pytest.fixture
async def api(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, prefix, tmp_path) as api:
        yield api
