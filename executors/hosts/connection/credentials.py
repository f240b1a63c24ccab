"""What a host shows to the others, and whom it believes."""

from __future__ import annotations

import os
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from executors.hosts.connection.loading import load
from miai_graph.errors import ArgumentError

CERTIFICATE_FILES = ("ca.pem", "certificate.pem", "key.pem")
"""What `write_certificates` calls its files: the authority's certificate, one's own, and one's own private key."""


@dataclass(frozen=True)
class Credentials:
    """A host's certificates, as PEM text.

    Attributes
    ----------
    authority : the certificate by which the others' certificates are checked
    certificate : this host's own
    key : and its private key
    """

    authority: str
    certificate: str
    key: str = field(repr=False)

    def context(self) -> ssl.SSLContext:
        """For connections that this host makes: TLS 1.3, and both sides show their certificates."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # hosts have addresses, not names; the authority is the cluster's own
        context.load_verify_locations(cadata=self.authority)
        with tempfile.TemporaryDirectory() as directory:
            _, certificate, key = write_certificates(self, directory)
            context.load_cert_chain(certificate, key)
        return context


def find_credentials(
    token_file: str | Path | None = None,
    tls_ca_file: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
) -> Credentials:
    """Of a host that has a certificate already, if its files are given; else of one that has the token.

    Parameters
    ----------
    token_file : with the token, which is looked for, or asked for, if there is no file

    Raises
    ------
    ArgumentError
        if some of the files are given and others are not, or there is no token.
    """
    files = (tls_ca_file, tls_cert, tls_key)
    if not any(files):
        security = load("connection.security")
        found: Credentials = security.credentials(security.find_token(token_file))
        return found
    if tls_ca_file is None or tls_cert is None or tls_key is None or token_file is not None:
        raise ArgumentError(
            "expected tls_ca_file, tls_cert and tls_key together, and no token then; found some of them. "
            "Give all three, or none"
        )
    return own_credentials(tls_ca_file, tls_cert, tls_key)


def own_credentials(authority_file: str | Path, certificate_file: str | Path, key_file: str | Path) -> Credentials:
    """Of a host that has a certificate already, from files in PEM format.

    Raises
    ------
    ArgumentError
        if one of them cannot be read, or they do not belong together.
    """
    found = Credentials(*(_read(path) for path in (authority_file, certificate_file, key_file)))
    try:
        found.context()
    except ssl.SSLError as error:
        raise ArgumentError(
            f"expected the certificate of an authority in {authority_file}, a certificate in {certificate_file} and "
            f"its private key in {key_file}, in PEM format; found {error.reason or error}"
        ) from None
    return found


def write_certificates(given: Credentials, directory: str | Path) -> tuple[Path, Path, Path]:
    """Write credentials as files that only this user can read, such as a stock ``dask worker`` takes; returns where."""
    folder = Path(directory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, certificate, key = (folder / name for name in CERTIFICATE_FILES)
    for path, text in ((authority, given.authority), (certificate, given.certificate), (key, given.key)):
        write_secret(path, text)
    return authority, certificate, key


def write_secret(path: Path, text: str) -> None:
    """Replace a file at once by a new one, which was never open to others."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"expected a file in PEM format; found {error}") from None
