"""What passes between the benchmark and the processes that it measures: a problem in a file, then orders and answers.

An order is a line of JSON, the name of what to do with its arguments: ``{"steps": {"count": 20}}``. So is its answer.
Peers in other libraries use this file too, so it needs nothing but NumPy.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Answer = dict[str, Any]

_ROOT = Path(__file__).parents[2]
_WEIGHT = "weight:"
_START = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Problem:
    """What all sides start from.

    Attributes
    ----------
    x, y : samples and labels
    rows : the row numbers of each batch, in the order in which they are trained on
    weights : first values by name, channels last
    optimizer, options : the name of its class, and its arguments
    """

    x: Array
    y: Array
    rows: Array
    weights: Mapping[str, Array]
    optimizer: str
    options: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Write it to a file."""
        weights: dict[str, Any] = {_WEIGHT + name: value for name, value in self.weights.items()}
        optimizer = json.dumps([self.optimizer, dict(self.options)])
        np.savez(path, x=self.x, y=self.y, rows=self.rows, optimizer=optimizer, **weights)

    @classmethod
    def load(cls, path: Path) -> Problem:
        """What `save` wrote."""
        with np.load(path) as file:
            weights = {name.removeprefix(_WEIGHT): file[name] for name in file.files if name.startswith(_WEIGHT)}
            optimizer, options = json.loads(str(file["optimizer"]))
            return cls(file["x"], file["y"], file["rows"], weights, optimizer, options)


def start_command(python: str, module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in a Python that need not have it installed.

    The packages of that Python come before those that lie beside this one.
    """
    return [python, "-c", _START, str(_ROOT), module, *arguments]


def serve(ready: Callable[[], Answer], handlers: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer orders from standard input until it ends.

    Parameters
    ----------
    ready : called first; gives the answer that says that orders may come
    handlers : for each order a function; it is given the order's arguments
    """
    # Ctrl-C is for the benchmark, which closes standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever libraries print must not stand among the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _answer(answers, ready, {})
        for line in sys.stdin:
            ((name, arguments),) = json.loads(line).items()
            _answer(answers, handlers[name], arguments)


def _answer(answers: Any, handler: Callable[..., Answer], arguments: Mapping[str, Any]) -> None:
    try:
        answer = handler(**arguments)
    except Exception as error:
        answer = {"problem": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
