"""The colours of pictures, for light and for dark paper.

They can be told apart with any kind of colour vision, and never mean something alone: places, frames, marks or texts
say the same. Text is readable on every fill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, RECOMPUTE, UPDATE, WAIT
from miai_graph.errors import ArgumentError
from miai_graph.timing.records import CALLBACKS, DATA, IDLE, LOOP, OVERHEAD, VALIDATION


@dataclass(frozen=True, kw_only=True)
class Palette:
    """All colours of a picture, as ``#rrggbb``.

    paper, text, faint_text, line, grid : behind everything, and in every picture
    region, region_line : behind boxes that belong together
    blue … grey : fills; blue_line … yellow_line : their frames; deep_blue and its line of what is blue once more
    wrong, wrong_fill : for what is not as it should be
    phase_fills, phase_frames, phase_lines : of boxes of a phase, and of edges to them
    time_fills : for time spent in a phase
    layer_fills, other_layers : for time spent in the layers that take longest, and in the others
    classes : as different as can be, for points and lines
    share_steps, side_steps, change_steps : from nothing to much; from one side to the other; from faster to slower
    """

    paper: str
    text: str
    faint_text: str
    line: str
    grid: str
    region: str
    region_line: str
    blue: str
    deep_blue: str
    orange: str
    green: str
    purple: str
    yellow: str
    grey: str
    blue_line: str
    deep_blue_line: str
    orange_line: str
    green_line: str
    purple_line: str
    yellow_line: str
    wrong: str
    wrong_fill: str
    phase_lines: Mapping[str, str]
    time_fills: Mapping[str, str]
    layer_fills: Sequence[str]
    other_layers: str
    classes: Sequence[str]
    share_steps: Sequence[str]
    side_steps: Sequence[str]
    change_steps: Sequence[str]

    @property
    def phase_fills(self) -> Mapping[str, str]:
        return {FORWARD: self.blue, RECOMPUTE: self.deep_blue, BACKWARD: self.orange, UPDATE: self.green}

    @property
    def phase_frames(self) -> Mapping[str, str]:
        return {
            FORWARD: self.blue_line,
            RECOMPUTE: self.deep_blue_line,
            BACKWARD: self.orange_line,
            UPDATE: self.green_line,
        }


LIGHT = Palette(
    paper="#ffffff",
    text="#1b1f24",
    faint_text="#57606a",
    line="#6b7480",
    grid="#dfe3e8",
    region="#f4f5f7",
    region_line="#d5d9df",
    blue="#dbe9f8",
    deep_blue="#b7d0ec",
    orange="#fde2c4",
    green="#d2eee2",
    purple="#ebdff5",
    yellow="#fdf6c3",
    grey="#eceff2",
    blue_line="#1f6fb5",
    deep_blue_line="#173f73",
    orange_line="#b85c00",
    green_line="#00795c",
    purple_line="#7a4b9e",
    yellow_line="#8f7a00",
    wrong="#b3261e",
    wrong_fill="#fbdcd8",
    phase_lines={FORWARD: "#5b7c9c", RECOMPUTE: "#41597a", BACKWARD: "#c08a52", UPDATE: "#5a9c86"},
    time_fills={
        FORWARD: "#5b9bd5",
        RECOMPUTE: "#1d3c66",
        BACKWARD: "#f0a348",
        UPDATE: "#4fae7c",
        COMMUNICATION: "#b8322a",
        WAIT: "#ffffff",
        OVERHEAD: "#8b95a1",
        DATA: "#8a55b5",
        CALLBACKS: "#f6efa6",
        VALIDATION: "#fcc5fc",
        LOOP: "#d3d8de",
        IDLE: "#ffffff",
    },
    layer_fills=("#608aec", "#d88d49", "#92ee9d", "#a77cc0", "#39bc82", "#ebd15b"),
    other_layers="#d8dce1",
    classes=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c00", "#555555"),
    share_steps=("#fffdf6", "#fee6ae", "#fdbe5f", "#f28e2b"),
    side_steps=("#8fbfe6", "#ffffff", "#f6b98a"),
    change_steps=("#5fa5dc", "#cfe3f4", "#fbfbfb", "#fbd9bd", "#ee9350"),
)

DARK = Palette(
    paper="#14181d",
    text="#e8ecf1",
    faint_text="#a3adb8",
    line="#8792a0",
    grid="#2c333b",
    region="#1b2026",
    region_line="#363e47",
    blue="#1c3a58",
    deep_blue="#2c3f8a",
    orange="#553512",
    green="#144034",
    purple="#3f2e53",
    yellow="#474012",
    grey="#2b3138",
    blue_line="#6cb0ea",
    deep_blue_line="#93a8ff",
    orange_line="#f0a24f",
    green_line="#52c7a3",
    purple_line="#c29de6",
    yellow_line="#d6c440",
    wrong="#ff8178",
    wrong_fill="#5c1f1b",
    phase_lines={FORWARD: "#7fa3c6", RECOMPUTE: "#8c9fd8", BACKWARD: "#c89259", UPDATE: "#62a890"},
    time_fills={
        FORWARD: "#76baf2",
        RECOMPUTE: "#3558e0",
        BACKWARD: "#f0b04a",
        UPDATE: "#3fa87d",
        COMMUNICATION: "#e2523d",
        WAIT: "#14181d",
        OVERHEAD: "#8a94a0",
        DATA: "#a56cd2",
        CALLBACKS: "#f5efb0",
        VALIDATION: "#e3b5da",
        LOOP: "#4b545e",
        IDLE: "#14181d",
    },
    layer_fills=("#6187e2", "#e5b370", "#c9f7d9", "#c7a2e3", "#82bf97", "#e8e240"),
    other_layers="#3b434c",
    classes=("#4aa8e0", "#f0803c", "#2fc297", "#dd93bb", "#efb73e", "#8fd0f5", "#bcbc3f", "#b0b6bd"),
    share_steps=("#1d2126", "#4d3d16", "#7f5512", "#985b0c"),
    side_steps=("#24588a", "#2b3138", "#8a5320"),
    change_steps=("#1c68a6", "#1f3f5b", "#22272d", "#5a3a1d", "#99530f"),
)

_current: ContextVar[Palette] = ContextVar("miai_graph_palette", default=LIGHT)


def palette() -> Palette:
    """The one of the picture that is being drawn."""
    return _current.get()


@contextmanager
def paper(*, dark: bool) -> Iterator[None]:
    """Within the block, pictures are drawn on light or dark paper."""
    if not isinstance(dark, bool):
        raise ArgumentError(f"expected dark to be True or False; found {dark!r}")
    token = _current.set(DARK if dark else LIGHT)
    try:
        yield
    finally:
        _current.reset(token)
