"""A picture of a model: a box for each call of a layer, with shapes, parameters, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError
from miai_graph.model.model import Model
from miai_graph.timing import Timing
from miai_graph.views import style
from miai_graph.views.canvas import NAME_SIZE, Card, Line, Sample, Sheet, draw_sheet
from miai_graph.views.layout import Edge, layered
from miai_graph.views.model_units import Run, Unit, folded_runs, model_units, relinked, single_runs
from miai_graph.views.shares import Shares, check_timing, format_share, rest_note
from miai_graph.views.wrapping import wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_UNITS = 24
"""Models of more layers have runs of the same layers folded, unless the caller says otherwise."""

_LONGEST_NAME = 40


def plot_model(
    model: Model,
    path: Any = None,
    *,
    timing: Timing | None = None,
    show_shapes: bool = True,
    show_parameters: bool = True,
    fold: bool | None = None,
    dpi: float = style.DPI,
) -> Figure:
    """Draw a model: layers from inputs at the top to outputs at the bottom, single ops between them as small boxes.

    Parameters
    ----------
    model : a model that knows its inputs
    path : a file to write, .png, .svg or .pdf; None: none
    timing : colours the boxes by their share of the time; what is inside of a layer counts for it
    show_shapes : whether to tell the shape of each output
    show_parameters : whether to tell the number of parameters
    fold : whether layers that come again and again, one after another, are one box marked ×n. By default for models of
        more than 24 layers
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind.
    ModelError
        if the model is not built yet.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    if not isinstance(model, Model):
        raise ArgumentError(
            f"expected a Model or Sequential to draw; found {model!r}. mg.Graph(nodes).plot() draws nodes"
        )
    check_timing(timing)
    units, links = model_units(model)
    folds = len(units) > MOST_UNITS if fold is None else fold
    runs = folded_runs(units, links) if folds else single_runs(units)
    maker = _CardMaker(runs, timing, show_shapes, show_parameters)
    cards = [maker.card(number, run) for number, run in enumerate(runs)]
    edges = [Edge(source, target) for source, target in relinked(runs, links)]
    boxes = [card.box for card in cards]
    sheet = Sheet(
        cards,
        wrapped(layered(boxes, edges), boxes, edges),
        title=f"{type(model).__name__} {model.name}: {model.count_params():,} parameters",
        samples=[] if timing is not None else _legend(units),
        greatest_share=maker.greatest,
        notes=maker.notes,
    )
    return style.save(draw_sheet(sheet), target, dpi)


class _CardMaker:
    """Makes the cards of one model's runs of units.

    Attributes
    ----------
    greatest : the greatest share of the time of a run; None without a timing
    notes : lines to be written below
    """

    def __init__(self, runs: Sequence[Run], timing: Timing | None, show_shapes: bool, show_parameters: bool) -> None:
        self._show_shapes = show_shapes
        self._show_parameters = show_parameters
        units = [unit for run in runs for unit in run.units]
        self._calls = Counter(unit.layer for unit in units if unit.layer is not None)
        self._shares = None if timing is None else _shares(units, Shares(timing))
        self.greatest: float | None = None
        self.notes: list[str] = []
        if self._shares is not None:
            self.greatest = max((self._share(run.units) for run in runs), default=0.0)
            self.notes = rest_note(sum(self._shares.values()))

    def card(self, key: int, run: Run) -> Card:
        lines: list[Line] = []
        for place in range(len(run.pattern)):
            lines += [Line("↓", colour=style.FAINT_TEXT)] if place else []
            lines += self._lines(run.like(place))
        first = run.units[0]
        fill, frame = _colours(first)
        if self.greatest is not None and not first.is_input:
            fill = style.share_colour(self._share(run.units), self.greatest)
            lines = [replace(line, colour=style.TEXT) for line in lines]
        is_output = any(unit.is_output for unit in run.units)
        return Card(key, lines, fill, frame, 2.2 if is_output else 0.9, f"×{run.times}" if run.times > 1 else "")

    def _lines(self, units: Sequence[Unit]) -> list[Line]:
        """What there is to say of units that look alike."""
        first = units[0]
        shape = first.shape if self._show_shapes else ""
        if first.layer is None and not first.is_input:
            return [Line(f"{first.title} {shape}".rstrip(), colour=style.FAINT_TEXT), *self._share_lines(units)]
        names = list(dict.fromkeys([first.name, units[-1].name]))
        lines = [Line(" … ".join(style.shortened(name, _LONGEST_NAME) for name in names), NAME_SIZE, bold=True)]
        about = [first.title] if first.layer is not None else []
        about += [shape] if shape else []
        lines += [Line(" ".join(about))] if about else []
        return [*lines, *self._parameter_lines(units), *self._share_lines(units)]

    def _parameter_lines(self, units: Sequence[Unit]) -> list[Line]:
        layers = list(dict.fromkeys(unit.layer for unit in units if unit.layer is not None))
        counts = [layer.count_params() for layer in layers]
        if not self._show_parameters or not sum(counts):
            return []
        times = f"{len(layers)} × " if len(layers) > 1 else ""
        frozen = "" if any(layer.trainable_weights for layer in layers) else ", frozen"
        text = f"{times}{counts[0]:,} parameter{'' if counts[0] == 1 else 's'}{frozen}"
        if self._calls[layers[0]] > 1:
            text += f", shared by {self._calls[layers[0]]} calls"
        return [Line(text, colour=style.FAINT_TEXT)]

    def _share_lines(self, units: Sequence[Unit]) -> list[Line]:
        share = self._share(units)
        if not share:
            return []
        shared = units[0].layer is not None and self._calls[units[0].layer] > 1
        return [Line(format_share(share) + (" in all calls" if shared else ""), bold=True)]

    def _share(self, units: Sequence[Unit]) -> float:
        """The share of the time of the layers and ops; 0 without a timing."""
        names = {unit.name for unit in units}
        return 0.0 if self._shares is None else sum(self._shares[name] for name in names)


def _shares(units: Sequence[Unit], shares: Shares) -> dict[str, float]:
    """The share of the time by the name of the unit."""
    of_layers = shares.of_layers({unit.layer.name for unit in units if unit.layer is not None})
    of_others = {unit.name: shares.of_nodes([unit.name]) for unit in units if unit.layer is None}
    return {**of_others, **of_layers}


def _colours(unit: Unit) -> tuple[str, str]:
    """Fill and frame."""
    if unit.is_input:
        return style.YELLOW, style.DARK_YELLOW
    if unit.layer is None:
        return style.PAPER, style.LINE
    return (style.BLUE, style.DARK_BLUE) if unit.layer.weights else (style.GREY, style.LINE)


def _kind(unit: Unit) -> str:
    """What the legend calls it."""
    if unit.is_input:
        return "input"
    if unit.layer is None:
        return "single op"
    return "layer with weights" if unit.layer.weights else "layer without weights"


def _legend(units: Sequence[Unit]) -> list[Sample]:
    samples = {_kind(unit): Sample(_kind(unit), *_colours(unit)) for unit in units}
    order = ["input", "layer with weights", "layer without weights", "single op"]
    return [*(samples[kind] for kind in order if kind in samples), Sample("output", style.PAPER, style.LINE, 2.2)]
