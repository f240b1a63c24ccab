"""The command ``miai-graph``, run as users run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import miai_graph as mg

PICTURES = ("model.png", "curves.png", "predictions.png")


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from miai_graph.commands import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)


def test_demo_reads_nearly_all_digits_and_draws(tmp_path: Path) -> None:
    finished = run("demo", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    found = re.search(r"([\d.]+)% of the 450 digits held out", finished.stdout)
    assert found is not None, finished.stdout
    assert float(found.group(1)) >= 98
    assert "conv2d" in finished.stdout
    assert "samples/s" in finished.stdout
    for name in PICTURES:
        assert (tmp_path / "miai_demo" / name).read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_gives_the_same_demo(tmp_path: Path) -> None:
    outputs = [run("demo", "--epochs", "1", "--seed", "3", folder=tmp_path).stdout for _ in range(2)]
    figures = [re.findall(r"(?:loss|accuracy) [\d.]+|[\d.]+% of", output) for output in outputs]
    assert len(figures[0]) == 3
    assert figures[0] == figures[1]


def test_an_unknown_executor_is_told_in_one_sentence(tmp_path: Path) -> None:
    finished = run("demo", "--executor", "nonsense", folder=tmp_path)
    assert finished.returncode == 1
    assert "'nonsense'" in finished.stderr
    assert "'serial'" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_doctor_finds_no_problems_here(tmp_path: Path) -> None:
    finished = run("doctor", folder=tmp_path)
    assert finished.returncode == 0, finished.stdout
    for fact in ("cores:", "physical", "BLAS:", "processes:", "shared memory", "executors:", "serial", "numpy"):
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
