"""Native code touches nothing beyond its arrays: its tests run in processes that end if it does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from guarded_memory import PLACES, why_not

from miai_graph.bench.workloads import WORKLOADS

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.timeout(300),
]

FAMILIES = {
    "convolutions": ["test_native_convolution.py"],
    "products": ["test_products.py", "test_few_rows.py", "test_native_runs.py"],
    "rows": ["test_native_indexing.py", "test_native_pooling.py", "test_native_reductions.py", "test_by_rows.py"],
    "elements": ["test_fusion.py", "test_fused_sums.py"],
    "all ops": ["test_ops.py::test_serial_gives_what_the_interpreter_does"],
}
LEFT_OUT = (
    # Other processes and threads have arrays of their own.
    *("processes", "hosts", "fork"),
    # These run no kernels.
    *("disk", "fused_programs", "all_elements", "what_is_computed_at_once", "tell_of_each_node"),
    # These are about numbers, or slow.
    *("arrays_lie", "bits", "over_their_whole_range", "large_matrices", "(networks and (16B or 64B))"),
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python, which tells where it ends, in the folder of the tests."""
    command = [sys.executable, "-X", "faulthandler", *arguments]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    folder = Path(__file__).parent
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder, env=environment)


def assert_passed(*arguments: str) -> None:
    """Each test tells its name before it begins, so the last one is to blame if the process ends."""
    options = ["-p", "guarded_memory", "-p", "no:cacheprovider", "-n", "0", "-vv", "--no-header"]
    done = run("-m", "pytest", *options, *arguments)
    told = "\n".join([*done.stdout.splitlines()[-40:], *done.stderr.splitlines()[:40]])
    assert done.returncode == 0, f"ended with {done.returncode}:\n{told}"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_touch_nothing_beyond_their_arrays(family: str, place: str) -> None:
    assert_passed(f"--guard={place}", "-k", f"not ({' or '.join(LEFT_OUT)})", *FAMILIES[family])


@pytest.mark.parametrize(
    "names", [("wide_mlp", "lenet"), ("resnet8", "digits_mlp"), ("deep_cnn", "char_gpt", "mnist_mlp")]
)
def test_training_steps_touch_nothing_beyond_their_arrays(names: tuple[str, ...]) -> None:
    assert_passed("guarded_steps.py", "-k", " or ".join(names))


def test_all_workloads_are_run() -> None:
    (mark,) = test_training_steps_touch_nothing_beyond_their_arrays.pytestmark
    assert {name for names in mark.args[1] for name in names} == set(WORKLOADS)


@pytest.mark.parametrize(("place", "step"), [("start", -1), ("end", 1)])
def test_who_touches_what_is_beyond_an_array_ends(place: str, step: int) -> None:
    script = f"""
        import ctypes
        import numpy as np
        from guarded_memory import guarded_arrays

        with guarded_arrays({place!r}):
            array = np.ones(5, "f4")
            assert array[::{step}].sum() == 5
            beyond = array[::{step}].ctypes.data + 4 * 5 * {step}
            print("before", flush=True)
            ctypes.string_at(beyond, 1)
            print("after")
    """
    done = run("-c", textwrap.dedent(script))
    assert done.stdout == "before\n"
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr or "Bus error" in done.stderr


def test_values_and_scratch_of_plans_lie_apart() -> None:
    script = """
        import ctypes
        import sys
        import numpy as np
        import pytest
        from guarded_memory import GuardedPlans, PLACES, guarded_arrays
        from miai_graph.plan.memory import Lifetime, Scratch, Workspace

        with pytest.MonkeyPatch.context() as patch:
            for place in PLACES:
                plans = GuardedPlans(place)
                plans.install(patch)
                lifetimes = [Lifetime(0, 1, size) for size in (12, 5000, 0, 8)]
                offsets, size = plans.assign_offsets(lifetimes)
                block = Workspace().block("values 0", size)
                for offset, lifetime in zip(offsets, lifetimes, strict=True):
                    block[offset : offset + lifetime.size_bytes] = 1
            with guarded_arrays("end"):
                scratch = Scratch(Workspace())
                assert np.isnan(scratch.take((3, 5), "f4")).all()
                assert scratch.used_bytes == 60
        end = block.ctypes.data + offsets[1] + 5000
        print("before", flush=True)
        ctypes.string_at(end, 1)
    """
    done = run("-c", textwrap.dedent(script))
    assert done.stdout == "before\n", done.stderr
    assert done.returncode < 0
