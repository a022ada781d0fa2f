"""Every instrument of the daemon, in one place, on a registry of its own (no module-level state).

Labels are bounded: route templates, event types, error codes; never an id or a raw path.
"""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BOUNDS = (*map(str, _FAST), "+Inf")


class Metrics:
    """The instruments, as attributes named like the metric without its `registryd_` prefix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"registryd_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"registryd_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"registryd_{name}", text, labels, registry=self.registry, buckets=_FAST
            )

        self.build_info = gauge("build_info", "Always 1; the version is in the label.", "version")

        self.http = RequestTally()
        self.registry.register(self.http)
        self.http_in_flight = gauge("http_requests_in_flight", "HTTP requests under way.")

        self.limited = counter(
            "limited", "Requests and connections refused for being too many.", "limit"
        )
        self.access_denied = counter("access_denied", "Requests denied, by reason.", "reason")
        self.access_entries_lost = counter(
            "access_entries_lost", "Entries of the access record that were given up unwritten."
        )
        self.jwks_fetches = counter(
            "jwks_fetches", "Fetches of the keys of tokens, by what came of them.", "result"
        )

        self.store_calls = counter("store_calls", "Calls to the store.", "script")
        self.store_call_seconds = histogram(
            "store_call_seconds", "Time of one call to the store, in seconds.", "script"
        )
        self.store_errors = counter("store_errors", "Failed calls to the store.", "kind")
        self.store_up = gauge("store_up", "1 while the store answers, else 0.")

        self.renewals = counter("renewals", "Leases asked to be renewed, by outcome.", "outcome")
        self.renewal_batch_size = Histogram(
            "registryd_renewal_batch_size",
            "Heartbeats sent to the store in one call.",
            registry=self.registry,
            buckets=(1, 2, 5, 10, 20, 50, 100, 200),
        )

        self.events = counter("events", "Changes applied to the view, by type.", "type")
        self.expired = counter("expired", "Instances expired by this node's sweeps.")
        self.held = gauge("expiry_guard_held", "Instances held by the expiry guard.")
        self.guard_active = gauge("expiry_guard_active", "1 while the expiry guard holds, else 0.")
        self.derived_errors = gauge(
            "store_derived_errors", "Failed writes of indexes, expiring keys or messages so far."
        )
        self.audit_repairs = counter(
            "audit_repairs", "Index members and expiring keys that the audit put right.", "kind"
        )

        self.checks = counter(
            "checks",
            "Health checks by type and result (a verdict, skipped or lost).",
            "type",
            "result",
        )
        self.checks_in_flight = gauge("checks_in_flight", "Health checks under way.")
        self.check_lateness = Histogram(
            "registryd_check_lateness_seconds",
            "How long after it was due a check was claimed, in seconds.",
            registry=self.registry,
            buckets=(*_FAST, 30.0, 60.0, 300.0),
        )

        self.feed_gaps = counter(
            "feed_gaps", "Gaps in the change stream that forced a new snapshot."
        )
        self.snapshots = counter("view_snapshots", "Snapshots loaded.")
        self.snapshot_seconds = gauge("view_snapshot_seconds", "Time the last snapshot took.")

        self.watchers = gauge("watchers", "Open event streams and watches.", "kind")
        self.stream_writes = counter("stream_writes", "Writes to event streams and watches.")
        self.slow_readers = counter(
            "slow_readers_cut", "Event streams cut because their client did not read."
        )
        self.propagation_seconds = histogram(
            "propagation_seconds",
            "Time from a write in the store until this node shows it (registered), or has told its watchers "
            "(gone), beyond the shortest seen of late.",
            "kind",
        )

        self.cache_lookups = counter(
            "result_cache_lookups", "Result cache look-ups, by outcome.", "outcome"
        )
        self.not_modified = counter("not_modified", "Reads answered 304.")

        self.webhook_deliveries = counter(
            "webhook_deliveries",
            "Attempts to deliver to webhooks, by what came of them; overflow: given up unsent.",
            "result",
        )
        self.webhook_seconds = Histogram(
            "registryd_webhook_seconds",
            "Time of one attempt to deliver to a webhook, in seconds.",
            registry=self.registry,
            buckets=_FAST,
        )
        self.webhook_queue = gauge("webhook_queue", "Deliveries that wait, of all webhooks.")
        self.webhook_dead_letters = gauge("webhook_dead_letters", "Deliveries that were given up.")
        self.webhook_oldest_seconds = gauge(
            "webhook_oldest_waiting_seconds", "Age of the delivery that has waited longest."
        )
        self.webhook_gaps = counter(
            "webhook_gaps", "Times that changes left the stream before they were carried on."
        )

    def on_scrape(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Adds figures that are read when somebody asks, rather than kept up to date."""
        self.registry.register(_OnScrape(collect))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics as (body, content type): OpenMetrics where `accept` asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def gauge_family(name: str, text: str, samples: dict[str, float], label: str = "") -> Metric:
    """A gauge made at scrape time; `samples` maps label values (or "" alone) to figures."""
    family = GaugeMetricFamily(f"registryd_{name}", text, labels=[label] if label else None)
    for value, figure in samples.items():
        family.add_metric([value] if label else [], figure)
    return family


class RequestTally(Collector):
    """Requests answered, and how long they took: plain numbers, made into metrics when somebody asks.

    The library's instruments take a lock for each of five figures; requests are counted on the event
    loop alone, and by the hundred thousand.
    """

    def __init__(self) -> None:
        self._routes: dict[str, RouteTally] = {}

    def of(self, route: str) -> "RouteTally":
        return self._routes.setdefault(route, RouteTally())

    def collect(self) -> Iterable[Metric]:
        counted = CounterMetricFamily(
            "registryd_http_requests",
            "HTTP requests answered.",
            labels=["method", "route", "status"],
        )
        took = HistogramMetricFamily(
            "registryd_http_request_seconds",
            "Time from request head to reply, in seconds.",
            labels=["route"],
        )
        for route, tally in self._routes.items():
            for (method, status), count in tally.answers.items():
                counted.add_metric([method, route, str(status)], count)
            sums = itertools.accumulate(tally.buckets)
            buckets = list(zip(_BOUNDS, sums, strict=True))
            took.add_metric([route], buckets, tally.seconds)
        yield counted
        yield took

    def describe(self) -> Iterable[Metric]:
        return ()


class RouteTally:
    """The figures of one route."""

    __slots__ = ("answers", "buckets", "seconds")

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], int] = {}
        self.buckets = [0] * (len(_FAST) + 1)
        self.seconds = 0.0

    def add(self, method: str, status: int, seconds: float) -> None:
        key = method, status
        self.answers[key] = self.answers.get(key, 0) + 1
        self.buckets[bisect_left(_FAST, seconds)] += 1
        self.seconds += seconds


class _OnScrape(Collector):
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()

    def describe(self) -> Iterable[Metric]:
        return ()
