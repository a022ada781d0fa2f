"""Loading a view from chunks that are read while writes go on."""

from changes import History

from registryd.feed.revision import NOWHERE, Revision
from registryd.metrics import Metrics
from registryd.registry.store import RegistryStore, SnapshotPage, SnapshotRow
from registryd.registry.sync import ViewSync
from registryd.registry.view import View
from registryd.storage.connection import Connection


class Pages(RegistryStore):
    """A store that answers with the pages it was given."""

    def __init__(self, *pages: SnapshotPage) -> None:
        self.pages = pages
        self.deployment = None

    async def continue_import(self) -> None:
        """There is none."""

    async def snapshot(self, cursor: int, count: int) -> SnapshotPage:
        return self.pages[cursor]


def row(history: History, name: str) -> SnapshotRow:
    held = history.held[name]
    return SnapshotRow(name, held.row, held.doc, held.admin, held.suspect)


async def loaded(*pages: SnapshotPage) -> tuple[View, Revision]:
    view = View()
    position = await ViewSync(Pages(*pages), view, Metrics(), chunk=10).load()
    return view, position


async def test_an_empty_store_is_an_empty_view() -> None:
    view, position = await loaded(SnapshotPage(0, NOWHERE, []))
    assert (len(view), view.revision, position) == (0, NOWHERE, NOWHERE)


async def test_what_two_chunks_hold_counts_in_its_newer_version() -> None:
    history = History()
    history.register("chat", health="healthy")
    old, first = row(history, "chat:i1"), history.at
    history.health("chat:i1", "degraded")
    new, second = row(history, "chat:i1"), history.at
    for rows in ([old, new], [new, old]):
        view, position = await loaded(
            SnapshotPage(1, first, rows[:1]), SnapshotPage(0, second, rows[1:])
        )
        [instance] = view.contents.by_id.values()
        assert (instance.health, position) == ("degraded", first)


async def test_changes_are_followed_from_the_first_chunk_and_counted_as_such_up_to_the_last() -> (
    None
):
    history = History()
    history.register("chat")
    first = history.at
    history.remove("chat:i1")
    view, position = await loaded(SnapshotPage(1, first, []), SnapshotPage(0, history.at, []))
    assert position == view.revision == first
    assert view.changed_at([("service:chat",)]) == history.at.rev


async def test_admin_and_suspicion_are_part_of_a_snapshot() -> None:
    history = History()
    history.register("chat")
    history.administer("chat:i1", "maintenance")
    history.preserve("chat:i1")
    view, _ = await loaded(SnapshotPage(0, history.at, [row(history, "chat:i1")]))
    [instance] = view.contents.by_id.values()
    assert (instance.suspect, instance.health) == (True, "maintenance")


async def test_applied_changes_are_counted_by_type() -> None:
    history, metrics = History(), Metrics()
    sync = ViewSync(Pages(), View(), metrics, chunk=10)
    sync.apply(history.register("chat"))
    labels = {"type": "service:registered"}
    assert metrics.registry.get_sample_value("registryd_events_total", labels) == 1


async def test_a_store_that_somebody_emptied_bears_its_name_again(
    store: RegistryStore, connection: Connection, metrics: Metrics
) -> None:
    await connection.call("FLUSHALL")
    await ViewSync(store, View(), metrics, chunk=10).load()
    assert await connection.call("HGET", "ossa:meta", "deployment") == b"test"
