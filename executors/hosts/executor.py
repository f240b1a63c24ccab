"""Pipelines and data parallelism over hosts that sockets connect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar
from weakref import WeakMethod, finalize

from executors.hosts.cluster import Cluster, Message
from executors.hosts.executable import HostsExecutable
from executors.hosts.layout import Layout, check_stages
from executors.hosts.loading import load
from executors.hosts.session import HostsLost, Session
from executors.hosts.watch import ClockOffset, Watch
from executors.planned import check_flag, check_positive
from miai_graph.cores import threads_of_each
from miai_graph.errors import ArgumentError, ExecutorError, HostLostError
from miai_graph.executor import Executor, Worker
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.passes.cutting import Links
from miai_graph.plan.schedule import KINDS
from miai_graph.state import state

EMBEDDED_HOSTS = 2

Result = TypeVar("Result")


@dataclass(frozen=True)
class Host:
    """A host as it described itself.

    flops_per_second : measured in matrix products
    """

    address: str
    name: str
    pid: int
    threads: int
    flops_per_second: float
    machine: str
    cpu_features: tuple[str, ...]
    versions: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(self.address)


class Hosts(Executor):
    """Runs graphs on hosts: cut into stages, each of which is on a host, and in replicas, each with its rows.

    Parameters
    ----------
    address : of the cluster's scheduler, as ``miai-graph cluster start`` prints it; None starts a cluster of processes
        on this machine, which ends with this executor
    stages : the number of stages; or for each stage the names of its layers; "auto": as many as hosts allow, 2 if they
        are started here
    replicas : how many pipelines share each batch
    micro_batches : into how many parts each replica cuts its rows; "auto": chosen by the time that stages take
    schedule : "1f1b" (one forward, one backward) or "gpipe" (all forward, then all backward)
    on_host_lost : "continue" on the hosts left, or "stop"
    reproducible : compute each batch in `shards` parts, each of which is a micro-batch: results are those of `Serial`
        with the same arguments, to the last bit, on any number of hosts with the same CPU features and versions
    shards : the number of parts

    Raises
    ------
    ArgumentError
        for arguments of other kinds.
    MissingDependencyError
        if the packages that connect hosts are not installed.
    ExecutorError
        if the cluster cannot be reached or has too few hosts.
    """

    name = "hosts"

    def __init__(
        self,
        address: str | Cluster | None = None,
        stages: int | Literal["auto"] | Sequence[Sequence[str]] = "auto",
        replicas: int = 1,
        micro_batches: int | Literal["auto"] = "auto",
        schedule: Literal["1f1b", "gpipe"] = "1f1b",
        on_host_lost: Literal["continue", "stop"] = "continue",
        reproducible: bool = False,
        shards: int = 8,
    ) -> None:
        check_stages(stages)
        check_positive("replicas", replicas)
        if micro_batches != "auto":
            check_positive("micro-batches", micro_batches)
        if schedule not in KINDS:
            raise ArgumentError(f"expected schedule to be one of {', '.join(map(repr, KINDS))}; found {schedule!r}")
        if on_host_lost not in ("continue", "stop"):
            raise ArgumentError(f"expected on_host_lost to be 'continue' or 'stop'; found {on_host_lost!r}")
        check_flag("reproducible", reproducible)
        check_positive("shards", shards)
        if reproducible and micro_batches not in ("auto", shards):
            raise ArgumentError(
                f"expected micro_batches='auto' with reproducible=True, for each shard is a micro-batch; found "
                f"{micro_batches}. Use shards={micro_batches} everywhere where results shall be the same"
            )
        self.stages_by_hand = None if isinstance(stages, int | str) else stages
        self._stages: int | Literal["auto"] = stages if isinstance(stages, int) or stages == "auto" else len(stages)
        self._replicas = replicas
        self.micro_batches: int | Any = micro_batches
        self.schedule = schedule
        self._on_host_lost = on_host_lost
        self.shards = shards if reproducible else None
        self.generation = 0
        self.notes: list[str] = []
        self.crew: list[Host] = []
        """The hosts there are."""
        self._losses: list[str] = []
        self._links: Links | None = None
        self._cluster = address if isinstance(address, Cluster) else self._connect(address)
        self._watch = Watch(self._cluster)
        self.session = Session(self._cluster, self._watch)
        # Not the method itself: what the finalizer keeps must not keep this object.
        recover = WeakMethod(self.recover)
        self.session.recover = lambda: _call(recover)
        self._finish = finalize(self, _finish, self.session, self._watch, self._cluster)
        self.welcome()

    def _connect(self, address: str | None) -> Cluster:
        if address is None:
            count = EMBEDDED_HOSTS if self._stages == "auto" else self._stages
            count *= self._replicas
            started: Cluster = load("embedded").EmbeddedCluster(count, threads_of_each(count))
            return started
        security = load("security")
        connected: Cluster = load("dask_cluster").DaskCluster(address, security.credentials(security.find_token()))
        return connected

    def __repr__(self) -> str:
        return f"Hosts(stages={self._stages!r}, replicas={self._replicas}, {len(self.crew)} hosts)"

    def welcome(self) -> None:
        """Take in the hosts that have joined."""
        known = {host.address for host in self.crew}
        joined = [address for address in self._cluster.addresses if address not in known]
        self._watch.forgive(joined)
        asked = {address: self._cluster.call(address, "describe", Message({"measure": True})) for address in joined}
        found = []
        for address, answer in asked.items():
            try:
                found.append(_as_host(address, answer))
            except Exception as error:
                self.notes.append(f"host {address} is not used: {error}")
        if found:
            self._require_alike([*self.crew, *found])
            for host in found:
                self._watch.add(host.address)
            self.crew += found
            self.generation += 1
        self._require_enough()

    def _require_alike(self, hosts: Sequence[Host]) -> None:
        first = hosts[0]
        for host in hosts[1:]:
            for package in ("miai-graph",) if self.shards is None else ("miai-graph", "NumPy"):
                if host.versions[package] != first.versions[package]:
                    raise ExecutorError(
                        f"expected {package} {first.versions[package]} on each host, as on {first.name} "
                        f"({first.address}); found {host.versions[package]} on {host.name} ({host.address}). Install "
                        "the same version"
                    )
            if self.shards is not None and (host.machine, host.cpu_features) != (first.machine, first.cpu_features):
                raise ExecutorError(
                    f"expected hosts with the same CPU features, for reproducible=True; found that {host.name} "
                    f"({host.address}) differs from {first.name} ({first.address}) in "
                    f"{', '.join(sorted({*host.cpu_features} ^ {*first.cpu_features})) or host.machine}. Leave it "
                    "out, or use reproducible=False"
                )

    def _require_enough(self) -> None:
        if not self.crew:
            raise ExecutorError(
                "expected at least one host in the cluster; found none. Type miai-graph cluster join on one"
            )

    def measured_crew(self) -> list[Host]:
        """The hosts, asked once more how fast they are: something else may have kept them busy the first time."""
        asked = {host: self._cluster.call(host.address, "describe", Message({"measure": True})) for host in self.crew}
        faster = []
        for host, answer in asked.items():
            speed = _as_host(host.address, answer).flops_per_second
            faster.append(replace(host, flops_per_second=max(speed, host.flops_per_second)))
        self.crew = faster
        return faster

    def clock(self, address: str) -> ClockOffset:
        """How far a host's clock is from that of this process."""
        return self._watch.offsets.get(address, ClockOffset(0, 0))

    def is_usable(self, address: str) -> bool:
        return address not in self._watch.lost and any(host.address == address for host in self.crew)

    def grid_size(self, hosts: int, most_stages: int) -> tuple[int, int]:
        """Numbers of stages and replicas, for as many hosts and a graph that cannot be cut into more stages."""
        wanted = max(1, hosts // self._replicas) if self._stages == "auto" else self._stages
        stages = min(wanted, most_stages, hosts)
        return stages, max(1, min(self._replicas, hosts // stages))

    def links(self) -> Links | None:
        """What connects the hosts, if it was measured."""
        return self._links

    def despite_losses(self, attempt: Callable[[], Result]) -> Result:
        """The result of an attempt, made again after each loss of a host.

        Raises
        ------
        HostLostError
            if there is no going on.
        """
        while True:
            try:
                return attempt()
            except HostsLost:
                self.recover()

    def name_losses(self, layout: Layout, step: int) -> None:
        """Say which hosts were lost, with their stages and the step."""
        for host in layout.hosts:
            reason = self._watch.lost.get(host.address)
            if reason is not None:
                name = next((known.name for known in self.crew if known.address == host.address), "")
                self._losses.append(
                    f"host {name} ({host.address}), stage {host.stage} of replica {host.replica}, in step {step}: "
                    f"{reason}"
                )

    def recover(self) -> None:
        """After a loss: go on with the hosts left, from what they have or from the last snapshot.

        Raises
        ------
        HostLostError
            if that is not wanted, or there are none.
        """
        session = self.session
        self._dismiss_lost()
        if session.salvage():
            self._go_on(0)
            return
        pending = session.roll_back()
        self._go_on(len(pending))
        while pending:
            try:
                pending[0].repeat()
                del pending[0]
            except HostsLost:
                self._dismiss_lost()
                if not session.salvage():
                    pending = [*session.roll_back(), *pending]
                self._go_on(len(pending))

    def _dismiss_lost(self) -> None:
        lost = [host for host in self.crew if host.address in self._watch.lost]
        self.crew = [host for host in self.crew if host.address not in self._watch.lost]
        named = " ".join(self._losses)
        for host in lost:
            if host.address not in named:
                self._losses.append(f"host {host.name} ({host.address}): {self._watch.lost[host.address]}")
            self.session.forget_host(host.address)
        self.generation += 1

    def _go_on(self, steps: int) -> None:
        losses = "\n  ".join(self._losses)
        self.notes += self._losses
        self._losses = []
        if self._on_host_lost == "continue" and self.crew:
            return
        missing = f", {steps} steps before" if steps else ""
        advice = "Start them again" if not self.crew else "on_host_lost='continue' goes on with those left"
        raise HostLostError(
            f"expected all hosts to stay; found that some are lost:\n  {losses}\n  The values are those of the last "
            f"snapshot{missing}. {advice}"
        )

    @property
    def workers(self) -> Sequence[Worker]:
        return tuple(Worker(index, host.pid, host.name, host.threads) for index, host in enumerate(self.crew))

    def compile(
        self, graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node]
    ) -> HostsExecutable:
        self.require_open()
        return HostsExecutable(self, graph, inputs)

    def close(self) -> None:
        # A step of another thread is finished first.
        with state.lock:
            self._finish()
            super().close()


def _call(method: WeakMethod[Callable[[], None]]) -> None:
    alive = method()
    if alive is None:
        raise HostLostError("expected hosts that hold the values; found that they, and their executor, are gone")
    alive()


def _as_host(address: str, answer: Future[Message]) -> Host:
    content = answer.result(timeout=10.0).content
    return Host(
        address,
        content["name"],
        content["pid"],
        content["threads"],
        content["flops_per_second"],
        content["machine"],
        tuple(content["cpu_features"]),
        content["versions"],
    )


def _finish(session: Session, watch: Watch, cluster: Cluster) -> None:
    try:
        session.end()
    finally:
        watch.close()
        cluster.close()
