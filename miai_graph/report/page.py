"""The page itself: a template, its styles and scripts, and the data, as one file."""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from miai_graph.errors import ArgumentError, SavingError
from miai_graph.report.data import GraphData, graph_of, report_data, to_json
from miai_graph.timing import Timing
from miai_graph.views.palette import DARK, LIGHT, Palette

_ASSETS = files("miai_graph.report") / "assets"
_STYLES = ("report.css",)
_SCRIPTS = (
    "kernels.js",
    "store.js",
    "colours.js",
    "viewport.js",
    "layout.js",
    "boxes.js",
    "graph.js",
    "slices.js",
    "timeline.js",
    "table.js",
    "summary.js",
    "main.js",
)
_LIVE_STYLES = ("vendor/uplot/uPlot.min.css",)
_LIBRARIES = ("vendor/uplot/uPlot.iife.min.js",)
_LIVE_SCRIPTS = ("curves.js", "live.js")


def write_report(
    model_or_graph: Any, timing: Timing, path: str | Path, compare: Timing | None, title: str | None
) -> Path:
    """See `miai_graph.report.report`."""
    target = check_page_path(path)
    graph = GraphData(graph_of(model_or_graph, timing))
    if compare is not None and not isinstance(compare, Timing):
        raise ArgumentError(f"expected compare to be the Timing of another run, or None; found {compare!r}")
    if not isinstance(title, str | None):
        raise ArgumentError(f"expected title to be a string, or None; found {title!r}")
    name = title if title is not None else title_of(model_or_graph)
    write_page(render(name, to_json(report_data(graph, timing, compare, name))), target)
    return target


def title_of(model_or_graph: Any) -> str:
    """What a page is called, if the user does not say."""
    name = getattr(model_or_graph, "name", None)
    return name if isinstance(name, str) else "Timing"


def check_page_path(path: Any) -> Path:
    """The path to write a page to.

    Raises
    ------
    ArgumentError
        if it is no path, or does not end in .html.
    """
    if not isinstance(path, str | Path) or Path(path).suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"expected a path that ends in .html; found {str(path)!r}")
    return Path(path)


def check_writable(path: Path) -> None:
    """Raise SavingError if a file cannot be written there, before there is anything to write."""
    is_there = path.is_file() if path.exists() else path.parent.is_dir()
    target = path if path.exists() else path.parent
    if not is_there or not os.access(target, os.W_OK):
        raise SavingError(f"expected to write a report to {path}; found that {target} cannot be written to")


def write_page(page: str, path: Path) -> None:
    """Write the file.

    Raises
    ------
    SavingError
        if that cannot be done.
    """
    try:
        path.write_text(page, encoding="utf-8", newline="\n")
    except (OSError, ValueError) as error:
        raise SavingError(f"expected to write a report to {path}; found: {error}") from error


def render(title: str, json_text: str, *, with_curves: bool = False) -> str:
    """The page.

    Parameters
    ----------
    title : any text
    json_text : the data, as `to_json` writes it
    with_curves : whether curves of a training can be drawn; and, where the page was loaded from a `ReportServer`, that
        it asks there for what is new
    """
    style = _palettes() + _joined((*(_LIVE_STYLES if with_curves else ()), *_STYLES))
    libraries = [_joined(_LIBRARIES)] if with_curves else []
    script = _wrapped(_joined((*_SCRIPTS[:-1], *(_LIVE_SCRIPTS if with_curves else ()), _SCRIPTS[-1])))
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(_hash(text) for text in (*libraries, script)),
        "style-src": _hash(style),
        "connect-src": "'self'" if with_curves else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return _template().render(
        title=title,
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        # Ours, and data in which no "<" is left: these stand in the page as they are.
        style=Markup(style),
        scripts=[Markup(text) for text in (*libraries, script)],
        data=Markup(json_text),
        live=with_curves,
    )


def _palettes() -> str:
    """The colours of all pictures as variables for styles and scripts."""
    return f":root {{{_variables(LIGHT)}}}\n:root[data-theme=dark] {{{_variables(DARK)}}}\n"


def _variables(palette: Palette) -> str:
    single = ("paper", "text", "faint_text", "line", "grid", "region", "grey")
    listed = ("classes", "share_steps", "change_steps")
    values = {name: getattr(palette, name) for name in single}
    values |= {name: ", ".join(getattr(palette, name)) for name in listed}
    values |= {f"phase-{phase}": colour for phase, colour in palette.time_fills.items()}
    return " ".join(f"--{name.replace('_', '-')}: {value};" for name, value in values.items())


@cache
def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_text("page.html.jinja"))


@cache
def _text(name: str) -> str:
    return _ASSETS.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join(_text(name) for name in names)


def _wrapped(script: str) -> str:
    """A script whose names are its own."""
    return f'(() => {{\n"use strict";\n{script}\n}})();'


def _hash(text: str) -> str:
    """What a content security policy calls a text that may stand in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
