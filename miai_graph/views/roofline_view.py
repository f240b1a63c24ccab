"""Points below a roof: how fast layers compute, and what the machine would let them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from miai_graph.errors import ArgumentError
from miai_graph.timing import TimedWorker, Timing, TimingRecord
from miai_graph.timing.grouping import NOT_COMPUTING, GroupBy, records_of_workers, split_into_groups
from miai_graph.timing.rates import Rates
from miai_graph.views import fonts, style
from miai_graph.views.palette import palette
from miai_graph.views.point_labels import Box, LabelPlaces
from miai_graph.views.shares import format_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 520.0, 380.0
_LONGEST_NAME = 32
_MOST_NAMED = 12
_LABEL_SIZE = 7.5
_ALIKE = 1.15
_ROOF_BOXES = 120
_NOTABLE = 0.05
"""The share of the time from which on a point's name may stand at the end of a line."""
_NARROW = 100
"""Where the greatest number is less than so many times the smallest, more than powers of ten are marked."""
_NO_PEAKS = "the machine's peaks were not measured: there is no roof to compare with"


@dataclass(frozen=True)
class _Point:
    """A layer or op: operations a byte, operations a second, and its share of the time of all that are drawn."""

    name: str
    intensity: float
    speed: float
    share: float


@dataclass(frozen=True)
class _Roof:
    """What a worker can do at most: operations a second, bytes a second."""

    name: str
    flops: float
    bytes: float

    @property
    def ridge(self) -> float:
        """The operations a byte from which on arithmetic is the limit."""
        return self.flops / self.bytes

    def height(self, intensity: float) -> float:
        return min(self.flops, self.bytes * intensity)


def draw_roofline(timing: Timing, by: GroupBy = "layer") -> Figure:
    """The figure: a point a layer, op or node, the larger the more time it took; speeds are those of one worker."""
    points = _points(timing, by)
    roofs = _roofs(timing.workers)
    figure = style.new_figure(_WIDTH, _HEIGHT, constrained=True)
    axes = figure.add_subplot()
    style.axes_style(
        axes, "How fast, and how fast it could be", "arithmetic operations a byte moved", "GFLOP/s of one worker"
    )
    _set_scales(axes, points, roofs)
    for place, roof in enumerate(roofs):
        _draw_roof(axes, roof, place)
    if not roofs:
        style.plain_text(
            axes, 0.02, 0.97, _NO_PEAKS, 8, transform=axes.transAxes, va="top", color=palette().wrong, bold=True
        )
    _draw_points(axes, points, roofs[0] if roofs else None)
    if roofs:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.14),
            ncols=2,
            frameon=False,
            prop=style.font(8),
            labelcolor=palette().text,
            borderaxespad=0.0,
        )
    _label(figure, axes, points, roofs)
    return figure


def _points(timing: Timing, by: GroupBy) -> list[_Point]:
    """What computes, the longest first."""
    rates = Rates(timing)
    computing = [record for record in records_of_workers(timing) if record.phase not in NOT_COMPUTING]
    total = sum(record.seconds for record in computing)
    points = []
    for name, members in _groups(computing, by):
        speed, moved = rates.flops_per_second(members), rates.bytes_per_second(members)
        if speed and moved:
            share = sum(record.seconds for record in members) / total
            points.append(_Point(style.shortened(name, _LONGEST_NAME), speed / moved, speed, share))
    if not points:
        raise ArgumentError("expected a timing of nodes that compute, for a roofline; found none with operations")
    return sorted(points, key=lambda point: -point.share)


def _groups(records: Sequence[TimingRecord], by: GroupBy) -> Iterator[tuple[str, Sequence[TimingRecord]]]:
    """What points are of. Nodes that one kernel computes are one."""
    if by != "node":
        for (name, _), members in split_into_groups(records, by).items():
            yield name, members
        return
    kernels: dict[str, list[TimingRecord]] = defaultdict(list)
    for record in records:
        kernels[record.kernel or record.node].append(record)
    for name, members in kernels.items():
        others = len({record.node for record in members}) - 1
        yield f"{name} (+{others})" if others else name, members


def _roofs(workers: Sequence[TimedWorker]) -> list[_Roof]:
    """One for all workers if they are alike, else those of the fastest and of the slowest one."""
    known = [
        _Roof(f"worker {worker.index} on {worker.host}", worker.flops_per_second, worker.bytes_per_second)
        for worker in workers
        if worker.flops_per_second and worker.bytes_per_second
    ]
    known.sort(key=lambda roof: -roof.flops)
    alike = known and all(
        max(getattr(roof, field) for roof in known) < _ALIKE * min(getattr(roof, field) for roof in known)
        for field in ("flops", "bytes")
    )
    return known[:1] if alike else [*known[:1], *known[1:][-1:]]


