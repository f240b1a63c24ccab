"""The one tree of exceptions.

    MiaiGraphError
    ├── GraphError                 a graph cannot be built, or is malformed
    │   ├── ShapeError             shapes do not fit each other (also a ValueError)
    │   ├── DTypeError             dtypes do not fit each other (also a TypeError)
    │   ├── DuplicateNameError     one name for two inputs, parameters or layers (also a ValueError)
    │   ├── GradientError          a derivative was asked for that does not exist
    │   └── NotSplittableError     a value cannot be computed from parts of the batch
    ├── ArgumentError              an argument is not of the kind or range expected (also a ValueError)
    ├── FeedError                  the arrays given do not fit the graph's inputs (also a ValueError)
    ├── ExecutionError             a node failed while the graph ran (also a RuntimeError)
    │   ├── WorkerLostError        a process that took part ended while the graph ran
    │   └── HostLostError          a host that took part can no longer be reached
    ├── ExecutorError              no such executor, or it is closed (also a RuntimeError)
    │   └── ClusterLostError       the scheduler of a cluster can no longer be reached
    ├── ModelError                 a model is used in a way or at a time it cannot be
    ├── SavingError                a file cannot be written, read or understood
    └── MissingDependencyError     an optional package is not installed (also an ImportError)

Each message says what was expected, what was found, where the user built the node in question
(file and line), and what to do. Everything that is raised on purpose in this library is one of these,
except where Python itself demands another type (``AttributeError`` for a missing attribute).
"""

from __future__ import annotations

from typing import Any


class MiaiGraphError(Exception):
    """Base of all errors that miai_graph raises on purpose.

    Attributes
    ----------
    failure : what could not be built, and from which nodes (see `messages.Failure`); None where that is not known.
        `plot_error` draws it
    """

    failure: Any = None

    def __reduce__(self) -> Any:
        # Nodes cannot be pickled, and would say nothing in another process.
        return type(self), self.args, {name: value for name, value in vars(self).items() if name != "failure"}


class GraphError(MiaiGraphError):
    """A graph cannot be built, or is malformed."""


class ShapeError(GraphError, ValueError):
    """Shapes do not fit each other or the op."""


class DTypeError(GraphError, TypeError):
    """Dtypes do not fit each other or the op."""


class DuplicateNameError(GraphError, ValueError):
    """Two inputs, parameters or layers have one name."""


class GradientError(GraphError):
    """A derivative was asked for that does not exist."""


class NotSplittableError(GraphError):
    """A value cannot be computed from parts of the batch."""


class ArgumentError(MiaiGraphError, ValueError):
    """An argument is not of the kind, or not in the range, that is expected."""


class FeedError(MiaiGraphError, ValueError):
    """The arrays given do not fit the inputs of the graph."""


class ExecutionError(MiaiGraphError, RuntimeError):
    """A node failed while the graph ran; the cause is chained."""


class WorkerLostError(ExecutionError):
    """A process that took part ended while the graph ran. Nothing of the step was applied."""


class HostLostError(ExecutionError):
    """A host that took part can no longer be reached. The values are those of the last snapshot."""


class ExecutorError(MiaiGraphError, RuntimeError):
    """There is no executor of that name, or it is closed."""


class ClusterLostError(ExecutorError):
    """The scheduler of a cluster can no longer be reached. The values are those of the last snapshot."""


class ModelError(MiaiGraphError):
    """A model is used in a way, or at a time, in which it cannot be."""


class SavingError(MiaiGraphError):
    """A file cannot be written, read or understood."""


class MissingDependencyError(MiaiGraphError, ImportError):
    """A package that only some features need is not installed."""
