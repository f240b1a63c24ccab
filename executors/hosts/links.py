"""What a stage's plan does to send and receive: kernels for the nodes that pipelining put into its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from executors.hosts.cluster import Message
from executors.hosts.mailbox import Key, Mailbox
from miai_graph.kernels.kernel import Kernel
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.ops.communication import _await_commit, _contribute, _receive, _send
from miai_graph.plan.exchange import Accumulation
from miai_graph.plan.parts import Part
from miai_graph.plan.program import Program

Post = Callable[[str, Message], None]

COMMITTED = ("committed",)
"""The key under which the client says, for a step that was ordered ahead, that the step before it holds."""


class StageLinks:
    """The links of one stage of one replica.

    Parameters
    ----------
    program : of the stage
    session : whose steps they are
    post, mailbox : send to an address, and what was received
    stages, replicas : the addresses of the stages of this replica, and of this stage's replicas
    own : the number of this replica
    exchange : what is owed to reductions
    last_part : the number of this replica's last part: when it is done, all that is owed is there

    Attributes
    ----------
    ticket : of the step under way
    is_ahead : whether it began before the step before it held
    """

    def __init__(
        self,
        program: Program,
        session: str,
        post: Post,
        mailbox: Mailbox,
        stages: Sequence[str],
        replicas: Sequence[str],
        own: int,
        exchange: Accumulation,
        last_part: int,
    ) -> None:
        self.ticket = -1
        self.is_ahead = False
        self._session = session
        self._post, self._mailbox = post, mailbox
        self._stages, self._replicas, self._own = stages, replicas, own
        self._exchange = exchange
        self._last_part = last_part
        contributions = [node for node in program.graph.nodes if node.op is _contribute]
        self._buckets = {node: number for number, node in enumerate(contributions)}
        self._exports = program.exports

    def kernel(self, node: Node, part: Part, inputs: Sequence[Array], output: Array) -> Kernel:
        """What a `send`, `receive`, `contribute`, `await_commit` or `barrier` does for a part."""
        if node.op is _send:
            return self._sending(node, part, inputs[0])
        if node.op is _receive:
            return self._receiving(node, part, output)
        if node.op is _contribute:
            return self._contributing(node, part)
        if node.op is _await_commit:
            return self._await_commit
        return self._collecting(node)

    def _send(self, address: str, key: Key, arrays: Sequence[Array]) -> None:
        self._post(address, Message({"session": self._session, "ticket": self.ticket, "key": key}, arrays))

    def _await_commit(self) -> None:
        if self.is_ahead:
            self._mailbox.take(self.ticket, COMMITTED)

    def _sending(self, node: Node, part: Part, value: Array) -> Kernel:
        address = self._stages[node.attributes["stage"]]
        key = node.attributes["value"], part.number
        return lambda: self._send(address, key, [value])

    def _receiving(self, node: Node, part: Part, output: Array) -> Kernel:
        key = node.attributes["value"], part.number

        def receive() -> None:
            (value,) = self._mailbox.take(self.ticket, key)
            np.copyto(output, value)

        return receive

    def _contributing(self, node: Node, part: Part) -> Kernel:
        if part.number != self._last_part:
            return _nothing
        arrays = self._shares(node, self._own)
        key = "bucket", self._buckets[node], self._own
        others = [address for number, address in enumerate(self._replicas) if number != self._own]

        def contribute() -> None:
            for address in others:
                self._send(address, key, arrays)

        return contribute

    def _collecting(self, node: Node) -> Kernel:
        """Wait for what the other replicas contribute."""
        wanted = [
            (("bucket", self._buckets[source], number), self._shares(source, number))
            for source in node.inputs
            if source in self._buckets
            for number in range(len(self._replicas))
            if number != self._own
        ]

        def collect() -> None:
            for key, targets in wanted:
                for target, array in zip(targets, self._mailbox.take(self.ticket, key), strict=True):
                    np.copyto(target, array)

        return collect

    def _shares(self, bucket: Node, replica: int) -> list[Array]:
        """The arrays of what a replica contributes in one message."""
        return [share[self._exports[export]] for share in self._exchange.shares[replica] for export in bucket.inputs]


def _nothing() -> None:
    """For parts after which more is to come."""
