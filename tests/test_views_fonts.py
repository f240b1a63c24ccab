"""Names in any script: drawn where a font has their characters, marked where none has, and never with a warning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from test_views import assert_texts_are_apart_and_inside, texts

import miai_graph as mg
from miai_graph import layers
from miai_graph.model import Model
from miai_graph.timing import Timing, TimingRecord
from miai_graph.views import fonts, plot_graph, plot_history, plot_model, style

NAMES = ("卷积层_一", "свёртка", "🚀 слой", "طبقة", "층", "ชั้น")
BOLD_A, NOWHERE = "\N{MATHEMATICAL BOLD CAPITAL A}", "\U0003fffd"


def known() -> set[int]:
    """The characters that some font has."""
    return set().union(*fonts._characters())


def named_model() -> Model:
    node = inputs = layers.Input((4,), name="输入")
    for name in NAMES:
        node = layers.Dense(3, name=name)(node)
    return Model(inputs, node, name="модель 🚀")


def worked(layer: str) -> TimingRecord:
    return TimingRecord(f"{layer}/matmul", "matmul", layer, "forward", 0, "主机", 1, 1.0, 1.0, 1.0, 10**9, 10**8)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_names_in_any_script_are_drawn_without_warnings(tmp_path: Path, suffix: str) -> None:
    model = named_model()
    timing = Timing([worked(name) for name in NAMES], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures: list[Any] = [
            plot_model(model, tmp_path / f"model.{suffix}", timing=timing),
            plot_graph(mg.Graph(model.outputs), tmp_path / f"graph.{suffix}"),
            timing.plot(tmp_path / f"layers.{suffix}"),
            timing.plot(tmp_path / f"roofline.{suffix}", "roofline"),
            mg.plot_scaling(dict.fromkeys(NAMES[:2], timing), tmp_path / f"scaling.{suffix}"),
            plot_history({"损失 🚀": [3.0, 2.0]}, tmp_path / f"history.{suffix}"),
        ]
    for figure in figures:
        assert {ord(character) for text in texts(figure) for character in text} <= known()
    assert_texts_are_apart_and_inside(figures[0])
    assert "свёртка" in texts(figures[0])


def test_a_character_that_no_font_has_is_marked() -> None:
    assert fonts.drawable(f"a{NOWHERE}b") == f"a{fonts.MISSING}b"
    assert ord(fonts.MISSING) in known()
    assert style.text_width(NOWHERE, 10.0) == style.text_width(fonts.MISSING, 10.0) > 0
    assert fonts.drawable("two\nlines") == f"two{fonts.MISSING}lines"


def test_other_fonts_step_in_for_the_first_one() -> None:
    first, *others = fonts._characters()
    assert ord(BOLD_A) not in first
    assert any(ord(BOLD_A) in characters for characters in others)
    assert fonts.drawable(f"layer {BOLD_A}") == f"layer {BOLD_A}"
    figure = style.new_figure(100, 40)
    axes = figure.add_axes((0, 0, 1, 1))
    style.plain_text(axes, 0.1, 0.5, f"layer {BOLD_A}", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()


def test_plain_names_look_the_same_whatever_fonts_there_are() -> None:
    assert fonts.families()[0] == fonts.FONT
    assert fonts.drawable("dense … dense_9 → ×3") == "dense … dense_9 → ×3"
