"""Every regular expression of the source, and how the source uses it."""

import ast
import importlib
import pkgutil
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import registryd

METHODS = ("search", "match", "fullmatch", "sub", "findall", "finditer", "split")
ANYWHERE = frozenset(METHODS) - {"match", "fullmatch"}
"""Those that try a pattern at each place of the text: together, what `search` does."""


@dataclass(frozen=True)
class Used:
    name: str
    pattern: re.Pattern[Any]
    anywhere: bool
    """Whether it is looked for anywhere in a text, and not only at its start."""

    def seconds(self, text: str, limit: float) -> float:
        """How long it takes for a text; `limit`, of the processor's time, where it takes longer."""
        shown = (
            text.encode("utf-8", "surrogateescape")
            if isinstance(self.pattern.pattern, bytes)
            else text
        )
        look = self.pattern.search if self.anywhere else self.pattern.fullmatch
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_VIRTUAL, limit)
        try:
            look(shown)
        except _TooLongError:
            return limit
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return time.perf_counter() - began


class _TooLongError(Exception):
    pass


def _too_long(*_: object) -> None:
    raise _TooLongError


def patterns() -> list[Used]:
    """All patterns that a module of the package holds at its top, also in tuples and mappings."""
    signal.signal(signal.SIGVTALRM, _too_long)
    found: dict[tuple[Any, int], Used] = {}
    for info in pkgutil.walk_packages(registryd.__path__, "registryd."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        source = Path(str(module.__file__)).read_text()
        for name, value in vars(module).items():
            for one in _held(value):
                calls = set(re.findall(rf"\b{name}\.({'|'.join(METHODS)})\b", source))
                # One that is passed on, or kept in a tuple, may be used in any way.
                anywhere = bool(calls & ANYWHERE) or (
                    not calls and not isinstance(value, re.Pattern)
                )
                known = found.get((one.pattern, one.flags))
                if known is None or (anywhere and not known.anywhere):
                    found[one.pattern, one.flags] = Used(f"{info.name}.{name}", one, anywhere)
    return list(found.values())


def _held(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        yield from _held(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _held(one)


def written_in_place() -> tuple[list[Used], list[str]]:
    """Patterns in calls of `re` within functions; and the places of those that are no literals."""
    found, made = [], []
    for path in sorted(Path(registryd.__file__).parent.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for call in ast.walk(function):
                where = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                module, _, method = where.partition(".")
                if not isinstance(call, ast.Call) or module != "re" or not method.isalpha():
                    continue
                first, place = call.args[0], f"{path.name}:{function.name}"
                if isinstance(first, ast.Constant):
                    found.append(Used(place, re.compile(first.value), method in ANYWHERE))
                elif method != "escape":
                    made.append(place)
    return found, made


PIECES = (
    "a", "0", "A0.", "a.", "a-", "://", "a://", "redis://", "@", '"', '\\"', "\\", "[", "[a]", ".a", "1.", "1ms",
    "authorization ", "bearer ", "token=", "token='", 'secret":', "' ", "\t", " ", "%", "%0", "k=v;", 'a="', "<",
    "(", "{", "\r\nx-request-id:", '{"name":"', '{"heartbeats": [', '{"name":"a","instanceId":"b"},', "a:", "-1",
    "1e", "_", "~", "*", ">=1.2 ", "x.x.", "for=a;", "`", "1.2.3-", "a/", ",", "\r\n", ": ",
)  # fmt: skip
"""What hostile texts are made of: the alphabets and the separators of all these patterns."""


def hostile(length: int) -> Iterator[str]:
    for piece in PIECES:
        for start in ("", '"', "a", "("):
            for end in ("", "\0"):
                yield (start + piece * (length // len(piece) + 1))[: length - 1] + end
