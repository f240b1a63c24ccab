"""Models and how they are trained: data, steps, the loop, and saving."""

from miai_graph.model.model import Model
from miai_graph.model.saving import load_model
from miai_graph.model.sequential import Sequential

__all__ = ["Model", "Sequential", "load_model"]
