"""Instances, events and other answers as rows of a table. Pure: what time it is comes from outside."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from registryd.cli.grid import Cell, Column, Grid

if TYPE_CHECKING:
    from registryd.registry.types import InstanceShown

LOOKS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "healthy": ("green", "●"),
        "degraded": ("yellow", "◐"),
        "unhealthy": ("red", "✖"),
        "unknown": ("bright_black", "○"),
        "maintenance": ("magenta", "◼"),
        "draining": ("magenta", "◌"),
    }
)
"""Style and icon of what may stand in a column of health; the best first, as services are judged."""

ORDER: Final = ("healthy", "degraded", "unknown", "maintenance", "draining", "unhealthy")

SERVICES: Final = (
    Column("NAME", least=12),
    Column("HEALTH", least=11),
    Column("INSTANCES", least=9, right=True),
    Column("VERSION", least=7, rank=3),
    Column("CAPABILITIES", least=12, rank=1),
    Column("CHANGED", least=7, rank=2, right=True),
    Column("ENVIRONMENT", wide=True, rank=4),
    Column("ZONE", wide=True, rank=5),
    Column("TAGS", wide=True, rank=6),
)
INSTANCES: Final = (
    Column("SERVICE", least=10),
    Column("INSTANCE", least=12),
    Column("HEALTH", least=11),
    Column("ENDPOINT", least=16, rank=1),
    Column("VERSION", least=7, rank=3),
    Column("CHANGED", least=7, rank=2, right=True),
    Column("LEASE", wide=True, rank=4),
    Column("WEIGHT", wide=True, rank=6, right=True),
    Column("ENVIRONMENT", wide=True, rank=7),
    Column("ZONE", wide=True, rank=7),
    Column("CAPABILITIES", wide=True, rank=8),
    Column("TAGS", wide=True, rank=9),
    Column("ERROR", wide=True, rank=5),
)


def health(word: str) -> Cell:
    style, icon = LOOKS.get(word, ("", ""))
    return Cell(word, style, icon)


def state(instance: "InstanceShown") -> str:
    """Its health, but `draining` while it is let go."""
    if instance.admin is not None and instance.admin.state == "draining":
        return "draining"
    return instance.health.status.value


def moment(text: str | None) -> datetime | None:
    """A time of the API."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except ValueError:
        return None


def ago(text: str | None, now: datetime) -> str:
    """`12s`, `5m`, `3h`, `9d`; "-" when there is none."""
    then = moment(text)
    return "-" if then is None else span((now - then).total_seconds())


def span(seconds: float) -> str:
    for size, letter in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{letter}"
    return f"{max(0, int(seconds))}s"


def latest(instance: "InstanceShown") -> str:
    """When something about it last changed: RFC 3339 in UTC, so that texts compare."""
    return max(instance.updated_at, instance.health.since)


def instances_grid(
    instances: Iterable["InstanceShown"],
    now: datetime,
    marks: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> Grid:
    """`marks` are styles of those that should be noticed."""
    rows = []
    for one in sorted(instances, key=lambda one: (one.name, one.instance_id)):
        mark = marks.get((one.name, one.instance_id), "")
        held = "suspect" if one.lease.state == "suspect" else f"{one.lease.ttl_seconds}s"
        rows.append(
            [
                Cell(one.name, mark),
                Cell(one.instance_id, mark),
                health(state(one)),
                Cell(one.endpoint),
                Cell(one.version or "-"),
                Cell(ago(latest(one), now), mark),
                Cell(held, "yellow" if held == "suspect" else ""),
                Cell(str(one.weight)),
                Cell(str(one.metadata.get("environment") or "-")),
                Cell(one.zone or "-"),
                Cell(_words(one.name for one in one.capabilities)),
                Cell(_words(one.metadata.get("tags") or ())),
                Cell(one.health.error or "-", "red" if one.health.error else ""),
            ]
        )
    return Grid(INSTANCES, rows)


def by_service(instances: Iterable["InstanceShown"]) -> "dict[str, list[InstanceShown]]":
    grouped: dict[str, list[InstanceShown]] = {}
    for one in instances:
        grouped.setdefault(one.name, []).append(one)
    return grouped


def best(instances: Sequence["InstanceShown"]) -> str:
    """A service's health is its best instance's."""
    return min(map(state, instances), key=ORDER.index)


def services_grid(
    instances: Iterable["InstanceShown"],
    now: datetime,
    marks: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> Grid:
    rows = []
    for name, members in sorted(by_service(instances).items()):
        mark = next(
            (marks[key] for one in members if (key := (name, one.instance_id)) in marks), ""
        )
        good = sum(state(one) == "healthy" for one in members)
        rows.append(
            [
                Cell(name, mark),
                health(best(members)),
                Cell(f"{good}/{len(members)}", mark),
                Cell(_words(sorted({one.version for one in members if one.version}))),
                Cell(_words(sorted({c.name for one in members for c in one.capabilities}))),
                Cell(ago(max(map(latest, members)), now), mark),
                Cell(_words(sorted({str(one.metadata.get("environment") or "") for one in members} - {""}))),
                Cell(_words(sorted({one.zone for one in members if one.zone}))),
                Cell(_words(sorted({t for one in members for t in one.metadata.get("tags") or ()}))),
            ]
        )  # fmt: skip
    return Grid(SERVICES, rows)


def _words(words: Iterable[Any]) -> str:
    return ",".join(map(str, words)) or "-"


def told_grid(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Grid:
    """Rows of plain values; None is "-", and words of health look like health."""
    return Grid(columns, [[_cell(value) for value in row] for row in rows])


def _cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return value
    text = "-" if value is None or value == "" else str(value)
    return health(text) if text in LOOKS else Cell(text)


def facts_grid(facts: Mapping[str, object]) -> Grid:
    """Names and values, one a line."""
    columns = (Column("WHAT", least=20), Column("VALUE", least=20))
    return told_grid(columns, facts.items())


def event_line(event: Mapping[str, Any]) -> str:
    """A CloudEvent in a line: when, what, of whom, and what of it matters."""
    data = event.get("data") or {}
    more = ""
    if "old" in data and "new" in data:
        more = f"{_status(data['old'])} → {_status(data['new'])}"
    else:
        gone = data.get("instance")
        more = str(gone.get("reason", "")) if isinstance(gone, dict) else ""
    time = str(event.get("time", ""))[11:19]
    return f"{time}  {event.get('type', '')}  {event.get('subject', '')}  {more}".rstrip()


def _status(value: object) -> str:
    return str(value.get("status", value)) if isinstance(value, Mapping) else str(value)
