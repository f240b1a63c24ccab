"""The command ``miai-graph``, run as users run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from report_files import data_of

import miai_graph as mg
from miai_graph.kernels.compiler import native
from miai_graph.timing import Timing

PICTURES = ("model.png", "curves.png", "predictions.png")


MOST_DIFFERENCE = 0.05
"""In weights, after 43 steps. Rounding may turn the sign of a gradient that is next to nothing, and Adam then takes a
whole step of 0.001 the other way."""


def run(
    *arguments: str, folder: Path, encoding: str = "utf-8", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from miai_graph.commands import main; main()", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": encoding} | dict(variables or {}),
        capture_output=True,
        encoding=encoding,
        timeout=110,
        check=False,
    )


def test_demo_reads_nearly_all_digits_and_tells_where_the_time_went(tmp_path: Path) -> None:
    finished = run("demo", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = re.search(r"([\d.]+)% of the 450 digits held out", finished.stdout)
    assert found is not None, finished.stdout
    assert float(found.group(1)) >= 98
    assert "conv2d" in finished.stdout
    assert "samples/s" in finished.stdout
    for name in PICTURES:
        assert (tmp_path / "miai_demo" / name).read_bytes().startswith(b"\x89PNG")
    assert str(Path("miai_demo", "report.html")) in finished.stdout
    verdict = data_of(tmp_path / "miai_demo" / "report.html")["run"]["verdict"]
    assert verdict[0].startswith("645 steps took ")
    assert "\n".join(verdict) in finished.stdout


def comparison(output: str) -> dict[str, list[str]]:
    """The cells of the demo's last table, by executor: workers and threads, samples a second, speed-up, and so on."""
    rows = re.findall(r"^ +(\S+) {2,}(\d+ × \d+) +([\d,]+) +([\d.]+)× *(\S*) +([\d.]+)%$", output, re.MULTILINE)
    return {name: cells for name, *cells in rows}


