"""Who may join a cluster, and what becomes of those who may not."""

from __future__ import annotations

import io
import os
import pickle
import re
import socket
import ssl
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgpack
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from hosts_echo import MAKER
from hypothesis import given
from hypothesis import strategies as st

import miai_graph as mg
from executors.hosts.cluster import HostUnreachableError, Message
from executors.hosts.connection.addresses import parse_address, write_address
from executors.hosts.connection.credentials import CERTIFICATE_FILES, Credentials, own_credentials, write_certificates
from executors.hosts.connection.embedded import EmbeddedCluster
from executors.hosts.connection.loading import load
from executors.hosts.connection.reach import local_address_towards
from executors.hosts.connection.security import credentials, find_token, new_token, write_token
from miai_graph.errors import ArgumentError, ExecutorError, MissingDependencyError

PATIENCE_SECONDS = 20.0
TOKEN = "0w91-ta1k-7s4n-8qva-ep08-q5n1-njvw-5ker-enq5"
AUTHORITY_KEY = "9ddc2561288686ef3495171a2062a606bb4daccd"
on_posix = pytest.mark.skipif(os.name != "posix", reason="files have no such permissions")

# Tokens


def test_a_token_is_new_each_time_and_can_be_typed() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"([0-9a-hjkmnp-tv-z]{4}-){8}[0-9a-hjkmnp-tv-z]{4}", token) for token in tokens)


def authority_key(token: str) -> bytes:
    certificate = x509.load_pem_x509_certificate(credentials(token).authority.encode())
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_every_version_derives_the_same_authority() -> None:
    assert authority_key(TOKEN).hex() == AUTHORITY_KEY


def test_a_token_is_read_as_people_write_it() -> None:
    for written in (TOKEN.upper(), TOKEN.replace("-", ""), f"  {TOKEN.replace('-', ' ')}\n", TOKEN.replace("1", "l")):
        assert authority_key(written) == authority_key(TOKEN)
    assert authority_key(TOKEN.replace("0", "O")) == authority_key(TOKEN)


@given(place=st.integers(0, 35), letter=st.sampled_from("0123456789abcdefghjkmnpqrstvwxyz"))
def test_a_typing_mistake_is_noticed(place: int, letter: str) -> None:
    letters = TOKEN.replace("-", "")
    mistaken = letters[:place] + letter + letters[place + 1 :]
    if mistaken != letters:
        with pytest.raises(ArgumentError, match="a typing mistake") as caught:
            credentials(mistaken)
        assert mistaken not in str(caught.value)  # errors end up in logs


@pytest.mark.parametrize(
    ("token", "found"), [("", "found 0 of them"), ("1" * 35, "found 35 of them"), ("u" * 36, "other characters")]
)
def test_what_is_no_token_is_refused(token: str, found: str) -> None:
    with pytest.raises(ArgumentError, match=f"expected a token of .*{found}.* Type it as"):
        credentials(token)


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    write_token(TOKEN, file)
    assert find_token(file) == TOKEN
    monkeypatch.setenv("MIAI_GRAPH_TOKEN", TOKEN)
    assert find_token() == TOKEN
    monkeypatch.setenv("MIAI_GRAPH_TOKEN", TOKEN[:-1])
    with pytest.raises(ArgumentError, match="35 of them in the environment variable MIAI_GRAPH_TOKEN"):
        find_token()


def test_nobody_is_asked_where_nobody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIAI_GRAPH_TOKEN", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(TOKEN))
    with pytest.raises(ArgumentError, match="found neither, and no terminal"):
        find_token()
    with pytest.raises(ArgumentError, match="expected a file with the cluster's token"):
        find_token(tmp_path / "none")


