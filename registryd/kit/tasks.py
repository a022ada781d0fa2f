"""Supervised background tasks: a loop that fails is logged and started again, and stops cleanly."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from registryd.kit.backoff import Backoff

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class LoopState:
    """How a loop fares, for `/readyz?verbose` and metrics."""

    name: str
    running: bool = False
    failures: int = 0
    last_error: str | None = None
    last_beat: float | None = None
    """Monotonic seconds at the last completed turn."""


class Supervisor:
    """Runs named loops until `stop`. The one place that catches whatever a loop lets through.

    A loop is a coroutine function called again and again with `pause` seconds between the turns;
    a turn that raises is logged and tried again after a jittered backoff. Each turn should be
    short or cancellable: `stop` cancels what is under way and waits for it.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self.loops: dict[str, LoopState] = {}

    def start(
        self, name: str, turn: Callable[[], Awaitable[object]], *, pause: float = 0.0
    ) -> LoopState:
        state = self.loops[name] = LoopState(name, running=True)
        self._tasks.append(asyncio.create_task(self._run(state, turn, pause), name=name))
        return state

    async def stop(self) -> None:
        """Cancels every loop, newest first, and waits until each has ended."""
        while self._tasks:
            task = self._tasks.pop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(
        self, state: LoopState, turn: Callable[[], Awaitable[object]], pause: float
    ) -> None:
        backoff = Backoff(base=0.05, cap=5.0)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  only ever run as a task
        try:
            # A turn may swallow its cancellation: asyncio.wait_for of Python 3.11 does, and redis-py
            # writes with it. Without this look the loop would sleep on, and `stop` would wait for it.
            while not task.cancelling():
                try:
                    await turn()
                except Exception as error:
                    state.failures += 1
                    state.last_error = f"{type(error).__name__}: {error}"
                    log.exception("loop failed", loop=state.name)
                    await asyncio.sleep(backoff.next())
                else:
                    state.last_beat = time.monotonic()
                    backoff.reset()
                    if pause and not task.cancelling():
                        await asyncio.sleep(pause)
        finally:
            state.running = False
