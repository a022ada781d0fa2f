"""Streams that outlive their request: what stays of the connection, and how it is written to."""

import asyncio
import socket

from wired import get, route, serving

from registryd.web.reply import Outlet, Stream, frame, unframed
from registryd.web.request import Request


class Keeper:
    def __init__(self) -> None:
        self.outlets: list[Outlet] = []
        self.begun = asyncio.Event()
        self.gone = asyncio.Event()

    def lost(self) -> None:
        assert not self.gone.is_set()
        self.gone.set()

    async def stream(self, request: Request) -> Stream:
        async def produce(outlet: Outlet) -> None:
            outlet.keeper = self
            await outlet.send(b"first")
            self.outlets.append(outlet)
            self.begun.set()

        return Stream(produce, standing=True)


def test_chunks_are_taken_apart_as_they_were_put_together() -> None:
    data = [b"a", b"\r\n0\r\n\r\n", b"x" * 5000]
    assert unframed(b"".join(map(frame, data))) == b"".join(data)


async def test_a_standing_stream_is_written_to_after_its_request_is_over() -> None:
    keeper = Keeper()
    async with serving([route("GET", "/s", keeper.stream)]) as served, served.line() as line:
        await line.send(get("/s"))
        head = await line.head()
        assert (head.status, head.headers["Connection"]) == (200, "close")
        assert await line.reader.readexactly(len(frame(b"first"))) == frame(b"first")
        await line.send(get("/s"))  # nobody reads it
        await asyncio.sleep(0.02)
        assert served.pipeline.in_flight == len(served.server._connections()) == 0
        [outlet] = keeper.outlets
        assert outlet.offer(frame(b"second"), 100)
        assert await line.reader.readexactly(len(frame(b"second"))) == frame(b"second")
        outlet.end()
        assert await line.rest() == b"0\r\n\r\n"
        await keeper.gone.wait()
    assert len(keeper.outlets) == 1


async def test_the_keeper_is_told_when_the_client_leaves() -> None:
    keeper = Keeper()
    async with serving([route("GET", "/s", keeper.stream)]) as served:
        async with served.line() as line:
            await line.send(get("/s"))
            await line.head()
        await keeper.gone.wait()
        try:
            keeper.outlets[0].offer(frame(b"x"), 100)
        except ConnectionResetError:
            return
    raise AssertionError("it wrote to nobody")


async def test_what_the_kernel_does_not_take_waits_in_order_and_too_much_is_refused() -> None:
    keeper = Keeper()
    async with serving([route("GET", "/s", keeper.stream)]) as served:
        host, port = served.address
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, port))
            await loop.sock_sendall(client, get("/s"))
            await keeper.begun.wait()
            await asyncio.sleep(0)
            [outlet] = keeper.outlets
            sent = []
            while True:
                data = b"%06d" % len(sent) * 10_000
                if not outlet.offer(frame(data), 500_000):
                    break
                sent.append(data)
            assert 500_000 < outlet.buffered < 600_000
            expected = b"".join(frame(data) for data in sent)
            got = b""
            while not got.endswith(expected[-20_000:]):
                got += await loop.sock_recv(client, 1 << 20)
            assert got.endswith(frame(b"first") + expected)
            assert outlet.offer(frame(b"again"), 500_000)
            assert await loop.sock_recv(client, 100) == frame(b"again")
