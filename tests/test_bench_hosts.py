"""The benchmark on emulated hosts: its figures, and both sides in network namespaces beside one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from miai_graph.bench.hosts_measure import PIPELINES, measure_pipeline, measure_scaling, measurements
from miai_graph.bench.hosts_report import print_hosts_results
from miai_graph.bench.hosts_results import HostsResults, Pipeline, PipelineResult, Scaling, ScalingResult
from miai_graph.bench.hosts_sides import OwnSide, Side, TorchSide
from miai_graph.bench.machine import check_peer
from miai_graph.bench.networks import EmulatedNetwork, can_emulate
from miai_graph.bench.workloads import STACKED_MLP, WORKLOADS
from miai_graph.errors import ExecutionError, MissingDependencyError

REASON = can_emulate()
PYTHON = sys.executable
TINY = Pipeline(16, 4, "1f1b")


def has_torch() -> bool:
    try:
        check_peer(PYTHON, "torch")
    except MissingDependencyError:
        return False
    return True


def on_hosts(test: Any) -> Any:
    reason = f"hosts cannot be emulated: {REASON}"
    return pytest.mark.root(pytest.mark.skipif(REASON is not None, reason=reason)(test))


with_torch = pytest.mark.skipif(not has_torch(), reason="PyTorch is not installed: pip install -e .[bench]")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-c", "from miai_graph.commands import main; main()", "bench", "--hosts", *arguments]
    settings: dict[str, Any] = {"env": {**os.environ, **environment}, "timeout": 110, "check": False}
    return subprocess.run(command, capture_output=True, text=True, **settings)


def pipeline_result(side: str, pipeline: Pipeline = TINY, **figures: Any) -> PipelineResult:
    return PipelineResult(side=side, pipeline=pipeline, **{"losses": [2.0], "loss_difference": 0.0, **figures})


def test_the_ideal_of_a_pipeline() -> None:
    pipeline = Pipeline(256, 8, "1f1b")
    assert pipeline.stretch == 9 / 8
    stages = [[0.8, 0.5], [1.0, 2.0], [1.0, 1.0]]
    result = pipeline_result("a", pipeline, medians=[1.0, 3.0, 2.0], stage_medians=stages)
    assert result.median == 2
    assert result.stages == [1.0, 1.0]
    assert result.over_ideal == pytest.approx(1.5 / (9 / 8))


def test_sides_are_compared_round_by_round_if_they_did_the_same() -> None:
    first = pipeline_result("a", medians=[1.0, 3.0, 2.0], stage_medians=[[1.0]] * 3)
    slower = pipeline_result("b", medians=[2.0, 3.0, 5.0], stage_medians=[[1.0]] * 3, losses=[2.00001])
    other = pipeline_result("c", medians=[1.0, 1.0, 1.0], stage_medians=[[1.0]] * 3, losses=[2.1])
    for result in (first, slower, other):
        result.compare(first)
    assert first.throughput_ratio(slower) == 2
    assert not other.is_comparable
    assert first.throughput_ratio(other) is None
    slower.fail("it ended")
    assert first.throughput_ratio(slower) is None
    assert (slower.median, slower.over_ideal, slower.stages) == (None, None, [])


def test_results_are_printed_and_become_json() -> None:
    own = pipeline_result("miai_graph", medians=[0.9], stage_medians=[[0.72, 0.7]])
    torch = pipeline_result("torch", medians=[1.8], stage_medians=[[0.72, 0.7]], versions={"torch": "2.13"})
    failed = pipeline_result("torch")
    failed.fail("it ended")
    scaling = ScalingResult(side="torch", scaling=Scaling("lenet", 64), alone=[1.0, 2.0, 4.0], together=[1.0, 1.0, 1.0])
    settings = {"bits_per_second": 1e9, "rounds": 1, "seconds": 1.0}
    results = HostsResults({"processor": "any"}, settings, [[own, torch], [own, failed]], [[scaling]])
    found = json.loads(json.dumps(results.to_json()))
    assert found["pipelines"][0]["over_ideal"] == pytest.approx(1)
    assert found["pipelines"][0]["pipeline"]["micro_batches"] == 4
    assert found["pipelines"][1]["throughput_of_first"] == 2
    assert found["scalings"][0]["speed_up"] == 2
    text = StringIO()
    print_hosts_results(results, Console(file=text, width=200))
    for words in ("link:        1 Gbit/s", "2.13", "4 × 1f1b", "720 + 700", "1.00", "2.00× as fast", "lenet"):
        assert words in text.getvalue()
    assert "pipeline, batch 16, 4 × 1f1b, torch failed: it ended" in text.getvalue()
    assert "lenet, batch 64, torch is not comparable: the first side failed." in text.getvalue()


def test_what_is_measured() -> None:
    assert measurements(["stacked_mlp"], None) == [*PIPELINES, Scaling("stacked_mlp", 512)]
    kinds = [Pipeline(16, 8, "1f1b"), Pipeline(16, 4, "gpipe"), Scaling("stacked_mlp", 16), Scaling("lenet", 16)]
    assert measurements(["stacked_mlp", "lenet"], [16]) == kinds
    for name, workload in WORKLOADS.items():
        (scaling,) = measurements([name], None)
        assert isinstance(scaling, Scaling)
        assert scaling.batch >= max(workload.batches)


def test_where_hosts_cannot_be_emulated_the_command_says_so() -> None:
    finished = run(PATH="/nowhere")
    assert finished.returncode == 1
    assert "expected a machine that can emulate hosts; found that" in finished.stderr
    assert (REASON or "there is no program 'ip'") in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--executors", "serial"], "--executors"),
        (["--chart", "chart.png"], "--chart"),
        (["--vs", "torch-ddp"], "'torch-ddp'"),
        (["--vs", "torch", "--peer-python", "no-such-python"], "no-such-python"),
    ],
)
def test_the_command_refuses_what_hosts_do_not_have(arguments: Sequence[str], words: str) -> None:
    finished = run(*arguments)
    assert finished.returncode == 1
    assert words in finished.stderr


@on_hosts
def test_the_command_measures_on_hosts(tmp_path: Path) -> None:
    quick = ["--batch", "16", "--rounds", "1", "--seconds", "0.01", "--json", str(tmp_path / "hosts.json")]
    finished = run("lenet", *quick)
    assert finished.returncode == 0, finished.stderr
    for words in ("processor:", "1 Gbit/s", "data parallel", "lenet", "miai_graph"):
        assert words in finished.stdout
    (found,) = json.loads((tmp_path / "hosts.json").read_text())["scalings"]
    assert found["problem"] is None
    assert found["speed_up"] > 0


@on_hosts
def test_our_pipeline_trains_as_one_process_does(tmp_path: Path) -> None:
    path = tmp_path / "problem.npz"
    STACKED_MLP.problem(16).save(path)
    with EmulatedNetwork(2) as network:
        side = OwnSide(network)
        with side.replicas("stacked_mlp", 1, path) as alone, side.pipeline(TINY, path) as staged:
            for trainer in (alone, staged):
                assert all(0 < seconds < 5 for seconds in trainer.steps(3))
            computed = staged.compute(2)
    assert len(alone.losses) == 4
    assert staged.losses == pytest.approx(alone.losses, rel=1e-5)
    assert [len(stage) for stage in computed] == [2, 2]
    assert all(0 < seconds < 5 for stage in computed for seconds in stage)


@on_hosts
def test_a_side_that_fails_is_told_of_and_the_other_goes_on() -> None:
    with EmulatedNetwork(2) as network:
        sides: list[Side] = [OwnSide(network), TorchSide(network, "no-such-python")]
        own, other = measure_pipeline(TINY, sides, 1, 0.01, lambda _: None)
    assert own.problem is None
    assert own.over_ideal is not None
    assert other.median is None
    assert "no-such-python" in (other.problem or "")


@on_hosts
def test_a_process_that_ends_is_told_of(tmp_path: Path) -> None:
    with (
        EmulatedNetwork(1) as network,
        pytest.raises(ExecutionError, match="executor 'serial'"),
        OwnSide(network).replicas("lenet", 1, tmp_path / "none.npz"),
    ):
        pass


@on_hosts
@pytest.mark.peers
@with_torch
def test_pytorch_in_stages_trains_as_one_process_does(tmp_path: Path) -> None:
    path = tmp_path / "problem.npz"
    STACKED_MLP.problem(16).save(path)
    with EmulatedNetwork(2) as network:
        side = TorchSide(network, PYTHON)
        with (
            side.replicas("stacked_mlp", 1, path) as alone,
            side.pipeline(TINY, path) as staged,
        ):
            for trainer in (alone, staged):
                trainer.steps(3)
            computed = staged.compute(2)
    assert len(alone.losses) == 4
    assert staged.losses == pytest.approx(alone.losses, rel=1e-5)
    assert [len(stage) for stage in computed] == [2, 2]
    assert all(0 < seconds < 5 for stage in computed for seconds in stage)


@on_hosts
@pytest.mark.peers
@with_torch
def test_both_sides_do_the_same_as_pipelines_in_turns() -> None:
    told: list[str] = []
    with EmulatedNetwork(2) as network:
        sides: list[Side] = [OwnSide(network), TorchSide(network, PYTHON)]
        own, torch = measure_pipeline(Pipeline(16, 4, "gpipe"), sides, 2, 0.01, told.append)
    assert (own.problem, torch.problem) == (None, None)
    assert torch.is_comparable, (own.losses, torch.losses)
    assert own.throughput_ratio(torch) is not None
    first, second = "miai_graph: round {} of 2", "torch: round {} of 2"
    starts = ["miai_graph: first steps", "torch: first steps"]
    assert told == [*starts, first.format(1), second.format(1), second.format(2), first.format(2)]


@on_hosts
@pytest.mark.peers
@with_torch
def test_both_sides_do_the_same_as_replicas() -> None:
    with EmulatedNetwork(2) as network:
        sides: list[Side] = [OwnSide(network), TorchSide(network, PYTHON)]
        own, torch = measure_scaling(Scaling("lenet", 16), sides, 1, 0.01, lambda _: None)
    assert (own.problem, torch.problem) == (None, None)
    assert torch.is_comparable, (own.losses, torch.losses)
    assert None not in (own.speed_up, torch.speed_up)
