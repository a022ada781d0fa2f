"""What a handler answers with: a whole reply in memory, or a stream that writes itself.

A `Reply` is serialised to HTTP/1.1 here rather than by aiohttp's response classes: building their
headers costs a third of a small request, and a reply that never changes can be rendered once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"

Header = tuple[str, str]


@dataclass(slots=True)
class Reply:
    """A finished answer. `headers` are those beyond the ones every answer carries.

    Every answer carries Date, Server, Content-Length, Content-Type (when there is a body) and
    X-Request-ID; they are added when the reply is written.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: list[Header] = field(default_factory=list)

    def with_headers(self, headers: Iterable[Header]) -> "Reply":
        self.headers.extend(headers)
        return self
