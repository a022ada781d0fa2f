"""A gRPC health service for the probes to meet, made of the same HTTP/2 library from its server side."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from peers import Peer, listening

OK = b"\0\0\0\0\x02\x08\x01"


@dataclass
class Script:
    """What the service answers. `trailers` None: the stream ends with the data."""

    headers: list[tuple[str, str]] = field(
        default_factory=lambda: [(":status", "200"), ("content-type", "application/grpc")]
    )
    data: bytes = OK
    trailers: list[tuple[str, str]] | None = field(default_factory=lambda: [("grpc-status", "0")])
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers and body of every request."""


@asynccontextmanager
async def grpc_serving(script: Script | None = None, *, tls=None) -> AsyncIterator[Peer]:
    said = script or Script()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        http.initiate_connection()
        headers: dict[str, str] = {}
        body = bytearray()
        while True:
            writer.write(http.data_to_send())
            data = await reader.read(65536)
            if not data:
                return
            for event in http.receive_data(data):
                if isinstance(event, RequestReceived):
                    headers = dict(event.headers)
                elif isinstance(event, DataReceived):
                    body += event.data
                elif isinstance(event, StreamEnded):
                    said.seen.append((headers, bytes(body)))
                    http.send_headers(event.stream_id, said.headers)
                    if said.data or said.trailers is None:
                        http.send_data(event.stream_id, said.data, end_stream=said.trailers is None)
                    if said.trailers is not None:
                        http.send_headers(event.stream_id, said.trailers, end_stream=True)

    async with listening(serve, tls=tls) as peer:
        yield peer
