"""Drawings of cards (boxes with lines of text) and arrows, with title and legend, as figures. One unit is a point."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from miai_graph.views import fonts, style
from miai_graph.views.layout import Box, Drawing, Point
from miai_graph.views.palette import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

MARGIN = 16.0
PADDING = 6.0
ARROW = 5.0
NAME_SIZE, DETAIL_SIZE, TITLE_SIZE = 8.5, 7.5, 11.0
_LEADING = 1.38
_PILE = 5.0
_BADGE_HEIGHT, _BADGE_GAP = 14.0, 4.0
_CORNER = 4.0
_EDGE_WIDTH = 0.9
_LEGEND_WIDTH = 420.0
_BAR_WIDTH, _BAR_HEIGHT = 160.0, 9.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text on a card."""

    text: str
    size: float = DETAIL_SIZE
    bold: bool = False
    colour: str = field(default_factory=lambda: palette().text)

    @property
    def width(self) -> float:
        return style.text_width(self.text, self.size, self.bold)

    @property
    def height(self) -> float:
        return self.size * _LEADING


@dataclass(frozen=True)
class Card:
    """A box with text.

    lines : from top to bottom
    fill, frame : colours; frame_width in points
    badge : a short text in the upper right corner of a card that stands for several; it is drawn as a pile then
    column, group : see `Box`
    """

    key: Hashable
    lines: Sequence[Line]
    fill: Any
    frame: str
    frame_width: float = 0.9
    badge: str = ""
    column: int = 0
    group: Hashable = None

    @property
    def box(self) -> Box:
        """The place that it needs."""
        pile = _PILE if self.badge else 0.0
        width = max(line.width for line in self.lines) + 2 * PADDING + pile + self.badge_room
        height = sum(line.height for line in self.lines) + PADDING * (1.0 if len(self.lines) > 1 else 0.7)
        least = _BADGE_HEIGHT + PADDING if self.badge else 0.0
        return Box(self.key, width, max(height, least) + pile, self.column, self.group)

    @property
    def badge_width(self) -> float:
        return style.text_width(self.badge, NAME_SIZE, True) + PADDING if self.badge else 0.0

    @property
    def badge_room(self) -> float:
        """The width that is left to the badge, beside the lines."""
        return self.badge_width + _BADGE_GAP if self.badge else 0.0


@dataclass(frozen=True)
class Sample:
    """An entry of the legend: a small box of a card's colours, and what it means."""

    text: str
    fill: Any
    frame: str
    frame_width: float = 0.9


@dataclass(frozen=True)
class Bar:
    """A bar that tells what colours mean.

    text : what it is a scale of
    colours : a colour map
    least, greatest : the values at its ends
    format_tick : the text of a value
    """

    text: str
    colours: Colormap
    least: float
    greatest: float
    format_tick: Callable[[float], str]


@dataclass(frozen=True)
class Sheet:
    """All that a picture shows.

    regions : outlines of polygons, drawn behind everything
    edge_colours, edge_widths : one an edge; none: all alike
    bar : of colours, or None
    notes : small lines of text at the end
    """

    cards: Sequence[Card]
    drawing: Drawing
    title: str = ""
    samples: Sequence[Sample] = ()
    regions: Sequence[Sequence[Point]] = ()
    edge_colours: Sequence[str] = ()
    edge_widths: Sequence[float] = ()
    bar: Bar | None = None
    notes: Sequence[str] = field(default_factory=list)


