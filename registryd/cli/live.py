"""Views that stay: the result of a query while it changes, and streams as lines."""

import asyncio
import random
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from registryd.cli import rows
from registryd.cli.grid import Grid, clean, cut
from registryd.cli.options import Output
from registryd.cli.services import counted, now
from registryd.cli.session import Session

if TYPE_CHECKING:
    from registryd.client.answers import Step
    from registryd.client.stream import Interrupted, Message
    from registryd.client.types import Filters
    from registryd.registry.types import InstanceShown

Key = tuple[str, str]
Draw = Callable[..., Grid]
"""Instances, the time, and styles of those that should be noticed."""

NOTICED: Final = 3.0
"""Seconds that a change stands out."""
REFRESH: Final = 0.5
AROUND: Final = 3
"""Lines of a live view that are not rows."""


@dataclass(slots=True)
class Followed:
    """What a watch has told so far, and whether it still does. No I/O; times by a monotonic clock."""

    instances: "dict[Key, InstanceShown]" = field(default_factory=dict)
    revision: str = ""
    touched: dict[Key, tuple[float, str]] = field(default_factory=dict)
    """When an instance came or changed, and which."""
    last: str = ""
    """The latest change in words."""
    lost: float | None = None
    """Since when the stream is broken off."""
    why: str = ""

    def take(self, message: "Message | Interrupted", at: float) -> "Step | None":
        """What the message said of the result. Raises UnexpectedAnswer."""
        from registryd.client.answers import step
        from registryd.client.known import key_of
        from registryd.client.stream import Interrupted

        if isinstance(message, Interrupted):
            if self.lost is None:
                self.lost = at
            self.why = message.error.detail
            return None
        self.lost = None
        told = step(message)
        if told is None:
            return None
        first = not self.revision
        self.revision = told.revision
        if told.whole is not None:
            before, self.instances = self.instances, {key_of(one): one for one in told.whole}
            if not first:  # after an outage: what is different now was not told one by one
                for key, one in self.instances.items():
                    if key not in before or rows.latest(one) != rows.latest(before[key]):
                        self.touched[key] = at, "changed" if key in before else "added"
        for word, present in (("added", told.added), ("changed", told.changed)):
            for one in present:
                self.instances[key_of(one)] = one
                self.touched[key_of(one)] = at, word
                self.last = f"{word} {one.name}/{one.instance_id}"
        for gone in told.removed:
            self.instances.pop((gone.name, gone.instance_id), None)
            self.touched.pop((gone.name, gone.instance_id), None)
            self.last = f"removed {gone.name}/{gone.instance_id}: {gone.reason}"
        return told

    def marks(self, at: float) -> dict[Key, str]:
        """Styles of what changed a moment ago."""
        return {
            key: "bold green" if word == "added" else "bold yellow"
            for key, (when, word) in self.touched.items()
            if at - when < NOTICED
        }

    def status(self, at: float) -> Text:
        if self.lost is not None:
            return Text(
                f"connection lost {rows.span(at - self.lost)} ago, trying again; this is as of then",
                style="bold red",
            )
        if not self.revision:
            return Text("waiting for the first answer", style="dim")
        words = [counted(self.instances, "instance"), f"revision {self.revision}", self.last]
        return Text("  ".join(filter(None, words)), style="dim")


def page(
    followed: Followed,
    draw: Draw,
    *,
    wide: bool,
    colour: bool,
    width: int,
    height: int,
    at: float,
    moment: datetime,
) -> list[Text]:
    """A live view as the lines of a screen. Pure."""
    grid = draw(followed.instances.values(), moment, followed.marks(at)).narrowed(wide=wide)
    lines = grid.lines(width=width, colour=colour)
    room = max(1, height - AROUND)
    left = len(lines) - 1 - room
    if left > 0:
        lines = [*lines[: room + 1], Text(f"… and {left} more")]
    status = followed.status(at)
    shown = Text(cut(clean(status.plain), width), status.style if colour else "", no_wrap=True)
    return [*lines, shown]


async def watched(
    session: Session, services: Sequence[str], filters: "Filters", draw: Draw
) -> None:
    """Shows the result of a query while it changes: a live table on a terminal, else line by line."""
    if session.printer.width is None or session.printer.output not in {Output.TABLE, Output.WIDE}:
        await streamed(session, services, filters)
        return
    from rich.console import Console, Group
    from rich.live import Live

    await session.reached()
    session.endless = True
    followed, printer = Followed(), session.printer

    def screen() -> Group:
        width, height = shutil.get_terminal_size()
        return Group(
            *page(
                *(followed, draw),
                wide=printer.output is Output.WIDE,
                colour=printer.colour,
                width=width,
                height=height,
                at=time.monotonic(),
                moment=now(),
            )
        )

    console = Console(highlight=False, no_color=not printer.colour)
    with Live(screen(), console=console, auto_refresh=False) as live:

        async def follow() -> None:
            async with aclosing(session.client.follow_watch(services, filters)) as messages:
                async for message in messages:
                    if followed.take(message, time.monotonic()) is not None:
                        live.update(screen(), refresh=True)

        async def refresh() -> None:
            while True:
                await asyncio.sleep(REFRESH)
                live.update(screen(), refresh=True)

        await together(follow(), refresh())


async def streamed(session: Session, services: Sequence[str], filters: "Filters") -> None:
    """Each change of a result as a line, or as the API's message."""
    from registryd.client.answers import step

    query = session.client.follow_watch(services, filters)
    await session.reached()
    session.endless = True
    async for message in told(session, query):
        change = step(message)
        if change is None:
            continue
        body = {"event": message.event, **message.json}
        if session.printer.output in {Output.JSON, Output.YAML}:
            session.printer.record(body, "")
            continue
        words = (
            (("present", change.whole),)
            if change.whole is not None
            else (("added", change.added), ("changed", change.changed))
        )
        for word, present in words:
            for one in present:
                session.printer.record(
                    None, f"{word}  {one.name}/{one.instance_id}  {rows.state(one)}  {one.endpoint}"
                )
        for gone in change.removed:
            session.printer.record(None, f"removed  {gone.name}/{gone.instance_id}  {gone.reason}")


async def messages(
    session: Session, path: str, query: Sequence[tuple[str, str]], since: str = ""
) -> "AsyncGenerator[Message, None]":
    """The messages of a stream of the registry, without pings; interruptions go to standard error."""
    from registryd.client.stream import follow

    dice = random.Random()  # noqa: S311  spreads reconnections, guards nothing
    stream = follow(session.client.transport, path, query, since=since, dice=dice)
    async for message in told(session, stream):
        yield message


async def told(
    session: Session, stream: "AsyncGenerator[Message | Interrupted, None]"
) -> "AsyncGenerator[Message, None]":
    """The events of a stream; that it broke off, and goes on again, is told on standard error."""
    from registryd.client.stream import Interrupted

    lost = False
    async with aclosing(stream) as messages:
        async for message in messages:
            if isinstance(message, Interrupted):
                if not lost:
                    session.note(f"{message.error.detail} Trying again.")
                lost = True
                continue
            if lost:
                session.note("connected again")
                lost = False
            if message.event:
                yield message


async def together(*jobs: Any) -> None:
    """Runs them until the first one ends, and raises what it raises; the others are cancelled."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
