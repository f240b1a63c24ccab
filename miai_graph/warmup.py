"""The command ``miai-graph warmup``: native code that common networks need, compiled before anybody waits for it."""

from __future__ import annotations

import click

from miai_graph.bench.workloads import WORKLOADS
from miai_graph.kernels.compiler import native
from miai_graph.terminal import print_text


@click.command()
def warmup() -> None:
    """Compile the native kernels of common networks ahead of time, and keep them on disk.

    Kernels of other networks are compiled when they are first used, in some 10 ms each. Model.warmup does it for one
    network.
    """
    if native.processor() is None:
        print_text("Nothing to compile: there is no native code for this processor, or it is switched off.")
        return
    with click.progressbar(WORKLOADS.values(), label="Compiling", item_show_func=_name) as workloads:
        for workload in workloads:
            model = workload.model()
            for batch_size in workload.batches:
                model.warmup(batch_size)
    made = [library.seconds for library in native.loaded() if library.seconds]
    print_text(
        f"{len(native.loaded())} kernels are ready; {len(made)} of them were compiled, in {sum(made):.2f} s. "
        f"They are kept in {native.cache_folder()}"
    )


def _name(workload: object) -> str:
    return getattr(workload, "name", "")
