"""Pictures: of models, graphs, training, predictions. Matplotlib is imported when the first one is drawn.

`layout` says where boxes and edges go (by `ranks`, `ordering` and `coordinates`; `wrapping` for tall drawings), `canvas`
draws them, and `style` has the palette and writes files. Each ``…_view`` makes one kind of picture of them.
"""

from miai_graph.graph import views
from miai_graph.views.boundary_view import plot_decision_boundary
from miai_graph.views.graph_view import plot_graph
from miai_graph.views.history_view import plot_history
from miai_graph.views.model_view import plot_model
from miai_graph.views.samples_view import plot_predictions

__all__ = ["plot_decision_boundary", "plot_graph", "plot_history", "plot_model", "plot_predictions"]

views.update(plot_graph=plot_graph, plot_history=plot_history, plot_model=plot_model)
