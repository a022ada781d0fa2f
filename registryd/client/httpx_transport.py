"""httpx calls services by their names: `httpx.AsyncClient(transport=RegistryTransport(client))`.

Each request chooses an instance anew, and its outcome (an exception, a status of 500 or more) tells for
or against that instance. Names with a dot, and those the registry does not know, are left as they are.
"""

from urllib.parse import urlsplit

import httpx

from registryd.client.client import RegistryClient
from registryd.client.types import NoneOffered, Strategy


class RegistryTransport(httpx.AsyncBaseTransport):
    """`inner` (default: httpx's own) makes the connections. Scheme, host and port come from the
    instance's endpoint, and its path goes before the request's."""

    def __init__(
        self,
        client: RegistryClient,
        *,
        strategy: Strategy | str = Strategy.WEIGHTED,
        zone: str | None = None,
        inner: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = client
        self._strategy = strategy
        self._zone = zone
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        service = request.url.host
        if "." in service or service == "localhost":
            return await self._inner.handle_async_request(request)
        picker = self._client.picker(service, strategy=self._strategy, zone=self._zone)
        try:
            async with picker.use() as target:
                response = await self._inner.handle_async_request(_aimed(request, target.url))
                target.failed = response.status_code >= 500
                return response
        except NoneOffered as error:
            if error.members.get("registered") == 0:
                return await self._inner.handle_async_request(request)
            raise httpx.ConnectError(error.detail, request=request) from error

    async def aclose(self) -> None:
        await self._inner.aclose()


def _aimed(request: httpx.Request, endpoint: str) -> httpx.Request:
    """The same request to an instance; its `Host` is the instance's too."""
    parts = urlsplit(endpoint)
    url = request.url.copy_with(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port,
        raw_path=parts.path.rstrip("/").encode() + request.url.raw_path,
    )
    headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
    return httpx.Request(
        request.method,
        url,
        headers=[(b"Host", parts.netloc.encode()), *headers],
        stream=request.stream,
        extensions=request.extensions,
    )
