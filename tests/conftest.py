"""A real store for every test that needs one: the product's own embedded server, clean per test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from registryd.metrics import Metrics
from registryd.registry.store import RegistryStore, StoreLimits
from registryd.storage.connection import Connection
from registryd.storage.embedded import EmbeddedStore
from registryd.storage.keys import Keys
from registryd.storage.scripts import ScriptRunner, load


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Valkey of this test process's own."""
    data: Path = tmp_path_factory.mktemp("store")
    with asyncio.Runner() as runner:
        server = EmbeddedStore(data / "data", runtime_dir=data)
        yield runner.run(server.start())
        runner.run(server.stop())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def connection(store_url: str, metrics: Metrics) -> AsyncIterator[Connection]:
    """Clients of an empty store."""
    connection = Connection(store_url, metrics)
    await connection.client.execute_command("FLUSHALL")
    yield connection
    await connection.close()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
async def store(connection: Connection, keys: Keys, metrics: Metrics) -> RegistryStore:
    scripts = load(files("registryd.registry") / "lua", flags=True)
    store = RegistryStore(
        ScriptRunner(connection, scripts, keys.core, metrics), keys, StoreLimits()
    )
    await store.set_up("test")
    return store
