"""A process that the benchmark starts and gives orders to."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Timer
from types import TracebackType
from typing import Any, Self

from miai_graph.bench.exchange import Answer
from miai_graph.errors import ExecutionError

PATIENCE_SECONDS = 120.0
CLOSING_SECONDS = 3.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

Start = Callable[..., "subprocess.Popen[Any]"]


class Partner:
    """A process that answers orders, as `exchange.serve` does.

    Parameters
    ----------
    name : what it is called in errors
    command : what it runs
    environment : variables that it has besides those of this process
    start : starts it, as `subprocess.Popen` does
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], start: Start = subprocess.Popen
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (`close` closes it)
        self._process = start(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **environment},
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def order(self, name: str, **arguments: Any) -> Answer:
        """Have it do something, and wait for its answer; ExecutionError if there is none, or it tells a problem."""
        self.tell(name, **arguments)
        return self.answer()

    def tell(self, name: str, **arguments: Any) -> None:
        """Have it do something; `answer` then waits for it."""
        assert self._process.stdin is not None
        with suppress(OSError):  # It may have ended, of which `answer` tells the reason.
            self._process.stdin.write(json.dumps({name: arguments}) + "\n")
            self._process.stdin.flush()

    def answer(self) -> Answer:
        """The next answer; errors as for `order`."""
        answer: Answer = json.loads(self.line())
        if "problem" in answer:
            raise ExecutionError(f"{self.name}: {answer['problem']}")
        return answer

    def line(self) -> str:
        """What it says next; ExecutionError if it ends instead, or is silent for too long."""
        assert self._process.stdout is not None
        watchdog = Timer(PATIENCE_SECONDS, self._process.kill)
        watchdog.start()
        try:
            line: str = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        if not line:
            raise ExecutionError(f"expected an answer of {self.name}; found that it ended. {self._last_words()}")
        return line

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1] if lines else f"Its exit code is {self._process.returncode}"

    def dismiss(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with suppress(OSError):  # It may have ended already.
            self._process.stdin.close()

    def close(self) -> None:
        """End it; without mercy if it does not end by itself."""
        assert self._process.stdout is not None
        self.dismiss()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
