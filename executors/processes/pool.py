"""A pool of workers as the user's process sees it: started together, given memory and messages, ordered to step."""

from __future__ import annotations

import functools
import os
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn, Protocol

from executors.processes.bells import HAS_BELLS, WAKE_UP, Bell
from executors.processes.control import Leader, Words
from executors.processes.launch import WorkerProcess, start
from executors.processes.memory import DEFAULT_KIND, Kind, Segment
from executors.processes.messages import DropSegments, Failed, Location, SegmentFollows, SetUp
from executors.threads import can_limit
from miai_graph.cores import usable_cores
from miai_graph.errors import ExecutionError, ExecutorError, MiaiGraphError, WorkerLostError
from miai_graph.op import Array
from miai_graph.state import PRIVATE, Variable, block_of, state

STARTING, IDLE, PREPARING = "while it started", "between two steps", "while it prepared its part of the graph"
"""What a worker does apart from steps, for messages."""

STOP_PATIENCE_SECONDS = 1.0
"""How long workers may take to end by themselves."""

WORKER_MAIN = "executors.processes.worker:main"


class PoolUser(Protocol):
    """Who has plans that lie in a pool's memory."""

    def forget_plans(self) -> None: ...

    def __hash__(self) -> int: ...


class Pool:
    """Workers 1 and up; this process is worker 0.

    Parameters
    ----------
    workers : how many there are, this process included
    threads : of each
    kind, has_bells : of shared memory, and whether sleepers are woken by bells or by messages

    Attributes
    ----------
    is_open : False after `stop`, or when a worker failed
    processes : the workers but this one
    describe_work : what a worker that is gone was doing, from its number: for messages; None between two steps
    """

    def __init__(self, workers: int, threads: int, kind: Kind = DEFAULT_KIND, has_bells: bool = HAS_BELLS) -> None:
        self.is_open = True
        self.workers = workers
        self.processes: list[WorkerProcess] = []
        self.describe_work: Callable[[int], str] | None = None
        self._task = STARTING
        self._pid = os.getpid()
        self._kind: Kind = kind
        self._segments: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
        self._blocks: dict[str, Array] = {}
        self._dropped: list[int] = []
        self._later: list[Any] = []
        self._placed: weakref.WeakSet[Variable] = weakref.WeakSet()
        self._users: weakref.WeakSet[PoolUser] = weakref.WeakSet()
        self._messages = 0
        self._is_stepping = False
        try:
            # Kernels bring threads of their own where BLAS lets itself be limited.
            blas_threads = 1 if threads == 1 or can_limit() else threads
            for _ in range(1, workers):
                self.processes.append(start(WORKER_MAIN, blas_threads))
            control = Segment.create(Words.size_bytes(workers), kind)
            self._control = control.bytes
            is_crowded = workers > usable_cores()
            bells = [Bell.create() for _ in range(workers)] if has_bells else None
            for place, process in enumerate(self.processes):
                process.connection.send(SetUp(place + 1, workers, is_crowded, kind, has_bells))
                control.send(process.connection, process.pid)
                for bell in (bells[place + 1], bells[0]) if bells else ():
                    bell.send(process.connection, process.pid)
            self._settle(control)
        except BaseException:
            self.kill()
            raise
        self._words = Words(self._control, workers)
        connections = [process.connection for process in self.processes]
        self.leader = Leader(connections, self._words, _hearing(self), bells, is_crowded=is_crowded)
        _finish_steps_before_forks()
        _pools.add(self)

    def _settle(self, segment: Segment) -> None:
        # A descriptor on its way is kept by the system, a name has to stay until all have it.
        if self._kind == "named":
            for place in range(len(self.processes)):
                self._answer(place + 1)
        segment.settle()

    @property
    def is_starting(self) -> bool:
        """Whether it is not known yet that all workers listen."""
        return self._task == STARTING

    def has_started(self) -> bool:
        """Whether all workers listen. It need not be known to use them: they find what was said to them.

        Raises
        ------
        WorkerLostError
            if one ended before.
        """
        if self.is_starting:
            for worker, process in enumerate(self.processes, 1):
                if not self.leader.has_started(worker):
                    if not process.is_alive():
                        self._lost(worker)
                    return False
            self._task = IDLE
        return True

    def check(self) -> None:
        """Between steps: end the pool if a worker is gone, so that another one is made."""
        with state.lock:
            if not self._is_stepping and not all(process.is_alive() for process in self.processes):
                self.kill()

    @contextmanager
    def _conversation(self) -> Iterator[None]:
        """Whatever breaks it off, such as Ctrl-C, ends the pool: what is half said would be misunderstood later."""
        try:
            yield
        except BaseException:
            self.kill()
            raise

    def send(self, message: Any) -> None:
        """Tell all workers something that they shall know before the next step."""
        with self._conversation():
            self._flush()
            self._send(message)

    def _send(self, message: Any) -> None:
        data = pickle.dumps(message)
        for place, process in enumerate(self.processes):
            try:
                process.connection.send_bytes(data)
            except OSError:
                self._lost(place + 1)
        self._messages += 1

    def later(self, message: Any) -> None:
        """The same, at the next opportunity: for finalizers, which may run in the middle of anything."""
        self._later.append(message)

    def _flush(self) -> None:
        if self._later or self._dropped:
            messages, self._later = self._later, []
            numbers, self._dropped = self._dropped, []
            for message in (*messages, DropSegments(tuple(numbers))):
                self._send(message)

    def allocate(self, size_bytes: int) -> Array:
        """Zeroed memory that all workers see, as long as an array of it lives here."""
        segment = Segment.create(max(size_bytes, 1), self._kind)
        array = segment.bytes
        with self._conversation():
            self._flush()
            self._send(SegmentFollows())
            for place, process in enumerate(self.processes):
                try:
                    segment.send(process.connection, process.pid)
                except OSError:
                    self._lost(place + 1)
            self._settle(segment)
        self._segments[segment.number] = array
        weakref.finalize(array, self._drop, segment.number).atexit = False
        return array[:size_bytes]

    def _drop(self, number: int) -> None:
        self._dropped.append(number)

    def block(self, purpose: str, size_bytes: int) -> Array:
        """Shared memory that all plans use in turn: at least the largest number of bytes asked for so far."""
        block = self._blocks.get(purpose)
        if block is None or block.size < size_bytes:
            block = self._blocks[purpose] = self.allocate(size_bytes)
        return block

    def suits(self, pairs: Sequence[tuple[Array, Array]]) -> bool:
        """Whether values lie in memory that the workers see."""
        own = {id(array) for array in self._segments.values()}
        return all(id(block_of(array)) in own for pair in pairs for array in pair)

    def place(self, variables: Iterable[Variable], updated: Iterable[Variable]) -> None:
        """Move variables to where the workers see them, until the pool ends."""
        variables = list(variables)
        self._placed.update(variables)
        state.place(variables, updated, memory=self)

    def locate(self, array: Array) -> Location:
        """Where an array in shared memory lies, for a message."""
        block = block_of(array)
        number = next(number for number, segment in self._segments.items() if segment is block)
        offset = array.__array_interface__["data"][0] - block.__array_interface__["data"][0]
        return Location(number, offset, array.dtype.str, array.shape)

    def add_user(self, user: PoolUser) -> None:
        """Tell it when the pool ends, so that it does not hold on to its memory."""
        self._users.add(user)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within it workers make plans."""
        self._task = PREPARING
        try:
            yield
        finally:
            self._task = IDLE

    def require_idle(self) -> None:
        """Raise ExecutorError within a step."""
        if self._is_stepping:
            raise ExecutorError(
                "expected one step at a time; found executor 'processes' in use within a step of the same pool, by an "
                "op that runs a graph. Use executor='serial' there"
            )

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Within it a step runs. Whatever goes wrong ends the pool: no worker is left in the middle of something."""
        self.require_idle()
        self._is_stepping = True
        try:
            yield
        except BaseException:
            self.kill()
            raise
        finally:
            self._is_stepping = False
            self.describe_work = None

    def order(self, active: int, plan: int, step: int, table: int, now_ns: int, number: int, is_traced: bool) -> None:
        """Let workers begin a step. All that it needs is in shared memory or in messages sent before."""
        self._flush()
        told = self._messages, self.leader.barriers
        self._words.order[:] = plan, step, table, *told, now_ns, number, is_traced
        self.leader.order(active)

    def ask(self, message: Any) -> list[Any]:
        """The answers of all workers to a message."""
        self.require_idle()
        with self._conversation():
            self.send(message)
            return [self._answer(place + 1) for place in range(len(self.processes))]

    def _answer(self, worker: int) -> Any:
        connection = self.processes[worker - 1].connection
        message = None
        with suppress(EOFError, OSError):
            message = connection.recv_bytes()
            while message == WAKE_UP:
                message = connection.recv_bytes()
        if message is None:
            self._lost(worker)
        answer = pickle.loads(message)
        if isinstance(answer, Failed):
            self._heard(worker, message)
        return answer

    def _heard(self, worker: int, message: bytes | None) -> None:
        if message is None:
            self._lost(worker)
        else:
            failed = pickle.loads(message)
            assert isinstance(failed, Failed)
            where = f"  worker: {worker} of {self.workers} (process {self.processes[worker - 1].pid})"
            kind: type[MiaiGraphError] = ExecutionError if failed.is_execution else ExecutorError
            error = kind(f"{failed.text}\n{where}")
            error.add_note(f"In the worker:\n{failed.lines}")
            raise error

    def _lost(self, worker: int) -> NoReturn:
        process = self.processes[worker - 1]
        doing = self._task if self.describe_work is None else self.describe_work(worker)
        found = process.describe_exit()
        self.kill()
        raise WorkerLostError(
            f"expected all workers to go on; found worker {worker} of {self.workers} (process {process.pid}) {found}, "
            f"{doing}. The step was not applied: parameters are those of the last one that was finished. Other "
            "workers are started at the next call; if memory ran out, use fewer workers or a smaller batch"
        )

    def stop(self) -> None:
        """End the workers, at once if they have not all started, and move values to where they need no pool."""
        if self.is_starting and not all(map(self.leader.has_started, range(1, self.workers))):
            self.kill()
        self._end(lambda process: process.stop(STOP_PATIENCE_SECONDS))

    def kill(self) -> None:
        """The same at once, for workers that may be in the middle of something."""
        self._end(lambda process: process.kill())

    def _end(self, end: Callable[[WorkerProcess], None]) -> None:
        if not self.is_open:
            return
        self.is_open = False
        _pools.discard(self)
        if self._pid == os.getpid():
            for process in self.processes:
                with suppress(OSError):
                    process.connection.close()
            for process in self.processes:
                end(process)
        self._release()

    def _release(self) -> None:
        """Move values out of shared memory, and let go of it."""
        with state.lock:
            state.place([variable for variable in self._placed if variable in state], memory=_Leaving(self))
            for user in list(self._users):
                user.forget_plans()
            self._blocks.clear()

    def abandon(self) -> None:
        """In a fork of the process that the workers belong to: leave them and their memory alone."""
        self.is_open = False
        self._release()


