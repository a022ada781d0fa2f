"""aiohttp calls services by their names: `http://asr-service/…` goes to an instance that the registry knows.

`aiohttp.ClientSession(connector=connector(client))`. Host and port come from the instance's endpoint, the
path and scheme from the URL: an endpoint's own path is not used. A name with a dot, or one that the
registry does not know, is resolved as ever. Connections are kept open per name and port, so a session
that stays busy stays with its instance; who wants a choice for each call uses `client.pick`, or
`registryd.client.httpx_transport`. With https the certificate has to be good for the service's name.
"""

import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from registryd.client.client import RegistryClient
from registryd.client.types import NoneOffered, Strategy
from registryd.registry.types import SCHEMES


class RegistryResolver(AbstractResolver):
    """Resolves service names by `client`, everything else by `other` (default: the system)."""

    def __init__(
        self,
        client: RegistryClient,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        zone: str | None = None,
        other: AbstractResolver | None = None,
    ) -> None:
        self._client = client
        self._strategy = strategy
        self._zone = zone
        self._other = other or aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if "." in host or host == "localhost":
            return await self._other.resolve(host, port, family)
        try:
            target = await self._client.pick(host, strategy=self._strategy, zone=self._zone)
        except NoneOffered as error:
            if error.members.get("registered") == 0:
                return await self._other.resolve(host, port, family)
            raise OSError(None, error.detail) from error
        parts = urlsplit(target.url)
        where = parts.port or SCHEMES.get(parts.scheme) or port
        found = await self._other.resolve(parts.hostname or "", where, family)
        return [{**one, "hostname": host} for one in found]

    async def close(self) -> None:
        await self._other.close()


def connector(client: RegistryClient, **options: Any) -> aiohttp.TCPConnector:
    """A connector that asks `RegistryResolver` for each new connection. `options` are TCPConnector's."""
    return aiohttp.TCPConnector(
        resolver=RegistryResolver(client),
        use_dns_cache=False,  # the picker is the cache, and knows when to forget
        **options,
    )
