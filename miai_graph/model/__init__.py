"""Models and how they are trained: data, steps, the loop, and saving."""

from miai_graph.model.model import Model, Sequential
from miai_graph.model.saving import load_model

__all__ = ["Model", "Sequential", "load_model"]