def _hearing(pool: Pool) -> Callable[[int, bytes | None], None]:
    """What a pool does when its leader hears of a worker. The leader does not keep the pool: the pool keeps it."""
    own = weakref.ref(pool)

    def hear(worker: int, message: bytes | None) -> None:
        listening = own()
        assert listening is not None
        listening._heard(worker, message)

    return hear


class _Leaving:
    """The memory of this process, for values that must not stay in a pool's."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def allocate(self, size_bytes: int) -> Array:
        return PRIVATE.allocate(size_bytes)

    def suits(self, pairs: Sequence[tuple[Array, Array]]) -> bool:
        return not any(self._pool.suits([(array, array)]) for pair in pairs for array in pair)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _leave_pools_to_the_parent() -> None:
    for pool in list(_pools):
        pool.abandon()
    _pools.clear()
    state.lock.release()


@functools.cache
def _finish_steps_before_forks() -> None:
    """A step of another thread is finished first, for in the child there is no such thread.

    What was registered last is called first before a fork, so `concurrent.futures` has to be loaded: whoever has its
    lock must not wait for a step, which may need that lock.
    """
    import_module("concurrent.futures.thread")
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=state.lock.acquire, after_in_parent=state.lock.release, after_in_child=_leave_pools_to_the_parent
        )
