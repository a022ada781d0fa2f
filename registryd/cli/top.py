"""`registryd top`: the registry on one screen, while it changes. What is shown is decided in `board.py`;
here are the terminal, the keys and the streams."""

import asyncio
import codecs
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from registryd.cli.board import Board, Figures, screen
from registryd.cli.live import REFRESH, together
from registryd.cli.options import USAGE, leave
from registryd.cli.services import now
from registryd.cli.session import Session, asking

EVERY: Final = 2.0
"""Seconds between two looks at metrics and health."""

Refresh = Callable[[], None]

_KEYS: Final = re.compile(r"\x1b\[([ABCDHF])|\x1bO([ABCDHF])|\x1b\[[0-9;]*.|(.)", re.DOTALL)
_ARROWS: Final = {"A": "up", "B": "down", "C": "enter", "D": "back", "H": "home", "F": "end"}
_NAMED: Final = {"\r": "enter", "\n": "enter", "\x7f": "erase", "\b": "erase", "\x1b": "escape"}


def keys(text: str) -> list[str]:
    """What was typed, as names of keys. Pure."""
    found = []
    for match in _KEYS.finditer(text):
        arrow = match[1] or match[2]
        if arrow:
            found.append(_ARROWS[arrow])
        elif match[3]:
            found.append(_NAMED.get(match[3], match[3]))
    return found


@asking
async def top(session: Session) -> None:
    """Show the registry on one screen, while it changes. q ends it; the keys stand at the bottom."""
    from rich.console import Console, Group
    from rich.live import Live

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        leave("top needs a terminal; `registryd services watch` goes into a pipe", USAGE)
    await session.reached()
    session.endless = True
    board = Board(session.client.transport.base)

    def drawn() -> Group:
        width, height = shutil.get_terminal_size()
        colour = session.printer.colour
        return Group(*screen(board, width, height, now(), time.monotonic(), colour=colour))

    console = Console(highlight=False, no_color=not session.printer.colour)
    with (
        raw(sys.stdin.fileno()),
        Live(drawn(), console=console, screen=True, auto_refresh=False) as live,
    ):

        def refresh() -> None:
            live.update(drawn(), refresh=True)

        await together(
            _typed(board, refresh),
            _followed(session, board),
            _ticker(session, board),
            _figures(session, board),
            _ended(),
            _redrawn(refresh),
        )


@contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Keys come one by one and unseen; afterwards the terminal is as it was, whatever happened."""
    import termios
    import tty

    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


async def _typed(board: Board, refresh: Refresh) -> None:
    """Ends when the user wants to."""
    terminal = sys.stdin.fileno()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pressed: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, lambda: pressed.put_nowait(os.read(terminal, 1024)))
    try:
        while piece := await pressed.get():
            for key in keys(decoder.decode(piece)):
                if not board.press(key):
                    return
            refresh()
    finally:
        loop.remove_reader(terminal)


async def _ended() -> None:
    """Ends at SIGTERM or when the terminal is gone, so that it is left as it was."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    await told.wait()


async def _redrawn(refresh: Refresh) -> None:
    while True:
        await asyncio.sleep(REFRESH)
        refresh()


async def _followed(session: Session, board: Board) -> None:
    async with aclosing(session.client.follow_watch((), {})) as messages:
        async for message in messages:
            board.followed.take(message, time.monotonic())


async def _ticker(session: Session, board: Board) -> None:
    from registryd.client.stream import Interrupted, follow

    dice = random.Random()  # noqa: S311  spreads reconnections, guards nothing
    stream = follow(session.client.transport, "/events", (), dice=dice)
    async with aclosing(stream) as messages:
        async for message in messages:
            if not isinstance(message, Interrupted) and message.event not in {"", "bye", "reset"}:
                board.happened(message.json)


async def _figures(session: Session, board: Board) -> None:
    """Asks for what no stream tells. What cannot be had, or not with this key, stays unknown."""
    from registryd.errors import RegistrydError

    while True:
        try:
            health = (await session.client.transport.call("GET", "/health")).json
        except RegistrydError:
            health = {}
        try:
            text = (await session.client.transport.call("GET", "/metrics")).body.decode()
        except RegistrydError:
            text = ""
        board.learn(Figures.read(health, text, time.monotonic()))
        await asyncio.sleep(EVERY)
