"""The hosts that an executor uses: who they are, how fast they and their links are, and which of them are lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from executors.hosts.cluster import Cluster, Message
from executors.hosts.connection.addresses import split_address
from executors.hosts.facts import host_facts
from executors.hosts.preflight import places, preflight
from executors.hosts.watch import ClockOffset, Watch
from miai_graph.errors import ExecutorError, MiaiGraphError
from miai_graph.passes.cutting import Links

ANSWER_SECONDS = 10.0
"""How long a host may take to describe itself."""


@dataclass(frozen=True)
class Host:
    """A host as it described itself.

    hostname : of its machine
    name : what texts call it, and no other host of a crew; see `named_apart`
    threads : of BLAS
    flops_per_second, bytes_per_second : measured in matrix products, and copying
    versions : of packages, by name
    """

    address: str
    hostname: str
    name: str
    pid: int
    threads: int
    flops_per_second: float
    bytes_per_second: float
    machine: str
    cpu_features: tuple[str, ...]
    versions: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.hostname} ({self.address})"


class Crew:
    """The hosts of a cluster that can be used.

    Parameters
    ----------
    cluster, watch : of the hosts
    is_reproducible : whether they must compute the same bits

    Attributes
    ----------
    hosts : those there are
    generation : grows with each change
    notes : what is to be known of them, in sentences
    """

    def __init__(self, cluster: Cluster, watch: Watch, *, is_reproducible: bool) -> None:
        self.hosts: list[Host] = []
        self.generation = 0
        self.notes: list[str] = []
        self._cluster = cluster
        self._watch = watch
        self._is_reproducible = is_reproducible
        self._linked: Sequence[str] = ()
        self._links: Links | None = None

    def __len__(self) -> int:
        return len(self.hosts)

    def welcome(self) -> None:
        """Take in the hosts that have joined. Those that do not fit in with the others are left out, and a note says
        why.

        Raises
        ------
        ExecutorError
            if hosts do not fit together to begin with.
        ClusterLostError
            if the scheduler is gone.
        """
        known = {host.address for host in self.hosts}
        joined = [address for address in self._cluster.addresses if address not in known]
        if not joined:
            return
        self._watch.forgive(joined)
        found = self._described(joined)
        problems = self._differences([*self.hosts, *found]) or self._inspect([*self.hosts, *found])
        if problems and not self.hosts:
            raise ExecutorError("expected hosts that can work together; found that\n  " + "\n  ".join(problems))
        if problems:
            self.notes += [f"Not used: {', '.join(map(str, found))}, for {problem}" for problem in problems]
            return
        for host in found:
            self._watch.add(host.address)
        self.hosts = named_apart([*self.hosts, *found])
        self.generation += 1

    def _described(self, addresses: Sequence[str]) -> list[Host]:
        # One after another: on one machine they would take each other's time.
        found = []
        for address in addresses:
            try:
                found.append(_as_host(address, self._ask(address)))
            except (MiaiGraphError, TimeoutError) as error:
                self.notes.append(f"Not used: {address}, for it does not describe itself: {error or 'no answer'}")
        return found

    def _ask(self, address: str) -> Future[Message]:
        return self._cluster.call(address, "describe", Message({"measure": True}))

    def _differences(self, hosts: Sequence[Host]) -> list[str]:
        """Why hosts cannot compute one graph together."""
        versions = host_facts()["versions"]
        problems = [
            f"{host} has miai-graph {host.versions['miai-graph']}, and this process has {versions['miai-graph']}. "
            "Install the same version"
            for host in hosts
            if host.versions["miai-graph"] != versions["miai-graph"]
        ]
        if self._is_reproducible:
            for host in hosts[1:]:
                problems += _bits_may_differ(hosts[0], host)
        return problems

    def _inspect(self, hosts: Sequence[Host]) -> list[str]:
        """Let hosts exchange messages. Returns what stands in their way."""
        if len(hosts) < 2:
            return []
        found = preflight(self._cluster, hosts)
        if not found.problems:
            self._linked, self._links = [host.address for host in hosts], found.links
            self.notes += [remark for remark in found.remarks if remark not in self.notes]
        return found.problems

    @property
    def links(self) -> Links | None:
        """What connects the hosts, in their order."""
        if self._links is None or len(self.hosts) < 2:
            return None
        places = [self._linked.index(host.address) for host in self.hosts]
        square = np.ix_(places, places)
        return Links(self._links.bandwidth[square], self._links.latency[square])

    def measure_again(self) -> None:
        """Ask hosts once more how fast they are: something else may have kept them busy the first time."""
        faster = []
        for host in self.hosts:
            try:
                speed = _as_host(host.address, self._ask(host.address)).flops_per_second
            except (MiaiGraphError, TimeoutError):  # it is lost, which the next step finds out
                speed = 0.0
            faster.append(replace(host, flops_per_second=max(speed, host.flops_per_second)))
        self.hosts = faster

    def dismiss_lost(self) -> list[Host]:
        """Go on without the hosts that are lost, which are returned."""
        lost = [host for host in self.hosts if host.address in self._watch.lost]
        self.hosts = [host for host in self.hosts if host.address not in self._watch.lost]
        self.generation += 1
        return lost

    def why_lost(self, address: str) -> str | None:
        """Why a host is lost, as a clause; None if it is not."""
        return self._watch.lost.get(address)

    def describe(self, address: str) -> str:
        """A host's name and address, as far as they are known."""
        return next((str(host) for host in self.hosts if host.address == address), address)

    def clock(self, address: str) -> ClockOffset | None:
        """How far a host's clock is from that of this process, as it was measured best; None: not yet."""
        return self._watch.offset(address)


def named_apart(hosts: Sequence[Host]) -> list[Host]:
    """Hosts by the names of their machines, and where several have the same name, by what tells them apart."""
    return [replace(host, name=_name_among(host, hosts)) for host in hosts]


def _name_among(host: Host, hosts: Sequence[Host]) -> str:
    alike = [other.address for other in hosts if other.hostname == host.hostname]
    if len(alike) == 1:
        return host.hostname
    if len({split_address(address)[0] for address in alike}) == 1:
        return f"{host.hostname}:{split_address(host.address)[1]}"
    return f"{host.hostname} at {places(alike)[host.address]}"


def _bits_may_differ(first: Host, host: Host) -> list[str]:
    advice = "Leave it out, or use reproducible=False"
    problems = [
        f"{host} has {package} {host.versions[package]}, and {first} has {first.versions[package]}. {advice}"
        for package in ("NumPy",)
        if host.versions[package] != first.versions[package]
    ]
    if (host.machine, host.cpu_features) != (first.machine, first.cpu_features):
        features = ", ".join(sorted({*host.cpu_features} ^ {*first.cpu_features})) or host.machine
        problems.append(f"{host} has other CPU features than {first}: {features}. {advice}")
    return problems


def _as_host(address: str, answer: Future[Message]) -> Host:
    content = answer.result(timeout=ANSWER_SECONDS).content
    return Host(
        address,
        content["name"],
        content["name"],
        content["pid"],
        content["threads"],
        content["flops_per_second"],
        content["bytes_per_second"],
        content["machine"],
        tuple(content["cpu_features"]),
        content["versions"],
    )
