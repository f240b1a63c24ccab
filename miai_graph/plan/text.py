"""A program as text: its kernels in order, and which nodes each of them computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from miai_graph.graph import format_call
from miai_graph.node import Node
from miai_graph.plan.program import Program, Storage


def format_program(program: Program) -> str:
    """A line for each node, in the order in which they are computed; those that one kernel computes under one heading.

    What passes from one node to the next within a kernel, and never gets to memory, is marked with a bar.
    """
    names = program.graph.names
    lines = [line for node in program.steps for line in _lines(program, node, names)]
    return "\n".join([f"{len(program.steps)} kernels:", *lines])


def _lines(program: Program, node: Node, names: Mapping[Node, str]) -> Iterator[str]:
    fusion = program.fusions.get(node)

    def line(node: Node) -> str:
        return f"%{names[node]} = {format_call(node, names)} : {node.type}"

    if fusion is None or len(fusion.nodes) == 1:
        yield f"  {line(node)}"
        return
    yield f"  {len(fusion.nodes)} nodes at once:"
    for member in fusion.nodes:
        yield f"  {'|' if program.storage[member] is Storage.PASSING else ' '}   {line(member)}"
