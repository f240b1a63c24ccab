"""Who may join a cluster: those who know its token.

From the token each host derives the same private certificate authority, and issues a certificate for itself that the
others accept: nothing is copied from host to host but the token. Who has certificates of his own uses those instead.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from datetime import UTC, datetime
from getpass import getpass
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from executors.hosts.connection.credentials import Credentials, write_secret
from miai_graph.errors import ArgumentError

TOKEN_VARIABLE = "MIAI_GRAPH_TOKEN"
"""The environment variable that may hold the token."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o and u, which are taken for others
_MISREAD = str.maketrans("ilo", "110")
_SECRET_BYTES = 20
_CHECK_BITS = 20
_CHARACTERS = (8 * _SECRET_BYTES + _CHECK_BITS) // 5
_GROUP = 4

_CURVE = ec.SECP256R1()
_CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_PURPOSE = b"miai_graph cluster: certificate authority, P-256, version 1"
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "miai_graph cluster")])
_HOST = "miai-graph"
# However wrong a host's clock is, today lies between these.
_FROM, _UNTIL = datetime(1971, 1, 1, tzinfo=UTC), datetime(2121, 1, 1, tzinfo=UTC)


def new_token() -> str:
    """160 random bits as text to be read out or typed; a misread or forgotten character is noticed."""
    return _spell(secrets.token_bytes(_SECRET_BYTES))


def credentials(token: str) -> Credentials:
    """Of a member of the cluster that has this token.

    Raises
    ------
    ArgumentError
        if the token is none, or has a typing mistake.
    """
    authority_key = _authority_key(_secret(token))
    key = ec.generate_private_key(_CURVE)
    return Credentials(
        authority=_pem(_authority_certificate(authority_key)),
        certificate=_pem(_host_certificate(key.public_key(), authority_key)),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def find_token(file: str | Path | None = None) -> str:
    """The token: from this file, or else the environment variable ``MIAI_GRAPH_TOKEN``, or else asked for.

    Raises
    ------
    ArgumentError
        if the file can be read by others, the token has a typing mistake, or nobody can be asked.
    """
    if file is not None:
        return _checked(_read_secret(Path(file)), f"in {file}")
    if given := os.environ.get(TOKEN_VARIABLE):
        return _checked(given, f"in the environment variable {TOKEN_VARIABLE}")
    if "ipykernel" not in sys.modules and not (sys.stdin is not None and sys.stdin.isatty()):
        raise ArgumentError(
            f"expected the cluster's token in the environment variable {TOKEN_VARIABLE} or in a file; found neither, "
            "and no terminal at which it could be asked for"
        )
    return _checked(getpass("Token of the cluster (not shown): "), "")


def write_token(token: str, file: str | Path) -> None:
    """Write a token to a file that only this user can read."""
    write_secret(Path(file), token + "\n")


def _spell(secret: bytes) -> str:
    number = int.from_bytes(secret, "big") << _CHECK_BITS | _check(secret)
    letters = [_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS))]
    return "-".join("".join(letters[start : start + _GROUP]) for start in range(0, _CHARACTERS, _GROUP))


def _check(secret: bytes) -> int:
    return int.from_bytes(sha256(b"miai_graph token" + secret).digest()[:3], "big") >> 24 - _CHECK_BITS


def _secret(token: str, where: str = "") -> bytes:
    """The bits of a token. Errors do not repeat it: they may end up in a log."""
    letters = re.sub(r"[\s-]", "", token).lower().translate(_MISREAD)
    advice = "Type it as 'miai-graph cluster start' shows it"
    if len(letters) != _CHARACTERS:
        found = " ".join(filter(None, (f"{len(letters)} of them", where)))
        raise ArgumentError(f"expected a token of {_CHARACTERS} letters and digits; found {found}. {advice}")
    if not set(letters) <= set(_ALPHABET):
        raise ArgumentError(f"expected a token of letters and digits; found other characters {where}. {advice}")
    number = 0
    for letter in letters:
        number = number << 5 | _ALPHABET.index(letter)
    secret = (number >> _CHECK_BITS).to_bytes(_SECRET_BYTES, "big")
    if number & (1 << _CHECK_BITS) - 1 != _check(secret):
        found = " ".join(filter(None, ("a typing mistake", where)))
        raise ArgumentError(f"expected the token of a cluster; found {found}. {advice}")
    return secret


def _checked(token: str, where: str) -> str:
    _secret(token, where)
    return token.strip()


def _authority_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    # 128 bits more than the curve's order, so that no key is likelier than another.
    expanded = HKDF(hashes.SHA256(), length=48, salt=None, info=_PURPOSE).derive(secret)
    return ec.derive_private_key(int.from_bytes(expanded, "big") % (_CURVE_ORDER - 1) + 1, _CURVE)


def _authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    public = key.public_key()
    return (
        _certificate(_NAME, public)
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )


def _host_certificate(public: ec.EllipticCurvePublicKey, authority: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    return (
        _certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _HOST)]), public)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_HOST)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority, hashes.SHA256())
    )


def _certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_NAME)
        .public_key(public)
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _read_secret(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if os.name == "posix" and mode & 0o077:
                raise ArgumentError(
                    f"expected a token that only you can read; found that {path} is open to others. "
                    f"Type: chmod 600 {path}"
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"expected a file with the cluster's token; found {error}") from error
