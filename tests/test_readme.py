"""The README's code runs, its links lead somewhere, and the parts that it lists exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.kernels.compiler.native import processor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md block {number}", "exec"), namespace)
    assert (tmp_path / "model.png").stat().st_size > 1000


@pytest.mark.skipif(processor() is None, reason="there is no native code for this processor")
def test_what_is_computed_at_once_is_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n((?:(?!```).)*\.kernels\))\n```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    code, shown = found.groups()
    exec(code, {"mg": mg, "np": np})
    assert capsys.readouterr().out == shown


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    links = [first or second for first, second in links]
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert missing == []


def test_parts_listed_exist() -> None:
    from miai_graph import layers, losses, optimizers

    for kind, module in (("layers", layers), ("losses", losses), ("optimizers", optimizers)):
        row = re.search(rf"^\| {kind} \| (.*?) \|$", README, re.MULTILINE)
        assert row is not None
        names = re.findall(r"\b[A-Z][A-Za-z0-9]+\b", row.group(1).replace("Nesterov", ""))
        assert names
        assert [name for name in names if not hasattr(module, name)] == []
