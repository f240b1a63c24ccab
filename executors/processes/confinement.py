"""Whether this process is a worker: it must not start workers of its own."""

from __future__ import annotations

from miai_graph.errors import ExecutorError

_is_worker = False


def enter_worker() -> None:
    """From now on this process is a worker."""
    global _is_worker
    _is_worker = True


def require_no_worker() -> None:
    """Raise ExecutorError in a worker."""
    if _is_worker:
        raise ExecutorError(
            "expected executor='processes' to be used in the process that the user started; found it in one of its "
            "workers, by a module or an op that runs a graph when it is imported or computed. Use executor='serial' "
            "there, or put what runs under if __name__ == '__main__'"
        )
