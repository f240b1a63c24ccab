"""The benchmark: its workloads, the processes that it measures, and the command ``miai-graph bench``."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from mmap import PAGESIZE, mmap
from pathlib import Path

import numpy as np
import pytest
from real_terminal import on_terminal, plain

from miai_graph.bench import jax_models, torch_models
from miai_graph.bench.chart import plot_growth, plot_results
from miai_graph.bench.exchange import Problem
from miai_graph.bench.growth import GROWTHS, measure_growth
from miai_graph.bench.limits import Peaks, Work, measure_peaks
from miai_graph.bench.measure import measure_row
from miai_graph.bench.memory import begin_growth, growth_since
from miai_graph.bench.results import Results, Row, SideResult, geometric_mean
from miai_graph.bench.specs import parse_executors, parse_peers
from miai_graph.bench.workloads import ALL_WORKLOADS, workload
from miai_graph.errors import ArgumentError, ExecutorError

SERIAL = "serial:threads=1"
HAS_TORCH, HAS_JAX = (importlib.util.find_spec(name) is not None for name in ("torch", "jax"))
BENCH_EXTRA = "pip install -e .[bench]"
with_torch = pytest.mark.skipif(not HAS_TORCH, reason=f"PyTorch is not installed: {BENCH_EXTRA}")
GROWN = ("mlp_3x8", "chain_7")
of_each_workload = pytest.mark.parametrize("name", [*ALL_WORKLOADS, *GROWN])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from miai_graph.commands import main; main()", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def measured(name: str, batch: int, executors: str, peers: str = "") -> Row:
    specs = [*parse_executors(executors), *parse_peers(peers)]
    return measure_row(name, batch, specs, rounds=1, seconds=0.01, peer_python=sys.executable, tell=lambda _: None)


@of_each_workload
def test_each_workload_takes_a_step(name: str) -> None:
    problem = workload(name).problem(4)
    model = workload(name).model()
    rows = problem.rows[0]
    before = model.get_weights()
    loss = model.train_on_batch(problem.x[rows], problem.y[rows])
    assert 0 < loss < 10
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@of_each_workload
def test_a_problem_is_the_same_each_time_and_in_a_file(name: str, tmp_path: Path) -> None:
    first, again = workload(name).problem(4), workload(name).problem(4)
    first.save(tmp_path / "problem.npz")
    read = Problem.load(tmp_path / "problem.npz")
    for other in (again, read):
        assert np.array_equal(first.x, other.x)
        assert np.array_equal(first.y, other.y)
        assert np.array_equal(first.rows, other.rows)
        assert list(first.weights) == list(other.weights)
        assert all(np.array_equal(value, other.weights[key]) for key, value in first.weights.items())
        assert (first.optimizer, first.options) == (other.optimizer, other.options)
    assert read.rows.max() < len(read.x)


@pytest.mark.parametrize("forwards", [torch_models.FORWARDS, jax_models.FORWARDS], ids=["torch", "jax"])
def test_all_workloads_have_a_twin(forwards: dict[str, object]) -> None:
    assert list(forwards) == list(ALL_WORKLOADS)


def test_sides_with_options() -> None:
    specs = parse_executors("serial:threads=1,reproducible=True,shards=8, serial,serial:mode=fast")
    assert [spec.name for spec in specs] == ["serial"] * 3
    assert [dict(spec.options) for spec in specs] == [
        {"threads": 1, "reproducible": True, "shards": 8},
        {},
        {"mode": "fast"},
    ]
    assert [spec.is_peer for spec in parse_peers("torch:threads=2,torch-ddp:processes=3,threads=1")] == [True, True]


@pytest.mark.parametrize("text", ["serial,threads=1", "threads=1", "serial:threads", "serial:=1"])
def test_sides_that_cannot_be_understood(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        parse_executors(text)


@pytest.mark.parametrize("text", ["tensorflow", "torch:workers=2", "torch:threads=0", "torch:threads=True"])
def test_peers_that_are_not_known(text: str) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        parse_peers(text)


def test_executors_that_are_not_known() -> None:
    with pytest.raises(ExecutorError, match="serial"):
        parse_executors("nonsense:workers=2")


def test_two_sides_that_do_the_same_agree() -> None:
    row = measured("digits_mlp", 8, f"{SERIAL},serial")
    for side in row.sides:
        assert side.problem is None
        assert side.is_comparable
        assert len(side.losses) == 20
        for seconds in (side.median, side.bests[0], side.first_cold, side.first_warm, side.empty):
            assert seconds is not None
            assert 0 < seconds < 60
    assert row.ratio(0) == 1
    assert row.ratio(1) is not None


def test_what_a_step_cannot_do_without() -> None:
    row = measured("digits_mlp", 8, SERIAL)
    (side,) = row.sides
    assert side.threads == 1
    assert row.work is not None
    # Forward all products, backward those for the weights, and one for the inputs of the second layer.
    products = 2 * 8 * (2 * 64 * 128 + 3 * 128 * 10)
    assert products < row.work.flops < 1.3 * products
    parameters = 4 * (64 * 128 + 128 + 128 * 10 + 10)
    assert row.work.optimizer_bytes == 5 * parameters
    share = row.share_of_limit(0)
    assert share is not None
    assert share > 0
    assert side.values_bytes is not None
    # Outputs and gradients of the hidden layer, and the weights' gradients unless they are never stored.
    assert 8 * 128 * 4 < side.values_bytes < 1e6


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell what memory a process has had")
@pytest.mark.parametrize("executor", [SERIAL, "processes:workers=2"])
def test_how_much_more_memory_processes_have(executor: str) -> None:
    row = measured("digits_mlp", 8, executor)
    assert row.sides[0].problem is None
    assert row.sides[0].resident_bytes is None or 0 < row.sides[0].resident_bytes < 1e9


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def touch_memory(size_bytes: int) -> None:
    """Use memory that is new to the process for a moment; what NumPy frees might serve again."""
    with mmap(-1, size_bytes) as memory:
        for start in range(0, size_bytes, PAGESIZE):
            memory[start] = 1


def test_growth_of_memory_is_the_peak_since_it_began() -> None:
    touch_memory(30_000_000)
    before = begin_growth()
    touch_memory(10_000_000)
    grown = growth_since(before)
    assert grown is not None
    assert 5_000_000 < grown < 25_000_000


def test_a_limit_is_arithmetic_and_memory() -> None:
    work = Work(flops=6_000, optimizer_bytes=80)
    assert Peaks(2_000.0, 40.0).limit_seconds(work) == 5
    assert Peaks(1.0, 4.0).best(Peaks(3.0, 2.0)) == Peaks(3.0, 4.0)
    side = SideResult("a", medians=[10.0], threads=2)
    row = Row("digits_mlp", 32, [side, SideResult("b", medians=[10.0], threads=1)], work, {2: Peaks(2_000.0, 40.0)})
    assert (row.limit(0), row.share_of_limit(0)) == (5, 0.5)
    assert (row.limit(1), row.share_of_limit(1)) == (None, None)


def test_peaks_are_possible() -> None:
    peaks = measure_peaks(1)
    assert 1e7 < peaks.flops_per_second < 1e13
    assert 1e7 < peaks.bytes_per_second < 1e13


@pytest.mark.parametrize("kind", GROWTHS)
def test_sizes_grow_by_the_same_factor(kind: str) -> None:
    growth = GROWTHS[kind]
    sizes = growth.sizes(5)
    assert (sizes[0], sizes[-1], len(sizes)) == (growth.smallest, growth.largest, 5)
    assert sizes == sorted(set(sizes))
    assert growth.sizes(1) == [growth.largest]
    assert workload(growth.workload(sizes[1])).problem(growth.batch(sizes[1])).rows.shape[1] == growth.batch(sizes[1])


def test_a_side_that_fails_is_not_taken_further() -> None:
    specs = parse_executors(f"{SERIAL},serial:threads=0")
    results = Results({}, {"rounds": 1, "seconds": 0.01}, [spec.text for spec in specs])
    measure_growth(GROWTHS["depth"], [1, 2], specs, results, sys.executable, lambda _: lambda _: None)
    assert [row.workload for row in results.rows] == ["mlp_1x64", "mlp_2x64"]
    assert [row.sides[0].problem for row in results.rows] == [None, None]
    assert "threads" in (results.rows[0].sides[1].problem or "")
    assert "not measured" in (results.rows[1].sides[1].problem or "")


def test_growth_is_printed_written_and_drawn(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "growth.json"), "--chart", str(tmp_path / "growth.png")]
    quick = ["--rounds", "1", "--seconds", "0.01", "--sizes", "5,3", "--executors", SERIAL, "--vs", ""]
    finished = run("--grow", "nodes", *quick, *files)
    assert finished.returncode == 0, finished.stderr
    assert "chain_3" in finished.stdout
    found = json.loads((tmp_path / "growth.json").read_text())
    assert (found["settings"]["grow"], found["settings"]["sizes"]) == ("nodes", [3, 5])
    assert [row["workload"] for row in found["rows"]] == ["chain_3", "chain_5"]
    assert all(row["sides"][0]["build"] > 0 and row["sides"][0]["of_limit"] > 0 for row in found["rows"])
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_growth_leave_out_what_was_not_measured() -> None:
    side = SideResult("serial", medians=[1.0], build=1.0, first_cold=2.0)
    rows = [Row("mlp_1x8", 4, [side]), Row("mlp_2x8", 4, [SideResult("serial", problem="too slow")])]
    figure = plot_growth(Results({}, {}, ["serial"], rows), [1, 2], "layers")
    assert [list(axes.lines[0].get_xydata()[0]) for axes in figure.axes] == [[1, 1e3], [1, 3e3]]
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in figure.axes)
    assert [len(axes.lines[0].get_xydata()) for axes in figure.axes] == [1, 1]


def test_a_side_that_fails_is_told_of_and_the_others_go_on() -> None:
    row = measured("digits_mlp", 8, f"{SERIAL},serial:threads=0")
    assert row.sides[0].median is not None
    assert row.sides[1].median is None
    assert "threads" in (row.sides[1].problem or "")


def test_the_command_prints_and_writes_what_it_finds(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "bench.json"), "--chart", str(tmp_path / "bench.png")]
    quick = ["--rounds", "1", "--seconds", "0.05", "--batch", "4,8"]
    finished = run("digits_mlp", "--executors", f"{SERIAL},serial", *quick, *files)
    assert finished.returncode == 0, finished.stderr
    for text in ("processor:", "digits_mlp", SERIAL, "geometric mean", "×", "cold / warm", "A step of next to nothing"):
        assert text in finished.stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["sides"] == [SERIAL, "serial"]
    assert [row["batch"] for row in found["rows"]] == [4, 8]
    assert found["rows"][0]["sides"][1]["comparable"] is True
    assert found["geometric_mean_ratios"]["serial"] > 0
    assert found["machine"]["processor"]
    assert found["rows"][0]["sides"][0]["of_limit"] > 0
    assert found["rows"][0]["work"]["flops"] > 0
    for text in ("limit of a workload", "GB/s", "megabytes", "first 20 steps from the same weights agree"):
        assert text in finished.stdout
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_terminal_that_knows_ascii_only() -> None:
    command = ["-c", "from miai_graph.commands import main; main()", "bench", "digits_mlp", "--batch", "4"]
    quick = ["--executors", f"{SERIAL},serial", "--rounds", "1", "--seconds", "0.02"]
    variables = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    text = plain(on_terminal(*command, *quick, columns=150, variables=variables))
    assert text.isascii()
    assert "?" not in text
    assert not re.search(r"\\[xuU]\w", text)
    assert re.search(r"\d\.\d\dx", text)
    assert "0/1" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["'nonsense'", "digits_mlp", "char_gpt"]),
        (["--executors", "nonsense"], ["'nonsense'", "serial"]),
        (["--executors", "serial,serial"], ["more than once"]),
        (["--vs", "nonsense"], ["'nonsense'", "torch-ddp"]),
        (["--batch", "0"], ["batch sizes"]),
        (["--chart", "chart.txt"], [".png"]),
        (["--grow", "depth", "--batch", "4"], ["--grow", "Leave them out"]),
        (["--grow", "depth", "--sizes", "2", "--points", "2"], ["--sizes", "both"]),
        (["--points", "2"], ["--grow", "Add it"]),
        (["--ops", "--grow", "batch"], ["--ops", "--grow", "Leave them out"]),
        (["--ops", "--timing"], ["--ops", "--timing", "Leave them out"]),
        (["--ops", "--hosts"], ["--ops", "--hosts", "Leave them out"]),
        (["--vs", "torch", "--peer-python", "no-such-python"], ["no-such-python", "--peer-python"]),
    ],
)
def test_the_command_refuses_what_it_does_not_know(arguments: list[str], words: list[str]) -> None:
    finished = run(*arguments)
    assert finished.returncode == 1
    assert all(word in finished.stderr for word in words), finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed")
def test_missing_pytorch_is_told_before_anything_is_measured() -> None:
    finished = run("--vs", "torch")
    assert finished.returncode == 1
    assert "pip install torch" in finished.stderr


@pytest.mark.skipif(HAS_JAX, reason="JAX is installed")
def test_missing_jax_is_told_before_anything_is_measured() -> None:
    finished = run("--vs", "jax")
    assert finished.returncode == 1
    assert "pip install jax" in finished.stderr


def test_ratios_compare_each_round_by_itself() -> None:
    first = SideResult("a", medians=[1.0, 2.0, 3.0], loss_difference=0.0, change_difference=0.0)
    faster = SideResult("b", medians=[0.5, 0.5, 1.5], loss_difference=1e-6, change_difference=1e-6)
    other = SideResult("c", medians=[0.1, 0.1, 0.1], loss_difference=0.5, change_difference=0.0)
    row = Row("digits_mlp", 32, [first, faster, other])
    assert [row.ratio(place) for place in range(3)] == [1, 2, None]
    results = Results({}, {}, ["a", "b", "c"], [row, row])
    assert results.mean_ratio(1) == pytest.approx(2)
    assert results.mean_ratio(2) is None
    assert geometric_mean([2.0, None, 8.0]) == pytest.approx(4)


def test_the_chart_has_axes_for_each_workload() -> None:
    def side(name: str, seconds: float) -> SideResult:
        return SideResult(name, medians=[seconds], loss_difference=0.0, change_difference=0.0)

    rows = [
        Row(name, batch, [side("serial", 1.0), side("other", 0.5 * math.sqrt(batch))])
        for name in ("digits_mlp", "lenet")
        for batch in (8, 16)
    ]
    figure = plot_results(Results({}, {}, ["serial", "other"], rows))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["digits_mlp", "lenet"]
    assert all(len(axes.lines) == 2 for axes in figure.axes)


@pytest.mark.peers
@pytest.mark.skipif(not HAS_TORCH and not HAS_JAX, reason=f"Neither PyTorch nor JAX is installed: {BENCH_EXTRA}")
@of_each_workload
def test_others_train_the_same(name: str) -> None:
    others = ["torch:threads=1"] * HAS_TORCH + ["jax:threads=1"] * HAS_JAX
    row = measured(name, 8, SERIAL, ",".join(others))
    assert [side.problem for side in row.sides] == [None] * (1 + len(others))
    for place, side in enumerate(row.sides[1:], 1):
        assert side.is_comparable, side
        assert (side.values_bytes or 0) > 0
        assert row.share_of_limit(place) is not None


@pytest.mark.peers
@with_torch
@pytest.mark.timeout(300)
def test_compiled_pytorch_trains_the_same() -> None:
    row = measured("digits_mlp", 8, SERIAL, "torch-compile:threads=1")
    assert row.sides[1].problem is None
    assert row.sides[1].is_comparable, row.sides[1]


@pytest.mark.peers
@with_torch
def test_pytorch_in_two_processes_trains_the_same() -> None:
    row = measured("digits_mlp", 4, SERIAL, "torch-ddp")
    assert row.sides[1].problem is None
    assert row.sides[1].is_comparable, row.sides[1]


@pytest.mark.peers
@with_torch
def test_a_batch_that_processes_cannot_share_is_told_of() -> None:
    row = measured("digits_mlp", 3, SERIAL, "torch-ddp")
    assert "evenly" in (row.sides[1].problem or "")


def test_what_recording_times_costs(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    ended = run("digits_mlp", "--timing", "--rounds", "1", "--seconds", "0.3", "--json", str(file))
    assert ended.returncode == 0, ended.stderr
    header, line = ended.stdout.splitlines()
    assert header.split() == ["workload", "batch", "recorded", "µs", "plain", "µs", "cost"]
    (cost,) = json.loads(file.read_text())["costs"]
    assert line.split()[:2] == [cost["workload"], str(cost["batch"])] == ["digits_mlp", "32"]
    assert 0 < cost["plain_seconds"] < 1
    # What it may cost is measured where nothing else runs.
    assert -0.5 < cost["share"] < 0.5
    ended = run("--timing", "--hosts")
    assert ended.returncode != 0
    assert "expected no --hosts" in ended.stderr


def test_where_the_time_goes_is_told_for_executors() -> None:
    ended = run("digits_mlp", "--ops", "--rounds", "1", "--seconds", "0.05", "--executors", f"{SERIAL},serial")
    assert ended.returncode == 0, ended.stderr
    *_, first, second = ended.stdout.split("digits_mlp, batch 32, ")
    for side, table in ((SERIAL, first), ("serial", second)):
        assert table.startswith(f"{side}, by op:")
        (matmul,) = [line.split() for line in table.splitlines() if line.startswith("matmul ")]
        assert int(matmul[1]) > 20
        assert matmul[-1].endswith("%")
