"""Fan-out to many connections, without a network."""

import asyncio

import pytest

from registryd.errors import NotReady
from registryd.feed.broadcast import WRITES_AT_ONCE, Broadcast, Ring, Topic
from registryd.feed.revision import NOWHERE, Revision
from registryd.metrics import Metrics


class FakeSink:
    def __init__(self) -> None:
        self.written = b""
        self.buffered = 0
        self.writes = 0
        self.aborted = False
        self.ended = False
        self.gone = False

    def offer(self, framed: bytes, limit: int) -> bool:
        if self.gone:
            raise ConnectionResetError
        if self.buffered > limit:
            return False
        self.written += framed
        self.writes += 1
        return True

    def abort(self) -> None:
        self.aborted = True

    def end(self) -> None:
        self.ended = True


class FakeTopic(Topic):
    """A topic whose state takes a moment to be made."""

    def __init__(self, broadcast: Broadcast) -> None:
        super().__init__(broadcast, "watch")
        self.ended = 0
        self.present = b"state "
        self.making = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def state(self) -> bytes:
        present = self.present
        self.making.set()
        await self.go.wait()
        return present

    def ping(self) -> bytes:
        return b"ping "

    def over(self) -> None:
        self.ended += 1


@pytest.fixture
async def broadcast() -> Broadcast:
    return Broadcast(Metrics(), most=2000, limit=100)


def member(broadcast: Broadcast, topic: Topic, *, live: bool = True) -> FakeSink:
    sink = FakeSink()
    one = broadcast.join(topic, sink)
    if live:
        broadcast.live(one)
    return sink


async def test_everybody_gets_every_frame_once_and_frames_of_one_moment_in_one_write(
    broadcast: Broadcast,
) -> None:
    topic = FakeTopic(broadcast)
    sinks = [member(broadcast, topic) for _ in range(3)]
    for frame in (b"a ", b"b "):
        topic.tell(frame)
    late = member(broadcast, topic)
    topic.tell(b"c ")
    await broadcast.turn()
    assert [sink.written for sink in (*sinks, late)] == [b"a b c "] * 3 + [b"c "]
    assert [sink.writes for sink in sinks] == [1, 1, 1]
    topic.tell(b"d ")
    await broadcast.turn()
    assert {sink.written for sink in sinks} == {b"a b c d "}


async def test_what_is_told_before_a_member_is_live_comes_after_what_it_gets_first(
    broadcast: Broadcast,
) -> None:
    topic = FakeTopic(broadcast)
    sink = FakeSink()
    one = broadcast.join(topic, sink)
    topic.tell(b"a ")
    await broadcast.turn()
    topic.tell(b"b ")
    assert sink.written == b""
    sink.written += b"first "
    broadcast.live(one)
    await broadcast.turn()
    assert sink.written == b"first a b "


async def test_who_does_not_read_is_cut_and_nobody_else(broadcast: Broadcast) -> None:
    topic = FakeTopic(broadcast)
    slow, quick, late = (member(broadcast, topic) for _ in range(3))
    catching_up = FakeSink()
    broadcast.join(topic, catching_up)
    slow.buffered, quick.buffered = 101, 100
    topic.tell(b"x" * 101)
    await broadcast.turn()
    assert (slow.aborted, slow.written) == (True, b"")
    assert catching_up.aborted
    assert (quick.aborted, late.aborted) == (False, False)
    assert len(broadcast) == 2
    topic.tell(b"y")
    await broadcast.turn()
    assert slow.written == catching_up.written == b""
    assert quick.written[-1:] == b"y"


async def test_who_has_gone_is_forgotten_and_a_topic_ends_with_its_last_member(
    broadcast: Broadcast,
) -> None:
    topic = FakeTopic(broadcast)
    first, second = FakeSink(), member(broadcast, topic)
    one = broadcast.join(topic, first)
    broadcast.live(one)
    one.lost()
    one.lost()
    second.gone = True
    topic.tell(b"a")
    assert (len(broadcast), topic.ended) == (1, 0)
    await broadcast.turn()
    assert (len(broadcast), topic.ended) == (0, 1)
    assert first.written == b""


async def test_others_get_their_turn_between_many_writes(broadcast: Broadcast) -> None:
    topic = FakeTopic(broadcast)
    sinks = [member(broadcast, topic) for _ in range(2 * WRITES_AT_ONCE)]
    topic.tell(b"a")
    writing = asyncio.create_task(broadcast.turn())
    await asyncio.sleep(0)
    assert sum(sink.writes for sink in sinks) == WRITES_AT_ONCE
    topic.tell(b"b")  # in the middle
    await writing
    assert {sink.written for sink in sinks} == {b"ab"}