def draw_sheet(sheet: Sheet) -> Figure:
    """The figure, just large enough."""
    rows = _legend_rows(sheet)
    title_width = style.text_width(sheet.title, TITLE_SIZE, True)
    notes_width = max((style.text_width(note, DETAIL_SIZE) for note in sheet.notes), default=0.0)
    bar_width = max(_BAR_WIDTH + 30, style.text_width(sheet.bar.text, DETAIL_SIZE)) if sheet.bar is not None else 0.0
    legend_width = max((sum(width for _, width in row) for row in rows), default=0.0)
    width = max(sheet.drawing.width, title_width, notes_width, bar_width, legend_width) + 2 * MARGIN
    top = MARGIN + (TITLE_SIZE * 2.2 if sheet.title else 4.0)
    below = top + sheet.drawing.height + 14
    bar_height = 40.0 if sheet.bar is not None else 0.0
    height = below + len(rows) * 16 + bar_height + len(sheet.notes) * 12 + MARGIN - 2

    figure = style.new_figure(width, height)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(height, 0))
    if sheet.title:
        style.plain_text(axes, MARGIN, MARGIN + TITLE_SIZE, sheet.title, TITLE_SIZE, bold=True)
    _draw_body(axes, sheet, ((width - sheet.drawing.width) / 2, top))
    _draw_legend(axes, rows, below)
    if sheet.bar is not None:
        _draw_bar(figure, sheet.bar, below + len(rows) * 16, height)
    for number, note in enumerate(sheet.notes):
        y = below + len(rows) * 16 + bar_height + number * 12 + 8
        style.plain_text(axes, MARGIN, y, note, DETAIL_SIZE, color=palette().faint_text, va="center")
    return figure


def _draw_body(axes: Axes, sheet: Sheet, origin: Point) -> None:
    from matplotlib.patches import Polygon

    for region in sheet.regions:
        corners = [(x + origin[0], y + origin[1]) for x, y in region]
        axes.add_patch(
            Polygon(
                corners, facecolor=palette().region, edgecolor=palette().region_line, linewidth=0.8, joinstyle="round"
            )
        )
    for number, route in enumerate(sheet.drawing.routes):
        colour = sheet.edge_colours[number] if sheet.edge_colours else palette().line
        width = sheet.edge_widths[number] if sheet.edge_widths else _EDGE_WIDTH
        _draw_arrow(axes, [(x + origin[0], y + origin[1]) for x, y in route], colour, width)
    for card in sheet.cards:
        x, y = sheet.drawing.centres[card.key]
        _draw_card(axes, card, x + origin[0], y + origin[1])


