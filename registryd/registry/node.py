"""How this node fares: liveness, readiness, health, metrics, and its own description."""

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

from prometheus_client.metrics_core import Metric

from registryd import __version__
from registryd.errors import Malformed
from registryd.feed.follower import Follower
from registryd.kit.tasks import Supervisor
from registryd.metrics import Metrics, gauge_family
from registryd.registry.reads import known_parameters
from registryd.registry.reaper import Reaper
from registryd.registry.types import HealthStatus, LifeSign, Readiness, RegistryHealth
from registryd.registry.view import View
from registryd.web import codec
from registryd.web.caller import Permission, Scope
from registryd.web.reply import Reply
from registryd.web.request import Request
from registryd.web.routing import Answer, Mount, Param, Route

LATE: Final = timedelta(seconds=30)
"""A loop without a completed turn for that long is reported as stuck."""


class Node:
    """The state of the parts, as answers. `max_stale` zero means that any age will do."""

    def __init__(
        self,
        view: View,
        follower: Follower,
        reaper: Reaper,
        supervisor: Supervisor,
        metrics: Metrics,
        *,
        closing: asyncio.Event,
        max_stale: Callable[[], timedelta],
    ) -> None:
        self._view = view
        self._follower = follower
        self._reaper = reaper
        self._supervisor = supervisor
        self._metrics = metrics
        self._max_stale = max_stale
        self._closing = closing
        self.describe: Callable[[], bytes] = lambda: b"{}"
        """The OpenAPI document of the whole table, which is known only when the node exists."""
        metrics.build_info.labels(__version__).set(1)
        metrics.on_scrape(self._figures)

    # --- states

    def readiness(self) -> str:
        if self._closing.is_set():
            return "draining"
        if not self._follower.loaded:
            return "loading"
        stale = timedelta(seconds=self._follower.stale_for)
        if self._max_stale() and stale > self._max_stale():
            return "stale"
        return "ready" if self._follower.connected else "degraded"

    def _checks(self) -> dict[str, dict[str, Any]]:
        swept = self._reaper.last
        loops = {
            state.name: {
                "running": state.running,
                "failures": state.failures,
                "late": state.last_beat is not None
                and time.monotonic() - state.last_beat > LATE.total_seconds(),
            }
            for state in self._supervisor.loops.values()
        }
        guard: dict[str, Any] = {"holding": bool(swept and swept.preserving)}
        if swept and swept.preserving:
            guard |= {
                "held": swept.held,
                "reason": "many leases ended together, likely a network fault; their instances are shown as "
                "suspect and expire after min(ttl, registry.guard.maxHold)",
                "release": "POST /cleanup?force=true",
            }
        return {
            "store": {
                "reachable": self._follower.connected,
                "staleMs": int(self._follower.stale_for * 1000),
            },
            "view": {
                "loaded": self._follower.loaded,
                "revision": str(self._view.revision),
                "instances": len(self._view),
                "services": len(self._view.contents.services),
            },
            "expiryGuard": guard,
            "loops": loops,
        }

    def _figures(self) -> Iterable[Metric]:
        contents = self._view.contents
        by_health = {
            status.value: float(len(contents.index.get(f"health:{status}", ())))
            for status in HealthStatus
        }
        yield gauge_family("instances", "Instances in the view, by health.", by_health, "health")
        yield gauge_family("services", "Services in the view.", {"": float(len(contents.services))})
        yield gauge_family(
            "view_revision",
            "Revision of the view, within its epoch.",
            {"": self._view.revision.rev},
        )
        yield gauge_family(
            "store_stale_seconds",
            "Time since the store last answered; 0 while it does.",
            {"": self._follower.stale_for},
        )
        yield gauge_family(
            "loop_failures",
            "Failed turns of a background loop.",
            {state.name: float(state.failures) for state in self._supervisor.loops.values()},
            "loop",
        )

    # --- answers

    async def alive(self, request: Request) -> Reply:
        return Reply(200, b'{"status":"healthy"}', headers=[_NO_STORE])

    async def ready(self, request: Request) -> Reply:
        parameters = known_parameters(request, "verbose")
        verbose = parameters.get("verbose")
        if verbose not in {None, "", "1", "0", "true", "false"}:
            raise Malformed(f"verbose: expected true or false, found {verbose[:40]!r}")
        state = self.readiness()
        answer: dict[str, Any] = {"status": state}
        if verbose in {"", "1", "true"}:
            answer["checks"] = self._checks()
        return Reply(
            200 if state in {"ready", "degraded"} else 503, codec.dumps(answer), headers=[_NO_STORE]
        )

    async def health(self, request: Request) -> Reply:
        state = self.readiness()
        word = {"ready": "healthy", "degraded": "degraded"}.get(state, "unhealthy")
        answer = {"status": word, "state": state, "version": __version__, **self._checks()}
        # 503 only when neither store nor view can serve.
        serving = self._follower.loaded or self._follower.connected
        return Reply(200 if serving else 503, codec.dumps(answer), headers=[_NO_STORE])

    async def metrics(self, request: Request) -> Reply:
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return Reply(200, body, content_type, headers=[_NO_STORE])

    async def openapi(self, request: Request) -> Reply:
        return Reply(200, self.describe())

    def table(self) -> list[Route]:
        unavailable = Answer("Not now", Readiness)
        return [
            Route(
                method="GET",
                path="/health",
                handler=self.alive,
                permission=Permission.OPEN,
                scope=Scope.NONE,
                mount=Mount.ROOT,
                operation_id="alive",
                summary="Liveness, for containers",
                tag="node",
                answers={200: Answer("Alive", LifeSign)},
            ),
            Route(
                method="GET",
                path="/livez",
                handler=self.alive,
                permission=Permission.OPEN,
                scope=Scope.NONE,
                operation_id="livez",
                summary="Liveness",
                tag="node",
                answers={200: Answer("Alive", LifeSign)},
            ),
            Route(
                method="GET",
                path="/readyz",
                handler=self.ready,
                permission=Permission.OPEN,
                scope=Scope.NONE,
                operation_id="readyz",
                summary="Whether this node can serve",
                tag="node",
                query=(Param("verbose", "Say what was looked at", {"type": "boolean"}),),
                answers={200: Answer("Ready, or degraded", Readiness), 503: unavailable},
            ),
            Route(
                method="GET",
                path="/health",
                handler=self.health,
                permission=Permission.READER,
                scope=Scope.NONE,
                mount=Mount.PREFIX_ONLY,
                operation_id="registryHealth",
                summary="The registry's own health",
                tag="node",
                answers={
                    200: Answer("How the parts fare", RegistryHealth),
                    503: Answer("Nothing can be served", RegistryHealth),
                },
            ),
            Route(
                method="GET",
                path="/metrics",
                handler=self.metrics,
                permission=Permission.READER,
                scope=Scope.WHOLE,
                operation_id="metrics",
                summary="Prometheus metrics, as text or OpenMetrics",
                tag="node",
                answers={200: Answer("The metrics", content_type="text/plain")},
            ),
            Route(
                method="GET",
                path="/openapi.json",
                handler=self.openapi,
                permission=Permission.READER,
                scope=Scope.NONE,
                operation_id="openapi",
                summary="This description",
                tag="node",
                answers={200: Answer("OpenAPI 3.1")},
            ),
        ]


_NO_STORE: Final = ("Cache-Control", "no-store")
