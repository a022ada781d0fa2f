"""Name service of the daemon under test: Python loads this at its start, from PYTHONPATH.

Names under `.rebind.test` answer with the first of the addresses in them the first time, with the next one
the next time, and so on: `10-0-0-1.127-0-0-1.rebind.test`. Those under `.many.test` answer with all at once.
A dot in an address is written as a hyphen; `x` begins an IPv6 address, whose colons are hyphens.
"""

import itertools
import socket
from typing import Any

_real = socket.getaddrinfo
_turns: dict[str, "itertools.count[int]"] = {}


def _address(label: str) -> str:
    return label[1:].replace("-", ":") if label.startswith("x") else label.replace("-", ".")


def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> list[Any]:
    name = str(host).rstrip(".")
    *labels, kind, end = name.split(".") if name.count(".") > 1 else ("", "", "")
    if end != "test" or kind not in {"rebind", "many"}:
        return _real(host, port, *rest, **more)
    addresses = [_address(label) for label in labels if not label.startswith("n")]
    if kind == "rebind":
        turn = next(_turns.setdefault(name, itertools.count()))
        addresses = [addresses[turn % len(addresses)]]
    return [found for one in addresses for found in _real(one, port, type=socket.SOCK_STREAM)]


socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]
