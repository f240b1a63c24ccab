"""The processes of the benchmark on hosts: one a host, which are given orders together or one by one."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

from miai_graph.bench.exchange import Answer, start_command
from miai_graph.bench.measure import CLOSING_SECONDS, PATIENCE_SECONDS, THREAD_VARIABLES
from miai_graph.bench.networks import INTERFACE, EmulatedNetwork
from miai_graph.errors import ExecutionError


class Partner:
    """A process on a host that answers orders, as `exchange.serve` does.

    Parameters
    ----------
    name : what it is called in errors
    python, module, arguments : what it runs
    """

    def __init__(
        self, name: str, network: EmulatedNetwork, host: int, python: str, module: str, arguments: Sequence[str]
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (`close` closes it)
        # `env` adds to the environment that the process would have anyway.
        settings = [f"{variable}=1" for variable in THREAD_VARIABLES]
        self._process = network.run(
            host,
            ["env", f"GLOO_SOCKET_IFNAME={INTERFACE}", *settings, *start_command(python, module, *arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def tell(self, name: str, **arguments: Any) -> None:
        """Have it do something; `answer` then waits for it."""
        assert self._process.stdin is not None
        with suppress(OSError):  # It may have ended, of which `answer` tells the reason.
            self._process.stdin.write(json.dumps({name: arguments}) + "\n")
            self._process.stdin.flush()

    def answer(self) -> Answer:
        """The next answer; ExecutionError if there is none, or it tells a problem."""
        assert self._process.stdout is not None
        watchdog = Timer(PATIENCE_SECONDS, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        if not line:
            raise ExecutionError(f"expected an answer of {self.name}; found that it ended. {self._last_words()}")
        answer: Answer = json.loads(line)
        if "problem" in answer:
            raise ExecutionError(f"{self.name}: {answer['problem']}")
        return answer

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


class Group:
    """A process on each of several hosts.

    Parameters
    ----------
    module, arguments : what each runs; ``--rank`` and ``--meeting`` are added
    folder : for the file by which they meet
    """

    def __init__(
        self, network: EmulatedNetwork, hosts: int, python: str, module: str, arguments: Sequence[str], folder: Path
    ) -> None:
        name = module.rpartition(".")[2]
        with tempfile.NamedTemporaryFile(dir=folder, prefix="meeting_") as file:
            meeting = file.name  # Removed again: it is for them to make.
        self._stack = ExitStack()
        with self._stack:
            self.partners = [
                self._stack.enter_context(
                    Partner(
                        f"{name} on host {host}",
                        network,
                        host,
                        python,
                        module,
                        [*arguments, "--rank", str(host), "--meeting", meeting],
                    )
                )
                for host in range(hosts)
            ]
            self._stack = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # All at once: one that ends may wait for another.
        for partner in self.partners:
            partner.dismiss()
        self._stack.close()

    def answers(self) -> list[Answer]:
        """The next answer of each."""
        return [partner.answer() for partner in self.partners]

    def order(self, name: str, **arguments: Any) -> list[Answer]:
        """Have all do something at the same time; what each answers."""
        for partner in self.partners:
            partner.tell(name, **arguments)
        return self.answers()

    def order_singly(self, name: str, **arguments: Any) -> list[Answer]:
        """Have one after the other do something; what each answers."""
        answers = []
        for partner in self.partners:
            partner.tell(name, **arguments)
            answers.append(partner.answer())
        return answers
