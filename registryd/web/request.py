"""A request as handlers see it: validated path parameters, strict JSON, typed access to the query."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDictProxy, MultiDictProxy

from registryd.web import codec
from registryd.web.caller import ANYBODY, Peer
from registryd.web.throttle import Throttle

UNKNOWN: Final = Peer("unknown")


class Request:
    """Wraps aiohttp's request; `params` are decoded and already checked against the route."""

    __slots__ = ("_limits", "_query", "_throttle", "caller", "id", "params", "peer", "raw")

    def __init__(
        self,
        raw: web.BaseRequest,
        params: dict[str, str],
        request_id: str,
        limits: codec.BodyLimits = codec.DEFAULT_LIMITS,
        *,
        peer: Peer = UNKNOWN,
        throttle: Throttle | None = None,
    ) -> None:
        self.raw = raw
        self.params = params
        self.id = request_id
        self.peer = peer
        self.caller = ANYBODY
        self._limits = limits
        self._throttle = throttle
        self._query: MultiDictProxy[str] | None = None

    def signature(self) -> str:
        """Who asks, for the record: the caller and the address the request came from."""
        return f"{self.caller.name}@{self.peer.address}"

    @property
    def actor(self) -> str:
        return self.caller.name

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around a wait for news: counts among the caller's streams and long polls. Raises RateLimited."""
        if self._throttle is None:
            yield
            return
        release = self._throttle.hold(self.caller, self.peer)
        try:
            yield
        finally:
            release()

    @property
    def method(self) -> str:
        return self.raw.method

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self.raw.headers

    @property
    def query(self) -> MultiDictProxy[str]:
        if self._query is None:
            self._query = codec.parse_query(self.raw)
        return self._query

    def one(self, name: str) -> str | None:
        """The only value of a query parameter; Malformed when it is given twice."""
        return codec.single(self.query, name)

    async def body(self) -> bytes:
        """The bare body, once. Raises Malformed, PayloadTooLarge or RequestTimeout."""
        return await codec.read_body(self.raw, self._limits)

    async def json(self) -> Any:
        """The body, decoded strictly.

        Raises Malformed, PayloadTooLarge, UnsupportedMediaType or RequestTimeout.
        """
        return await codec.read_json(self.raw, limits=self._limits)

    async def json_text(self) -> bytes:
        """The body as it came, said to be JSON; for those who decode it themselves. Raises the same."""
        return await codec.read_json_text(self.raw, self._limits)

    async def optional_json(self) -> Any:
        """Like `json`, but None when the body is empty, whatever its content type says."""
        return await codec.read_json(self.raw, empty_is_none=True, limits=self._limits)