def _draw_arrow(axes: Axes, points: Sequence[Point], colour: str, width: float) -> None:
    """A line that is straight where the route is, and bends softly where it goes aside; both ends are vertical."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for place, ((x0, y0), (x1, y1)) in enumerate(pairwise(points), 1):
        if x0 != x1 and y0 != y1:
            middle = (y0 + y1) / 2
            vertices += [(x0, middle), (x1, middle), (x1, y1)]
            codes += [Path.CURVE4] * 3
        elif place + 1 < len(points) and _is_corner(points[place - 1 : place + 2]):
            before, after = _around_corner(points[place - 1 : place + 2])
            vertices += [before, (x1, y1), after]
            codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
        else:
            vertices.append((x1, y1))
            codes.append(Path.LINETO)
    axes.add_patch(PathPatch(Path(vertices, codes), fill=False, edgecolor=colour, linewidth=width, capstyle="butt"))
    x, y = points[-1]
    back = y - ARROW if points[-2][1] < y else y + ARROW
    head = [(x, y), (x - ARROW * 0.45, back), (x + ARROW * 0.45, back)]
    axes.add_patch(Polygon(head, facecolor=colour, edgecolor="none"))


def _is_corner(points: Sequence[Point]) -> bool:
    """Whether a vertical line meets a horizontal one."""
    (x0, y0), (x1, y1), (x2, y2) = points
    return (x0 == x1 and y1 == y2) or (y0 == y1 and x1 == x2)


def _around_corner(points: Sequence[Point]) -> tuple[Point, Point]:
    """The points shortly before and behind it."""
    start, corner, end = (np.array(point) for point in points)
    near = [
        corner + (other - corner) * min(0.5, _CORNER / max(np.abs(other - corner).sum(), _CORNER))
        for other in (start, end)
    ]
    return (float(near[0][0]), float(near[0][1])), (float(near[1][0]), float(near[1][1]))


def _draw_card(axes: Axes, card: Card, x: float, y: float) -> None:
    box = card.box
    left, top = x - box.width / 2, y - box.height / 2
    width, height = box.width, box.height
    if card.badge:
        width, height = width - _PILE, height - _PILE
        for shift in (_PILE, _PILE / 2):
            _draw_box(axes, (left + shift, top + shift, width, height), card.fill, card.frame, 0.7)
    _draw_box(axes, (left, top, width, height), card.fill, card.frame, card.frame_width)
    line_top = top + (height - sum(line.height for line in card.lines)) / 2
    for line in card.lines:
        place = left + (width - card.badge_room) / 2, line_top + line.height / 2
        style.plain_text(
            axes, *place, line.text, line.size, bold=line.bold, color=line.colour, ha="center", va="center_baseline"
        )
        line_top += line.height
    if card.badge:
        corner = left + width - card.badge_width - 3, top + 3
        _draw_box(axes, (*corner, card.badge_width, _BADGE_HEIGHT), palette().paper, card.frame, 0.9)
        place = corner[0] + card.badge_width / 2, corner[1] + _BADGE_HEIGHT / 2
        style.plain_text(axes, *place, card.badge, NAME_SIZE, bold=True, ha="center", va="center_baseline")


def _draw_box(axes: Axes, place: tuple[float, float, float, float], fill: Any, frame: str, frame_width: float) -> None:
    """A rounded rectangle at left, top, with width and height."""
    from matplotlib.patches import FancyBboxPatch

    left, top, width, height = place
    rounding = f"round,pad=0,rounding_size={min(4.0, height / 3)}"
    axes.add_patch(
        FancyBboxPatch(
            (left, top), width, height, boxstyle=rounding, facecolor=fill, edgecolor=frame, linewidth=frame_width
        )
    )


def _legend_rows(sheet: Sheet) -> list[list[tuple[Sample, float]]]:
    """The samples with their widths, in rows no wider than the drawing."""
    room = max(sheet.drawing.width, _LEGEND_WIDTH)
    rows: list[list[tuple[Sample, float]]] = []
    for sample in sheet.samples:
        width = style.text_width(sample.text, DETAIL_SIZE) + 36
        if not rows or sum(taken for _, taken in rows[-1]) + width > room:
            rows.append([])
        rows[-1].append((sample, width))
    return rows


def _draw_legend(axes: Axes, rows: Sequence[Sequence[tuple[Sample, float]]], top: float) -> None:
    for number, row in enumerate(rows):
        x, y = MARGIN, top + number * 16 + 8
        for sample, width in row:
            _draw_box(axes, (x, y - 4.5, 15, 9), sample.fill, sample.frame, sample.frame_width)
            style.plain_text(axes, x + 20, y, sample.text, DETAIL_SIZE, va="center_baseline")
            x += width


def _draw_bar(figure: Figure, bar: Bar, top: float, height: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    width = figure.get_size_inches()[0] * 72
    bar_top = top + 14
    place = (MARGIN / width, 1 - (bar_top + _BAR_HEIGHT) / height, _BAR_WIDTH / width, _BAR_HEIGHT / height)
    axes = figure.add_axes(place)
    scale = ScalarMappable(Normalize(bar.least, bar.greatest), bar.colours)
    drawn = figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=MaxNLocator(4))
    drawn.outline.set(edgecolor=palette().line, linewidth=0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bar.format_tick(value)))
    axes.tick_params(
        labelsize=DETAIL_SIZE, labelcolor=palette().text, color=palette().line, length=2, labelfontfamily=fonts.FONT
    )
    style.plain_text(axes, 0.0, 1.25, bar.text, DETAIL_SIZE, transform=axes.transAxes, va="bottom", ha="left")
