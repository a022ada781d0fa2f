"""How much a caller and an address may use: rates, open streams, connections. In memory, for this process.

A rate is a token bucket. Renewals are not among what it counts: a lease must never be lost because its
holder, or a neighbour under the same key or address, asked for too much else. Whether a renewal is one
of a valid lease the store knows alone, so all go through, and one that finds no lease, or another
incarnation's, is counted as a write afterwards: what runs out is answered 429 instead of 404 or 409.
"""

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from registryd import errors
from registryd.metrics import Metrics
from registryd.web.caller import ANYBODY, Caller, Peer

KEPT: Final = 50_000
"""Buckets of one kind kept; beyond that some are forgotten, and full again."""
_NAMELESS: Final = ANYBODY.name
_ROUNDING: Final = 1e-9
_DENIED_BURST: Final = 60.0
_WORDS: Final = {
    "reads": "reads",
    "writes": "writes",
    "denied": "refused credentials",
    "streams": "open streams and long polls",
}


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one caller, or one address, may use. Rates are a second's."""

    reads: float
    writes: float
    streams: int
    """Streams and long polls open at a time."""


@dataclass(frozen=True, slots=True)
class Limits:
    caller: Allowance
    address: Allowance
    burst_seconds: float
    """So many seconds' worth may come at once."""
    denied_per_minute: float
    """Requests of one address whose credential did not hold."""
    connections: int
    connections_per_address: int


class Buckets:
    """Token buckets by key, each as the moment at which it is full again."""

    def __init__(
        self,
        per_second: float,
        burst_seconds: float,
        *,
        kept: int = KEPT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step = 1 / per_second
        self._room = max(burst_seconds, self._step) + _ROUNDING
        self._kept = kept
        self._now = now
        self._full: dict[str, float] = {}

    def wait(self, key: str) -> float:
        """Seconds until there is a token; 0 while there is one."""
        now = self._now()
        return max(0.0, max(self._full.get(key, now), now) + self._step - self._room - now)

    def take(self, key: str) -> float:
        """Takes a token and answers 0; or the seconds until there is one."""
        now = self._now()
        full = self._full.get(key, 0.0)
        if full < now:
            full = now
        full += self._step
        if (missing := full - now - self._room) > 0:
            return missing
        self._full[key] = full
        if len(self._full) > self._kept:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Those that are full again say nothing; then half of the others, the ones known longest, go too."""
        busy = [(key, full) for key, full in self._full.items() if full > now]
        self._full = dict(busy[-(self._kept // 2) :])

    def give_back(self, key: str) -> None:
        if key in self._full:
            self._full[key] -= self._step

    def __len__(self) -> int:
        return len(self._full)


class Slots:
    """How many of something each key has, `most` at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[str, int] = {}

    def take(self, key: str) -> bool:
        taken = self._taken.get(key, 0)
        if taken >= self._most:
            return False
        self._taken[key] = taken + 1
        return True

    def give_back(self, key: str) -> None:
        left = self._taken[key] - 1
        if left:
            self._taken[key] = left
        else:
            del self._taken[key]


class Throttle:
    """All limits of one process. `spared` tells which addresses stand for many, and may have any number of
    connections: those of trusted proxies."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        *,
        spared: Callable[[str], bool] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        def buckets(per_second: float, burst: float = limits.burst_seconds) -> Buckets:
            return Buckets(per_second, burst, now=now)

        self._metrics = metrics
        self._spared = spared
        self._network = lru_cache(KEPT)(network_of)
        self._reads = buckets(limits.caller.reads), buckets(limits.address.reads)
        self._writes = buckets(limits.caller.writes), buckets(limits.address.writes)
        self._denied = buckets(limits.denied_per_minute / 60, _DENIED_BURST)
        self._caller_streams = Slots(limits.caller.streams)
        self._address_streams = Slots(limits.address.streams)
        self._connections = Slots(limits.connections)
        self._address_connections = Slots(limits.connections_per_address)

    # --- rates

    def take(self, caller: Caller, peer: Peer, write: bool) -> tuple[str, float] | None:
        """Takes a token of the caller and one of the address, or neither: then which limit was met, and the
        seconds until there is room again."""
        by_caller, by_address = self._writes if write else self._reads
        network = self._network(peer.address)
        if wait := by_address.take(network):
            return ("address_writes" if write else "address_reads"), wait
        # Callers without a name have nothing in common but that.
        if (name := caller.name) != _NAMELESS and (wait := by_caller.take(name)):
            by_address.give_back(network)
            return ("caller_writes" if write else "caller_reads"), wait
        return None

    def charge(self, caller: Caller, peer: Peer, *, write: bool) -> None:
        """The same; raises RateLimited where there is none."""
        refused = self.take(caller, peer, write)
        if refused is not None:
            raise self._limited(*refused)

    def give_back(self, caller: Caller, peer: Peer, *, write: bool) -> None:
        """For what was admitted and then not done."""
        by_caller, by_address = self._writes if write else self._reads
        by_address.give_back(self._network(peer.address))
        if caller.name != _NAMELESS:
            by_caller.give_back(caller.name)

    def check_denied(self, peer: Peer) -> None:
        """Raises RateLimited where an address has shown too many credentials that did not hold."""
        if wait := self._denied.wait(self._network(peer.address)):
            raise self._limited("address_denied", wait)

    def deny(self, peer: Peer) -> None:
        self._denied.take(self._network(peer.address))

    # --- what stays open

    def hold(self, caller: Caller, peer: Peer) -> Callable[[], None]:
        """Counts a stream or a long poll until what it returns is called. Raises RateLimited."""
        network, name = self._network(peer.address), caller.name
        if not self._address_streams.take(network):
            raise self._limited("address_streams", 1.0)
        if name != _NAMELESS and not self._caller_streams.take(name):
            self._address_streams.give_back(network)
            raise self._limited("caller_streams", 1.0)

        def release() -> None:
            self._address_streams.give_back(network)
            if name != _NAMELESS:
                self._caller_streams.give_back(name)

        return release

    def connect(self, address: str) -> Callable[[], None] | None:
        """Counts a connection until what it returns is called; None where there are too many."""
        spared = self._spared is not None and self._spared(address)
        network = "" if spared else self._network(address)
        if not self._connections.take("all"):
            self._metrics.limited.labels("connections").inc()
            return None
        if network and not self._address_connections.take(network):
            self._connections.give_back("all")
            self._metrics.limited.labels("address_connections").inc()
            return None

        def release() -> None:
            self._connections.give_back("all")
            if network:
                self._address_connections.give_back(network)

        return release

    def _limited(self, limit: str, wait: float) -> errors.RateLimited:
        self._metrics.limited.labels(limit).inc()
        who, _, what = limit.partition("_")
        return errors.RateLimited(
            f"too many {_WORDS[what]} of this {who}; come back in {math.ceil(wait)} s",
            retry_after=wait,
        )


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the /64, which is what a single customer is given."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, 64), strict=False))
