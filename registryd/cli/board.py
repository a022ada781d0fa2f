"""What `registryd top` knows and shows. Pure: no terminal, no network, no clock of its own."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from registryd.cli import rows
from registryd.cli.grid import Grid, clean
from registryd.cli.live import Followed

if TYPE_CHECKING:
    from registryd.registry.types import InstanceShown

TICKER: Final = 5
"""Events shown; as many more are kept for larger screens."""
SORTS: Final = ("name", "health", "instances", "changed")
HELP: Final = "q quit  ↑↓ jk move  enter open  esc back  / filter  s sort  p pause"


@dataclass(frozen=True, slots=True)
class Figures:
    """Counters at a moment (monotonic seconds); None where they cannot be had."""

    at: float
    state: str = "?"
    heartbeats: float | None = None
    requests: float | None = None

    @classmethod
    def read(cls, health: Mapping[str, Any], metrics: str, at: float) -> "Figures":
        """From the registry's own health and its metrics as Prometheus text."""
        store = health.get("store", {})
        state = str(health.get("state", "?"))
        if store and not store.get("reachable"):
            state = f"store away {store.get('staleMs', 0) / 1000:.0f} s"
        return cls(
            at,
            state,
            total(metrics, 'registryd_renewals_total{outcome="renewed"}'),
            total(metrics, "registryd_http_requests_total{"),
        )


def total(metrics: str, series: str) -> float | None:
    """The sum of the series that begin so; None without any metrics."""
    if not metrics:
        return None
    return sum(
        float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(series)
    )


def rate(new: float | None, old: float | None, seconds: float) -> float | None:
    """A second, between two looks; None when it is not known, or the daemon began anew."""
    if new is None or old is None or seconds <= 0 or new < old:
        return None
    return (new - old) / seconds


@dataclass(slots=True)
class Board:
    """What is known, and what the user looks at."""

    registry: str
    followed: Followed = field(default_factory=Followed)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=2 * TICKER))
    now: Figures = Figures(0.0)
    before: Figures = Figures(0.0)
    sort: str = "name"
    filter: str = ""
    typing: bool = False
    """The filter is being typed."""
    at: int = 0
    """The row that the cursor is on."""
    opened: str = ""
    """The service whose instances are shown; "" for the list of services."""
    held: "list[InstanceShown] | None" = None
    """What is shown while paused."""

    def happened(self, event: Mapping[str, Any]) -> None:
        self.events.append(clean(rows.event_line(event)))

    def learn(self, figures: Figures) -> None:
        self.before, self.now = self.now, figures

    @property
    def instances(self) -> "list[InstanceShown]":
        """What the screen is about, narrowed by the filter."""
        shown = list(self.followed.instances.values()) if self.held is None else self.held
        if self.opened:
            return [one for one in shown if one.name == self.opened]
        wanted = self.filter.lower()
        return [one for one in shown if not wanted or wanted in _searched(one)]

    @property
    def names(self) -> list[str]:
        """The services shown, in their order."""
        grouped = rows.by_service(self.instances)
        match self.sort:
            case "health":
                return sorted(grouped, key=lambda name: (-_worst(grouped[name]), name))
            case "instances":
                return sorted(grouped, key=lambda name: (-len(grouped[name]), name))
            case "changed":
                newest = sorted(grouped)
                newest.sort(key=lambda name: max(map(rows.latest, grouped[name])), reverse=True)
                return newest
            case _:
                return sorted(grouped)

    def press(self, key: str) -> bool:
        """Does what a key asks for; False to leave."""
        if self.typing:
            self._type(key)
            return True
        match key:
            case "q":
                return False
            case "down" | "j":
                self.at += 1
            case "up" | "k":
                self.at -= 1
            case "home" | "g":
                self.at = 0
            case "end" | "G":
                self.at = len(self.followed.instances)
            case "enter":
                if not self.opened and self.names:
                    self.opened = self.names[min(max(self.at, 0), len(self.names) - 1)]
                    self.at = 0
            case "escape" | "back":
                if self.opened:
                    opened, self.opened = self.opened, ""
                    self.at = self.names.index(opened) if opened in self.names else 0
                else:
                    self.filter = ""
            case "/":
                self.typing, self.opened = True, ""
            case "s":
                self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
            case "p":
                shown = list(self.followed.instances.values())
                self.held = shown if self.held is None else None
            case _:
                pass
        count = len(self.instances) if self.opened else len(self.names)
        self.at = min(max(self.at, 0), max(count - 1, 0))
        return True

    def _type(self, key: str) -> None:
        match key:
            case "enter":
                self.typing = False
            case "escape":
                self.typing, self.filter = False, ""
            case "erase":
                self.filter = self.filter[:-1]
            case _ if len(key) == 1 and key.isprintable():
                self.filter += key
        self.at = 0


