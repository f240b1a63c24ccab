"""Counting the cores of this process, and limiting BLAS's threads."""

from __future__ import annotations

import gc
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from executors import Serial
from executors.threads import BlasLimits, blas_limits, blas_threads, can_limit, limited_blas
from miai_graph.cores import count_records, physical_cores, threads_of_each, usable_cores

HOW_MANY = 4

AFFINITY = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
limits_blas = pytest.mark.skipif(not can_limit(), reason="the threads of this BLAS cannot be limited")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="affinity, control groups and topology are Linux's")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def reported_threads() -> int:
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


@pytest.fixture
def more_threads() -> Iterator[int]:
    """A number of threads that limits of 1, 2 and 3 differ from, on any machine."""
    with threadpool_limits(HOW_MANY, "blas"):
        yield blas_threads()


# Cores


def test_without_files_of_linux_all_cores_are_usable_and_physical(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == physical_cores(tmp_path) or sys.platform != "linux"
    assert 1 <= usable_cores(tmp_path) <= (os.cpu_count() or 1)


def test_this_machine_has_cores() -> None:
    assert 1 <= physical_cores() <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1), ("1 100000", 1), ("100001 100000", 2)]
)
def test_a_quota_is_rounded_up(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", f"{quota}\n")
    assert usable_cores(tmp_path) == min(cores, usable_cores(tmp_path / "nowhere"))
    assert physical_cores(tmp_path) <= usable_cores(tmp_path)


@pytest.mark.parametrize("text", ["max 100000\n", "", "max\n", "nonsense\n", "0 100000\n", "100000 0\n", "\xff\n"])
def test_what_is_no_quota_withholds_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", text)
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nowhere")


@pytest.mark.parametrize("limited", ["", "a b", "a b/c", "a b/c/d"])
def test_a_group_is_bound_by_those_around_it(tmp_path: Path, limited: str) -> None:
    write(tmp_path / "proc/self/cgroup", "1:name=systemd:/elsewhere\n0::/a b/c/d\n")
    for group in ("", "a b", "a b/c", "a b/c/d"):
        quota = "100000" if group == limited else "max"
        write(tmp_path / "sys/fs/cgroup" / group / "cpu.max", f"{quota} 100000\n")
    assert usable_cores(tmp_path) == 1


def test_another_group_binds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/mine\n")
    write(tmp_path / "sys/fs/cgroup/other/cpu.max", "100000 100000\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nowhere")


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize("folder", ["", "docker/0123"])
def test_quotas_of_the_first_version_count(tmp_path: Path, controllers: str, folder: str) -> None:
    write(tmp_path / "proc/self/cgroup", f"5:cpuset:/\n4:{controllers}:/docker/0123\n0::/\n")
    group = tmp_path / "sys/fs/cgroup/cpu" / folder
    write(group / "cpu.cfs_period_us", "100000\n")
    write(group / "cpu.cfs_quota_us", "-1\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nowhere")
    write(group / "cpu.cfs_quota_us", "70000\n")
    assert usable_cores(tmp_path) == 1


def test_a_group_outside_of_the_container_is_not_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/../../outside\nno colons\n\n")
    write(tmp_path / "sys/outside/cpu.max", "100000 100000\n")
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "nowhere")


