"""Many bounded subscribers on one follower: frames once made, written to every connection that wants them.

A `Topic` is a set of members who get the same bytes. Whoever learns of a change appends a frame to the
topics it concerns, without waiting; one loop writes them out, and lets others go first after some
writes. A member that does not read is cut, and can come back and resume. `Ring` keeps what happened last
for those who do. Knows neither what a frame means nor how it travels.
"""

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, Generic, Protocol, TypeVar

from registryd.errors import NotReady
from registryd.feed.revision import NOWHERE, Revision
from registryd.metrics import Metrics

WRITES_AT_ONCE: Final = 500
"""How many writes go out before others get their turn: about 4 ms."""
IDLE: Final = timedelta(seconds=5)
"""How often a loop with nothing to do shows that it is alive."""
RING_COUNT: Final = 4096
RING_BYTES: Final = 4 * 1024 * 1024

T = TypeVar("T")


class Ring(Generic[T]):
    """The last changes without a gap, bounded in number and bytes. `start` is the position before the
    first of them."""

    def __init__(self, *, count: int = RING_COUNT, size: int = RING_BYTES) -> None:
        self._most = count
        self._room = size
        self._kept: deque[tuple[Revision, int, T]] = deque()
        self.start = NOWHERE

    def __len__(self) -> int:
        return len(self._kept)

    def restart(self, at: Revision) -> None:
        """Forgets everything: what comes next follows `at`, or is still part of what was loaded."""
        self._room += sum(size for _, size, _ in self._kept)
        self._kept.clear()
        self.start = at

    def append(self, at: Revision, size: int, item: T) -> None:
        if at.epoch != self.start.epoch:
            self.restart(Revision(at.epoch, at.rev - 1))
        self._kept.append((at, size, item))
        self._room -= size
        while len(self._kept) > self._most or (self._room < 0 and self._kept):
            gone, freed, _ = self._kept.popleft()
            self._room += freed
            self.start = max(self.start, gone)

    def covers(self, position: Revision) -> bool:
        """Whether every change after `position` is here, as long as `position` is not in the future."""
        return position.epoch == self.start.epoch and position.rev >= self.start.rev

    def after(self, position: Revision) -> Iterator[tuple[Revision, T]]:
        """The changes after a covered position, in order."""
        if not self._kept:
            return
        skipped = max(0, position.rev + 1 - self._kept[0][0].rev)
        for at, _, item in itertools.islice(self._kept, skipped, None):
            yield at, item

    def holds(self, position: Revision) -> bool:
        """Whether the change at `position` itself is here."""
        return bool(self._kept) and self._kept[0][0] <= position <= self._kept[-1][0]


class Sink(Protocol):
    """One connection, written to without waiting."""

    def offer(self, framed: bytes, limit: int) -> bool:
        """Writes, unless more than `limit` bytes wait for the client already: then False. Raises
        ConnectionError when the client has gone."""

    def abort(self) -> None:
        """Cuts the client off."""

    def end(self) -> None:
        """Ends well, when what is queued has gone out."""


class Member:
    """A connection on a topic. Until it is live its frames are kept back, behind what it gets first."""

    __slots__ = ("backlog", "next", "sink", "topic")

    def __init__(self, sink: Sink, topic: "Topic") -> None:
        self.sink = sink
        self.topic: Topic | None = topic
        self.next = topic.end
        """The number of the topic's frame it gets next."""
        self.backlog: list[bytes] | None = []

    def lost(self) -> None:
        """The client has gone, or is to be forgotten."""
        topic, self.topic = self.topic, None
        if topic is not None:
            topic.drop(self)


class Topic(ABC):
    """Members who get the same frames. Frames are numbered; each member knows the next it needs."""

    def __init__(self, broadcast: "Broadcast", kind: str) -> None:
        self.kind = kind
        # In the order they came, which is about that in which they lie in memory: a few per cent with a thousand.
        self.members: dict[Member, None] = {}
        self.stale = False
        """What the members have does not lead to what is: they have to be given it as a whole."""
        self._broadcast = broadcast
        self._frames: list[bytes] = []
        self._base = 0

    @property
    def end(self) -> int:
        return self._base + len(self._frames)

    @property
    def waiting(self) -> bool:
        return bool(self._frames)

    def tell(self, framed: bytes) -> None:
        """A frame for everybody who is a member now."""
        if self.members:
            self._frames.append(framed)
            self._broadcast.mark(self)

    def outdate(self) -> None:
        """Everybody gets the whole state anew."""
        if self.members:
            self.stale = True
            self._broadcast.mark(self)

    async def renew(self) -> None:
        """Puts the whole state in place of the frames that wait; what is told meanwhile follows it."""
        self._base = self.end
        self._frames = [b""]
        self._frames[0] = await self.state()
        self.stale = False

    def frames(self, since: int, until: int) -> bytes:
        return b"".join(self._frames[max(0, since - self._base) : until - self._base])

    def done(self, until: int) -> None:
        """Everybody has the frames before `until`."""
        if until > self._base:
            del self._frames[: until - self._base]
            self._base = until

    def drop(self, member: Member) -> None:
        self.members.pop(member, None)
        self._broadcast.dropped(self)

    @abstractmethod
    async def state(self) -> bytes:
        """A frame with the whole state as it is at the call, whatever happens while it is made."""

    @abstractmethod
    def ping(self) -> bytes:
        """The frame that keeps connections open, and says how far everybody is."""

    @abstractmethod
    def over(self) -> None:
        """The last member has gone."""


