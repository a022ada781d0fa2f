"""On whose behalf the present task works: set where a request comes in, read where a write is recorded.

A signature is asked for only by whoever writes it down: most requests change nothing that is recorded.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

Signature = Callable[[], str]

_SIGNATURE: Final[ContextVar[Signature | None]] = ContextVar("signature", default=None)


def act_as(signature: Signature) -> None:
    """Holds for the present task, and for those it starts."""
    _SIGNATURE.set(signature)


def actor() -> str:
    """Who acts, such as `anonymous@10.0.0.7`; "" when nobody asked and the daemon acts by itself."""
    signature = _SIGNATURE.get()
    return "" if signature is None else signature()
