"""Certificates of the listening side: one TLS context for new connections, made anew when files change."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from registryd import errors

log = structlog.get_logger(__name__)

ClientCertificates = Literal["none", "optional", "required"]

_VERIFY: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. Without `key` the certificate's file holds the key too."""

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None
    client_certificates: ClientCertificates = "none"
    min_version: Literal["1.2", "1.3"] = "1.2"

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path)


def context_of(files: TlsFiles) -> ssl.SSLContext:
    """Raises OSError (ssl.SSLError among them) for files that are missing, broken or do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM[files.min_version]
    context.set_alpn_protocols(["http/1.1"])
    # A key with a passphrase would be asked for on the terminal.
    context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    context.verify_mode = _VERIFY[files.client_certificates]
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        # A resumed session is not verified again, not even against authorities that are trusted no more.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


class Certificates:
    """`context` is what new connections get; `look` renews it. Raises StartupRefused."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = _state(files)
        try:
            self.context = context_of(files)
        except OSError as error:
            raise errors.StartupRefused(
                f"server.tls cannot be used ({', '.join(map(str, files.paths))}): {_why(error)}"
            ) from None

    async def look(self) -> None:
        """Takes over files that have changed since the last look. For a supervised loop."""
        state = _state(self._files)
        if state == self._seen:
            return
        try:
            self.context = context_of(self._files)
        except OSError as error:
            # Perhaps only one of two has been written so far. It is looked at again when that changes.
            log.warning("new certificate not usable, the one in use stays", error=_why(error))
        else:
            log.info("certificate renewed", file=str(self._files.certificate))
        self._seen = state


def _state(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes with a file's content: links are followed, so that a mounted secret is seen too."""
    states: list[tuple[int, int, int] | None] = []
    for path in files.paths:
        try:
            found = path.stat()
        except OSError:
            states.append(None)
        else:
            states.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return tuple(states)


def _no_passphrase() -> str:
    raise OSError("the key has a passphrase; use one without")


def _why(error: OSError) -> str:
    match error:
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
        case _:
            return error.strerror or str(error)
