"""The sides of the benchmark on emulated hosts: this library, and what one would use instead."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from miai_graph.bench.exchange import Answer, start_command
from miai_graph.bench.hosts_results import Pipeline
from miai_graph.bench.networks import INTERFACE, EmulatedNetwork
from miai_graph.bench.partner import THREAD_VARIABLES, Partner
from miai_graph.bench.workloads import STACKED_MLP

TOKEN_VARIABLE = "MIAI_GRAPH_TOKEN"
_COMMANDS = "from miai_graph.commands import main; main()"
_ONE_THREAD = dict.fromkeys((*THREAD_VARIABLES, "OPENBLAS_NUM_THREADS"), "1")


class Trainer:
    """Processes that train together, once they have done a first step.

    Attributes
    ----------
    versions : of the libraries that decide, by name
    losses : of all timed steps so far, and of the first one
    """

    def __init__(self, partners: Sequence[Partner]) -> None:
        self._partners = partners
        self.versions: Mapping[str, str] = self._answers()[0]["versions"]
        self.losses: list[float] = self._order("fresh")[-1]["losses"]

    def steps(self, count: int) -> Sequence[float]:
        """Train for some steps; the seconds of each."""
        answers = self._order("steps", count=count)
        self.losses += answers[-1]["losses"]
        seconds: Sequence[float] = answers[0]["seconds"]
        return seconds

    def compute(self, count: int) -> Sequence[Sequence[float]]:
        """Train for some steps; for each stage of a pipeline, the seconds that it computes in each of them: what the
        forward and backward passes and the update take, but not sending and waiting."""
        return [stage for answer in self._order("compute", count=count) for stage in answer["stages"]]

    def _order(self, name: str, **arguments: Any) -> list[Answer]:
        """Have all do something at the same time; what each answers."""
        for partner in self._partners:
            partner.tell(name, **arguments)
        return self._answers()

    def _answers(self) -> list[Answer]:
        return [partner.answer() for partner in self._partners]


class Side(Protocol):
    """What trains on hosts, one thread a host."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    def pipeline(self, pipeline: Pipeline, problem: Path) -> AbstractContextManager[Trainer]:
        """A pipeline that trains `STACKED_MLP` on a problem, within a ``with`` block."""
        ...

    def replicas(self, workload: str, count: int, problem: Path) -> AbstractContextManager[Trainer]:
        """So many replicas of a workload's model, which share each batch of a problem; alone it needs no network."""
        ...


class OwnSide:
    """This library: a cluster of its own for each trainer, as ``miai-graph cluster`` makes it, and executor "hosts".

    The scheduler and the user's process are on the first host, beside that one's worker; both have little to do.

    Parameters
    ----------
    network : whose first hosts are used
    """

    name = "miai_graph"

    def __init__(self, network: EmulatedNetwork) -> None:
        self._network = network

    @contextmanager
    def pipeline(self, pipeline: Pipeline, problem: Path) -> Iterator[Trainer]:
        """See `Side`."""
        options = {
            "stages": pipeline.stages,
            "micro_batches": pipeline.micro_batches,
            "schedule": pipeline.schedule,
        }
        with self._on_cluster(pipeline.stages, STACKED_MLP.name, problem, options) as trainer:
            yield trainer

    @contextmanager
    def replicas(self, workload: str, count: int, problem: Path) -> Iterator[Trainer]:
        """See `Side`."""
        if count == 1:
            with self._user(workload, problem, "serial", {"threads": 1}, {}) as user:
                yield Trainer([user])
            return
        options = {"stages": 1, "replicas": count}
        with self._on_cluster(count, workload, problem, options) as trainer:
            yield trainer

    @contextmanager
    def _on_cluster(self, hosts: int, workload: str, problem: Path, options: Mapping[str, Any]) -> Iterator[Trainer]:
        scheduler = self._network.addresses[0]
        with tempfile.TemporaryDirectory(dir=problem.parent) as folder, ExitStack() as stack:
            token_file = Path(folder, "token")
            for host in range(hosts):
                command = ["join", scheduler] if host else ["start", "--host", scheduler]
                command += ["--token-file", str(token_file), "--threads", "1"]
                stack.enter_context(_Member(self._network, host, command)).line()  # It has joined.
            token = {TOKEN_VARIABLE: token_file.read_text(encoding="utf-8").strip()}
            given = {"address": scheduler, **options}
            yield Trainer([stack.enter_context(self._user(workload, problem, "hosts", given, token))])

    def _user(
        self,
        workload: str,
        problem: Path,
        executor: str,
        options: Mapping[str, Any],
        environment: Mapping[str, str],
    ) -> Partner:
        arguments = ["--workload", workload, "--problem", str(problem), "--executor", executor]
        arguments += ["--options", json.dumps(dict(options))]
        command = start_command(sys.executable, "miai_graph.bench.own_side", *arguments)
        name = f"the user's process with executor {executor!r}"
        return Partner(name, command, {**_ONE_THREAD, **environment}, partial(self._network.run, 0))


class _Member(Partner):
    """A host's ``miai-graph cluster start`` or ``join``."""

    def __init__(self, network: EmulatedNetwork, host: int, arguments: Sequence[str]) -> None:
        name = f"'miai-graph cluster {arguments[0]}' on host {host}"
        command = [sys.executable, "-c", _COMMANDS, "cluster", *arguments]
        super().__init__(name, command, {}, partial(network.run, host))

    def dismiss(self) -> None:
        super().dismiss()
        self._process.terminate()


class TorchSide:
    """What one would use instead: pipelines of ``torch.distributed``, and DDP, both over gloo.

    Parameters
    ----------
    network : whose first hosts are used
    python : which has PyTorch
    """

    name = "torch"

    def __init__(self, network: EmulatedNetwork, python: str) -> None:
        self._network, self._python = network, python

    @contextmanager
    def pipeline(self, pipeline: Pipeline, problem: Path) -> Iterator[Trainer]:
        """See `Side`."""
        arguments = ["--stages", str(pipeline.stages), "--schedule", pipeline.schedule]
        arguments += ["--micro-batches", str(pipeline.micro_batches)]
        with self._started(pipeline.stages, "torch_pipeline", problem, arguments) as trainer:
            yield trainer

    @contextmanager
    def replicas(self, workload: str, count: int, problem: Path) -> Iterator[Trainer]:
        """See `Side`."""
        arguments = ["--workload", workload, "--processes", str(count), "--threads", "1"]
        with self._started(count, "torch_peer", problem, arguments) as trainer:
            yield trainer

    @contextmanager
    def _started(self, hosts: int, module: str, problem: Path, arguments: Sequence[str]) -> Iterator[Trainer]:
        """A process on each host."""
        with tempfile.TemporaryDirectory(dir=problem.parent) as folder, ExitStack() as stack:
            common = [*arguments, "--problem", str(problem), "--meeting", str(Path(folder, "meeting"))]
            partners = []
            for host in range(hosts):
                command = start_command(self._python, f"miai_graph.bench.{module}", *common, "--rank", str(host))
                environment = {**_ONE_THREAD, "GLOO_SOCKET_IFNAME": INTERFACE}
                partner = Partner(f"{module} on host {host}", command, environment, partial(self._network.run, host))
                partners.append(stack.enter_context(partner))
            # They end together: one that ends may wait for another.
            for partner in partners:
                stack.callback(partner.dismiss)
            yield Trainer(partners)
