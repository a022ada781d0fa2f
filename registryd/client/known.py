"""What a caller knows of one result, how old that is, and whether a sudden shrink is to be believed.

A registry that came back from a restart, or another one behind the same name, may for a while know
fewer instances than there are: its services have yet to come back. So a result that is empty, or less
than half of what it was, right after an interruption is doubted for `doubt_for` seconds: the vanished
stay in the result, and `doubt` says so. What the registry reports gone by name is gone at once. No I/O.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

from registryd.client.types import Found, Removed
from registryd.registry.types import InstanceShown

DOUBT_FOR: Final = 30.0
"""Seconds. Services send heartbeats each third of their lease, and come back with the next."""

OLD: Final = 600.0
"""Seconds: what an earlier process knew longer ago is no reason to doubt anything."""

Key = tuple[str, str]


def key_of(instance: InstanceShown) -> Key:
    return instance.name, instance.instance_id


def shrunk(before: int, after: int) -> bool:
    """Whether so few are left that it could be the registry rather than the services."""
    return before > 0 and 2 * after < before


class Known:
    """The last-known-good result of one query."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, doubt_for: float = DOUBT_FOR
    ) -> None:
        self.revision = ""
        self.agreed: float | None = None
        """When the store last agreed, by `clock`; None: nothing is known at all."""
        self._clock = clock
        self._doubt_for = doubt_for
        self._good: dict[Key, InstanceShown] = {}
        self._told: dict[Key, InstanceShown] | None = None
        """What the registry says while it is doubted."""
        self._doubted_since = 0.0
        self._old = False
        """What is known comes from an earlier life, long ago."""

    @property
    def doubted(self) -> bool:
        self._settle()
        return self._told is not None

    def recall(self, instances: Iterable[InstanceShown], revision: str, *, age: float) -> None:
        """Takes what was kept from an earlier life, `age` seconds old."""
        self._good = {key_of(one): one for one in instances}
        self.revision = revision
        self.agreed = self._clock() - age
        self._old = age > OLD

    def take(
        self,
        instances: Iterable[InstanceShown],
        revision: str,
        *,
        interrupted: bool,
        stale_for: float = 0.0,
    ) -> None:
        """A whole answer. `interrupted`: the registry could not be reached since the one before."""
        told = {key_of(one): one for one in instances}
        first, self._old = self.agreed is None or self._old, False
        interrupted = interrupted or _epoch(revision) != _epoch(self.revision)
        self._hear(revision, stale_for)
        if first or not (interrupted or self._told is not None) or self._fits(told):
            self._believe(told)
            return
        if self._told is None:
            self._doubted_since = self._clock()
        self._told = told
        self._settle()

    def change(
        self,
        revision: str,
        present: Iterable[InstanceShown],
        removed: Iterable[Removed],
    ) -> None:
        """One change to the result, told by name."""
        self._settle()
        told = dict(self._good if self._told is None else self._told)
        for instance in present:
            told[key_of(instance)] = instance
        for one in removed:
            told.pop((one.name, one.instance_id), None)
            self._good.pop((one.name, one.instance_id), None)
        self._hear(revision, 0.0)
        if self._told is None or self._fits(told):
            self._believe(told)
        else:
            self._told = told

    def confirm(self) -> None:
        """The registry is there, and nothing has changed."""
        self.agreed = self._clock()

    def found(self, source: Literal["registry", "last-known-good"] = "registry") -> Found:
        """The result as it is to be used now."""
        self._settle()
        doubt = ""
        shown = self._good
        if self._told is not None:
            shown = {**self._told, **{k: v for k, v in self._good.items() if k not in self._told}}
            doubt = (
                f"after an interruption the registry knows {len(self._told)} instances where there "
                f"were {len(self._good)}; the others are kept until it has been so for "
                f"{self._doubt_for:g} s"
            )
        stale = 0.0 if self.agreed is None else max(0.0, self._clock() - self.agreed)
        return Found(tuple(shown.values()), self.revision, stale, source, doubt)

    def _hear(self, revision: str, stale_for: float) -> None:
        self.revision = revision
        self.agreed = self._clock() - stale_for

    def _fits(self, told: dict[Key, InstanceShown]) -> bool:
        return not shrunk(len(self._good), len(told))

    def _believe(self, told: dict[Key, InstanceShown]) -> None:
        self._good, self._told = told, None

    def _settle(self) -> None:
        if (
            self._told is not None
            and self._clock() - self._doubted_since >= self._doubt_for
        ):  # fmt: skip
            self._believe(self._told)


def _epoch(revision: str) -> str:
    """The part of a revision token that changes when a store lost its history."""
    return revision.partition("-")[0]
