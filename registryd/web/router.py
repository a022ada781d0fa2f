"""From method and raw path to a route of the table, with its parameters decoded and checked.

Works on the path as it came over the wire, so that `%2F` cannot pretend to be a separator. A
literal segment is compared as it is; only parameters are percent-decoded, strictly.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from registryd import errors
from registryd.web import codec
from registryd.web.caller import Permission, Scope
from registryd.web.reply import Reply
from registryd.web.request import Request
from registryd.web.routing import API_PREFIX, REGISTRY_PREFIX, Mount, Route

_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NO_PARAMS: Final[tuple["_Param", ...]] = ()

FullMatch = Callable[[str], re.Match[str] | None]


def template(route: Route) -> str:
    """The path that names a route in metrics and OpenAPI: short, unless only the long form exists."""
    match route.mount:
        case Mount.PREFIX_ONLY:
            return REGISTRY_PREFIX + route.path
        case Mount.API:
            return API_PREFIX + route.path
        case Mount.REGISTRY | Mount.ROOT:
            return route.path


@dataclass(frozen=True, slots=True)
class _Param:
    position: int
    name: str
    matches: FullMatch | None
    expected: str

    def value(self, segment: str) -> str:
        """The decoded segment; Malformed when it is not what the route accepts."""
        if "%" in segment or not segment.isascii() or not segment.isprintable():
            segment = codec.percent_decode(segment, f"path parameter {self.name!r}")
            if "/" in segment:
                raise errors.Malformed(f"path parameter {self.name!r}: holds an encoded slash")
        if self.matches is not None and self.matches(segment) is None:
            raise errors.Malformed(
                f"path parameter {self.name!r}: {codec.shown(segment)} does not match {self.expected}"
            )
        if segment in ("", ".", ".."):
            raise errors.Malformed(f"path parameter {self.name!r}: {segment!r} is not a name")
        return segment


@dataclass(frozen=True, slots=True)
class _Leaf:
    route: Route
    params: tuple[_Param, ...]


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    parameter: "_Node | None" = None
    methods: dict[str, _Leaf] = field(default_factory=dict)


class Router:
    """The compiled route table. Raises ValueError for a table that contradicts itself."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self._root = _Node()
        self._exact: dict[str, _Node] = {}
        operations: set[str] = set()
        for route in self.routes:
            if route.scope is Scope.NAMED and _PARAMETER.findall(route.path)[:1] != ["name"]:
                raise ValueError(f"{route.path}: its first parameter has to be the service's name")
            if route.operation_id in operations:
                raise ValueError(f"operation id {route.operation_id!r} is used twice")
            operations.add(route.operation_id)
            for path in _mounted(route):
                self._add(path, route)
        for node in _nodes(self._root):
            if "GET" in node.methods:
                node.methods.setdefault("HEAD", node.methods["GET"])

    def ordinary(self) -> list[tuple[re.Pattern[str], Route]]:
        """For each path with a shortcut the request lines it takes; their parts are the path, the path's
        parameters, and the query."""
        return [
            (_request_line(route, path), route)
            for route in self.routes
            if route.shortcut is not None
            for path in _mounted(route)
        ]

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route for a raw path without its query.

        Raises NotFound, MethodNotAllowed, or Malformed for a parameter that is not acceptable.
        """
        node: _Node | None = self._exact.get(path)
        if node is not None and (leaf := node.methods.get(method)) is not None:
            return leaf.route, {}
        if path[-1:] == "/" and path != "/":
            path = path[:-1]
        segments = path.split("/")
        # The greedy walk finds nearly everything; only when it fails are the other ways tried.
        node = self._root
        for segment in segments:
            below = node.literals.get(segment) or node.parameter
            if below is None:
                break
            node = below
        else:
            if (leaf := node.methods.get(method)) is not None:
                return leaf.route, {p.name: p.value(segments[p.position]) for p in leaf.params}
        return self._search(method, path, segments)

    def _search(self, method: str, path: str, segments: list[str]) -> tuple[Route, dict[str, str]]:
        if path == "*":
            allowed = {"OPTIONS"}.union(*(node.methods for node in _nodes(self._root)))
            return _options("*", allowed), {}
        candidates = [node for node in _walk(self._root, segments, 0) if node.methods]
        for node in candidates:
            if (leaf := node.methods.get(method)) is not None:
                return leaf.route, {p.name: p.value(segments[p.position]) for p in leaf.params}
        if not candidates:
            raise errors.NotFound("there is nothing at this path")
        allowed = {"OPTIONS"}.union(*(node.methods for node in candidates))
        if method == "OPTIONS":
            first = next(iter(candidates[0].methods.values()))
            return _options(template(first.route), allowed), {}
        names = sorted(allowed)
        raise errors.MethodNotAllowed(f"this path answers {', '.join(names)}", allowed=names)

    def _add(self, path: str, route: Route) -> None:
        node = self._root
        params = _NO_PARAMS
        for position, segment in enumerate(path.split("/")):
            if (name := _PARAMETER.fullmatch(segment)) is not None:
                pattern = route.segments.get(name[1])
                params += (
                    _Param(
                        position,
                        name[1],
                        pattern.fullmatch if pattern else None,
                        pattern.pattern if pattern else "",
                    ),
                )
                node.parameter = node.parameter or _Node()
                node = node.parameter
            elif "{" in segment or "}" in segment:
                raise ValueError(f"{path}: a parameter has to be a whole segment")
            else:
                node = node.literals.setdefault(segment, _Node())
        if len({param.name for param in params}) != len(params):
            raise ValueError(f"{path}: a parameter occurs twice")
        if unknown := route.segments.keys() - {param.name for param in params}:
            raise ValueError(f"{path}: patterns for unknown parameters {sorted(unknown)}")
        if route.method in node.methods:
            raise ValueError(f"{route.method} {path} is in the table twice")
        node.methods[route.method] = _Leaf(route, params)
        if not params:
            self._exact[path] = node


def _mounted(route: Route) -> tuple[str, ...]:
    if not route.path.startswith("/") or (route.path != "/" and route.path.endswith("/")):
        raise ValueError(f"{route.path!r} has to start with a slash and not to end with one")
    long = REGISTRY_PREFIX + (route.path if route.path != "/" else "")
    match route.mount:
        case Mount.REGISTRY:
            return long, route.path
        case Mount.PREFIX_ONLY:
            return (long,)
        case Mount.API:
            return (API_PREFIX + route.path,)
        case Mount.ROOT:
            return (route.path,)


def _request_line(route: Route, path: str) -> re.Pattern[str]:
    segments = [
        f"({route.segments[name[1]].pattern})"
        if (name := _PARAMETER.fullmatch(segment)) is not None
        else re.escape(segment)
        for segment in path.split("/")
    ]
    return re.compile(rf"{route.method} ({'/'.join(segments)})(?:\?([!-~]*))? HTTP/1\.1")


def _nodes(node: _Node) -> Iterator[_Node]:
    yield node
    for below in node.literals.values():
        yield from _nodes(below)
    if node.parameter is not None:
        yield from _nodes(node.parameter)


def _walk(node: _Node, segments: list[str], position: int) -> Iterator[_Node]:
    """Every node the segments can lead to, the most literal one first."""
    if position == len(segments):
        yield node
        return
    literal = node.literals.get(segments[position])
    if literal is not None:
        yield from _walk(literal, segments, position + 1)
    if node.parameter is not None:
        yield from _walk(node.parameter, segments, position + 1)


def _options(path: str, allowed: set[str]) -> Route:
    return Route(
        method="OPTIONS",
        path=path,
        handler=_allow(", ".join(sorted(allowed))),
        permission=Permission.OPEN,
        scope=Scope.NONE,
        summary="Which methods a path answers",
        tag="http",
        mount=Mount.ROOT,
        operation_id=f"OPTIONS {path}",
    )


def _allow(methods: str) -> Callable[[Request], Awaitable[Reply]]:
    async def allow(request: Request) -> Reply:
        return Reply(204, headers=[("Allow", methods)])

    return allow
