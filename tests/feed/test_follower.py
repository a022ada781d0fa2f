"""The follower over a stream in memory: loads, gaps, other histories, outages, and who is woken."""

import asyncio
from collections.abc import Callable

import pytest
from changes import FakeStream, History, contents_of

from registryd.errors import StorageUnavailable
from registryd.feed.follower import Follower
from registryd.feed.revision import NOWHERE, Revision
from registryd.feed.stream import Change
from registryd.metrics import Metrics
from registryd.registry.view import View


class Copy:
    """A consumer that keeps a view of a history."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.view = View()
        self.loads = 0
        self.applied: list[Revision] = []
        self.while_loading: Callable[[], None] = lambda: None
        self.away = False
        self.refuses: Revision | None = None

    async def load(self) -> Revision:
        if self.away:
            raise StorageUnavailable("the store is away")
        at, contents = self.history.at, contents_of(self.history.held)
        self.while_loading()
        self.loads += 1
        self.view.replace(contents, at, at)
        return at

    def apply(self, change: Change) -> bool:
        if self.refuses == change.at:
            return False
        self.applied.append(change.at)
        self.view.apply(change)
        return True


class Rig:
    def __init__(self) -> None:
        self.history = History()
        self.stream = FakeStream(self.history)
        self.copy = Copy(self.history)
        self.metrics = Metrics()
        self.follower = Follower(self.stream, self.copy, self.metrics)

    def switch(self, history: History) -> None:
        """The store comes back with another history."""
        self.history = self.copy.history = history
        self.stream.log = history.changes

    @property
    def gaps(self) -> float:
        return self.metrics.registry.get_sample_value("registryd_feed_gaps_total") or 0.0

    def same(self) -> bool:
        held = self.copy.view.contents.by_id
        return held.keys() == self.history.held.keys() and all(
            held[name].fragment == contents_of(self.history.held).by_id[name].fragment
            for name in held
        )


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_an_empty_store_loads_as_nothing_and_its_first_change_follows(rig: Rig) -> None:
    await rig.follower.turn()
    assert (rig.follower.loaded, rig.follower.position) == (True, NOWHERE)
    rig.history.register("chat")
    await rig.follower.turn()
    assert rig.follower.position == rig.history.at
    assert (rig.copy.loads, rig.same(), rig.gaps) == (1, True, 0)


async def test_changes_after_the_load_are_applied_once_and_in_order(rig: Rig) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    for number in range(5):
        rig.history.register("chat", f"n{number}")
    await rig.follower.turn()
    await rig.follower.turn()
    assert [at.rev for at in rig.copy.applied] == [2, 3, 4, 5, 6]
    assert (rig.copy.loads, rig.same()) == (1, True)


async def test_changes_made_while_a_snapshot_is_read_are_applied_after_it(rig: Rig) -> None:
    rig.history.register("chat")
    rig.copy.while_loading = lambda: void(rig.history.register("draw"))
    await rig.follower.turn()
    assert rig.same()


async def test_a_trimmed_stream_leads_to_a_new_load(rig: Rig) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    for number in range(5):
        rig.history.register("chat", f"n{number}")
    rig.stream.log = rig.history.changes[3:]
    await rig.follower.turn()
    assert (rig.copy.applied, rig.gaps) == ([], 1)
    await rig.follower.turn()
    assert (rig.copy.loads, rig.same(), rig.follower.position) == (2, True, rig.history.at)


async def test_a_change_that_takes_a_load_is_reached_only_with_it(rig: Rig) -> None:
    await rig.follower.turn()
    rig.history.register("chat")
    rig.history.register("draw")
    rig.copy.refuses = rig.history.at
    waiting = asyncio.ensure_future(rig.follower.reached(rig.history.at))
    await rig.follower.turn()
    await asyncio.sleep(0)
    assert (rig.follower.position.rev, waiting.done(), rig.gaps) == (1, False, 0)
    await rig.follower.turn()
    await waiting
    assert (rig.copy.loads, rig.same()) == (2, True)


async def test_who_waits_for_a_change_before_a_gap_is_woken_at_once(rig: Rig) -> None:
    await rig.follower.turn()
    for number in range(3):
        rig.history.register("chat", f"n{number}")
    waiting = asyncio.ensure_future(rig.follower.reached(rig.history.changes[0].at))
    await asyncio.sleep(0)
    rig.stream.log = [rig.history.changes[0], rig.history.changes[2]]
    await rig.follower.turn()
    rig.stream.away = True
    async with asyncio.timeout(1):
        await waiting
    assert rig.follower.position.rev == 1


async def test_a_history_that_lost_changes_is_seen_while_nothing_happens(rig: Rig) -> None:
    rig.history.register("chat")
    rig.history.register("draw")
    await rig.follower.turn()
    shorter = History()
    shorter.register("chat")
    rig.switch(shorter)
    await rig.follower.turn()
    await rig.follower.turn()
    assert (rig.same(), rig.follower.position, rig.gaps) == (True, shorter.at, 1)


async def test_another_history_of_the_same_length_is_seen_by_its_nonce_after_an_outage(
    rig: Rig,
) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    rig.stream.away = True
    await rig.follower.turn()
    other = History(writer="other")
    other.register("draw")
    other.register("echo")
    rig.switch(other)
    rig.stream.away = False
    await rig.follower.turn()
    assert (rig.same(), rig.copy.loads, rig.gaps) == (True, 2, 1)


async def test_an_emptied_store_is_seen(rig: Rig) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    rig.switch(History())
    await rig.follower.turn()
    await rig.follower.turn()
    assert (rig.same(), rig.follower.position) == (True, NOWHERE)


async def test_a_new_epoch_is_loaded(rig: Rig) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    later = History(epoch=rig.history.epoch + 5)
    later.register("draw")
    rig.switch(later)
    await rig.follower.turn()
    await rig.follower.turn()
    assert (rig.same(), rig.follower.position) == (True, later.at)


async def test_an_outage_changes_nothing_but_the_age_and_the_same_history_goes_on(
    rig: Rig,
) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    assert (rig.follower.connected, rig.follower.stale_for) == (True, 0.0)
    rig.stream.away = True
    await rig.follower.turn()
    assert (rig.follower.connected, rig.follower.loaded, len(rig.copy.view)) == (False, True, 1)
    assert rig.follower.stale_for > 0
    rig.history.register("draw")
    rig.stream.away = False
    await rig.follower.turn()
    assert (rig.copy.loads, rig.same(), rig.gaps) == (1, True, 0)
    assert (rig.follower.connected, rig.follower.stale_for) == (True, 0.0)


async def test_a_position_that_the_stream_no_longer_holds_is_loaded_again_after_an_outage(
    rig: Rig,
) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    rig.stream.away = True
    await rig.follower.turn()
    rig.history.register("draw")
    rig.stream.log = rig.history.changes[1:]
    rig.stream.away = False
    await rig.follower.turn()
    assert (rig.copy.loads, rig.same()) == (2, True)


async def test_a_store_that_is_away_at_the_start_is_loaded_when_it_comes(rig: Rig) -> None:
    rig.history.register("chat")
    rig.copy.away = rig.stream.away = True
    await rig.follower.turn()
    assert (rig.follower.loaded, rig.follower.connected) == (False, False)
    rig.copy.away = rig.stream.away = False
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rig.follower.loaded_once())
        tasks.create_task(rig.follower.turn())
    assert rig.same()


async def test_a_load_that_is_cut_short_is_done_again(rig: Rig) -> None:
    rig.history.register("chat")
    rig.copy.while_loading = lambda: setattr(rig.stream, "away", True)
    await rig.follower.turn()
    assert rig.copy.loads == 1
    rig.copy.while_loading = lambda: None
    rig.stream.away = False
    await rig.follower.turn()
    assert (rig.copy.loads, rig.follower.loaded, rig.same()) == (2, True, True)


async def test_readers_keep_the_old_view_while_a_new_one_is_loaded(rig: Rig) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    later = History(epoch=rig.history.epoch + 1)
    later.register("draw")
    seen = []
    rig.copy.while_loading = lambda: seen.append(
        (sorted(rig.copy.view.contents.by_id), rig.follower.loaded)
    )
    rig.switch(later)
    await rig.follower.turn()
    await rig.follower.turn()
    assert seen == [(["chat:i1"], True)]
    assert list(rig.copy.view.contents.by_id) == ["draw:i1"]


async def test_reached_returns_at_once_for_what_is_held_and_waits_for_what_is_not(
    rig: Rig,
) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    await rig.follower.reached(NOWHERE)
    await rig.follower.reached(rig.history.at)
    epoch = rig.history.epoch
    next_one = asyncio.ensure_future(rig.follower.reached(Revision(epoch, 2)))
    later = asyncio.ensure_future(rig.follower.reached(Revision(epoch, 4)))
    other = asyncio.ensure_future(rig.follower.reached(Revision(epoch + 1, 0)))
    await asyncio.sleep(0)
    rig.history.register("draw")
    await rig.follower.turn()
    await asyncio.sleep(0)
    assert (next_one.done(), later.done(), other.done()) == (True, False, False)
    later.cancel()
    other.cancel()
    await asyncio.gather(later, other, return_exceptions=True)


async def test_reached_waits_for_the_first_load_even_where_nothing_was_written(rig: Rig) -> None:
    waiting = asyncio.ensure_future(rig.follower.reached(NOWHERE))
    await asyncio.sleep(0)
    assert not waiting.done()
    await rig.follower.turn()
    await waiting


async def test_a_new_epoch_satisfies_who_waits_for_an_older_one(rig: Rig) -> None:
    rig.history.register("chat")
    await rig.follower.turn()
    waiting = asyncio.ensure_future(rig.follower.reached(Revision(rig.history.epoch, 99)))
    await asyncio.sleep(0)
    rig.switch(History(epoch=rig.history.epoch + 1))
    rig.history.register("draw")
    await rig.follower.turn()
    await rig.follower.turn()
    await waiting


async def test_catching_up_waits_for_what_the_store_holds(rig: Rig) -> None:
    await rig.follower.turn()
    rig.history.register("chat")
    waiting = asyncio.ensure_future(rig.follower.catch_up())
    await asyncio.sleep(0)
    assert not waiting.done()
    await rig.follower.turn()
    await waiting


async def test_catching_up_with_a_store_that_is_away_says_so(rig: Rig) -> None:
    await rig.follower.turn()
    rig.stream.away = True
    with pytest.raises(StorageUnavailable):
        await rig.follower.catch_up()


async def test_a_turn_without_news_wakes_nobody(rig: Rig) -> None:
    await rig.follower.turn()
    waiting = asyncio.ensure_future(rig.follower.advanced())
    await asyncio.sleep(0)
    await rig.follower.turn()
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.history.register("chat")
    await rig.follower.turn()
    await waiting


def void(_: object) -> None:
    """For a callback whose answer is of no use."""
