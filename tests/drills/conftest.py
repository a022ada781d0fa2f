"""A place for the processes of one drill, and the table of all drills at the end."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from guarded import Guarded
from processes import Machine
from tally import Tally, table


@pytest.fixture(scope="session")
def tallies() -> Iterator[list[Tally]]:
    rows: list[Tally] = []
    yield rows
    print(f"\n{table(rows)}")  # noqa: T201


@pytest.fixture
def tally(tallies: list[Tally]) -> Callable[[str, str], Tally]:
    """Begins a row of the table."""

    def begin(drill: str, what: str) -> Tally:
        tallies.append(Tally(drill, what))
        return tallies[-1]

    return begin


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    # Not tmp_path: its names are too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="rd-") as home:
        machine = Machine(Path(home))
        yield machine
        await machine.close()


@pytest.fixture
async def guarded(machine: Machine) -> Guarded:
    """A daemon on loopback that demands credentials, with a key of each role."""
    return await Guarded.start(machine)
