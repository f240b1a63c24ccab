"""The tools agree: formatting, lint and types, as `pyproject.toml` configures them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(module: str, *arguments: str) -> None:
    pytest.importorskip(module, reason=f"{module} is not installed: pip install -e .[test]")
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"\n{done.stdout}{done.stderr}"


def test_code_is_formatted() -> None:
    run("ruff", "format", "--check", ".")


def test_code_is_free_of_lint() -> None:
    run("ruff", "check", ".")


def test_types_are_right() -> None:
    run("mypy")
