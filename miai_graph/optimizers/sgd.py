"""Gradient descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.optimizers.optimizer import Optimizer, registry


@registry.register
class SGD(Optimizer):
    """Gradient descent: w = w - learning_rate · g; with momentum v = momentum · v - learning_rate · g, w = w + v.

    Parameters
    ----------
    momentum : from 0 to 1
    nesterov : w = w + momentum · v - learning_rate · g instead, with the new v
    learning_rate and others : as for `Optimizer`

    Source: Sutskever, Martens, Dahl and Hinton 2013, "On the importance of initialization and momentum in deep
    learning", section 2; for Nesterov's, w is the point looked ahead to.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ) -> None:
        if not 0 <= momentum <= 1:
            raise ArgumentError(f"expected a momentum from 0 to 1; found {momentum!r}")
        self.momentum = momentum
        self.nesterov = nesterov
        super().__init__(
            learning_rate,
            weight_decay,
            clipnorm,
            clipvalue,
            global_clipnorm,
            use_ema,
            ema_momentum,
            ema_overwrite_frequency,
            loss_scale_factor,
            gradient_accumulation_steps,
            name,
        )

    def slot_names(self) -> Sequence[str]:
        return ("momentum",) if self.momentum else ()

    def update(
        self, gradient: Node, parameter: Node, rate: Node, slots: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        step = rate * gradient
        if not self.momentum:
            return parameter - step, {}
        velocity = self.momentum * slots["momentum"] - step
        if self.nesterov:
            return parameter + (self.momentum * velocity - step), {"momentum": velocity}
        return parameter + velocity, {"momentum": velocity}
