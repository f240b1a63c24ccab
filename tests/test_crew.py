"""Threads that share the work of one kernel: all of it is done, once, and the results are those of one thread."""

from __future__ import annotations

import os
import threading
import warnings
from threading import Thread, get_ident

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import miai_graph as mg
from executors import Serial
from executors.threads import blas_threads, can_limit
from miai_graph.kernels.products import matrix_product
from miai_graph.kernels.products.matrix_product import _Share, _shares
from miai_graph.kernels.running.crew import Crew, crew, spans, together


@given(st.integers(0, 300), st.integers(1, 9), st.sampled_from([1, 16, 64]))
def test_spans_cover_a_length_once(length: int, shares: int, unit: int) -> None:
    found = spans(length, shares, unit)
    assert len(found) <= shares
    assert [place for span in found for place in range(span.start, span.stop)] == list(range(length))
    assert all(span.start % unit == 0 for span in found)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_call_has_a_thread_of_its_own_and_all_end_before_run_does(size: int) -> None:
    own = Crew(size)
    done: list[int] = []
    for calls in range(1, size + 1):
        done.clear()
        own.run([lambda: done.append(get_ident())] * calls)
        assert len(done) == len(set(done)) == calls
        assert get_ident() in done


def test_who_finds_the_crew_busy_works_alone() -> None:
    own, idents = Crew(2), set()

    def work() -> None:
        own.run([lambda: idents.add(get_ident())] * 2)

    def inside() -> None:
        other = Thread(target=work)
        other.start()
        other.join()

    own.run([inside])
    assert len(idents) == 1


def test_an_error_is_raised_when_all_calls_are_done() -> None:
    own, done = Crew(3), []

    def fail() -> None:
        raise ValueError("expected")

    for place in range(3):
        calls = [lambda: done.append(1)] * 3
        calls[place] = fail
        with pytest.raises(ValueError, match="expected"):
            own.run(calls)
    assert len(done) == 6
    own.run([lambda: done.append(1)] * 3)
    assert len(done) == 9


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_ctrl_c_waits_for_the_other_threads() -> None:
    own, begun, goes_on, done = Crew(2), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        goes_on.wait(20)
        done.append(1)

    def interrupt() -> None:
        begun.wait(20)
        threading.Timer(0.05, goes_on.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.run([work, interrupt])
    assert done == [1]


def test_one_call_needs_no_crew() -> None:
    def call() -> None:
        raise AssertionError

    assert together([call]) is call
    assert crew(2) is crew(2)


def test_what_is_infinite_warns_in_no_thread() -> None:
    zeros = np.zeros(3)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        together([lambda: np.divide(1, zeros)] * 3)()


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("a", "b"),
    [((70, 30), (30, 90)), ((90, 30), (30, 70)), ((7, 30), (30, 9)), ((6, 20, 5), (6, 5, 30)), ((20, 0), (0, 40))],
)
def test_products_that_threads_share(
    a: tuple[int, ...], b: tuple[int, ...], threads: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(matrix_product, "FLOPS_WORTH_SHARING", 1)
    left, right = rng.standard_normal(a), rng.standard_normal(b)
    expected = left @ right
    output = np.full(expected.shape, np.nan)
    for share in _shares(_Share(left, right, output, None), threads):
        np.matmul(share.a, share.b, out=share.out)
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not can_limit(), reason="BLAS has its own threads here")
def test_blas_has_one_thread_while_kernels_have_several(rng: np.random.Generator) -> None:
    seen: list[int] = []

    @mg.op
    class threads_seen:
        def infer(x):
            return x

        def forward(x):
            seen.append(blas_threads())
            return x

    x = mg.input("x", (None, 3))
    with Serial(threads=3) as executor:
        assert blas_threads() == 3
        step = mg.function([x], [threads_seen(x)], executor=executor)
        step(np.ones((2, 3)))
        assert blas_threads() == 3
        assert step.timing.workers[0].index == 0
    assert seen == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_the_calling_thread_alone() -> None:
    own = crew(3)
    child = os.fork()
    if not child:
        done: list[int] = []
        own.run([lambda: done.append(get_ident())] * 3)
        os._exit(len(done) if len(set(done)) == 1 else 99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
