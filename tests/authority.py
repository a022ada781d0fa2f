"""A certificate authority of a test's own, and what servers and clients need of it."""

import ssl
from pathlib import Path
from typing import Any

import trustme

from registryd.web.tls import Certificates, TlsFiles


class Authority:
    """Writes PEM files into a directory: `ca.pem`, and `<name>.pem`, `<name>.key` for each certificate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ca = trustme.CA()
        self.ca = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *identities: str, **fields: Any) -> TlsFiles:
        """A certificate for `identities`; issued again, it takes the place of the one before."""
        issued = self._ca.issue_cert(*(identities or ("localhost", "127.0.0.1")), **fields)
        certificate, key = (self.directory / f"{name}.{end}" for end in ("pem", "key"))
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        return TlsFiles(certificate, key)

    def certificates(self) -> Certificates:
        return Certificates(self.issue("server"))

    def client(self, files: TlsFiles | None = None) -> ssl.SSLContext:
        """A client that trusts this authority, and shows the certificate in `files`."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if files is not None:
            context.load_cert_chain(files.certificate, files.key)
        return context