async def test_what_is_outdated_is_replaced_and_later_frames_follow(broadcast: Broadcast) -> None:
    topic = FakeTopic(broadcast)
    sink = member(broadcast, topic)
    topic.tell(b"before ")
    topic.outdate()
    topic.go.clear()
    writing = asyncio.create_task(broadcast.turn())
    await topic.making.wait()
    topic.tell(b"after ")
    late = member(broadcast, topic)
    topic.present = b"wrong "
    topic.go.set()
    await writing
    await broadcast.turn() if broadcast.busy else None
    assert sink.written == b"state after "
    assert late.written == b""


async def test_pings_go_to_all(broadcast: Broadcast) -> None:
    sinks = [member(broadcast, FakeTopic(broadcast)) for _ in range(3)]
    await broadcast.ping()
    await broadcast.turn()
    assert [sink.written for sink in sinks] == [b"ping "] * 3


async def test_closing_writes_out_what_waits_says_goodbye_and_waits_for_nobody(
    broadcast: Broadcast,
) -> None:
    topic = FakeTopic(broadcast)
    sink, slow = member(broadcast, topic), member(broadcast, topic)
    late = FakeSink()
    catching_up = broadcast.join(topic, late)
    slow.buffered = 1000
    topic.tell(b"last ")
    broadcast.close(b"bye")
    assert (sink.written, sink.ended) == (b"last bye", True)
    assert (slow.aborted, slow.ended) == (True, False)
    broadcast.live(catching_up)
    assert (late.written, late.ended) == (b"last bye", True)
    with pytest.raises(NotReady):
        broadcast.admit()
    await broadcast.closed(0.01)
    assert sink.aborted  # it has not taken it in time
    assert len(broadcast) == 0


async def test_no_more_than_the_most_are_admitted() -> None:
    broadcast = Broadcast(Metrics(), most=1, limit=100)
    broadcast.admit()
    one = broadcast.join(FakeTopic(broadcast), FakeSink())
    with pytest.raises(NotReady):
        broadcast.admit()
    one.lost()
    broadcast.admit()


def at(rev: int, epoch: int = 7) -> Revision:
    return Revision(epoch, rev)


def kept(ring: Ring[str], position: Revision) -> list[str]:
    return [item for _, item in ring.after(position)]


def test_a_ring_keeps_the_last_in_number_and_bytes() -> None:
    ring: Ring[str] = Ring(count=3, size=100)
    for rev in range(1, 6):
        ring.append(at(rev), 10, f"c{rev}")
    assert [ring.covers(at(rev)) for rev in range(6)] == [False, False, True, True, True, True]
    assert kept(ring, at(2)) == ["c3", "c4", "c5"]
    assert kept(ring, at(4)) == ["c5"]
    assert kept(ring, at(5)) == []
    ring.append(at(6), 85, "large")
    assert kept(ring, ring.start) == ["c5", "large"]
    ring.append(at(7), 101, "too large")
    assert kept(ring, ring.start) == []
    assert (ring.start, len(ring)) == (at(7), 0)
    ring.append(at(8), 100, "fits again")
    assert kept(ring, at(7)) == ["fits again"]


def test_a_ring_that_starts_anew_knows_nothing_before_what_was_loaded() -> None:
    ring: Ring[str] = Ring(count=10, size=1000)
    ring.append(at(1), 10, "c1")
    ring.restart(at(5))
    for rev in (4, 5, 6):  # a snapshot may already hold the first of what comes next
        ring.append(at(rev), 10, f"c{rev}")
    assert [ring.covers(at(rev)) for rev in (3, 4, 5, 6)] == [False, False, True, True]
    assert kept(ring, at(5)) == ["c6"]
    assert ring.holds(at(5))
    assert not ring.holds(at(3))


def test_a_ring_does_not_mix_epochs() -> None:
    ring: Ring[str] = Ring(count=10, size=1000)
    assert not ring.covers(at(0))
    assert ring.covers(NOWHERE)
    ring.append(at(1), 10, "c1")
    assert ring.covers(at(0))
    assert not ring.covers(at(0, epoch=8))
    ring.append(at(3, epoch=8), 10, "c3")
    assert not ring.covers(at(1))
    assert kept(ring, at(2, epoch=8)) == ["c3"]