@on_linux
def test_hyper_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for place, cpu in enumerate(AFFINITY):
        pair = AFFINITY[place // 2 * 2 :][:2]
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{pair}\n")
    assert usable_cores(tmp_path) == len(AFFINITY)
    assert physical_cores(tmp_path) == (len(AFFINITY) + 1) // 2


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout.strip()


@on_linux
def test_affinity_counts() -> None:
    code = (
        f"import os; os.sched_setaffinity(0, [{AFFINITY[0]}])\n"
        "from miai_graph.cores import physical_cores, usable_cores; print(usable_cores(), physical_cores())"
    )
    assert in_a_process(code) == "1 1"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python reads PYTHON_CPU_COUNT from 3.13")
def test_the_user_may_say_how_many_cores_to_use() -> None:
    code = "from miai_graph.cores import physical_cores, usable_cores; print(usable_cores(), physical_cores())"
    assert in_a_process(code, PYTHON_CPU_COUNT="1") == "1 1"


def test_threads_are_shared_out_among_workers() -> None:
    cores = physical_cores()
    assert threads_of_each(1) == cores
    assert threads_of_each(cores) == threads_of_each(cores + 1) == 1


def test_records_of_windows_are_counted() -> None:
    record = struct.pack("=II40x", 0, 48)
    longer = struct.pack("=II56x", 0, 64)
    assert count_records(b"") == 0
    assert count_records(record + longer + record) == 3
    assert count_records(record + bytes(8)) == 1


# Threads


@limits_blas
def test_threads_are_limited_within_a_block(more_threads: int) -> None:
    with limited_blas(1):
        assert blas_threads() == reported_threads() == 1
    assert blas_threads() == reported_threads() == more_threads


@limits_blas
def test_threads_are_given_back_after_an_error(more_threads: int) -> None:
    with pytest.raises(ZeroDivisionError), limited_blas(1):
        raise ZeroDivisionError
    assert blas_threads() == more_threads


@limits_blas
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_the_latest_that_is_left_holds(more_threads: int, order: tuple[int, ...]) -> None:
    asked = {ticket: threads for threads, ticket in ((k, blas_limits.ask(k)) for k in (1, 2, 3))}
    tickets = list(asked)
    for place in order:
        assert blas_threads() == list(asked.values())[-1]
        blas_limits.release(tickets[place])
        del asked[tickets[place]]
    assert blas_threads() == more_threads


@limits_blas
def test_what_others_set_in_between_is_given_back(more_threads: int) -> None:
    with limited_blas(1):
        pass
    with threadpool_limits(2, "blas"):
        with limited_blas(1):
            assert blas_threads() == 1
        assert blas_threads() == 2
    assert blas_threads() == more_threads


@limits_blas
def test_another_thread_may_limit_and_give_back(more_threads: int) -> None:
    def limit() -> None:
        with limited_blas(1):
            found.append(reported_threads())

    found: list[int] = []
    with limited_blas(2):
        thread = threading.Thread(target=limit)
        thread.start()
        thread.join()
        assert found == [1]
        assert reported_threads() == 2
    assert reported_threads() == more_threads


@limits_blas
def test_many_threads_at_a_time_leave_no_limit(more_threads: int) -> None:
    def limit(threads: int) -> None:
        barrier.wait()
        for _ in range(200):
            with limited_blas(threads):
                pass

    barrier = threading.Barrier(4)
    workers = [threading.Thread(target=limit, args=(1 + number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert reported_threads() == more_threads


@limits_blas
def test_libraries_found_while_limited_are_limited_and_given_back() -> None:
    limits = BlasLimits()
    before = reported_threads()
    ticket = limits.ask(before + 1)
    limits.rescan()
    assert reported_threads() in (before, before + 1)  # OpenBLAS may have been built for no more
    limits.release(ticket)
    assert reported_threads() == before


@limits_blas
def test_a_library_loaded_later_is_limited() -> None:
    code = (
        "from executors import Serial\n"
        "from threadpoolctl import threadpool_info\n"
        "def threads(): return {pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'blas'}\n"
        "first = Serial(threads=3)\n"
        "import scipy.linalg\n"
        "second = Serial(threads=3); print(threads())\n"
        "first.close(); second.close(); print(threads() & {3})"
    )
    pytest.importorskip("scipy")
    assert in_a_process(code, OPENBLAS_NUM_THREADS="2") == "{3}\nset()"


@limits_blas
def test_an_executor_that_is_collected_gives_its_threads_back(more_threads: int) -> None:
    executor = Serial(threads=1)
    assert blas_threads() == 1
    del executor
    gc.collect()
    assert blas_threads() == more_threads


@limits_blas
def test_products_are_right_while_the_limit_changes(rng: np.random.Generator) -> None:
    matrix = rng.integers(-4, 5, size=(256, 256)).astype(np.float32)
    expected = matrix @ matrix
    for threads in (1, 2, 1, 3, 1):
        with limited_blas(threads):
            assert np.array_equal(matrix @ matrix, expected)