def _searched(instance: "InstanceShown") -> str:
    words = (instance.name, rows.state(instance), *(one.name for one in instance.capabilities))
    return "\n".join(words).lower()


def _worst(instances: "Iterable[InstanceShown]") -> int:
    return max(rows.ORDER.index(rows.state(one)) for one in instances)


# --- the screen


def screen(
    board: Board, width: int, height: int, moment: datetime, at: float, *, colour: bool
) -> list[Text]:
    """Exactly `height` lines, none wider than `width`."""
    marks = board.followed.marks(at)
    if board.opened:
        grid = rows.instances_grid(board.instances, moment, marks)
    else:
        grid = _ordered(rows.services_grid(board.instances, moment, marks), board.names)
    lines = grid.narrowed(wide=width >= 150).lines(width=width, colour=colour)
    events = min(TICKER, max(0, (height - 10) // 3))
    room = max(1, height - 6 - (events + 1 if events else 0))
    position = min(max(board.at, 0), max(len(lines) - 2, 0))
    first = max(0, position - room + 1)
    body = lines[1 : room + 1] if first == 0 else lines[1 + first : 1 + first + room]
    if body:
        cursor = body[position - first]
        cursor.append(" " * max(0, width - cursor.cell_len))
        cursor.stylize("reverse")  # which is no colour: it shows on any terminal
    shown = [*_header(board, width, at), lines[0], *body]
    shown += [Text("")] * (5 + room - len(shown))
    if events:
        shown.append(Text("EVENTS", style="bold"))
        shown += [Text(line) for line in list(board.events)[-events:]]
    shown = shown[: height - 1]
    shown += [Text("")] * (height - 1 - len(shown))
    shown.append(_footer(board, max(0, len(lines) - 1 - room)))
    for line in shown:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return shown


def _ordered(grid: Grid, names: Iterable[str]) -> Grid:
    by_name = {row[0].text: row for row in grid.rows}
    return Grid(grid.columns, [by_name[name] for name in names])


def _header(board: Board, width: int, at: float) -> list[Text]:
    new, old = board.now, board.before
    seconds = new.at - old.at
    beats = _per_second(rate(new.heartbeats, old.heartbeats, seconds))
    asked = _per_second(rate(new.requests, old.requests, seconds))
    instances = board.followed.instances.values()
    services = len({one.name for one in instances})
    return [
        Text.assemble(("registryd", "bold"), f" {board.registry}  {new.state}  "
                      f"revision {board.followed.revision or '-'}"),
        Text(f"{services} services  {len(instances)} instances  heartbeats/s {beats}  requests/s {asked}"),
        bar(instances, width),
        board.followed.status(at) if board.followed.lost is not None else Text(""),
    ]  # fmt: skip


def bar(instances: "Iterable[InstanceShown]", width: int) -> Text:
    """How many of each health, as a bar with its figures."""
    counts = dict.fromkeys(rows.ORDER, 0)
    for one in instances:
        counts[rows.state(one)] += 1
    present = {word: n for word, n in counts.items() if n}
    legend = "  ".join(f"{word} {n}" for word, n in present.items())
    length, whole = max(0, min(60, width - len(legend) - 2)), sum(present.values())
    drawn, reached, line = 0, 0, Text()
    for at, (word, n) in enumerate(present.items()):
        reached += n
        upto = round(length * reached / whole)
        line.append("█▓▒░▚·"[at] * (upto - drawn), rows.LOOKS[word][0])
        drawn = upto
    line.append("  " if drawn else "")
    for at, (word, n) in enumerate(present.items()):
        line.append("  " if at else "")
        line.append(f"{word} {n}", rows.LOOKS[word][0])
    return line


def _per_second(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _footer(board: Board, more: int) -> Text:
    if board.typing:
        return Text(f"/{board.filter}▏  enter keeps it, esc drops it", style="bold")
    # What is particular comes first: a narrow terminal cuts the end.
    parts = [
        "PAUSED" if board.held is not None else "",
        f"filter {board.filter}" if board.filter else "",
        f"{more} more" if more else "",
        f"by {board.sort}" if not board.opened else f"instances of {board.opened}",
        HELP,
    ]
    return Text("  ".join(filter(None, parts)), style="dim")
