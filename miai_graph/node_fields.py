"""What a node has, while it can still be set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from miai_graph.context import SourceLine
from miai_graph.types import TensorType

if TYPE_CHECKING:
    from miai_graph.node import Node


class NodeFields:
    """A node in the making. It is filled before it becomes a `Node`, whose fields cannot be set: to get round that for
    each of them would take three times as long."""

    __slots__ = (
        "__weakref__",
        "attributes",
        "call",
        "index",
        "inputs",
        "name",
        "op",
        "origin",
        "phase",
        "scope",
        "source",
        "type",
    )

    op: Any
    inputs: tuple[Node, ...]
    attributes: Mapping[str, Any]
    type: TensorType
    name: str
    scope: str
    phase: str
    source: SourceLine | None
    call: Any
    index: int
    origin: int
