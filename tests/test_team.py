"""Threads that run native code in step: what happens to them when Ctrl-C is pressed, or there are no files left."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from miai_graph.kernels.compiler.native import processor
from miai_graph.kernels.kernel import NOTHING
from miai_graph.kernels.running.run import joined

pytestmark = [
    pytest.mark.skipif(processor() is None, reason="there is no native code for this processor"),
    pytest.mark.skipif(len(joined([NOTHING, NOTHING], None)) > 1, reason="native code finds no clock here"),
]

BEGINNING = """
    import os, random, resource, signal, threading, time
    import numpy as np
    from test_native_runs import shares
    from miai_graph.kernels.compiler.native import undisturbed
    from miai_graph.kernels.running.run import joined
    from miai_graph.kernels.running.team import team

    def run_of(x, threads):
        ((_, run, _),) = joined([shares(x, threads), shares(x, threads)], None)
        return run
"""


def printed(script: str) -> str:
    """What a script prints that goes on from the beginning."""
    text = textwrap.dedent(BEGINNING) + textwrap.dedent(script)
    command = [sys.executable, "-W", "ignore", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ctrl_c_at_any_time_leaves_a_team_whole() -> None:
    interrupting = """
        x, interrupts = np.ones(64_000, "f4"), 0
        run = run_of(x, 3)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        random.seed(0)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2e-4))
                while True:
                    run()
            except KeyboardInterrupt:
                interrupts += 1
        assert interrupts > 50, interrupts
        for _ in range(20):
            x.fill(1)
            run()
            assert np.all(x == 4)
        helpers = [thread for thread in threading.enumerate() if thread.name == "kernels"]
        print(len(helpers), team(3).lock.locked())
    """
    assert printed(interrupting) == "2 False"


def test_no_helper_begins_twice_where_another_one_cannot() -> None:
    without_files = """
        x = np.ones(64, "f4")
        run = run_of(x, 4)
        undisturbed(int)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        files = []
        try:
            while True:
                files.append(os.dup(0))
        except OSError:
            for _ in range(3):
                os.close(files.pop())
        for _ in range(2):
            try:
                run()
                print("expected too few files")
            except OSError:
                assert np.all(x == 1)
        for file in files:
            os.close(file)
        for _ in range(20):
            x.fill(1)
            run()
            assert np.all(x == 4)
        print(sum(thread.name == "kernels" for thread in threading.enumerate()))
    """
    assert printed(without_files) == "3"


def test_the_files_of_a_team_are_not_those_of_a_fork() -> None:
    forking = """
        files = lambda: len(os.listdir("/dev/fd"))
        before = files()
        x = np.ones(64, "f4")
        run = run_of(x, 3)
        run()
        assert files() == before + 4, files()
        child = os.fork()
        if not child:
            os._exit(files() - before)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert printed(forking) == "0"


def test_runs_of_teams_of_several_sizes_take_turns() -> None:
    taking_turns = """
        x = np.ones(640, "f4")
        runs = [run_of(x, threads) for threads in (2, 3, 5, 2)]
        for _ in range(200):
            x.fill(1)
            for run in runs:
                run()
            assert np.all(x == 4**4)
        print("all")
    """
    assert printed(taking_turns) == "all"
