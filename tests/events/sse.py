"""A client of server-sent events on a raw socket, and what it makes of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from daemons import Api


@dataclass
class Block:
    """One block of a stream: an event, or with name "" a comment or an opening."""

    name: str = ""
    id: str = ""
    data: str = ""
    retry: str = ""
    comments: list[str] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def parse_block(text: str) -> Block:
    block = Block()
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                block.comments.append(value)
            case "event":
                block.name = value
            case "id":
                block.id = value
            case "data":
                block.data += value
            case "retry":
                block.retry = value
            case _:
                raise AssertionError(f"unknown field in {text!r}")
    return block


class Source:
    """An open stream. `last_id` is what a browser would send on coming back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.head = ""
        self.last_id = ""
        self._text = ""

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    def header(self, name: str) -> str | None:
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name.lower():
                return value
        return None

    async def block(self, *, within: float = 3.0) -> Block:
        """The next block, whatever it is. Raises EOFError at the end of the stream."""
        async with asyncio.timeout(within):
            while "\n\n" not in self._text:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(size + 2)
                if size == 0:
                    raise EOFError
                self._text += data[:-2].decode()
        text, _, self._text = self._text.partition("\n\n")
        block = parse_block(text)
        self.last_id = block.id or self.last_id
        return block

    async def event(self, *, within: float = 3.0) -> Block:
        """The next event, past openings and pings."""
        while not (block := await self.block(within=within)).name:
            pass
        return block

    async def quiet(self, seconds: float = 0.15) -> bool:
        """Whether no event comes for a while."""
        try:
            await self.event(within=seconds)
        except TimeoutError:
            return True
        return False


async def connect(
    host: str, port: int, path: str, *, last_id: str = "", method: str = "GET", **headers: str
) -> Source:
    reader, writer = await asyncio.open_connection(host, port, limit=16 * 1024 * 1024)
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    if last_id:
        lines.append(f"Last-Event-ID: {last_id}\r\n")
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(lines)}\r\n"
    writer.write(head.encode())
    source = Source(reader, writer)
    source.last_id = last_id
    source.head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return source


async def open_source(api: Api, path: str, *, last_id: str = "", **headers: str) -> Source:
    return await connect(*api.daemon.addresses[0], path, last_id=last_id, **headers)


@asynccontextmanager
async def listening(
    api: Api, path: str, *, last_id: str = "", **headers: str
) -> AsyncIterator[Source]:
    source = await open_source(api, path, last_id=last_id, **headers)
    assert source.status == 200, source.head
    try:
        yield source
    finally:
        source.writer.transport.abort()


class Copy:
    """What a client of `/watch` makes of its events: the instances by `<name>/<id>`."""

    def __init__(self) -> None:
        self.instances: dict[str, Any] = {}
        self.revision = ""

    def take(self, block: Block) -> None:
        data = block.json
        self.revision = data["revision"]
        match block.name:
            case "snapshot" | "reset":
                self.instances = {key(one): one for one in data["instances"]}
            case "change":
                for one in data["added"]:
                    self.instances[key(one)] = one
                for one in data["changed"]:
                    assert key(one) in self.instances
                    self.instances[key(one)] = one
                for one in data["removed"]:
                    del self.instances[key(one)]
            case other:
                raise AssertionError(other)


def key(instance: dict[str, Any]) -> str:
    return f"{instance['name']}/{instance['instanceId']}"
