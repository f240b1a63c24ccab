"""Pipelines and data parallelism over hosts that sockets connect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread, current_thread, main_thread
from time import perf_counter
from typing import Any, Literal, NoReturn, TypeVar
from weakref import WeakMethod, finalize

from executors.arguments import check_flag, check_positive
from executors.hosts.cluster import Cluster
from executors.hosts.connection.loading import load, require_packages
from executors.hosts.conversation import HostsLost
from executors.hosts.crew import Crew
from executors.hosts.executable import HostsExecutable
from executors.hosts.journal import Journal
from executors.hosts.layout import Layout, check_stages
from executors.hosts.session import Session
from executors.hosts.watch import Watch
from executors.serial import SerialExecutable
from executors.splitting import analyse_parts
from miai_graph.cores import threads_of_each
from miai_graph.errors import ArgumentError, ClusterLostError, ExecutorError, HostLostError
from miai_graph.executor import Executable, Executor, Worker
from miai_graph.feeding import check_inputs
from miai_graph.graph import Graph
from miai_graph.node import Node
from miai_graph.passes.simplify import simplify
from miai_graph.plan.schedule import KINDS
from miai_graph.state import state
from miai_graph.terminal import print_text

EMBEDDED_HOSTS = 2

Result = TypeVar("Result")


class Hosts(Executor):
    """Runs graphs on hosts: cut into stages, each of which is on a host, and in replicas, each with its rows.

    A graph that cannot be computed from parts of the batch, or that hosts cannot get, is computed by this process
    alone; a warning names the node.

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
    token_file : with the cluster's token; else it is in the environment variable ``MIAI_GRAPH_TOKEN``, or asked for
    tls_ca_file, tls_cert, tls_key : instead of a token, for those who have certificates: an authority's, this
        machine's own, and its private key, in PEM format

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
        *,
        token_file: str | Path | None = None,
        tls_ca_file: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
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
        self._losses: dict[str, str] = {}
        files = {"token_file": token_file, "tls_ca_file": tls_ca_file, "tls_cert": tls_cert, "tls_key": tls_key}
        self._cluster = address if isinstance(address, Cluster) else self._connect(address, files)
        watch = Watch(self._cluster)
        self.crew = Crew(self._cluster, watch, is_reproducible=reproducible)
        self._journal = Journal()
        self.session = Session(self._cluster, watch, self._journal)
        self.session.describe = self.crew.describe
        # Not the method itself: what the finalizer keeps must not keep this object.
        recover = WeakMethod(self.recover)
        self.session.recover = lambda: _call(recover)
        self._finish = finalize(self, _finish_anywhere, self.session, watch, self._cluster)
        try:
            self.welcome()
            self._require_enough()
        except BaseException:
            self._end()
            raise

    def _connect(self, address: str | None, files: Mapping[str, str | Path | None]) -> Cluster:
        require_packages()
        if address is None:
            count = EMBEDDED_HOSTS if self._stages == "auto" else self._stages
            count *= self._replicas
            started: Cluster = load("connection.embedded").EmbeddedCluster(count, threads_of_each(count))
            return started
        found = load("connection.credentials").find_credentials(**files)
        connected: Cluster = load("connection.dask_cluster").DaskCluster(address, found)
        return connected

    def __repr__(self) -> str:
        return f"Hosts(stages={self._stages!r}, replicas={self._replicas}, {len(self.crew)} hosts)"

    def welcome(self) -> None:
        """Take in the hosts that have joined.

        Raises
        ------
        ExecutorError
            if there are none.
        ClusterLostError
            if the scheduler is gone. The values are here then.
        """
        try:
            self.session.restart()
            self.crew.welcome()
        except ClusterLostError as error:
            self._give_up(error)
        if not len(self.crew):
            notes = "".join(f"\n  {note}" for note in self.crew.notes)
            raise ExecutorError(
                "expected at least one host in the cluster; found none. Type miai-graph cluster join on one" + notes
            )

    def _require_enough(self) -> None:
        wanted = self._replicas * (1 if self._stages == "auto" else self._stages)
        if len(self.crew) < wanted:
            notes = "".join(f"\n  {note}" for note in self.crew.notes)
            raise ExecutorError(
                f"expected {wanted} hosts, for {self._stages} stages in {self._replicas} replicas; found "
                f"{len(self.crew)}. Ask for fewer, or type miai-graph cluster join on more machines{notes}"
            )

    def grid_size(self, hosts: int, most_stages: int) -> tuple[int, int]:
        """Numbers of stages and replicas, for as many hosts and a graph that cannot be cut into more stages."""
        wanted = max(1, hosts // self._replicas) if self._stages == "auto" else self._stages
        stages = min(wanted, most_stages, hosts)
        return stages, max(1, min(self._replicas, hosts // stages))

    def despite_losses(self, attempt: Callable[[], Result]) -> Result:
        """The result of an attempt, made again after each loss of a host.

        Raises
        ------
        HostLostError
            if there is no going on.
        """
        if not len(self.crew):
            self.welcome()
        while True:
            try:
                return attempt()
            except HostsLost:
                self.recover()

    def name_losses(self, layout: Layout, step: int) -> None:
        """Say which hosts were lost, with their stages and the step."""
        names = {host.address: str(host) for host in self.crew.hosts}
        for place in layout.hosts:
            reason = self.crew.why_lost(place.address)
            if reason is not None and place.address in names:
                where = f"stage {place.stage} of replica {place.replica}"
                self._losses[place.address] = f"host {names[place.address]}, {where}, in step {step}: {reason}"

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
        for host in self.crew.dismiss_lost():
            self._losses.setdefault(host.address, f"host {host}: {self.crew.why_lost(host.address)}")
            self.session.forget_host(host.address)
        for address in self.session.forgetful:
            self._losses[address] = f"host {self.crew.describe(address)}: it had let go of the values"
        self.session.forgetful.clear()

    def _go_on(self, steps: int) -> None:
        losses = list(self._losses.values())
        self._losses.clear()
        self.crew.notes += [f"Lost: {loss}" for loss in losses]
        if self._on_host_lost == "continue" and len(self.crew):
            left = "1 host is left" if len(self.crew) == 1 else f"{len(self.crew)} hosts are left"
            again = f"; steps since the last snapshot are repeated: {steps}" if steps else ""
            for loss in losses:
                print_text(f"Lost: {loss}. {left} to go on with{again}.", sys.stderr)
            return
        if not len(self.crew):
            try:
                _ = self._cluster.addresses
            except ClusterLostError as error:
                self._give_up(error, steps)
        advice = "on_host_lost='continue' goes on with those left" if len(self.crew) else "Start them again"
        lines = "\n  ".join(losses)
        raise HostLostError(
            f"expected all hosts to stay; found that some are lost:\n  {lines}\n  {_standing(steps)}. {advice}"
        )

    def _give_up(self, error: ClusterLostError, steps: int = 0) -> NoReturn:
        """The scheduler is gone: see to it that the values are here, and tell which."""
        if not self.session.salvage():
            steps += len(self.session.roll_back())
        raise ClusterLostError(
            f"{error}. {_standing(steps)}; they can be saved, and another executor can go on with them"
        ) from error

    @property
    def workers(self) -> Sequence[Worker]:
        return tuple(Worker(index, host.pid, host.name, host.threads) for index, host in enumerate(self.crew.hosts))

    def compile(
        self, graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], updates: Mapping[Node, Node]
    ) -> Executable:
        self.require_open()
        start = perf_counter()
        check_inputs(graph, inputs)
        simpler = simplify(graph)
        consequence = "The whole graph is computed by this process alone"
        analysis = analyse_parts(simpler, inputs, consequence)
        if analysis is None:
            return SerialExecutable(self, graph, inputs, self.shards)
        return HostsExecutable(self, graph, inputs, simpler, analysis, start)

    def close(self) -> None:
        # A step of another thread is finished first.
        with state.lock:
            super().close()
            self._end()

    def _end(self) -> None:
        if finishing := self._finish.detach():
            _finish(*finishing[2])


def _call(method: WeakMethod[Callable[[], None]]) -> None:
    alive = method()
    if alive is None:
        raise HostLostError("expected hosts that hold the values; found that they, and their executor, are gone")
    alive()


def _standing(steps: int) -> str:
    missing = f", {steps} step{'s' if steps > 1 else ''} before" if steps else ""
    return f"The values are those of the last snapshot{missing}"


def _finish_anywhere(*arguments: Any) -> None:
    """An executor can be collected in any thread, such as the one that hears hosts, which must not wait for them."""
    if current_thread() is main_thread():
        _finish(*arguments)
    else:
        Thread(target=_finish, args=arguments, name="end of hosts").start()


def _finish(session: Session, watch: Watch, cluster: Cluster) -> None:
    try:
        session.end()
    finally:
        watch.close()
        cluster.close()
