"""What tests of reports have in common: timings of one node, and the data within a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from miai_graph.graph import Graph
from miai_graph.timing import Slice, Timing, TimingRecord

HOSTILE = '</script><img src=x onerror="window.harmed=1"><!-- \' \\ \u2028 & 100 %'
"""A name that would harm a page in which it did not stand as a text."""

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def json_within(path: Path) -> str:
    return DATA.search(path.read_text(encoding="utf-8"))[1]


def data_of(path: Path) -> dict[str, Any]:
    return json.loads(json_within(path))


def simple_timing(graph: Graph, name: str) -> Timing:
    record = TimingRecord(name, "matmul", name, "forward", 0, "here", 2, 1e-3, 4e-4, 6e-4, 100, 100)
    piece = Slice(name, "forward", 0, None, None, 0.0, 5e-4, 0.0)
    return Timing([record], 2, slices=[piece], graph=graph)
