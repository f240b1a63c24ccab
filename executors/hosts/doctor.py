"""What ``miai-graph doctor`` finds out about executor "hosts": on this machine, or of a cluster."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors.hosts.cluster import Cluster, HostUnreachableError, Message, RemoteError
from executors.hosts.connection.addresses import SCHEDULER_PORT, WORKER_PORT, parse_address, write_address
from executors.hosts.connection.credentials import Credentials, find_credentials
from executors.hosts.connection.loading import load
from executors.hosts.facts import NOT_INSTALLED, host_facts, installed_version
from executors.hosts.preflight import (
    ANSWER_SECONDS,
    BLOCKED_LATENCY,
    THIS_MACHINE,
    Preflight,
    obstacle_sentence,
    places,
    preflight,
    title,
)
from executors.hosts.probing import knock
from executors.hosts.watch import ClockOffset
from miai_graph.doctor import Report, sentence
from miai_graph.errors import ExecutorError, MiaiGraphError

PACKAGES = ("distributed", "cryptography", "msgpack", "psutil")
"""Those of the extra `hosts`."""

_BUSY_SECONDS = 0.2
_BUSY_SHARE = 0.25


@dataclass(frozen=True)
class _Host:
    """A host with all that it says of itself."""

    address: str
    facts: Mapping[str, Any]
    busy_cores: float | None

    @property
    def hostname(self) -> str:
        return str(self.facts["name"])

    @property
    def versions(self) -> Mapping[str, str]:
        versions: Mapping[str, str] = self.facts["versions"]
        return versions


def examine(address: str | None = None, token_file: Path | None = None, **files: Path | None) -> Report:
    """Look at this machine; or, if there is an address, at the cluster whose scheduler is there.

    Parameters
    ----------
    token_file, files : see `find_credentials`

    Raises
    ------
    MiaiGraphError
        if the cluster cannot be reached: a sentence says why.
    """
    if address is None:
        return Report({"hosts": _packages(), "ports": ", ".join(map(describe_port, (SCHEDULER_PORT, WORKER_PORT)))})
    with _connected(address, find_credentials(token_file, **files)) as cluster:
        return examine_cluster(cluster)


def examine_cluster(cluster: Cluster) -> Report:
    """Look at all hosts of a cluster, and at what is between them."""
    report = Report()
    addresses = cluster.addresses
    report.facts["hosts"] = str(len(addresses))
    if not addresses:
        report.problems.append("There are no hosts in this cluster: type miai-graph cluster join on some.")
        return report
    hosts = _ask_all(cluster, addresses, report)
    found = preflight(cluster, hosts, host_facts()["versions"])
    names = places(addresses)
    titles = [title(host.hostname, names[host.address]) for host in hosts]
    report.tables += _tables(hosts, titles, found)
    report.problems += map(sentence, found.problems)
    report.remarks += map(sentence, [*found.remarks, *_busy(hosts, titles)])
    return report


def _connected(address: str, credentials: Credentials) -> Cluster:
    try:
        cluster: Cluster = load("connection.dask_cluster").DaskCluster(address, credentials)
    except MiaiGraphError as error:
        if isinstance(error.__context__, TimeoutError) and knock(write_address(*parse_address(address))) is None:
            raise _no_scheduler(address, "a program that takes connections but does not answer as one") from None
        raise
    except Exception as error:
        raise _no_scheduler(address, "another one of its members, or another program") from error
    return cluster


def _no_scheduler(address: str, found: str) -> ExecutorError:
    return ExecutorError(
        f"expected the scheduler of a cluster at {address}; found {found}. Type the address that 'miai-graph cluster "
        f"start' shows, with its port if that is not {SCHEDULER_PORT}"
    )


def _packages() -> str:
    versions = {package: installed_version(package) for package in PACKAGES}
    text = ", ".join(f"{package} {version}" for package, version in versions.items())
    return text if NOT_INSTALLED not in versions.values() else f"{text}; pip install 'miai-graph[hosts]' adds them"


def describe_port(port: int) -> str:
    """Whether it is free. Nothing listens there even for a moment, so no firewall asks."""
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return f"{port} {'in use' if error.errno == errno.EADDRINUSE else f'not to be had ({error.strerror})'}"
    return f"{port} free"


def _ask_all(cluster: Cluster, addresses: Sequence[str], report: Report) -> list[_Host]:
    """The hosts that answer. Speeds are measured one after the other, for some may be on one machine."""
    with ThreadPoolExecutor(len(addresses)) as threads:
        obstacles = dict(zip(addresses, threads.map(knock, addresses), strict=True))
    reached = [address for address in addresses if obstacles[address] is None]
    for address in addresses:
        if reason := obstacles[address]:
            report.problems.append(sentence(obstacle_sentence(THIS_MACHINE, "the host", address, reason)))
    busy = {address: cluster.call(address, "busy", Message({"seconds": _BUSY_SECONDS})) for address in reached}
    wait(busy.values(), ANSWER_SECONDS)
    hosts = []
    for address in reached:
        try:
            cores = busy[address].result(0).content["cores"]
            facts = cluster.call(address, "describe", Message({"measure": True})).result(ANSWER_SECONDS).content
            hosts.append(_Host(address, facts, cores))
        except (HostUnreachableError, RemoteError, TimeoutError) as error:
            report.problems.append(sentence(f"host {places(addresses)[address]} does not answer: {_reason(error)}"))
    return hosts


def _reason(error: Exception) -> str:
    if isinstance(error, HostUnreachableError):
        return error.reason
    return error.text if isinstance(error, RemoteError) else f"no answer within {ANSWER_SECONDS:g} s"


def _busy(hosts: Sequence[_Host], titles: Sequence[str]) -> list[str]:
    return [
        f"host {name} is under load: its programs keep {host.busy_cores:.1f} of {host.facts['cores']} cores busy while "
        "it has nothing to compute for you, so its stages will take longer than measured"
        for host, name in zip(hosts, titles, strict=True)
        if host.busy_cores is not None and host.busy_cores > _BUSY_SHARE * host.facts["cores"]
    ]


def _tables(hosts: Sequence[_Host], titles: Sequence[str], found: Preflight) -> list[str]:
    rows = [
        [
            name,
            f"{host.facts['cores']}",
            f"{host.facts['threads']}",
            f"{host.facts['flops_per_second'] / 1e9:.1f}",
            f"{host.facts['bytes_per_second'] / 1e9:.1f}",
            "unknown" if host.busy_cores is None else f"{host.busy_cores:.1f}",
            _spell_offset(found.offsets.get(host.address)),
            *(host.versions[package] for package in ("miai-graph", "Python", "NumPy")),
        ]
        for host, name in zip(hosts, titles, strict=True)
    ]
    head = ["host", "cores", "threads", "GFLOP/s", "GB/s", "busy cores", "clock, ms", "miai-graph", "Python", "NumPy"]
    tables = [_format_table(head, rows)] if rows else []
    pairs = [(here, there) for here in range(len(hosts)) for there in range(len(hosts)) if here != there]
    if pairs:
        links = [[titles[here], titles[there], *_spell_link(found, here, there)] for here, there in pairs]
        tables.append(_format_table(["from", "to", "latency, ms", "Mbit/s"], links, texts=2))
    return tables


def _spell_offset(offset: ClockOffset | None) -> str:
    return "unknown" if offset is None else f"{offset.nanoseconds / 1e6:+.1f} ± {offset.uncertainty / 1e6:.1f}"


def _spell_link(found: Preflight, here: int, there: int) -> list[str]:
    latency, bandwidth = found.links.latency[here, there], found.links.bandwidth[here, there]
    if latency >= BLOCKED_LATENCY:
        return ["none", "none"]
    return [f"{1e3 * latency:.2f}", f"{8e-6 * bandwidth:,.0f}"]


def _format_table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Lines of columns: the first so many are texts, the others figures."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