class Broadcast:
    """Writes out what topics were told. `most` connections at a time, `limit` bytes waiting for each."""

    def __init__(self, metrics: Metrics, *, most: int, limit: int) -> None:
        self.limit = limit
        self._most = most
        self._metrics = metrics
        self._topics: dict[Topic, None] = {}
        self._marked: dict[Topic, None] = {}
        self._wake = asyncio.Event()
        self._closing: bytes | None = None
        self.written_out: Callable[[], None] = lambda: None
        """Called when everything told so far has been written to everybody."""
        self._count = 0
        self._written = 0
        """Writes since others had their turn."""
        self._left = asyncio.Event()

    def __len__(self) -> int:
        return self._count

    @property
    def busy(self) -> bool:
        """Something waits to be written out."""
        return bool(self._marked)

    def admit(self) -> None:
        """Raises NotReady when no further connection is to be had."""
        if self._closing is not None:
            raise NotReady("this node is shutting down; another one can serve the stream")
        if self._count >= self._most:
            raise NotReady(f"{self._most} streams are open on this node, which is its limit")

    def join(self, topic: Topic, sink: Sink) -> Member:
        """A new member; frames told from now on are kept for it until it is live."""
        member = Member(sink, topic)
        topic.members[member] = None
        self._topics[topic] = None
        self._count += 1
        self._metrics.watchers.labels(topic.kind).inc()
        return member

    def live(self, member: Member) -> None:
        """What the member had to get first is on its way: from here on it is written to directly."""
        topic, backlog = member.topic, member.backlog
        if topic is None or backlog is None:
            return
        member.backlog = None
        self._write(member, b"".join(backlog))
        if self._closing is not None and member.topic is not None:
            self._write(member, topic.frames(member.next, topic.end))
            self._end(member, self._closing)

    def dropped(self, topic: Topic) -> None:
        self._count -= 1
        self._left.set()
        self._metrics.watchers.labels(topic.kind).dec()
        if not topic.members:
            self._topics.pop(topic, None)
            self._marked.pop(topic, None)
            topic.over()

    def mark(self, topic: Topic) -> None:
        self._marked[topic] = None
        self._wake.set()

    async def turn(self) -> None:
        """Writes out what there is, or waits for something. For a supervised loop."""
        if not self._marked:
            try:
                async with asyncio.timeout(IDLE.total_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                return
        self._wake.clear()
        while self._marked:
            topic = next(iter(self._marked))
            if topic.stale:
                await topic.renew()
            await self._write_out(topic)
            self._marked.pop(topic, None)
            if topic.members and (topic.waiting or topic.stale):
                self._marked[topic] = None
        self.written_out()

    async def ping(self) -> None:
        """Keeps connections open. For a supervised loop with a pause."""
        for topic in list(self._topics):
            topic.tell(topic.ping())

    def close(self, bye: bytes) -> None:
        """Writes out what waits and a last frame, and ends every stream, without waiting for anybody."""
        if self._closing is not None:
            return
        self._closing = bye
        for topic in list(self._topics):
            end = topic.end
            for member in list(topic.members):
                if member.backlog is None:
                    self._write(member, topic.frames(member.next, end))
                    self._end(member, bye)

    async def closed(self, patience: float) -> None:
        """Returns when the clients have taken what was written, or have been cut off for not taking it
        within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                while self._count:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass  # then they are cut off
        for topic in list(self._topics):
            for member in list(topic.members):
                self._cut(member)

    def _end(self, member: Member, bye: bytes) -> None:
        self._write(member, bye)
        if member.topic is not None:
            member.sink.end()

    async def _write_out(self, topic: Topic) -> None:
        until = topic.end
        chunks: dict[int, bytes] = {}
        written = 0
        for member in list(topic.members):
            if member.topic is None or (since := member.next) >= until:
                continue
            chunk = chunks.get(since)
            if chunk is None:
                chunk = chunks[since] = topic.frames(since, until)
            member.next = until
            self._write(member, chunk)
            written += 1
            self._written += 1
            if self._written >= WRITES_AT_ONCE:
                self._written = 0
                await asyncio.sleep(0)
        self._metrics.stream_writes.inc(written)
        topic.done(until)

    def _write(self, member: Member, chunk: bytes) -> None:
        if not chunk or member.topic is None:
            return
        if member.backlog is None:
            try:
                if not member.sink.offer(chunk, self.limit):
                    self._cut(member)
            except ConnectionError:
                member.lost()
                member.sink.abort()
        else:
            member.backlog.append(chunk)
            if sum(map(len, member.backlog)) > self.limit:
                self._cut(member)

    def _cut(self, member: Member) -> None:
        self._metrics.slow_readers.inc()
        member.lost()
        member.sink.abort()
