"""Models in files: a zip archive of JSON and safetensors. Nothing in it is code, so loading runs none.

model.json               version, the model as plain data, and what compile was told
weights.safetensors      the weights by name
optimizer.safetensors    the optimizer's state by name, if the model is compiled
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miai_graph import losses, metrics, optimizers
from miai_graph.errors import MiaiGraphError, SavingError
from miai_graph.layers.layer import registry
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.leaves import assign
from miai_graph.registry import custom_object_scope

FORMAT_VERSION = 1


def save_model(model: Any, path: Any, *, overwrite: bool = True) -> None:
    """See `Model.save`."""
    target = Path(path)
    if target.exists() and not overwrite:
        raise SavingError(f"expected a path where no file is, with overwrite=False; found {target}")
    content = {
        "format": FORMAT_VERSION,
        "model": registry.serialize(model),
        "compiled": None if not model.compiled else _compiled_config(model),
    }
    parts = {"model.json": json.dumps(content, indent=1).encode(), "weights.safetensors": pack_arrays(model.weights)}
    if model.compiled:
        parts["optimizer.safetensors"] = pack_arrays(model.optimizer.variables)
    _write_whole(target, _zipped(parts))


def _zipped(parts: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _write_whole(target: Path, data: bytes) -> None:
    """Write all or nothing: to a file beside, which then takes the place."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        os.replace(beside, target)
    except OSError as error:
        raise SavingError(f"expected a path that can be written; found {target} ({error})") from error
    finally:
        beside.unlink(missing_ok=True)


def _compiled_config(model: Any) -> dict[str, Any]:
    compiled = model.compiled_arguments
    return {
        "optimizer": optimizers.serialize(compiled.optimizer),
        "loss": _each(losses.serialize, compiled.loss),
        "loss_weights": compiled.loss_weights,
        "metrics": _each(metrics.serialize, compiled.metrics),
        "weighted_metrics": _each(metrics.serialize, compiled.weighted_metrics),
        "executor": compiled.executor if isinstance(compiled.executor, str) else "serial",
    }


def _each(serialize: Any, value: Any) -> Any:
    """Identifiers in lists and dictionaries as plain data; names stay names."""
    if isinstance(value, Mapping):
        return {name: _each(serialize, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_each(serialize, part) for part in value]
    return value if value is None or isinstance(value, str) else serialize(value)


def load_model(path: Any, custom_objects: Mapping[str, Any] | None = None, compile: bool = True) -> Any:
    """The model that `Model.save` wrote, with its weights and the state of its optimizer.

    Parameters
    ----------
    custom_objects : the user's own layer, loss and other classes, and functions, by name
    compile : whether to compile it as it was; training then goes on where it stood

    Raises
    ------
    SavingError
        if there is no such file, it is of another kind, damaged, or of a later version.
    """
    parts = _read_parts(Path(path))
    try:
        content = json.loads(parts["model.json"])
        version = content["format"]
        if version > FORMAT_VERSION:
            raise SavingError(
                f"expected a file of format {FORMAT_VERSION} or earlier; found {version}. Update miai-graph"
            )
        with custom_object_scope(custom_objects):
            model = registry.get(content["model"])
            set_named_weights(model.weights, unpack_arrays(parts["weights.safetensors"]), str(path))
            if compile and content["compiled"] is not None:
                model.compile(**content["compiled"])
                state = unpack_arrays(parts["optimizer.safetensors"])
                if len(state) > len(model.optimizer.variables):
                    model.optimizer.build(model.trainable_weights)
                set_named_weights(model.optimizer.variables, state, str(path))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, MiaiGraphError):
            raise
        raise SavingError(
            f"expected a model in {path}; found a damaged one ({type(error).__name__}: {error})"
        ) from error
    return model


def _read_parts(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except OSError as error:
        raise SavingError(f"expected a file that can be read; found {path} ({error})") from error
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise SavingError(f"expected a model written by Model.save; found {path}, which is not ({error})") from error
    if not {"model.json", "weights.safetensors"} <= parts.keys():
        raise SavingError(
            f"expected model.json and weights.safetensors in {path}; found {', '.join(parts) or 'nothing'}"
        )
    return parts


def pack_arrays(nodes: Sequence[Node]) -> bytes:
    """Values by name, as safetensors; the order is kept in the metadata."""
    from safetensors.numpy import save

    names = _file_names(nodes)
    arrays = {
        name: np.ascontiguousarray(node.value).reshape(node.shape) for name, node in zip(names, nodes, strict=True)
    }
    return save(arrays, metadata={"order": json.dumps(names)})


def _file_names(nodes: Sequence[Node]) -> list[str]:
    names: list[str] = []
    for node in nodes:
        names.append(node.name if node.name not in names else f"{node.name}#{len(names)}")
    return names


def unpack_arrays(data: bytes) -> dict[str, Array]:
    """The values by name, in the order in which they were packed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        order = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("order", "null"))
    except (SafetensorError, ValueError) as error:
        raise SavingError(f"expected arrays in the safetensors format; found damaged ones ({error})") from error
    return {name: arrays[name] for name in order or arrays}


def set_named_weights(nodes: Sequence[Node], arrays: Mapping[str, Array], source: str) -> None:
    """Set values by name, or by order where the names differ but the shapes agree; all of them or none."""
    names = _file_names(nodes)
    if set(names) == set(arrays):
        values = [arrays[name] for name in names]
    elif len(names) == len(arrays):
        values = list(arrays.values())
    else:
        raise SavingError(
            f"expected {len(names)} arrays in {source}: {_some(names)}; found {len(arrays)}: {_some(list(arrays))}"
        )
    for node, value in zip(nodes, values, strict=True):
        if value.shape != node.shape:
            raise SavingError(f"expected shape {node.shape} for {node.name} in {source}; found {value.shape}")
    for node, value in zip(nodes, values, strict=True):
        assign(node, value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "")


def save_weights(model: Any, path: Any) -> None:
    """See `Model.save_weights`."""
    _write_whole(Path(path), pack_arrays(model.weights))


def load_weights(model: Any, path: Any) -> None:
    """See `Model.load_weights`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SavingError(f"expected a file that can be read; found {path} ({error})") from error
    set_named_weights(model.weights, unpack_arrays(data), str(path))
