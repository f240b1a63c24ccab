"""The commands ``miai-graph cluster``: start one, join one, and certificates for Dask's own workers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import click

from executors.hosts.connection.addresses import SCHEDULER_PORT, WORKER_PORT, parse_address, write_address
from executors.hosts.connection.loading import load
from executors.hosts.connection.loop import LoopThread
from miai_graph.cores import threads_of_each
from miai_graph.errors import ArgumentError
from miai_graph.terminal import print_text

_LOOPBACK = "127.0.0.1"
_FILE = click.Path(dir_okay=False, path_type=Path)
_Command = Callable[..., None]


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    return lambda command: reduce(lambda done, option: option(done), reversed(options), command)


_token_options = _options(
    click.option(
        "--token-file",
        type=_FILE,
        help="A file that only you can read, with the cluster's token.",
    ),
    click.option("--tls-ca-file", type=_FILE, help="Instead of a token: an authority's certificate,"),
    click.option("--tls-cert", type=_FILE, help="a certificate that it issued for this machine,"),
    click.option("--tls-key", type=_FILE, help="and the private key of that; all in PEM format."),
)

_worker_options = _options(
    click.option(
        "--worker-port",
        default=WORKER_PORT,
        show_default=True,
        type=click.IntRange(1, 65535),
        help="Where the host listens; further ones on this machine use the ports after it.",
    ),
    click.option("--workers", default=1, show_default=True, type=click.IntRange(min=1), help="How many hosts."),
    click.option("--threads", type=click.IntRange(min=1), help="Of each host. [default: the cores, shared evenly]"),
)


def _in_numbers(_: click.Context, __: click.Parameter, host: str | None) -> str | None:
    """The name of a machine may stand for another address there than elsewhere."""
    try:
        return host and str(ip_address(host))
    except ValueError as error:
        raise ArgumentError(f"expected --host to be an address such as 192.168.0.4; found {host!r}") from error


_host_option = click.option(
    "--host", callback=_in_numbers, help="The address of this machine at which others reach it. [default: found out]"
)


@click.group()
def cluster() -> None:
    """Join machines into one cluster, on which executor "hosts" runs.

    Members trust each other wholly: who has the token can run code on each machine. The token is typed when asked
    for, or comes from a file or the environment variable MIAI_GRAPH_TOKEN; never from the command line, which others
    can see.
    """


@cluster.command()
@_host_option
@click.option(
    "--port", default=SCHEDULER_PORT, show_default=True, type=click.IntRange(1, 65535), help="Of the scheduler."
)
@_worker_options
@click.option("--no-worker", is_flag=True, help="Only the scheduler: this machine does not compute.")
@_token_options
def start(
    host: str | None,
    port: int,
    worker_port: int,
    workers: int,
    threads: int | None,
    no_worker: bool,
    **tokens: Path | None,
) -> None:
    """Start a cluster on this machine, and show what to type on the others."""
    credentials, how = _credentials_to_start(**tokens)
    others = [] if host else load("connection.reach").own_addresses()
    seen = host or next(iter(others), _LOOPBACK)
    scheduler = write_address(seen, port)
    ports = range(worker_port, worker_port + (0 if no_worker else workers))
    with (
        _until_told_to_end(),
        _scheduler(credentials, host or "", port) as watch,
        _members(scheduler, credentials, host=seen, ports=ports, threads=threads) as members,
    ):
        joined = members.join()
        _say(_welcome(seen, others[1:], port, ports, how))
        members.stay(watch(joined).lines)


@cluster.command()
@click.argument("address")
@_host_option
@_worker_options
@_token_options
def join(
    address: str,
    host: str | None,
    worker_port: int,
    workers: int,
    threads: int | None,
    **tokens: Path | None,
) -> None:
    """Let this machine compute for the cluster at ADDRESS, until Ctrl-C. If the cluster is lost, it is joined again."""
    scheduler = write_address(*parse_address(address))
    credentials = _credentials(**tokens)
    seen = load("connection.reach").local_address_towards(scheduler, credentials)
    ports = range(worker_port, worker_port + workers)
    with (
        _until_told_to_end(),
        _members(scheduler, credentials, host=host or seen, ports=ports, threads=threads) as members,
    ):
        for joined in members.join():
            _say(f"{_short(joined)} has joined the cluster at {_short(scheduler)}.")
        _say(f"The firewall here must let in {_ports(ports)}. Ctrl-C leaves the cluster.")
        members.stay()


@cluster.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--token-file", type=_FILE, help="A file with the cluster's token.")
def certificate(directory: Path, token_file: Path | None) -> None:
    """Write certificates to DIRECTORY with which a stock "dask worker" joins, on a machine that has miai-graph, too."""
    credentials = _credentials(token_file)
    authority, own, key = load("connection.credentials").write_certificates(credentials, directory)
    _say(
        "Who has these files can run code on each machine of the cluster. A worker starts by:\n\n"
        f"    dask worker tls://ADDRESS:{SCHEDULER_PORT} \\\n"
        f"        --tls-ca-file {authority} --tls-cert {own} --tls-key {key} \\\n"
        f"        --worker-port {WORKER_PORT} --nthreads 1 --no-nanny --no-dashboard\n"
    )


def _credentials(token_file: Path | None = None, **files: Path | None) -> Any:
    return load("connection.credentials").find_credentials(token_file, **files)


def _credentials_to_start(token_file: Path | None, **files: Path | None) -> tuple[Any, str]:
    """The same of a new cluster, whose token is made if there is none; and how others get it, in a sentence."""
    security = load("connection.security")
    if any(files.values()):
        return _credentials(token_file, **files), "with a certificate of the same authority."
    if token_file is not None and token_file.exists():
        return _credentials(token_file), f"and, when it asks, the token that is in {token_file}."
    if token_file is None and security.TOKEN_VARIABLE in os.environ:
        return _credentials(), f"and, when it asks, the token that is in {security.TOKEN_VARIABLE}."
    token = security.new_token()
    if token_file is not None:
        security.write_token(token, token_file)
        how = f"and, when it asks, the new token in {token_file}, which only you can read."
        return security.credentials(token), how
    if not sys.stdout.isatty():
        raise ArgumentError(
            "expected a terminal to show the new token at, which should not end up in a log; found none. "
            f"Use --token-file, or the environment variable {security.TOKEN_VARIABLE}"
        )
    return security.credentials(token), f"and, when it asks, the token, which is shown only now:\n\n    {token}"


def _welcome(seen: str, others: list[str], port: int, ports: range, how: str) -> str:
    address = seen if port == SCHEDULER_PORT else _short(write_address(seen, port))
    first = "The cluster is ready. On each other machine type:"
    line = f"    miai-graph cluster join {address}"
    here = _ports(range(port, port + 1), ports)
    firewalls = f"Firewalls must let in {here} here, and {_ports(range(WORKER_PORT, WORKER_PORT + 1))} on the others."
    if seen.startswith("127."):
        first = f"The cluster is ready, at {seen}, which other machines do not reach. In another terminal type:"
        line += f" --worker-port {max(WORKER_PORT, ports.stop)}"
        firewalls = ""
    lines = [first, "", line, "", how, ""]
    if others:
        lines.append(f"This machine has other addresses, too: {', '.join(others)}.")
    lines += [
        "Who has the token can run code on each member of the cluster.",
        *filter(None, [firewalls]),
        f'In Python: executor=mg.executor("hosts", address="{address}"), which asks for the token, too. '
        "Ctrl-C ends the cluster.",
    ]
    return "\n".join(lines)


def _ports(*ranges: range) -> str:
    numbers = [str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}" for ports in ranges if ports]
    single = len(numbers) == 1 and "-" not in numbers[0]
    return f"TCP port{'' if single else 's'} {' and '.join(numbers)}"


def _short(address: str) -> str:
    return address.removeprefix("tls://")


def _say(*lines: str) -> None:
    print_text("\n".join(lines))


def _members(scheduler: str, credentials: Any, *, host: str, ports: range, threads: int | None) -> Any:
    return load("connection.membership").Membership(
        scheduler,
        credentials,
        host=host,
        ports=ports,
        threads=threads or threads_of_each(max(1, len(ports))),
        tell=_say,
    )


@contextmanager
def _scheduler(credentials: Any, host: str, port: int) -> Iterator[Callable[[list[str]], Any]]:
    """A scheduler in this process, within the block, and what tells who joins it besides those that are known."""
    loop = LoopThread("miai_graph scheduler")
    last = _nothing

    def watch(known: list[str]) -> Any:
        arrivals = load("connection.arrivals").Arrivals(scheduler, known)
        loop.run(arrivals.start())
        return arrivals

    try:
        scheduler = loop.run(load("connection.dask_host").start_scheduler(credentials, host=host, port=port))
        last = scheduler.close
        yield watch
    finally:
        loop.finish(last)


async def _nothing() -> None:
    pass


@contextmanager
def _until_told_to_end() -> Iterator[None]:
    """Leave the block at Ctrl-C, or when the process is told to end, without an error."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nThe end.")
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
