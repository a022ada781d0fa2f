"""A place for the processes of one test."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from processes import Machine


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    # Not tmp_path: its names are too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="rd-") as home:
        machine = Machine(Path(home))
        yield machine
        await machine.close()
