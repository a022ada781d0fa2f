"""Daemons over the session's store, each test's in a place of its own, and clients of the SDK."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from daemons import Api, running

from registryd.client import RegistryClient

_PREFIXES = (f"sdk{number}" for number in itertools.count(1))


@pytest.fixture
def prefix() -> str:
    """A place of the test's own in the store that all share."""
    return next(_PREFIXES)


@pytest.fixture
async def api(store_url: str, prefix: str, tmp_path: Path) -> AsyncIterator[Api]:
    async with running(store_url, prefix, tmp_path) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(api.base, environ={}) as client:
        yield client
