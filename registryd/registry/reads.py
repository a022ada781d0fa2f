"""How reads are answered: how fresh, from the cache or made anew, compressed, 304, or after a wait.

The store is not asked here, but by a reader who wants `consistency=strong`.
"""

import asyncio
import gzip
import hashlib
import re
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Final
from urllib.parse import urlencode

import zstandard

from registryd.errors import Malformed, NotReady, PreconditionFailed
from registryd.feed.follower import Follower
from registryd.feed.revision import NOWHERE, Revision, parse_revision
from registryd.kit.duration import parse_duration
from registryd.metrics import Metrics
from registryd.registry.listing import (
    Listing,
    ListingCache,
    Page,
    holds,
    parse_page,
    render,
    render_matched,
)
from registryd.registry.query import FILTERS, Filters, parse_filters, spelled
from registryd.registry.view import View
from registryd.web.reply import Header, Reply
from registryd.web.request import Request
from registryd.web.shortcut import Exchange

CATCH_UP: Final = timedelta(seconds=2)
LONGEST_WAIT: Final = timedelta(minutes=5)
COMPRESS_FROM: Final = 1024
"""Smaller bodies fit a packet or two either way."""
THREAD_FROM: Final = 128 * 1024
"""Larger bodies are compressed in a thread: they would hold up every other request."""

LOOK_AT_ONCE: Final = 200
"""How many instances an expression is asked of before others get a turn: 5 ms or so."""
QUERIES_KEPT: Final = 4096

PAGE: Final = ("view", "limit", "cursor", "sort", "fields")
FRESHNESS: Final = ("minRevision", "consistency", "maxStaleMs", "since", "wait")
"""Parameters that say when to answer, not what."""

