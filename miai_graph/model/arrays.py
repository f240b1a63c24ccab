"""Values of weights by name, in the safetensors format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from miai_graph.errors import SavingError
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import assign


def pack_arrays(nodes: Sequence[Node]) -> bytes:
    """Values by name; their order is kept in the metadata."""
    from safetensors.numpy import save

    names = _file_names(nodes)
    # Of an array without axes, ascontiguousarray makes one with an axis.
    arrays = {
        name: np.ascontiguousarray(node.value).reshape(node.value.shape)
        for name, node in zip(names, nodes, strict=True)
    }
    return save(arrays, metadata={"order": json.dumps(names)})


def _file_names(nodes: Sequence[Node]) -> list[str]:
    """The nodes' names, made distinct: weights of different models in one have the same, now and then."""
    names: list[str] = []
    for node in nodes:
        names.append(node.name if node.name not in names else f"{node.name}#{len(names)}")
    return names


def unpack_arrays(data: bytes, source: str) -> dict[str, Array]:
    """The values by name, in the order in which they were packed; else by name.

    Raises
    ------
    SavingError
        if the data are not in the format.
    """
    from safetensors.numpy import load

    try:
        arrays = load(data)
        header_bytes = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + header_bytes])
        order = json.loads(header.get("__metadata__", {}).get("order", "null"))
        return {str(name): arrays[name] for name in order or sorted(arrays)}
    except Exception as error:  # data from outside can be wrong in any way
        raise SavingError(
            f"expected arrays in the safetensors format in {source}; found none or damaged ones "
            f"({type(error).__name__}: {error})"
        ) from error


def set_arrays(nodes: Sequence[Node], arrays: Mapping[str, Array], source: str) -> None:
    """Set values by name, or by order where the names differ; all of them, or none.

    Raises
    ------
    SavingError
        if there are more or fewer, or one is of another shape or kind of dtype.
    """
    names = _file_names(nodes)
    if len(names) != len(arrays):
        advice = "" if names else ". The model has none before it is built: call model.build(shape), or fit it"
        raise SavingError(
            f"expected {len(names)} arrays in {source}: {_some(names)}; "
            f"found {len(arrays)}: {_some(list(arrays))}{advice}"
        )
    values = [arrays[name] for name in names] if set(names) == set(arrays) else list(arrays.values())
    for node, value in zip(nodes, values, strict=True):
        if value.shape != node.shape or not np.can_cast(value.dtype, node.dtype, "same_kind"):
            raise SavingError(
                f"expected {node.dtype} of shape {node.shape} for {node.name} in {source}; "
                f"found {value.dtype} of shape {value.shape}"
            )
    for node, value in zip(nodes, values, strict=True):
        assign(node, value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "") if names else "none"
