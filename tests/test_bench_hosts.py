"""The benchmark on emulated hosts: its figures, and PyTorch in network namespaces beside one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from miai_graph.bench.exchange import Problem
from miai_graph.bench.hosts_measure import TorchSide, measure_pipeline, measure_scaling
from miai_graph.bench.hosts_processes import Group
from miai_graph.bench.hosts_results import HostsResults, Pipeline, PipelineResult, ScalingResult, throughput_ratio
from miai_graph.bench.hosts_workloads import STACKED_MLP, hosts_workload
from miai_graph.bench.machine import check_torch
from miai_graph.bench.networks import EmulatedNetwork, can_emulate
from miai_graph.errors import ArgumentError, ExecutionError, MissingDependencyError

REASON = can_emulate()
PYTHON = sys.executable


def has_torch() -> bool:
    try:
        check_torch(PYTHON)
    except MissingDependencyError:
        return False
    return True


on_hosts = pytest.mark.skipif(REASON is not None, reason=f"hosts cannot be emulated: {REASON}")
with_torch = pytest.mark.skipif(not has_torch(), reason="PyTorch is not installed: pip install -e .[bench]")


def test_the_stacked_network_trains_and_is_the_same_each_time(tmp_path: Path) -> None:
    problem = STACKED_MLP.problem(4)
    problem.save(tmp_path / "problem.npz")
    read = Problem.load(tmp_path / "problem.npz")
    assert [name for name in read.weights if name.endswith("kernel")] == [f"dense_{place}/kernel" for place in range(8)]
    rows = problem.rows[0]
    assert 6 < STACKED_MLP.model().train_on_batch(problem.x[rows], problem.y[rows]) < 8


def test_workloads_by_name() -> None:
    assert hosts_workload("stacked_mlp") is STACKED_MLP
    assert hosts_workload("lenet").name == "lenet"
    with pytest.raises(ArgumentError, match="nonsense"):
        hosts_workload("nonsense")


def test_the_ideal_of_a_pipeline() -> None:
    pipeline = Pipeline(256, 8, "1f1b")
    assert pipeline.stretch == 9 / 8
    result = PipelineResult("torch", pipeline, medians=[1.0, 3.0, 2.0], stage_medians=[[0.8, 0.5], [1.0, 2.0], [1, 1]])
    assert result.median == 2
    assert result.over_ideal == pytest.approx(1.5 / (9 / 8))
    slower = PipelineResult("other", pipeline, medians=[2.0, 3.0, 5.0], stage_medians=[[1.0], [1.0], [1.0]])
    assert throughput_ratio(result, slower) == 2
    slower.fail("it ended")
    assert throughput_ratio(result, slower) is None
    assert (slower.median, slower.over_ideal) == (None, None)


def test_results_in_a_file(tmp_path: Path) -> None:
    pipeline = PipelineResult("torch", Pipeline(256, 8, "1f1b"), medians=[0.9], stage_medians=[[0.8, 0.7]])
    scaling = ScalingResult("torch", "lenet", 64, alone=[1.0, 2.0, 4.0], together=[1.0, 1.0, 1.0])
    HostsResults({"processor": "any"}, {"rounds": 1}, [[pipeline]], [[scaling]]).save(tmp_path / "hosts.json")
    found = json.loads((tmp_path / "hosts.json").read_text())
    assert found["pipelines"][0]["over_ideal"] == pytest.approx(1)
    assert found["pipelines"][0]["pipeline"]["micro_batches"] == 8
    assert found["scalings"][0]["speed_up"] == 2


@pytest.mark.root
@on_hosts
def test_a_process_that_ends_is_told_of(tmp_path: Path) -> None:
    arguments = ["--problem", str(tmp_path / "none.npz")]
    with (
        EmulatedNetwork(1) as network,
        Group(network, 1, sys.executable, "miai_graph.bench.torch_pipeline", arguments, tmp_path) as group,
        pytest.raises(ExecutionError, match="torch_pipeline on host 0"),
    ):
        group.answers()


@pytest.mark.root
@on_hosts
@with_torch
def test_pytorch_in_stages_trains_as_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "problem.npz"
    STACKED_MLP.problem(16).save(path)
    alone = ["--workload", "stacked_mlp", "--processes", "1"]
    staged = ["--stages", "2", "--micro-batches", "4", "--schedule", "1f1b"]
    with (
        EmulatedNetwork(2) as network,
        Group(
            network, 1, PYTHON, "miai_graph.bench.hosts_torch_ddp", [*alone, "--problem", str(path)], tmp_path
        ) as one,
        Group(
            network, 2, PYTHON, "miai_graph.bench.torch_pipeline", [*staged, "--problem", str(path)], tmp_path
        ) as two,
    ):
        losses = []
        for group in (one, two):
            group.answers()
            first, more = group.order("fresh")[-1], group.order("steps", count=3)[-1]
            losses.append([*first["losses"], *more["losses"]])
        computed = two.order("compute", count=2)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all(0 < seconds < 5 for stage in computed for seconds in stage["seconds"])


@pytest.mark.root
@on_hosts
@with_torch
def test_pytorch_is_measured_on_hosts() -> None:
    told: list[str] = []
    with EmulatedNetwork(2) as network:
        sides = [TorchSide(network, PYTHON)]
        (staged,) = measure_pipeline(Pipeline(16, 4, "gpipe"), sides, 2, 0.01, told.append)
        (scaled,) = measure_scaling("lenet", 16, sides, 2, 0.01, told.append)
    assert (staged.problem, scaled.problem) == (None, None)
    assert [len(staged.medians), len(scaled.alone), len(scaled.together)] == [2, 2, 2]
    assert staged.over_ideal is not None
    assert staged.over_ideal > 0.5
    assert scaled.speed_up is not None
    assert told == ["torch: first steps", "torch: round 1 of 2", "torch: round 2 of 2"] * 2


@pytest.mark.root
@on_hosts
def test_a_side_that_fails_is_told_of() -> None:
    with EmulatedNetwork(1) as network:
        sides = [TorchSide(network, "no-such-python")]
        (result,) = measure_pipeline(Pipeline(16, 4, "1f1b", stages=1), sides, 1, 0.01, lambda _: None)
    assert result.median is None
    assert "no-such-python" in (result.problem or "")