@on_posix
def test_a_token_file_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    write_token(TOKEN, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(ArgumentError, match=r"is open to others. Type: chmod 600"):
        find_token(file)
    write_token(TOKEN, file)
    assert find_token(file) == TOKEN


# Certificates


def certificates(given: Credentials) -> tuple[x509.Certificate, x509.Certificate]:
    authority, own = (x509.load_pem_x509_certificate(text.encode()) for text in (given.authority, given.certificate))
    return authority, own


def test_hosts_with_one_token_believe_each_other() -> None:
    (authority, own), (other_authority, other) = (certificates(credentials(TOKEN)) for _ in range(2))
    assert own.public_key() != other.public_key()
    own.verify_directly_issued_by(other_authority)
    other.verify_directly_issued_by(authority)
    stranger, _ = certificates(credentials(new_token()))
    with pytest.raises(InvalidSignature):
        own.verify_directly_issued_by(stranger)
    assert stranger.public_key() != authority.public_key()


def test_clocks_may_be_wrong_by_decades() -> None:
    for certificate in certificates(credentials(TOKEN)):
        assert certificate.not_valid_before_utc <= datetime(1980, 1, 1, tzinfo=UTC)
        assert certificate.not_valid_after_utc >= datetime(2100, 1, 1, tzinfo=UTC)


def test_a_host_cannot_issue_certificates() -> None:
    authority, own = certificates(credentials(TOKEN))
    constraints = [item.extensions.get_extension_for_class(x509.BasicConstraints).value for item in (authority, own)]
    assert [item.ca for item in constraints] == [True, False]


def test_keys_are_not_shown() -> None:
    given = credentials(TOKEN)
    assert "PRIVATE" not in repr(given)
    assert "PRIVATE" not in repr(load("connection.dask_wire").dask_security(given))


def test_certificates_as_files(tmp_path: Path) -> None:
    given = credentials(TOKEN)
    files = write_certificates(given, tmp_path / "certificates")
    assert [file.name for file in files] == list(CERTIFICATE_FILES)
    if os.name == "posix":
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    assert own_credentials(*files) == given
    other = write_certificates(credentials(TOKEN), tmp_path / "other")
    with pytest.raises(ArgumentError, match="in PEM format; found KEY_VALUES_MISMATCH"):
        own_credentials(files[0], files[1], other[2])
    with pytest.raises(ArgumentError, match="expected a file in PEM format; found"):
        own_credentials(files[0], tmp_path / "none", files[2])


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", "tls://10.0.0.1:8786"),
        ("10.0.0.1:99", "tls://10.0.0.1:99"),
        ("tcp://10.0.0.1:99", "tls://10.0.0.1:99"),
        (" tls://table-1.local/", "tls://table-1.local:8786"),
        ("[fe80::1]:99", "tls://[fe80::1]:99"),
        ("tcp://[::1]", "tls://[::1]:8786"),
    ],
)
def test_addresses_are_read_as_people_type_them(text: str, address: str) -> None:
    assert write_address(*parse_address(text)) == address


