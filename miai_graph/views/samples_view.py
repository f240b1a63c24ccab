"""A picture of what a model says of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.views import style
from miai_graph.views.palette import palette, paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL_WIDTH, _CELL_HEIGHT, _PICTURE = 96.0, 116.0, 72.0
_HEAD = 40.0
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Verdict:
    """What was predicted for one sample: class, its probability (None: not known), and the true class."""

    predicted: int
    probability: float | None
    true: int

    @property
    def is_right(self) -> bool:
        return self.predicted == self.true


def plot_predictions(
    images: Any,
    labels: Any,
    predictions: Any,
    path: Any = None,
    count: int = 20,
    class_names: Sequence[str] | None = None,
    *,
    dark: bool = False,
    dpi: float = style.DPI,
) -> Figure:
    """Draw the first images with the classes predicted and true; wrong ones have a cross and a thick frame.

    Parameters
    ----------
    images : [samples, height, width] or [samples, height, width, channels], with 1, 3 or 4 channels
    labels : the true classes: integers [samples], or [samples, classes] with 1 at the class
    predictions : probabilities [samples, classes]; [samples] or [samples, 1] for the probability of class 1; or the
        classes as integers. What is no probability, as logits, is shown without a number.
    path : a file to write, .png, .svg or .pdf; None: none
    count : how many images
    class_names : what to write instead of the classes' numbers
    dark : whether for dark paper
    dpi : pixels an inch, for .png

    Returns
    -------
    A matplotlib figure, which does not belong to pyplot.

    Raises
    ------
    ArgumentError
        if an argument is of another kind or shape.
    SavingError
        if the file cannot be written.
    """
    target = style.check_path(path)
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ArgumentError(f"expected count to be a positive integer; found {count!r}")
    shown = _as_images(as_numbers(images, "images"))
    verdicts = _verdicts(as_numbers(labels, "labels"), as_numbers(predictions, "predictions"))
    if not len(shown) or len(shown) != len(verdicts):
        raise ArgumentError(
            f"expected as many images as labels, and at least one; found {len(shown)} images and {len(verdicts)} labels"
        )
    with paper(dark=dark):
        figure = _drawn(shown, verdicts, min(count, len(shown)), class_names)
    return style.save(figure, target, dpi)


def _drawn(shown: Array, verdicts: Sequence[_Verdict], number: int, class_names: Sequence[str] | None) -> Figure:
    columns = min(number, max(5, math.ceil(math.sqrt(number * 1.4))))
    rows = math.ceil(number / columns)
    right = sum(verdict.is_right for verdict in verdicts)
    title = f"{right} of {len(verdicts)} predicted right" + (f"; the first {number}" if number < len(verdicts) else "")
    width = max(columns * _CELL_WIDTH, style.text_width(title, 11, True)) + 24
    height = rows * _CELL_HEIGHT + _HEAD
    figure = style.new_figure(width, height)
    sheet = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    sheet.set_axis_off()
    sheet.set(xlim=(0, width), ylim=(height, 0))
    style.plain_text(sheet, 12, _HEAD / 2, title, 11, bold=True, va="center")
    for place in range(number):
        left = 12 + place % columns * _CELL_WIDTH
        top = _HEAD + place // columns * _CELL_HEIGHT
        picture = left + (_CELL_WIDTH - _PICTURE) / 2, top
        area = picture[0] / width, 1 - (top + _PICTURE) / height, _PICTURE / width, _PICTURE / height
        _draw_image(figure.add_axes(area), shown[place], verdicts[place])
        _draw_verdict(sheet, left + _CELL_WIDTH / 2, top + _PICTURE, verdicts[place], class_names)
    return figure


def _draw_image(axes: Axes, image: Array, verdict: _Verdict) -> None:
    axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(
            color=palette().line if verdict.is_right else palette().wrong, linewidth=0.8 if verdict.is_right else 3.0
        )


def _draw_verdict(sheet: Axes, x: float, y: float, verdict: _Verdict, class_names: Sequence[str] | None) -> None:
    probability = "" if verdict.probability is None else f" ({verdict.probability:.0%})".replace("%", " %")
    predicted, true = (_class_name(number, class_names) for number in (verdict.predicted, verdict.true))
    text = style.fitting("" if verdict.is_right else "✗ ", predicted, probability, _CELL_WIDTH - 4, 8, bold=True)
    colour = palette().text if verdict.is_right else palette().wrong
    options: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
    style.plain_text(sheet, x, y + 11, text, 8, bold=not verdict.is_right, color=colour, **options)
    colour = palette().faint_text if verdict.is_right else palette().text
    style.plain_text(sheet, x, y + 22, style.fitting("true ", true, "", _CELL_WIDTH - 4, 8), 8, color=colour, **options)


def _class_name(number: int, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return str(number)
    if not 0 <= number < len(class_names):
        raise ArgumentError(f"expected a name for each class; found {len(class_names)} names and class {number}")
    return str(class_names[number])


def as_numbers(values: Any, meaning: str) -> Array:
    """The values as an array of numbers."""
    if isinstance(values, Node):
        raise ArgumentError(
            f"expected an array of {meaning}; found the node {values!r}. A model's predict gives arrays"
        )
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ArgumentError(f"expected {meaning} that are numbers; found dtype {array.dtype}")
    return array


def _as_images(images: Array) -> Array:
    """The images with values from 0 to 1, [samples, height, width] or with 3 or 4 channels behind."""
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[-1] in (3, 4)):
        raise ArgumentError(
            f"expected images [samples, height, width] with 1, 3 or 4 channels behind, or none; found {images.shape}"
        )
    values = np.nan_to_num(images.astype(np.float64))
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if images.dtype == np.uint8 or (low >= 0 and 1 < high <= 255 and images.ndim == 4):
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return (values - low) / ((high - low) or 1.0)


def _verdicts(labels: Array, predictions: Array) -> list[_Verdict]:
    if predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    if predictions.ndim not in (1, 2) or labels.ndim not in (1, 2) or len(labels) != len(predictions):
        raise ArgumentError(
            "expected labels [samples] or [samples, classes] and predictions of as many samples; "
            f"found shapes {labels.shape} and {predictions.shape}"
        )
    classes, probabilities = _classes(predictions)
    if labels.ndim == 2:
        labels = labels[:, 0] if labels.shape[1] == 1 else labels.argmax(axis=1)
    return [
        _Verdict(int(predicted), None if probability is None else float(probability), int(true))
        for predicted, probability, true in zip(classes, probabilities, labels, strict=True)
    ]


def _classes(predictions: Array) -> tuple[Array, Sequence[float | None]]:
    """The predicted classes, and their probabilities if predictions are probabilities."""
    nothing: list[float | None] = [None] * len(predictions)
    if predictions.ndim == 1 and predictions.dtype.kind != "f":
        return predictions, nothing
    likely = bool(np.all((predictions >= -_TOLERANCE) & (predictions <= 1 + _TOLERANCE)))
    if predictions.ndim == 1:
        classes = (predictions > (0.5 if likely else 0.0)).astype(int)
        return classes, list(np.where(classes == 1, predictions, 1 - predictions)) if likely else nothing
    likely = likely and bool(np.allclose(predictions.sum(axis=1), 1.0, atol=10 * _TOLERANCE))
    return predictions.argmax(axis=1), list(predictions.max(axis=1)) if likely else nothing