Groups = Iterable[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A parsed list request. `key` names the answer in the cache. For a caller with prefixes both it and
    `mark`, which stands in the ETag, tell them."""

    key: str
    filters: Filters
    page: Page
    parameters: tuple[tuple[str, str], ...]
    """As they were given, for the link to the next page."""
    plain: bool
    """Nothing is said of when to answer: the view as it is will do."""
    mark: str = ""


class Reads:
    """Answers from one view. `closing` ends waits when the daemon shuts down."""

    def __init__(
        self,
        view: View,
        follower: Follower,
        metrics: Metrics,
        *,
        cache_bytes: int,
        closing: asyncio.Event,
        catch_up: timedelta = CATCH_UP,
    ) -> None:
        self._view = view
        self._follower = follower
        self._cache = ListingCache(cache_bytes)
        self._queries: dict[str, ListQuery] = {}
        self._hits = metrics.cache_lookups.labels("hit")
        self._misses = metrics.cache_lookups.labels("miss")
        self._not_modified = metrics.not_modified
        self._closing = closing
        self._catch_up = catch_up

    async def fresh(self, request: Request) -> None:
        """Waits until the view is as fresh as asked. Raises NotReady, PreconditionFailed, Malformed or,
        for `consistency=strong`, StorageUnavailable."""
        if not self._follower.loaded:
            raise NotReady("this node is still loading the registry; try again in a moment")
        if not request.raw.query_string:
            return
        if text := request.one("maxStaleMs"):
            self._check_staleness(text)
        match request.one("consistency"):
            case None | "" | "default":
                pass
            case "strong":
                await self._within(self._follower.catch_up(), "what the store holds")
            case other:
                raise Malformed(f"consistency: expected default or strong, found {other[:40]!r}")
        if text := request.one("minRevision"):
            wanted = parse_revision(text, what="minRevision")
            await self._within(self._follower.reached(wanted), f"revision {text}")
            if wanted.epoch < self._view.revision.epoch and wanted != NOWHERE:
                raise PreconditionFailed(
                    f"minRevision: {text} is of an older epoch, the store has lost or replaced its history "
                    f"since; read again without it (now at {self._view.revision})"
                )

    async def _within(self, reached: Awaitable[None], what: str) -> None:
        try:
            async with asyncio.timeout(self._catch_up.total_seconds()):
                await reached
        except TimeoutError:
            raise NotReady(
                f"this node did not reach {what} within {self._catch_up.total_seconds():g} s; it is at "
                f"{self._view.revision}"
            ) from None

    def _check_staleness(self, text: str) -> None:
        if not re.fullmatch(r"[0-9]{1,12}", text):
            raise Malformed(f"maxStaleMs: expected milliseconds, found {text[:40]!r}")
        stale = self.stale_ms
        if stale > int(text):
            raise NotReady(f"the store has been away for {stale} ms, and maxStaleMs allows {text}")

    @property
    def stale_ms(self) -> int:
        return int(self._follower.stale_for * 1000)

    def headers(self, revision: Revision | None = None, mark: str = "") -> list[Header]:
        """What every read carries: the revision the node is at, the ETag, and the store's absence. `mark`
        is that of a caller for whom the answer was narrowed."""
        headers = [
            ("X-Registry-Revision", str(self._view.revision)),
            ("ETag", etag(revision or self._view.revision, mark)),
            ("Cache-Control", "no-cache"),
        ]
        if stale := self.stale_ms:
            headers.append(("X-Registry-Stale-Ms", str(stale)))
        return headers

    def unchanged(self, request: Request, groups: Groups, mark: str = "") -> Reply | None:
        return self._unchanged(request.headers.get("If-None-Match"), groups, mark)

    def _unchanged(self, condition: str | None, groups: Groups, mark: str) -> Reply | None:
        """304 when the caller's copy still holds: no term of the query changed since its revision, and it
        was made for a caller with the same prefixes."""
        if condition is None:
            return None
        for revision in _etags(condition, mark):
            if (
                revision.epoch == self._view.revision.epoch
                and self._view.changed_at(groups) <= revision.rev <= self._view.revision.rev
            ):
                self._not_modified.inc()
                return Reply(304, headers=self.headers(revision, mark))
        return None

    async def changed(self, request: Request, groups: Groups) -> list[Header]:
        """Holds a long poll: returns when the answer may have changed since `since`, or at the end of
        `wait`. Returns at once without either."""
        since_text, wait = request.one("since"), _wait(request)
        since = parse_revision(since_text, what="since") if since_text else None
        if since is None or wait is None:
            return []
        try:
            with request.held():
                async with asyncio.timeout(wait.total_seconds()):
                    while not self._closing.is_set() and not self._may_differ(since, groups):
                        await self._advanced()
        except TimeoutError:
            pass  # then the answer is what it was
        if "wait" in (request.headers.get("Prefer") or ""):
            return [("Preference-Applied", f"wait={wait.total_seconds():.0f}")]
        return []

    async def _advanced(self) -> None:
        """Returns at the next batch of changes, or when the daemon shuts down."""
        waits = [
            asyncio.ensure_future(self._follower.advanced()),
            asyncio.ensure_future(self._closing.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _may_differ(self, since: Revision, groups: Groups) -> bool:
        now = self._view.revision
        if since.epoch != now.epoch:
            # A view of nothing comes after every history: somebody has emptied the store.
            return since.epoch < now.epoch or now == NOWHERE
        return self._view.changed_at(groups) > since.rev

    async def list(self, request: Request) -> Reply:
        """The whole way of a list: fresh enough, waited for, 304, cached, compressed."""
        query = self._query(request)
        groups = query.filters.groups
        extra: list[Header] = []
        if not (query.plain and self._follower.loaded):
            await self.fresh(request)
            extra = await self.changed(request, groups)
        extra += _VARY
        if reply := self.unchanged(request, groups, query.mark):
            return reply.with_headers(extra)
        listing = self._kept(query)
        (self._misses if listing is None else self._hits).inc()
        listing = listing or self._rendered(query) or await self._searched(query)
        reply = Reply(200, listing.body, headers=self.headers(listing.revision, query.mark))
        if listing.next is not None:
            path = request.raw.rel_url.raw_path
            reply.headers.append(("Link", next_link(path, query.parameters, listing.next)))
        await self._compress(request, query.key, listing, reply)
        return reply.with_headers(extra)

    def list_shortly(self, exchange: Exchange) -> bool:
        """The same in the fast lane, for a query asked before whose answer needs no waiting, by a caller
        without prefixes."""
        query, headers = self._queries.get(exchange.query), exchange.headers
        if query is None or not (query.plain and self._follower.loaded):
            return False
        groups = query.filters.groups
        if reply := self._unchanged(headers.get("if-none-match"), groups, ""):
            exchange.reply(reply.with_headers(_VARY))
            return True
        kept = self._kept(query)
        listing = kept or self._rendered(query)
        if listing is None:
            return False
        body, shown = listing.body, self.headers(listing.revision)
        if len(body) >= COMPRESS_FROM:
            encoding = best_encoding(headers.get("accept-encoding"))
            if encoding is not None:
                if encoding not in listing.encoded:
                    return False  # compressed on the long way, where it may take its time
                body = listing.encoded[encoding]
                shown.append(("Content-Encoding", encoding))
        if listing.next is not None:
            shown.append(("Link", next_link(exchange.path, query.parameters, listing.next)))
        shown += _VARY
        (self._misses if kept is None else self._hits).inc()
        exchange.reply(Reply(200, body, headers=shown))
        return True

    def _query(self, request: Request) -> ListQuery:
        """The parsed query; clients ask the same ones again and again."""
        text = request.raw.raw_path.partition("?")[2]
        if request.caller.prefixes:
            # No query as it stands in a request has a space in it.
            text = f"{spelled(request.caller.prefixes)} {text}"
        query = self._queries.get(text)
        if query is None:
            query = narrowed(parse_list(request), request.caller.prefixes)
            if len(self._queries) >= QUERIES_KEPT:
                self._queries.clear()
            if len(text) <= 1024:
                self._queries[text] = query
        return query

    def _kept(self, query: ListQuery) -> Listing | None:
        """The answer from the cache, if it still holds."""
        listing = self._cache.get(query.key)
        if listing is None or not holds(listing, self._view, query.filters.groups):
            return None
        return listing

    def _rendered(self, query: ListQuery) -> Listing | None:
        """The answer made anew, unless instances have to be looked into for it."""
        if query.filters.expression is not None:
            return None
        listing = render(self._view, query.filters, query.page)
        self._cache.put(query.key, listing)
        return listing

    async def _searched(self, query: ListQuery) -> Listing:
        # Each instance is looked into: others get their turn in between, and what is looked at is
        # the view of this moment.
        filters = query.filters
        at, candidates = self._view.at(), filters.candidates(self._view)
        matched = []
        for start in range(0, len(candidates), LOOK_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            some = candidates[start : start + LOOK_AT_ONCE]
            matched += [instance for instance in some if filters.expresses(instance)]
        listing = render_matched(at, matched, query.page)
        self._cache.put(query.key, listing)
        return listing

    async def _compress(self, request: Request, key: str, listing: Listing, reply: Reply) -> None:
        if len(listing.body) < COMPRESS_FROM:
            return
        encoding = best_encoding(request.headers.get("Accept-Encoding"))
        if encoding is None:
            return
        body = listing.encoded.get(encoding)
        if body is None:
            if len(listing.body) < THREAD_FROM:
                body = compress(listing.body, encoding)
            else:
                body = await asyncio.to_thread(compress, listing.body, encoding)
            self._cache.keep_encoded(key, listing, encoding, body)
        reply.body = body
        reply.headers.append(("Content-Encoding", encoding))


def parse_list(request: Request) -> ListQuery:
    """The query of a list request. Raises Malformed for an unknown parameter or a bad value."""
    parameters: dict[str, str] = {}
    for name in request.query:
        if name not in _KNOWN:
            raise Malformed(
                f"unknown query parameter {name[:60]!r}; known are {', '.join(sorted(_KNOWN))}"
            )
        value = request.one(name)
        if value and name not in FRESHNESS:
            parameters[name] = value
    if request.query.get("since"):
        parameters.pop("cursor", None)
    key = urlencode(sorted(parameters.items()))
    plain = not any(name in FRESHNESS for name in request.query)
    given = tuple(request.query.items())
    return ListQuery(key, parse_filters(parameters), parse_page(parameters), given, plain)


def narrowed(query: ListQuery, prefixes: tuple[str, ...]) -> ListQuery:
    """The query as a caller with these prefixes, if any, may ask it."""
    if not prefixes:
        return query
    return replace(
        query,
        key=f"{spelled(prefixes)} {query.key}",
        filters=query.filters.within(prefixes),
        mark=mark_of(prefixes),
    )


@lru_cache(maxsize=1024)
def mark_of(prefixes: tuple[str, ...]) -> str:
    """What tells the ETags of narrowed answers apart: one caller's copy is nothing to another. "" for no
    prefixes."""
    if not prefixes:
        return ""
    return hashlib.blake2b(spelled(prefixes).encode(), digest_size=8).hexdigest()


_VARY: Final = (("Vary", "Accept-Encoding"),)
"""On lists of any size: a 304 does not know it."""

_KNOWN: Final = frozenset({*FILTERS, *PAGE, *FRESHNESS})


def known_parameters(request: Request, *known: str) -> Mapping[str, str]:
    """The query's parameters, none given twice, none but `known` and those of freshness."""
    allowed = {*known, *FRESHNESS}
    for name in request.query:
        if name not in allowed:
            raise Malformed(
                f"unknown query parameter {name[:60]!r}; known are {', '.join(sorted(allowed))}"
            )
    return {name: request.one(name) or "" for name in request.query}


def etag(revision: Revision, mark: str = "") -> str:
    """Weak: answers at one revision are equal in meaning, whichever node or encoding they come from."""
    return f'W/"{revision}.{mark}"' if mark else f'W/"{revision}"'


_ETAG: Final = re.compile(r'(?:W/)?"(\d{1,20})-(\d{1,18})(?:\.([0-9a-f]{16}))?"')


def _etags(condition: str, mark: str) -> Iterable[Revision]:
    """The revisions of the tags with that mark."""
    for epoch, rev, given in _ETAG.findall(condition[:4096]):
        if given == mark:
            yield Revision(int(epoch), int(rev))


def _wait(request: Request) -> timedelta | None:
    text = request.one("wait")
    if not text:
        found = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", request.headers.get("Prefer") or "")
        text = found[1] if found else None
    if not text:
        return None
    try:
        wait = parse_duration(text)
    except ValueError as error:
        raise Malformed(f"wait: {error}") from None
    return min(wait, LONGEST_WAIT)


@lru_cache(maxsize=256)
def best_encoding(accepted: str | None) -> str | None:
    """zstd before gzip, of those the client takes."""
    if not accepted:
        return None
    weights: dict[str, bool] = {}
    for part in accepted.lower().split(","):
        name, _, parameters = part.partition(";")
        weights[name.strip()] = re.search(r"q\s*=\s*0(\.0*)?\s*$", parameters) is None
    for encoding in ("zstd", "gzip"):
        if weights.get(encoding, weights.get("*", False)):
            return encoding
    return None


def compress(body: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(body)
    return gzip.compress(body, compresslevel=5, mtime=0)


def next_link(path: str, parameters: Iterable[tuple[str, str]], cursor: str) -> str:
    """The Link header to the page after the one that these query parameters asked for."""
    # With `since` any cursor is ignored.
    kept = [(name, value) for name, value in parameters if name not in _OF_ONE_PAGE]
    return f'<{path}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'


_OF_ONE_PAGE: Final = frozenset({"cursor", "since", "wait"})