def _set_scales(axes: Axes, points: Sequence[_Point], roofs: Sequence[_Roof]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", yscale="log")
    across = [point.intensity for point in points] + [roof.ridge for roof in roofs]
    low, high = min(across) / 3, max(across) * 5
    up = [point.speed for point in points] + [roof.flops for roof in roofs]
    axes.set(xlim=(low, high), ylim=(min(up) / 3 / 1e9, max(up) * 3 / 1e9))
    for axis in (axes.xaxis, axes.yaxis):
        least, most = axis.get_view_interval()
        if most / least < _NARROW:
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_roof(axes: Axes, roof: _Roof, place: int) -> None:
    low, high = axes.get_xlim()
    across = sorted({low, min(max(roof.ridge, low), high), high})
    axes.plot(
        across,
        [roof.height(intensity) / 1e9 for intensity in across],
        color=palette().text if place == 0 else palette().line,
        linestyle="-" if place == 0 else "--",
        linewidth=1.5,
        label=fonts.drawable(roof.name) + f": {roof.flops / 1e9:,.0f} GFLOP/s, {roof.bytes / 1e9:,.1f} GB/s",
    )


def _draw_points(axes: Axes, points: Sequence[_Point], roof: _Roof | None) -> None:
    """Circles where memory is the limit, squares where arithmetic is."""
    groups = (
        (None, "not known what limits it", 0, "o"),
        (True, "limited by memory", 0, "o"),
        (False, "limited by arithmetic", 1, "s"),
    )
    for is_left, label, colour, marker in groups:
        own = [point for point in points if is_left is (None if roof is None else point.intensity < roof.ridge)]
        if own:
            axes.scatter(
                [point.intensity for point in own],
                [point.speed / 1e9 for point in own],
                s=[_area(point) for point in own],
                color=style.tint(palette().classes[colour], 0.75),
                edgecolors=palette().classes[colour],
                linewidths=0.8,
                marker=marker,
                label="" if is_left is None else label,
                zorder=3,
            )


def _area(point: _Point) -> float:
    """In square points."""
    return 18 + 260 * point.share


def _label(figure: Figure, axes: Axes, points: Sequence[_Point], roofs: Sequence[_Roof]) -> None:
    """Names of the points that took longest, where they cover neither points nor other names."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    ends = axes.transData.transform([(point.intensity, point.speed / 1e9) for point in points]) * scale
    left, bottom, right, top = (edge * scale for edge in axes.get_window_extent().extents)
    places = LabelPlaces(
        [(float(x), float(y)) for x, y in ends],
        [(_area(point) / math.pi) ** 0.5 + 1 for point in points],
        _roof_boxes(axes, roofs, scale),
        (left, right, bottom, top),
    )
    named = 0
    for number, point in enumerate(points):
        text = f"{point.name} {format_share(point.share)}"
        size = style.text_width(text, _LABEL_SIZE), _LABEL_SIZE * 1.15
        place = places.take(number, *size, may_be_away=point.share >= _NOTABLE)
        if place is None:
            continue
        at = point.intensity, point.speed / 1e9
        if place.line_end is not None:
            _draw_line(axes, at, place.line_end)
        style.text_beside(axes, at, (place.left, place.middle), text, _LABEL_SIZE, va="center", zorder=4)
        named += 1
        if named == _MOST_NAMED:
            return


def _draw_line(axes: Axes, point: tuple[float, float], end: tuple[float, float]) -> None:
    """From a point to what is so many points of print away."""
    look = {"arrowstyle": "-", "color": palette().line, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0}
    axes.annotate("", point, xytext=end, textcoords="offset points", arrowprops=look, zorder=2)


def _roof_boxes(axes: Axes, roofs: Sequence[_Roof], scale: float) -> list[Box]:
    """Small boxes along the roofs, so that no name is written over them."""
    across = np.geomspace(*axes.get_xlim(), _ROOF_BOXES)
    lines = [[(place, roof.height(float(place)) / 1e9) for place in across] for roof in roofs]
    drawn = [axes.transData.transform(line) * scale for line in lines]
    return [(x - 2, x + 2, y - 2, y + 2) for line in drawn for x, y in line]
