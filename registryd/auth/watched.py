"""A file that is read again when it has changed, and whose last good contents stay when it breaks."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from registryd.errors import StartupRefused

log = structlog.get_logger(__name__)

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """`read` makes the value of the text, and raises ValueError with a line for people."""

    def __init__(self, path: Path, read: Callable[[str], T]) -> None:
        self._path = path
        self._read = read
        self._seen: tuple[int, int, int] | None = None

    def first(self) -> T:
        """The value at the start. Raises StartupRefused."""
        self._seen = self._state()
        try:
            return self._value()
        except ValueError as error:
            raise StartupRefused(f"{self._path}: {error}") from None

    def news(self) -> T | None:
        """The value where the file has changed and can be read; where it cannot, the log says so once."""
        state = self._state()
        if state == self._seen:
            return None
        self._seen = state
        try:
            value = self._value()
        except ValueError as error:
            log.warning(
                "file not reloaded, what it held stays", path=str(self._path), problem=str(error)
            )
            return None
        log.info("file reloaded", path=str(self._path))
        return value

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _value(self) -> T:
        try:
            text = self._path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8 text") from None
        return self._read(text)
