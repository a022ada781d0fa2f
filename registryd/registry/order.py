"""The order of lists: slots by the names of their services, then by their ids.

Made when a list first asks for it, and kept from then on. Knows instances by their slots alone, so that
sorting and cutting a list touch none of the instances themselves.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Protocol


class Named(Protocol):
    @property
    def service(self) -> str: ...

    @property
    def id(self) -> str: ...


class Order:
    """`taken` maps slots to what is in them, for as long as they are in here."""

    def __init__(self, taken: Sequence[Named], slots: Iterable[int]) -> None:
        self._taken = taken
        self._sequence = array("I", sorted(slots, key=self._key))
        self._ranks: array[int] | None = None
        self._unranked = 0
        """How many slots were sorted without ranks since the sequence last changed."""

    @property
    def sequence(self) -> Sequence[int]:
        """All slots in order. Not to be changed."""
        return self._sequence

    def enter(self, slot: int) -> None:
        self._sequence.insert(self.place(self._sequence, *self._key(slot)), slot)
        self._ranks, self._unranked = None, 0

    def leave(self, slot: int) -> None:
        """To be told while the slot is still taken."""
        del self._sequence[self.place(self._sequence, *self._key(slot))]
        self._ranks, self._unranked = None, 0

    def place(self, ordered: Sequence[int], service: str, identity: str) -> int:
        """Where in these slots, which are in order, an instance stands or would."""
        return bisect_left(ordered, (service, identity), key=self._key)

    def sorted(self, slots: Iterable[int], count: int) -> list[int]:
        """These slots, `count` of them, in order."""
        if self._ranks is None:
            # Ranks are made once that has paid: when as many were sorted without as making them takes.
            self._unranked += count
            if self._unranked < len(self._sequence):
                return sorted(slots, key=self._key)
            self._ranks = array("I", bytes(4 * len(self._taken)))
            for rank, slot in enumerate(self._sequence):
                self._ranks[slot] = rank
        return sorted(slots, key=self._ranks.__getitem__)

    def _key(self, slot: int) -> tuple[str, str]:
        one = self._taken[slot]
        return one.service, one.id
