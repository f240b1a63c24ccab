"""Python's search for garbage, held off while much is built and resumed whatever happens."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import miai_graph as mg
from miai_graph.errors import ShapeError
from miai_graph.garbage import no_search_for_garbage


@pytest.fixture(autouse=True)
def _search() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_it_is_held_off_and_resumed() -> None:
    with no_search_for_garbage():
        assert not gc.isenabled()
        with no_search_for_garbage():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_is_resumed_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), no_search_for_garbage():
        raise KeyboardInterrupt
    assert gc.isenabled()


def test_it_stays_as_users_want_it() -> None:
    gc.disable()
    with no_search_for_garbage():
        pass
    assert not gc.isenabled()


def test_it_is_resumed_when_the_last_of_several_threads_is_done() -> None:
    is_inside, may_leave = threading.Event(), threading.Event()

    def hold_off() -> None:
        with no_search_for_garbage():
            is_inside.set()
            may_leave.wait()

    thread = threading.Thread(target=hold_off)
    thread.start()
    is_inside.wait()
    with no_search_for_garbage():
        pass
    assert not gc.isenabled()
    may_leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_model_that_cannot_be_built_leaves_it_on() -> None:
    model = mg.Sequential([mg.layers.Dense(2)])
    model.compile("sgd", lambda truth, output: output @ output)
    with pytest.raises(ShapeError):
        model.fit(np.ones((4, 3), "f4"), np.ones((4, 2), "f4"), verbose=0)
    assert gc.isenabled()
