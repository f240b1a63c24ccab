"""How pictures look, and how they become files. Matplotlib is imported here when it is first needed."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from miai_graph.errors import ArgumentError, SavingError
from miai_graph.views.fonts import FONT, drawable, families
from miai_graph.views.palette import palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.layout_engine import ConstrainedLayoutEngine

CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_DARK = 0.19
"""The luminance below which white is easier to read than black."""

FILE_FORMATS = (".png", ".svg", ".pdf")
DPI = 150
NOTEBOOK_DPI = 100
_MOST_PIXELS, _MOST_AREA = 30_000, 80_000_000
"""Along one side, and of the whole picture."""


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

    figure = _figure_class()(
        figsize=(width / 72, height / 72), facecolor=palette().paper, layout="constrained" if constrained else None
    )
    FigureCanvasAgg(figure)
    if constrained:
        cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(w_pad=0.1, h_pad=0.1)
    return figure


@lru_cache
def _figure_class() -> type[Figure]:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that notebooks show, although it does not belong to pyplot."""

        def _repr_png_(self) -> bytes:
            return png_bytes(self)

    return Picture


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
    dpi = _drawable(figure, float(dpi))
    figure.set_dpi(dpi)
    if path is not None:
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}[path.suffix.lower()]
        try:
            figure.savefig(
                path, format=path.suffix.lower()[1:], dpi=dpi, facecolor=figure.get_facecolor(), metadata=metadata
            )
        except (OSError, ValueError) as error:
            raise SavingError(f"expected to write a picture to {path}; found: {error}") from error
    return figure


def png_bytes(figure: Figure, dpi: float = NOTEBOOK_DPI) -> bytes:
    """The figure as a PNG file: what notebooks show."""
    written = BytesIO()
    figure.savefig(written, format="png", dpi=_drawable(figure, dpi))
    return written.getvalue()


def _drawable(figure: Figure, dpi: float) -> float:
    """So many pixels an inch, or as many as a very large picture may have."""
    width, height = figure.get_size_inches()
    return float(min(dpi, _MOST_PIXELS / max(width, height), (_MOST_AREA / (width * height)) ** 0.5))


@lru_cache
def font(size: float, bold: bool = False) -> FontProperties:
    """The font of all texts, with those that step in for characters that it lacks."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=families(), size=size, weight="bold" if bold else "normal")


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in points."""
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(drawable(text), font(size, bold), ismath=False)
    return float(width)


def plain_text(axes: Axes, x: float, y: float, text: str, size: float, *, bold: bool = False, **options: Any) -> Any:
    """A text that is drawn as it is, whatever characters it has."""
    properties = {"color": palette().text, "parse_math": False, "usetex": False, **options}
    return axes.text(x, y, drawable(text), fontproperties=font(size, bold), **properties)


def text_beside(
    axes: Axes, point: tuple[float, float], shift: tuple[float, float], text: str, size: float, **options: Any
) -> Any:
    """A text at so many points to the right of, and above, a point of the axes; it may stand outside of them."""
    properties = {"color": palette().text, "parse_math": False, "va": "center_baseline", **options}
    return axes.annotate(
        drawable(text),
        point,
        shift,
        textcoords="offset points",
        fontproperties=font(size),
        annotation_clip=False,
        **properties,
    )


def shortened(text: str, most: int) -> str:
    """The text, or its end, which in names tells most, behind an ellipsis."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def fitting(before: str, text: str, behind: str, width: float, size: float, *, bold: bool = False) -> str:
    """Three texts in one, no wider than `width`: the one in the middle is shortened if need be."""
    length = len(text)
    while text_width(before + shortened(text, length) + behind, size, bold) > width and length > 1:
        length -= 1
    return before + shortened(text, length) + behind


def share_colours() -> Colormap:
    """From the paper's colour to orange: for shares of the time."""
    return _blended(tuple(palette().share_steps))


def side_colours() -> Colormap:
    """From blue over white to orange: for probabilities, with 0.5 in the middle."""
    return _blended(tuple(palette().side_steps))


def change_colours() -> Colormap:
    """From blue over grey to orange: for what became less, and what became more."""
    return _blended(tuple(palette().change_steps))


def mapped_colour(colours: Colormap, place: float) -> str:
    """The colour at a place from 0 to 1."""
    from matplotlib.colors import to_hex

    return str(to_hex(colours(place)))


@lru_cache
def _blended(steps: tuple[str, ...]) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blended", steps)


def tint(colour: str, amount: float) -> str:
    """So much of a colour, from 0 to 1, on the paper."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = (
        amount * part + (1 - amount) * ground
        for part, ground in zip(to_rgb(colour), to_rgb(palette().paper), strict=True)
    )
    return str(to_hex((red, green, blue)))


def text_on(fill: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = (part**2.2 for part in to_rgb(fill))
    return "#14181d" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _DARK else "#ffffff"


def class_fill(place: int) -> str:
    """The faint colour of the region of a class, whose points have the full one."""
    return tint(palette().classes[place % len(palette().classes)], 0.35)


def axes_style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, ticks and a faint grid, the same in all diagrams."""
    plain: dict[str, Any] = {"parse_math": False, "usetex": False, "color": palette().text}
    axes.set_title(drawable(title), fontproperties=font(10, True), loc="left", **plain)
    axes.set_xlabel(drawable(x_label), fontproperties=font(8.5), **plain)
    axes.set_ylabel(drawable(y_label), fontproperties=font(8.5), **plain)
    axes.tick_params(colors=palette().line, labelcolor=palette().text, labelsize=8, labelfontfamily=FONT, length=3)
    axes.tick_params(which="minor", color=palette().line, length=1.5)
    axes.grid(True, color=palette().grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_facecolor(palette().paper)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=palette().line, linewidth=0.8)