@pytest.mark.parametrize("text", ["", ":8786", "a:b", "a:0", "a:65536", "http://a", "a b", "::1", "a:1:2", "tls://"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected the address of a cluster, such as"):
        parse_address(text)


# Intruders


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(1, token=TOKEN, maker=MAKER) as made:
        yield made


@pytest.fixture(params=["scheduler", "worker"])
def door(request: pytest.FixtureRequest, cluster: EmbeddedCluster) -> tuple[str, int]:
    address = cluster.scheduler_address if request.param == "scheduler" else cluster.addresses[0]
    return parse_address(address)


@pytest.fixture(autouse=True)
def _goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test has done to it, the cluster works."""
    yield
    if "cluster" in request.fixturenames:
        made: EmbeddedCluster = request.getfixturevalue("cluster")
        (address,) = made.addresses
        assert made.call(address, "echo", Message({"a": 1})).result(PATIENCE_SECONDS).content == {"a": 1}


def careless_context() -> ssl.SSLContext:
    """Of somebody who talks to everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def nothing_said(door: tuple[str, int], message: bytes, wrap: Callable[[socket.socket], socket.socket]) -> bool:
    """Whether somebody who says this is told nothing, and sent away."""
    with socket.create_connection(door, PATIENCE_SECONDS) as plain:
        try:
            with wrap(plain) as connection:
                connection.sendall(message)
                return connection.recv(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        bytes(100),
        b"\xff" * 2**16,
        struct.pack("Q", 2**62),
        b"\x16\x03\x01\xff\xff",
    ],
    ids=["http", "zeros", "ones", "huge frame", "huge record"],
)
def test_garbage_is_dropped(door: tuple[str, int], message: bytes) -> None:
    with socket.create_connection(door, PATIENCE_SECONDS) as plain:
        try:
            plain.sendall(message)
            plain.shutdown(socket.SHUT_WR)
            answer = plain.recv(2**16)
        except OSError:  # it is sent away already
            answer = b""
    assert len(answer) < 16  # at most an alert of TLS


def test_somebody_without_certificate_is_dropped(door: tuple[str, int]) -> None:
    assert nothing_said(door, b"a", careless_context().wrap_socket)


def test_somebody_with_another_token_is_dropped(door: tuple[str, int], tmp_path: Path) -> None:
    context = careless_context()
    _, certificate, key = write_certificates(credentials(new_token()), tmp_path)
    context.load_cert_chain(certificate, key)
    assert nothing_said(door, b"a", context.wrap_socket)


def test_older_versions_of_tls_are_refused(door: tuple[str, int], tmp_path: Path) -> None:
    context = careless_context()
    _, certificate, key = write_certificates(credentials(TOKEN), tmp_path)
    context.load_cert_chain(certificate, key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert nothing_said(door, b"a", context.wrap_socket)


def test_many_who_say_nothing_hold_nobody_up(door: tuple[str, int], cluster: EmbeddedCluster) -> None:
    silent = [socket.create_connection(door, PATIENCE_SECONDS) for _ in range(50)]
    try:
        (address,) = cluster.addresses
        assert cluster.call(address, "echo").result(PATIENCE_SECONDS)
        local_address_towards(cluster.scheduler_address, credentials(TOKEN))
    finally:
        for connection in silent:
            connection.close()


class Bomb:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def dask_frames(path: Path) -> bytes:
    """A greeting as Dask's, with a pickled object in it."""
    header = msgpack.packb({"pickled-obj": pickle.dumps(Bomb(path)), "num-sub-frames": 0, "compression": []})
    frames = [msgpack.packb({"__Pickled__": 1}), header]
    body = struct.pack(f"{1 + len(frames)}Q", len(frames), *map(len, frames)) + b"".join(frames)
    return struct.pack("Q", len(body)) + body


@pytest.mark.parametrize("token", ["none", "another", "right"])
def test_nothing_is_unpickled_from_outsiders(door: tuple[str, int], tmp_path: Path, token: str) -> None:
    context = careless_context()
    if token != "none":
        given = credentials(TOKEN if token == "right" else new_token())
        _, certificate, key = write_certificates(given, tmp_path)
        context.load_cert_chain(certificate, key)
    path = tmp_path / "unpickled"
    with socket.create_connection(door, PATIENCE_SECONDS) as plain:
        try:
            with context.wrap_socket(plain) as connection:
                connection.sendall(dask_frames(path))
                if token == "right":  # else the test would prove nothing
                    deadline = time.monotonic() + PATIENCE_SECONDS
                    while not path.exists():
                        assert time.monotonic() < deadline
                        time.sleep(0.005)
                    return
                assert not connection.recv(2**16)
        except (ConnectionError, ssl.SSLError):
            pass
    assert not path.exists()


# What those are told who try


def test_a_client_with_another_token_is_told(cluster: EmbeddedCluster) -> None:
    with pytest.raises(ArgumentError, match=r"expected the token of the cluster at .* another one. Type the one that"):
        load("connection.dask_cluster").DaskCluster(cluster.scheduler_address, credentials(new_token()), MAKER)


def test_a_client_with_the_right_token_may_join(cluster: EmbeddedCluster) -> None:
    address = cluster.scheduler_address.replace("tls://", "tcp://")
    with load("connection.dask_cluster").DaskCluster(address, credentials(TOKEN), MAKER) as second:
        assert list(second.addresses) == list(cluster.addresses)


def test_a_host_with_another_token_cannot_be_talked_to(cluster: EmbeddedCluster) -> None:
    with (
        EmbeddedCluster(1, maker=MAKER) as other,
        pytest.raises(HostUnreachableError, match="it has another token or certificate"),
    ):
        cluster.call(other.addresses[0], "echo").result(PATIENCE_SECONDS)


def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ExecutorError, match="found nobody listening there"):
        local_address_towards(f"127.0.0.1:{port}", credentials(TOKEN))


def test_somebody_else_there_is_told() -> None:
    child = (
        "import socket; server = socket.create_server(('127.0.0.1', 0)); print(server.getsockname()[1], flush=True)\n"
        "caller, _ = server.accept(); caller.recv(9); caller.sendall(b'HTTP/1.1 400 Bad Request'); caller.close()"
    )
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with pytest.raises(ExecutorError, match="found somebody there who is not a cluster of miai_graph"):
            local_address_towards(f"127.0.0.1:{port}", credentials(TOKEN))


def test_the_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "from executors.hosts.connection.loading import load\n"
        "try: load('connection.dask_cluster')\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.startswith(MissingDependencyError.__name__)
    assert "pip install 'miai-graph[hosts]'" in found


# Plain Dask workers


def test_a_stock_dask_worker_joins_with_certificate_files(tmp_path: Path) -> None:
    authority, certificate, key = write_certificates(credentials(TOKEN), tmp_path)
    with EmbeddedCluster(1, token=TOKEN, maker=MAKER) as made:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", made.scheduler_address]
        command += ["--tls-ca-file", str(authority), "--tls-cert", str(certificate), "--tls-key", str(key)]
        command += ["--no-dashboard", "--no-nanny", "--host", "127.0.0.1", "--local-directory", str(tmp_path)]
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        environment = {**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]"}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                while len(made.addresses) < 2:
                    assert process.poll() is None
                ours, stock = made.addresses
                forward = Message({"to": stock, "count": 2})
                made.call(ours, "forward", forward).result(PATIENCE_SECONDS)
                taken = [made.call(stock, "taken").result(PATIENCE_SECONDS) for _ in range(2)]
                assert [message.content["number"] for message in taken] == [0, 1]
                facts = made.call(stock, "facts").result(PATIENCE_SECONDS).content
                assert facts["pid"] == process.pid
                assert made.call(ours, "echo", Message({"a": 1})).result(PATIENCE_SECONDS).content == {"a": 1}
            finally:
                process.kill()


def test_an_executor_takes_files_of_certificates_or_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIAI_GRAPH_TOKEN", raising=False)
    authority, certificate, key = write_certificates(credentials(TOKEN), tmp_path)
    with EmbeddedCluster(1, token=TOKEN) as made:
        address = made.scheduler_address
        files = {"tls_ca_file": authority, "tls_cert": certificate, "tls_key": str(key)}
        with mg.executor("hosts", address=address, stages=1, **files) as hosts:
            assert len(hosts.workers) == 1
        with pytest.raises(ArgumentError, match="expected tls_ca_file, tls_cert and tls_key together"):
            mg.executor("hosts", address=address, tls_cert=certificate)
        token = tmp_path / "token"
        write_token(TOKEN, token)
        with mg.executor("hosts", address=address, stages=1, token_file=token) as hosts:
            assert len(hosts.workers) == 1
