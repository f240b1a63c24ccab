"""How pictures look, the one palette, and how they become files. Matplotlib is imported here when it is first needed.

Colours are light with dark text on them. They can be told apart with any kind of colour vision, and never mean
something alone: places, frames, marks or texts say the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from miai_graph.context import BACKWARD, FORWARD, UPDATE
from miai_graph.errors import ArgumentError, SavingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.layout_engine import ConstrainedLayoutEngine

FONT = "DejaVu Sans"
"""Comes with matplotlib, so pictures are the same everywhere."""

PAPER = "#ffffff"
TEXT = "#1b1f24"
FAINT_TEXT = "#57606a"
LINE = "#6b7480"
GRID = "#dfe3e8"
REGION = "#f4f5f7"
REGION_LINE = "#d5d9df"

BLUE, ORANGE, GREEN, PURPLE, YELLOW, GREY = "#dbe9f8", "#fde2c4", "#d2eee2", "#ebdff5", "#fdf6c3", "#eceff2"
DARK_BLUE, DARK_ORANGE, DARK_GREEN, DARK_PURPLE, DARK_YELLOW = "#1f6fb5", "#b85c00", "#00795c", "#7a4b9e", "#8f7a00"

PHASE_FILLS = {FORWARD: BLUE, BACKWARD: ORANGE, UPDATE: GREEN}
PHASE_FRAMES = {FORWARD: DARK_BLUE, BACKWARD: DARK_ORANGE, UPDATE: DARK_GREEN}
PHASE_LINES = {FORWARD: "#5b7c9c", BACKWARD: "#c08a52", UPDATE: "#5a9c86"}
"""For the edges to nodes of a phase."""

CLASS_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c00", "#555555")
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

WRONG = "#b3261e"

FILE_FORMATS = (".png", ".svg", ".pdf")
DPI = 150
_MOST_PIXELS = 30_000


def check_path(path: Any) -> Path | None:
    """The path to write a picture to, if there is one.

    Raises
    ------
    ArgumentError
        if it is no path, or its suffix names no known format.
    """
    if path is None:
        return None
    if not isinstance(path, str | Path):
        raise ArgumentError(f"expected a path that is a string or a Path, or None; found {path!r}")
    if Path(path).suffix.lower() not in FILE_FORMATS:
        raise ArgumentError(f"expected a path that ends in {', '.join(FILE_FORMATS)}; found {str(path)!r}")
    return Path(path)


def new_figure(width: float, height: float, *, constrained: bool = False) -> Figure:
    """An empty figure, apart from pyplot: it goes when nobody refers to it, and needs no display.

    Parameters
    ----------
    width, height : in points
    constrained : whether matplotlib finds room for axes and their texts
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), facecolor=PAPER, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    if constrained:
        cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(w_pad=0.1, h_pad=0.1)
    return figure


def save(figure: Figure, path: Path | None, dpi: float = DPI) -> Figure:
    """Write the figure, in the format that the path's suffix names, and return it.

    Raises
    ------
    ArgumentError
        if dpi is not a positive number.
    SavingError
        if the file cannot be written.
    """
    if isinstance(dpi, bool) or not isinstance(dpi, int | float) or not dpi > 0:
        raise ArgumentError(f"expected dpi to be a positive number; found {dpi!r}")
    dpi = min(float(dpi), _MOST_PIXELS / max(figure.get_size_inches()))
    figure.set_dpi(dpi)
    if path is not None:
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[path.suffix.lower()]
        try:
            figure.savefig(path, format=path.suffix.lower()[1:], dpi=dpi, facecolor=PAPER, metadata=metadata)
        except OSError as error:
            raise SavingError(f"expected to write a picture to {path}; found: {error}") from error
    return figure


@lru_cache
def font(size: float, bold: bool = False) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in points."""
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, font(size, bold), ismath=False)
    return float(width)


def plain_text(axes: Axes, x: float, y: float, text: str, size: float, *, bold: bool = False, **options: Any) -> Any:
    """A text that is drawn as it is, whatever characters it has."""
    properties = {"color": TEXT, "parse_math": False, "usetex": False, **options}
    return axes.text(x, y, text, fontproperties=font(size, bold), **properties)


def shortened(text: str, most: int) -> str:
    """The text, or its end, which in names tells most, behind an ellipsis."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def fitting(before: str, text: str, behind: str, width: float, size: float, *, bold: bool = False) -> str:
    """Three texts in one, no wider than `width`: the one in the middle is shortened if need be."""
    length = len(text)
    while text_width(before + shortened(text, length) + behind, size, bold) > width and length > 1:
        length -= 1
    return before + shortened(text, length) + behind


@lru_cache
def share_colours() -> Colormap:
    """From white to a dark orange, always light enough for dark text: for shares of the time."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", ["#fffdf6", "#fee6ae", "#fdbe5f", "#f28e2b"])


def share_colour(share: float, greatest: float) -> Any:
    return share_colours()(share / greatest if greatest else 0.0)


@lru_cache
def side_colours() -> Colormap:
    """From blue over white to orange: for probabilities, with 0.5 in the middle."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("side", ["#8fbfe6", "#ffffff", "#f6b98a"])


def class_fill(place: int) -> tuple[float, float, float]:
    """The light colour of the region of a class, whose points have the full one."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(CLASS_COLOURS[place % len(CLASS_COLOURS)])
    return tuple(1 - 0.35 * (1 - part) for part in (red, green, blue))  # type: ignore[return-value]


def axes_style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, ticks and a faint grid, the same in all diagrams."""
    plain: dict[str, Any] = {"parse_math": False, "usetex": False, "color": TEXT}
    axes.set_title(title, fontproperties=font(10, True), loc="left", **plain)
    axes.set_xlabel(x_label, fontproperties=font(8.5), **plain)
    axes.set_ylabel(y_label, fontproperties=font(8.5), **plain)
    axes.tick_params(colors=LINE, labelcolor=TEXT, labelsize=8, labelfontfamily=FONT, length=3)
    axes.grid(True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_facecolor(PAPER)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=LINE, linewidth=0.8)
