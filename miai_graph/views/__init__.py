"""Pictures: of models, graphs, training, timings and samples. Each, and matplotlib, is imported when it is needed.

`layout` says where boxes and edges go (by `ranks`, `ordering` and `coordinates`; `wrapping` if the drawing is tall),
`canvas` draws them, `colouring` fills them by what was timed, and `style` writes files, in the colours of `palette`.
Each ``…_view`` makes one kind of picture.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from miai_graph.graph import views

if TYPE_CHECKING:
    from miai_graph.views.boundary_view import plot_decision_boundary
    from miai_graph.views.error_view import plot_error
    from miai_graph.views.graph_view import plot_graph
    from miai_graph.views.history_view import plot_history
    from miai_graph.views.model_view import plot_model
    from miai_graph.views.samples_view import plot_predictions
    from miai_graph.views.scaling_view import plot_scaling
    from miai_graph.views.timing_view import plot_timing

_MODULES = {
    "plot_decision_boundary": "boundary_view",
    "plot_error": "error_view",
    "plot_graph": "graph_view",
    "plot_history": "history_view",
    "plot_model": "model_view",
    "plot_predictions": "samples_view",
    "plot_scaling": "scaling_view",
    "plot_timing": "timing_view",
    "png_bytes": "style",
}

__all__ = [
    "plot_decision_boundary",
    "plot_error",
    "plot_graph",
    "plot_history",
    "plot_model",
    "plot_predictions",
    "plot_scaling",
    "plot_timing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"miai_graph.views.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'miai_graph.views' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


def _draw(name: str, *arguments: Any, **options: Any) -> Any:
    return __getattr__(name)(*arguments, **options)


views.update({name: partial(_draw, name) for name in _MODULES})
