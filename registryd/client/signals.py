"""SIGTERM, with something to do before whoever handles it hears of it."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def before_sigterm(first: Callable[[], Awaitable[None]]) -> Iterator[None]:
    """Awaits `first` when SIGTERM comes, in the running loop, and then hands the signal on: to the
    handler that was there before, or as SIGINT where that was none, or one that belongs to the loop and
    cannot be called from here. A second SIGTERM is handed on at once.

    Python lets only the main thread do this; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        log.warning("SIGTERM is not handled outside of the main thread; drain it yourself")
        yield
        return
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGTERM)
    ours = callable(previous) and not _of_a_loop(previous)
    running: list[asyncio.Future[None]] = []

    def give_back() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        if ours:
            signal.signal(signal.SIGTERM, previous)

    def hand_on(_: object = None) -> None:
        give_back()
        os.kill(os.getpid(), signal.SIGTERM if ours else signal.SIGINT)

    def arrived() -> None:
        if running:
            running[0].remove_done_callback(hand_on)
            hand_on()
            return
        running.append(asyncio.ensure_future(first()))
        running[0].add_done_callback(hand_on)

    loop.add_signal_handler(signal.SIGTERM, arrived)
    try:
        yield
    finally:
        if running:
            running[0].remove_done_callback(hand_on)
        if loop.remove_signal_handler(signal.SIGTERM) and ours:
            signal.signal(signal.SIGTERM, previous)


def _of_a_loop(handler: object) -> bool:
    """Whether it is the placeholder that an event loop installs; the loop itself does the work."""
    return str(getattr(handler, "__module__", "")).startswith(("asyncio.", "uvloop"))
