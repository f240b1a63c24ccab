"""A picture of a model: a box for each call of a layer, with shapes, parameters, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from miai_graph.errors import ArgumentError
from miai_graph.model.model import Model
from miai_graph.timing import Timing
from miai_graph.timing.difference import TimingDifference
from miai_graph.views import style
from miai_graph.views.canvas import NAME_SIZE, Card, Line, Sample, Sheet, draw_sheet
from miai_graph.views.colouring import Colouring, colouring_of
from miai_graph.views.layout import Edge, layered
from miai_graph.views.model_units import Link, Unit, model_units
from miai_graph.views.palette import palette, paper
from miai_graph.views.regions import outlined_regions
from miai_graph.views.repeats import Run, folded_runs, relinked, single_runs
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
    timing: Timing | TimingDifference | None = None,
    colour_by: str | None = None,
    show_shapes: bool = True,
    show_parameters: bool = True,
    fold: bool | None = None,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw a model: layers from inputs at the top to outputs at the bottom, single ops between them as small boxes.

    Parameters
    ----------
    model : a model that knows its inputs
    path : a file to write, .png, .svg or .pdf; None: none
    timing : colours the boxes; what is inside of a layer counts for it. A difference of two timings colours them by
        what changed
    colour_by : what the colours tell of the timing: shares of the "time" (by default), of the time of "wait", of
        "bytes" moved or of the "memory" of values; or which "stage" or "worker" it was on
    show_shapes : whether to tell the shape of each output
    show_parameters : whether to tell the number of parameters
    fold : whether layers and blocks that come again and again, one after another, are drawn once, marked ×n. By
        default for models of more than 24 layers
    dark : whether for dark paper
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
    colouring = colouring_of(timing, colour_by)
    units, links = model_units(model)
    folds = len(units) > MOST_UNITS if fold is None else fold
    runs = folded_runs(units, links) if folds else single_runs(units)
    with paper(dark=dark):
        maker = _CardMaker(runs, colouring, show_shapes, show_parameters)
        figure = draw_sheet(_sheet(model, runs, links, maker))
    return style.save(figure, target, dpi)


def _sheet(model: Model, runs: Sequence[Run[Unit]], links: Sequence[Link], maker: _CardMaker) -> Sheet:
    cards = [maker.card(number, run) for number, run in enumerate(runs)]
    edges = [Edge(source, target) for source, target in relinked(runs, links)]
    boxes = [card.box for card in cards]
    drawing = wrapped(layered(boxes, edges), boxes, edges)
    return Sheet(
        cards,
        drawing,
        title=f"{type(model).__name__} {model.name}: {model.count_params():,} parameters",
        samples=maker.samples,
        regions=outlined_regions(boxes, drawing),
        bar=maker.bar,
        notes=maker.notes,
    )


class _CardMaker:
    """Makes the cards of one model's runs of units.

    Attributes
    ----------
    samples, bar, notes : what the legend has
    """

    def __init__(
        self, runs: Sequence[Run[Unit]], colouring: Colouring | None, show_shapes: bool, show_parameters: bool
    ) -> None:
        self._show_shapes = show_shapes
        self._show_parameters = show_parameters
        units = [unit for run in runs for unit in run.units]
        self._calls = Counter(unit.layer for unit in units if unit.layer is not None)
        self._colouring = colouring
        self._values: Mapping[str, Any] = {}
        self.samples, self.bar, self.notes = _legend(units), None, []
        if colouring is not None:
            self._values = _values(units, colouring)
            colouring.scale([self._value(run.units) for run in runs])
            self.samples, self.bar = list(colouring.samples), colouring.bar
            self.notes = colouring.notes(self._values.values())

    def card(self, key: int, run: Run[Unit]) -> Card:
        lines: list[Line] = []
        for place in range(len(run.pattern)):
            lines += [Line("↓", colour=palette().faint_text)] if place else []
            lines += self._lines(run.like(place))
        first = run.units[0]
        fill, frame = _colours(first)
        if self._colouring is not None and not first.is_input:
            fill = self._colouring.fill(self._value(run.units)) or palette().paper
            lines = [replace(line, colour=palette().text) for line in lines]
        is_output = any(unit.is_output for unit in run.units)
        badge = f"×{run.times}" if run.times > 1 else ""
        return Card(key, lines, fill, frame, 2.2 if is_output else 0.9, badge, group=run.block)

    def _lines(self, units: Sequence[Unit]) -> list[Line]:
        """What there is to say of units that look alike."""
        first = units[0]
        shape = first.shape if self._show_shapes else ""
        if first.layer is None and not first.is_input:
            return [Line(f"{first.title} {shape}".rstrip(), colour=palette().faint_text), *self._value_lines(units)]
        names = list(dict.fromkeys([first.name, units[-1].name]))
        lines = [Line(" … ".join(style.shortened(name, _LONGEST_NAME) for name in names), NAME_SIZE, bold=True)]
        about = [first.title] if first.layer is not None else []
        about += [shape] if shape else []
        lines += [Line(" ".join(about))] if about else []
        return [*lines, *self._parameter_lines(units), *self._value_lines(units)]

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
        return [Line(text, colour=palette().faint_text)]

    def _value_lines(self, units: Sequence[Unit]) -> list[Line]:
        """What the timing says of the layers and ops."""
        text = "" if self._colouring is None else self._colouring.text(self._value(units))
        if not text:
            return []
        shared = units[0].layer is not None and self._calls[units[0].layer] > 1
        return [Line(text + (" in all calls" if shared else ""), bold=True)]

    def _value(self, units: Sequence[Unit]) -> Any:
        names = dict.fromkeys(unit.name for unit in units)
        return None if self._colouring is None else self._colouring.joined(self._values[name] for name in names)


def _values(units: Sequence[Unit], colouring: Colouring) -> dict[str, Any]:
    """The values that colours tell, by the name of the unit."""
    of_layers = colouring.of_layers({unit.layer.name for unit in units if unit.layer is not None})
    of_others = {unit.name: colouring.of_nodes([unit.name]) for unit in units if unit.layer is None}
    return {**of_others, **of_layers}


def _colours(unit: Unit) -> tuple[str, str]:
    """Fill and frame."""
    if unit.is_input:
        return palette().yellow, palette().yellow_line
    if unit.layer is None:
        return palette().paper, palette().line
    return (palette().blue, palette().blue_line) if unit.layer.weights else (palette().grey, palette().line)


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
    return [
        *(samples[kind] for kind in order if kind in samples),
        Sample("output", palette().paper, palette().line, 2.2),
    ]
