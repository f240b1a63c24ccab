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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miai_graph import losses, metrics, optimizers
from miai_graph.context import unique_name
from miai_graph.errors import ArgumentError, SavingError
from miai_graph.executor import executor_names
from miai_graph.layers.core import Input
from miai_graph.layers.layer import registry
from miai_graph.layers.nesting import mapped
from miai_graph.model.arrays import pack_arrays, set_arrays, unpack_arrays
from miai_graph.model.compiled import each_identifier, serialized
from miai_graph.model.config import input_config
from miai_graph.model.rebuild import flat_nodes, packed
from miai_graph.registry import custom_object_scope

FORMAT_VERSION = 1
ZIP_START = b"PK\x03\x04"


def save_model(model: Any, path: Any, *, overwrite: bool = True) -> None:
    """See `Model.save`."""
    try:
        content = {
            "format": FORMAT_VERSION,
            "model": registry.serialize(model),
            "inputs": _inputs_config(model),
            "compiled": _compiled_config(model) if model.compiled else None,
        }
        text = json.dumps(content, indent=1)
    except (ArgumentError, TypeError) as error:
        raise SavingError(
            f"expected a model of parts that can be told as plain data, to save it; found one that cannot: {error}"
        ) from error
    parts = {"model.json": text.encode(), "weights.safetensors": pack_arrays(model.weights)}
    if model.compiled:
        parts["optimizer.safetensors"] = pack_arrays(model.optimizer.variables)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    _write_whole(Path(path), buffer.getvalue(), overwrite)


def _inputs_config(model: Any) -> Any:
    """The inputs, from which a model that is built when it meets its first data is built again."""
    structure = model._input_structure
    nodes = flat_nodes(structure)
    numbers = iter(range(len(nodes)))
    return None if not nodes else {"nodes": [*map(input_config, nodes)], "structure": packed(structure, numbers)}


def _compiled_config(model: Any) -> dict[str, Any]:
    compiled = model.compiled_arguments
    who = compiled.executor
    places = {weight: place for place, weight in enumerate(model.weights)}
    return {
        "arguments": {
            "optimizer": optimizers.serialize(compiled.optimizer),
            "loss": serialized(compiled.loss, losses.serialize),
            "loss_weights": compiled.loss_weights,
            "metrics": serialized(compiled.metrics, metrics.serialize),
            "weighted_metrics": serialized(compiled.weighted_metrics, metrics.serialize),
            "executor": who if isinstance(who, str) else who.name,
            "recompute": compiled.recompute,
        },
        "seed": compiled.seed,
        "stream": compiled.stream,
        "optimized": [places[weight] for weight in compiled.optimized if weight in places],
    }


def _write_whole(target: Path, data: bytes, overwrite: bool) -> None:
    """Write all or nothing: to a file beside, which then takes the place."""
    if target.exists() and not overwrite:
        raise SavingError(f"expected a path where no file is, with overwrite=False; found {target}")
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise SavingError(f"expected a path that can be written; found {target} ({error})") from error


def load_model(path: Any, custom_objects: Mapping[str, Any] | None = None, compile: bool = True) -> Any:
    """The model that `Model.save` wrote, with its weights and the state of its optimizer.

    Parameters
    ----------
    custom_objects : the user's own layer, loss and other classes, and functions, by name
    compile : whether to compile it as it was; training then goes on where it stood

    Raises
    ------
    SavingError
        if there is no such file, it is of another kind, damaged, of a later version, or of parts that are not known.
    """
    parts = _read_parts(_read(Path(path)), str(path))
    try:
        content = json.loads(parts["model.json"])
        if content["format"] > FORMAT_VERSION:
            raise SavingError(
                f"expected a file of format {FORMAT_VERSION} or earlier; found {content['format']}. Update miai-graph"
            )
        with custom_object_scope(custom_objects):
            model = _model_of(content)
            set_arrays(model.weights, unpack_arrays(parts["weights.safetensors"], str(path)), str(path))
            if compile and content["compiled"] is not None:
                _compile_as_it_was(
                    model, content["compiled"], custom_objects or {}, parts["optimizer.safetensors"], str(path)
                )
    except SavingError:
        raise
    except Exception as error:  # data from outside can be wrong in any way
        raise SavingError(
            f"expected a model that can be built here, in {path}; found none ({type(error).__name__}: {error})"
        ) from error
    for layer in model.walk():
        unique_name(layer.name)  # layers that are made from now on get other names
    return model


def _model_of(content: Mapping[str, Any]) -> Any:
    model = registry.get(content["model"])
    inputs = content["inputs"]
    if inputs is not None and model._input_structure is None:
        nodes = [Input(**entry) for entry in inputs["nodes"]]
        model._build_from(mapped(nodes.__getitem__, inputs["structure"]))
    return model


def _compile_as_it_was(
    model: Any, config: Mapping[str, Any], custom_objects: Mapping[str, Any], optimizer_state: bytes, source: str
) -> None:
    def own(identifier: Any) -> Any:
        return custom_objects.get(identifier, identifier) if isinstance(identifier, str) else identifier

    arguments = dict(config["arguments"])
    for kind in ("loss", "metrics", "weighted_metrics"):
        # Names are looked up when the steps are built, and nobody knows the user's own any more then.
        arguments[kind] = each_identifier(own, arguments[kind])
    if arguments["executor"] not in executor_names():
        del arguments["executor"]  # it was another machine's
    model.compile(**arguments)
    compiled, weights = model.compiled_arguments, model.weights
    compiled.seed, compiled.stream = config["seed"], config["stream"]
    compiled.optimized = [weights[place] for place in config["optimized"]]
    compiled.optimizer.build(compiled.optimized)
    set_arrays(compiled.optimizer.variables, unpack_arrays(optimizer_state, source), source)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SavingError(f"expected a file that can be read; found {path} ({error})") from error


def _read_parts(data: bytes, source: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except Exception as error:  # data from outside can be wrong in any way
        raise SavingError(
            f"expected a model written by Model.save; found {source}, which is none or damaged ({error})"
        ) from error
    if not {"model.json", "weights.safetensors"} <= parts.keys():
        found = ", ".join(parts) or "nothing"
        raise SavingError(f"expected model.json and weights.safetensors in {source}; found {found}")
    return parts


def save_weights(model: Any, path: Any, *, overwrite: bool = True) -> None:
    """See `Model.save_weights`."""
    _write_whole(Path(path), pack_arrays(model.weights), overwrite)


def load_weights(model: Any, path: Any) -> None:
    """See `Model.load_weights`."""
    data = _read(Path(path))
    if data.startswith(ZIP_START):
        data = _read_parts(data, str(path))["weights.safetensors"]
    set_arrays(model.weights, unpack_arrays(data, str(path)), str(path))
