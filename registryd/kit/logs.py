"""Structured logs: structlog and the standard library in one format, without secrets.

`configure` is called once, by the composition root; everybody else just calls
`structlog.get_logger(__name__)`. What does not happen here: no log files, no rotation and no
shipping (the process manager keeps what we write to the stream), and no access log.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, TextIO

import structlog
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["json", "console", "auto"]

MASK = "****"

_SECRET_KEY = re.compile(
    r"passw(or)?d|passphrase|secret|token|authorization|api[-_]?key|private[-_]?key|credential|cookie",
    re.IGNORECASE,
)

# Ordered: the whole user information of a store's URL goes first, also when the password holds a
# bare "/" or "@", which people write although RFC 3986 wants them escaped. Each takes time that is
# linear in the text, which may be a client's: a scheme is short, and a run of one word is read once.
_SECRET_TEXT: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(
            r"\b((?:rediss?|valkeys?|unix)(?:\+[a-z]{1,16})?://)([^\s\"'<>]*)", re.IGNORECASE
        ),
        lambda url: url[1] + (f"{MASK}@{url[2].rpartition('@')[2]}" if "@" in url[2] else url[2]),
    ),
    (re.compile(r"\b([a-z][a-z0-9+.-]{0,31}://)[^\s/?#\"'<>@]+@", re.IGNORECASE), rf"\1{MASK}@"),
    (
        re.compile(r"\b(authorization\W{1,4}\w+|bearer)\s+[\w.~+/=-]{6,}", re.IGNORECASE),
        rf"\1 {MASK}",
    ),
    (
        # `password=x` as in a query string, `'password': 'x'` as in a printed dict.
        re.compile(
            r"((?:password|passwd|passphrase|secret|token|api[-_]?key)"
            r"(?:=|[\"']\s*:\s*[\"']))[^\s\"'&,;]+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
    # Those that need no word beside them: signed tokens, and keys as most issuers make them, a short
    # mark, perhaps an id, and a long run of random characters.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*"), MASK),
    (
        re.compile(r"\b([a-z]{2,8}_(?:[a-z0-9]{4,16}_)?)[0-9A-Za-z+/-]{32,}={0,2}"),
        rf"\1{MASK}",
    ),
)

# What a text must hold for any of the patterns above to find something: most hold none of it.
_SUSPICIOUS = re.compile(
    r"@|bearer|authorization|passw|passphrase|secret|token|api[-_]?key|\beyJ|_[0-9A-Za-z+/-]{32}",
    re.IGNORECASE,
)


def configure(level: Level = "info", format: Format = "auto", stream: TextIO | None = None) -> None:
    """Sends every log line of the process to `stream` (default stderr), replacing an earlier set-up.

    `auto` is for people when the stream is a terminal, and JSON otherwise.
    """
    target = sys.stderr if stream is None else stream
    as_json = format == "json" or (format == "auto" and not target.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers = _renderers(as_json, colors=target.isatty())
    # Our own lines do not go through the standard library: that would make each five times as dear.
    structlog.configure(
        processors=[_add_name, *shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Lines(target, *names),
        # A module's logger is made at import, before the settings are known: it must not keep
        # what it saw first.
        cache_logger_on_first_use=False,
    )
    handler = _ProcessLog(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_logger_name,
                *shared,
                structlog.stdlib.ExtraAdder(),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    for earlier in [known for known in root.handlers if isinstance(known, _ProcessLog)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())


def set_level(level: Level) -> None:
    """Changes the level of the running process, for a reload."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    logging.getLogger().setLevel(level.upper())


def redact(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Processor: masks values under secret keys, and credentials inside any text."""
    return {key: _masked(value, key) for key, value in event_dict.items()}


def mask_secrets(text: str) -> str:
    """`text` with the credentials of URLs, bearer tokens and `password=…` masked."""
    if not _SUSPICIOUS.search(text):
        return text
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


class _Lines:
    """Writes finished lines; one write each, so that those of several processes do not mix."""

    __slots__ = ("_stream", "name")

    def __init__(self, stream: TextIO, name: str = "") -> None:
        self._stream = stream
        self.name = name

    def msg(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    debug = info = warning = error = critical = exception = msg


def _add_name(logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    event_dict["logger"] = logger.name
    return event_dict


class _ProcessLog(logging.StreamHandler[TextIO]):
    """Our handler, told from those that others, such as a test runner, put on the root logger."""


def _renderers(as_json: bool, *, colors: bool) -> list[Processor]:
    # The exception is rendered before redaction: its message may quote a URL with a password.
    # Never with the locals of its frames, which hold whatever the caller sent.
    if as_json:
        without_locals = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        return [without_locals, redact, structlog.processors.JSONRenderer(_encode)]
    return [
        structlog.processors.format_exc_info,
        redact,
        structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        ),
    ]


@lru_cache(maxsize=512)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key) is not None


# Made once: json.dumps makes one for every call that wants anything but its defaults.
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=repr)


def _encode(event: object, **_: object) -> str:
    return _ENCODER.encode(event)


def _masked(value: object, key: object = "") -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(key, str) and _is_secret(key):
        return MASK
    if isinstance(value, str):
        return mask_secrets(value)
    if isinstance(value, BaseException):
        return mask_secrets(repr(value))
    if isinstance(value, Mapping):
        return {inner: _masked(held, inner) for inner, held in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_masked(held) for held in value]
    if isinstance(value, int | float):
        return value
    return mask_secrets(repr(value))