def test_demo_compares_all_executors_with_serial_on_one_thread(tmp_path: Path) -> None:
    finished = run("demo", "--epochs", "1", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    rows = comparison(finished.stdout)
    assert list(rows)[:2] == ["serial:threads=1", "serial"]
    assert {"serial", *mg.executor_names()} == rows.keys() - {"serial:threads=1"}
    assert rows["serial:threads=1"][0] == "1 × 1"
    assert rows["serial:threads=1"][2:4] == ["1.00", ""]
    for _, rate, _, difference, accuracy in list(rows.values())[1:]:
        assert float(rate.replace(",", "")) > 0
        assert float(difference) < MOST_DIFFERENCE
        assert float(accuracy) > 80


def test_demo_shows_that_reproducible_training_is_equal_to_the_bit(tmp_path: Path) -> None:
    chosen = [
        "serial:reproducible=True",
        "processes:workers=1,reproducible=True",
        "processes:workers=2,reproducible=True",
    ]
    options = [part for name in chosen for part in ("--executor", name)]
    finished = run("demo", "--epochs", "1", *options, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    rows = comparison(finished.stdout)
    assert list(rows) == chosen
    assert [row[0] for row in rows.values()] == ["1 × 1", "1 × 1", "2 × 1"]
    assert [row[3] for row in rows.values()] == ["", "0", "0"]
    assert len({row[4] for row in rows.values()}) == 1


def test_demo_with_one_executor_compares_nothing(tmp_path: Path) -> None:
    finished = run("demo", "--epochs", "1", "--executor", "processes:workers=2", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "executor 'processes:workers=2'" in finished.stdout
    assert comparison(finished.stdout) == {}


def test_demo_tells_programs_in_json(tmp_path: Path) -> None:
    options = ("--epochs", "1", "--executor", "serial", "--executor", "processes:workers=2")
    finished = run("demo", "--json", *options, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["executor"] == "serial"
    assert found["accuracy"] > 0.8
    assert found["history"].keys() == {"loss", "accuracy"}
    assert [Path(tmp_path, name).is_file() for name in found["files"]] == [True] * 4
    assert [(side["executor"], side["workers"]) for side in found["compared"]] == [
        ("serial", 1),
        ("processes:workers=2", 2),
    ]
    assert found["compared"][0]["difference"] == 0 < found["compared"][1]["difference"] < MOST_DIFFERENCE
    timing = Timing.from_json(found["timing"])
    assert timing.steps == 43
    assert list(timing.verdict()) == found["verdict"]
    assert "epoch 1/1" in finished.stderr
    assert "digits held out are read right" in finished.stderr


def test_what_goes_wrong_is_told_apart_from_json(tmp_path: Path) -> None:
    finished = run("demo", "--json", "--executor", "nonsense", folder=tmp_path)
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert "'nonsense'" in finished.stderr


def test_demo_on_an_output_that_knows_ascii_only(tmp_path: Path) -> None:
    finished = run(
        *("demo", "--epochs", "1", "--executor", "serial", "--executor", "processes:workers=2"),
        folder=tmp_path,
        encoding="ascii",
    )
    assert finished.returncode == 0, finished.stderr
    assert "mean us" in finished.stdout
    assert "workers x threads" in finished.stdout
    assert "?" not in finished.stdout


def test_the_same_seed_gives_the_same_demo(tmp_path: Path) -> None:
    outputs = [
        run("demo", "--epochs", "1", "--seed", "3", "--executor", "serial", folder=tmp_path).stdout for _ in range(2)
    ]
    figures = [re.findall(r"(?:loss|accuracy) [\d.]+|[\d.]+% of", output) for output in outputs]
    assert len(figures[0]) == 3
    assert figures[0] == figures[1]


def test_an_unknown_executor_is_told_in_one_sentence(tmp_path: Path) -> None:
    finished = run("demo", "--executor", "nonsense", folder=tmp_path)
    assert finished.returncode == 1
    assert "'nonsense'" in finished.stderr
    assert "There are: hosts, processes, serial" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("given", [["serial:nonsense=1"], ["serial:threads=0"], ["serial", "serial"]])
def test_bad_executors_of_the_demo_are_told_in_one_sentence(given: list[str], tmp_path: Path) -> None:
    finished = run("demo", *(part for name in given for part in ("--executor", name)), folder=tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.startswith("Error: expected ")
    assert "Traceback" not in finished.stderr


@pytest.mark.skipif(native.processor() is None, reason="there is no native code for this processor")
def test_warmup_compiles_what_is_kept_for_the_next_time(tmp_path: Path) -> None:
    variables = {native.CACHE_VARIABLE: str(tmp_path)}
    first, second = (run("warmup", folder=tmp_path, variables=variables) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    (ready, compiled), (ready_again, compiled_again) = (
        map(int, re.findall(r"(\d+) (?:kernels are ready|of them)", finished.stdout)) for finished in (first, second)
    )
    assert 0 < compiled <= ready == ready_again
    assert compiled_again == 0
    assert len(list((tmp_path / "native").glob("*.code"))) == compiled
    assert f"{compiled} modules kept in {tmp_path}" in run("doctor", folder=tmp_path, variables=variables).stdout


def test_without_native_code_there_is_nothing_to_compile(tmp_path: Path) -> None:
    variables = {native.CACHE_VARIABLE: str(tmp_path), native.SWITCH_VARIABLE: "0"}
    assert "Nothing to compile" in run("warmup", folder=tmp_path, variables=variables).stdout
    assert "NumPy's alone" in run("doctor", folder=tmp_path, variables=variables).stdout
    assert not list(tmp_path.iterdir())


def test_doctor_finds_no_problems_here(tmp_path: Path) -> None:
    finished = run("doctor", folder=tmp_path)
    assert finished.returncode == 0, finished.stdout
    for fact in (
        "cores:",
        "physical",
        "BLAS:",
        "kernels:",
        "processes:",
        "shared memory",
        "executors:",
        "serial",
        "numpy",
    ):
        assert fact in finished.stdout


def test_doctor_tells_what_is_broken_and_goes_on(tmp_path: Path) -> None:
    code = (
        "import os, sys; from miai_graph.commands import main\ndel os.cpu_count; sys.executable = ''; main(['doctor'])"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr == ""
    assert "Looking at cores failed: AttributeError" in finished.stdout
    assert "Worker processes cannot be started" in finished.stdout
    assert "numpy" in finished.stdout


def test_doctor_names_a_foreign_package_called_executors(tmp_path: Path) -> None:
    foreign = tmp_path / "executors"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    finished = run("doctor", folder=tmp_path)
    assert finished.returncode == 1
    assert "not the one of miai-graph" in finished.stdout


def test_version_and_help(tmp_path: Path) -> None:
    assert mg.__version__ in run("--version", folder=tmp_path).stdout
    text = run("--help", folder=tmp_path).stdout
    assert "demo" in text
    assert "doctor" in text
