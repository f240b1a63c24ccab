"""The examples run, at small size, and do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# For each example its arguments at small size, a pattern of the figure that it prints, and the range it must lie in.
RUNS: dict[str, tuple[list[str], str, float, float]] = {
    "two_moons": (["--epochs", "25"], r"held out: ([\d.]+)%", 90, 100),
    "digits_mlp": (["--epochs", "15"], r"held out: ([\d.]+)%", 93, 100),
    "digits_cnn": (["--epochs", "2"], r"held out: ([\d.]+)%", 85, 100),
    "regression": (["--epochs", "30"], r"network ([\d.]+)", 35, 55),
    "own_op_and_layer": (["--epochs", "20"], r"of sin\(2x\): ([\d.]+)", 0, 0.02),
    "second_order": (["--steps", "6"], r"\n   6  [\d.]+  ([\d.e+-]+)", 0, 1e-3),
    "character_transformer": (
        ["--epochs", "1", "--samples", "640", "--width", "32", "--blocks", "1", "--length", "20"],
        r"([\d.]+) bits a character",
        2,
        5.7,
    ),
    "reproducible_processes": (["--epochs", "2"], r"all [\d,]+ values of (\d+) weights are equal to the bit", 7, 7),
    "hosts_pipeline": (["--steps", "4", "--batch-size", "64"], r"one process by ([\d.e+-]+) at most", 0, 1e-5),
    "where_the_time_goes": (["--epochs", "1"], r"processes is ([\d.]+) times as fast as serial", 0.1, 10),
    "compare_with_pytorch": (
        ["--rounds", "1", "--seconds", "0.2", "--threads", "1"],
        r"miai_graph +([\d.]+) ms",
        0,
        1e3,
    ),
}


# For each example what it writes, apart from models.
WRITTEN = {
    "two_moons": {"two_moons.png"},
    "digits_cnn": {"digits_cnn.png", "digits_cnn_curves.png"},
    "hosts_pipeline": {"hosts_pipeline.png"},
    "where_the_time_goes": {
        "scaling.png",
        "serial_roofline.png",
        *(f"{name}_{kind}.png" for name in ("serial", "processes", "hosts") for kind in ("layers", "timeline")),
        "processes.html",
        "hosts.html",
        "hosts_trace.json",
    },
}


def run_example(name: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *RUNS[name][0]]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_each_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", list(RUNS))
def test_example(name: str, tmp_path: Path) -> None:
    _, pattern, least, greatest = RUNS[name]
    output = run_example(name, tmp_path)
    found = re.search(pattern, output)
    assert found is not None, output
    assert least <= float(found.group(1)) <= greatest, output
    written = {path.name for path in tmp_path.rglob("*") if path.suffix in (".png", ".html", ".json")}
    assert written == WRITTEN.get(name, set())
