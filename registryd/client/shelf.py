"""Last-known-good results on disk, so that a process that starts while the registry is away has some.

One file a result, readable by its owner only, replaced as a whole: a crash leaves the old or the new one.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from registryd.client.types import Found
from registryd.registry.types import InstanceArray, InstanceShown

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    instances: Sequence[InstanceShown]
    revision: str
    age: float
    """Seconds."""


class Shelf:
    """Results by name in one directory. `owner` tells apart whose they are: base URLs and key, since
    another registry, or another caller of it, gets other answers. Blocking; nothing here raises."""

    def __init__(
        self, directory: Path, owner: Sequence[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._owner = owner
        self._now = now

    def path(self, name: str) -> Path:
        text = "\0".join([*self._owner, name])
        return (
            self._directory / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.json"
        )

    def keep(self, name: str, found: Found) -> None:
        """Writes a result. A disk that does not take it is logged, and costs nothing else."""
        document = {
            "at": self._now() - found.stale_for,
            "revision": found.revision,
            "instances": [
                one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in found
            ],
        }
        path = self.path(name)
        scratch = ""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # mkstemp makes it 0600.
            descriptor, scratch = tempfile.mkstemp(dir=self._directory, suffix=".new")
            with os.fdopen(descriptor, "w") as file:
                json.dump(document, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError as error:
            log.warning("cannot keep the last known instances in %s: %s", self._directory, error)
            if scratch:
                Path(scratch).unlink(missing_ok=True)

    def recall(self, name: str) -> Kept | None:
        """What was kept, or None: also for a file that is damaged."""
        try:
            document = json.loads(self.path(name).read_bytes())
            instances = InstanceArray.model_validate(document["instances"]).root
            age = max(0.0, self._now() - float(document["at"]))
            return Kept(instances, str(document["revision"]), age)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            log.warning("cannot use %s: %s", self.path(name), error)
            return None
