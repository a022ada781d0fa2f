"""One connection that every coroutine shares, for the calls that come by the thousand.

Commands of one turn of the event loop leave in one write, and replies are told apart by their order:
a tenth of the work of a pooled connection for each call. The library still makes the connection (TLS,
passwords, and later whoever resolves the primary); only writing and reading are ours.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

Argument = str | bytes | int | float

READ: Final = 256 * 1024
WATCH_EVERY: Final = 0.25


class Pipelined:
    """Opens its connection at the first call, and again after it broke.

    A call whose connection breaks raises ConnectionError, one that is not answered for
    `timeout_seconds` TimeoutError; either way it may have been carried out. A refusal of the store
    raises ResponseError with its text as it came, the code word in front.
    """

    def __init__(self, pool: ConnectionPool, *, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout = timeout_seconds
        self._link: _Link | None = None
        self._opening: asyncio.Task[_Link] | None = None

    async def call(self, *command: Argument) -> Any:
        """The reply, as bytes, ints and lists."""
        link = self._link
        if link is None or link.broken:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open(), name="store connection")
            # All who come meanwhile share one attempt, and its failure.
            link = await asyncio.shield(self._opening)
        return await link.send(command)

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._link is not None:
            await self._link.close()
            self._link = None

    async def _open(self) -> "_Link":
        try:
            if self._link is not None:
                await self._link.close()
            async with asyncio.timeout(self._timeout):
                connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
                await connection.connect()  # type: ignore[no-untyped-call]
            self._link = _Link(connection, self._timeout)
            return self._link
        finally:
            self._opening = None


class _Link:
    """A live connection and the calls that wait for its replies, oldest first."""

    def __init__(self, connection: AbstractConnection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        # The library keeps no public way to its streams; tests/storage/ would notice them move.
        self._reader: asyncio.StreamReader = connection._reader  # type: ignore[assignment]
        self._writer: asyncio.StreamWriter = connection._writer  # type: ignore[assignment]
        self._parser = hiredis.Reader(replyError=ResponseError, notEnoughData=...)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._outgoing: list[bytes] = []
        self.broken = False
        self._tasks = [
            asyncio.create_task(self._guarded(self._read), name="store replies"),
            asyncio.create_task(self._guarded(self._watch), name="store timeouts"),
        ]

    def send(self, command: tuple[Argument, ...]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(command))  # type: ignore[arg-type]
        self._waiting.append((future, self._loop.time() + self._timeout))
        return future

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        # A transport may know that it is closed before the reader does, who tells those who wait;
        # that of uvloop raises when it is written to then.
        if not self.broken and not self._writer.is_closing():
            self._writer.write(b"".join(outgoing))

    async def _read(self) -> None:
        gets, waiting = self._parser.gets, self._waiting
        while data := await self._reader.read(READ):
            self._parser.feed(data)
            while (reply := gets()) is not ...:
                future, _ = waiting.popleft()
                if future.done():
                    continue  # its caller has gone
                if isinstance(reply, ResponseError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        raise RedisConnectionError("the store closed the connection")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY)
            if self._waiting and self._waiting[0][1] < self._loop.time():
                raise RedisTimeoutError("the store did not answer in time")

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Runs until it fails, and tells that to everybody who waits."""
        try:
            await work()
        except (RedisConnectionError, RedisTimeoutError, hiredis.ProtocolError, OSError) as error:
            self._break(error)
        finally:
            self._break(RedisConnectionError("the connection to the store was closed"))

    def _break(self, error: Exception) -> None:
        if self.broken:
            return
        self.broken = True
        self._writer.close()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                # One for each: a raised exception collects the frames of whoever raises it.
                future.set_exception(type(error)(*error.args))
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.disconnect(nowait=True)
