"""Gradient descent with steps measured by the size of recent gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.ops.arithmetic import square
from miai_graph.ops.nonlinear import rsqrt
from miai_graph.optimizers.optimizer import Optimizer, registry


@registry.register
class RMSprop(Optimizer):
    """Divide gradients by the root of the moving average of their squares: w = w - learning_rate · g / √(v + epsilon).

    Parameters
    ----------
    rho : what share of the averages stays at a step, from 0 to 1
    momentum : above 0, steps go into a velocity first, of which this share stays
    epsilon : keeps the divisor away from 0
    centered : divide by the standard deviation of gradients: the square of their moving average is taken from v
    learning_rate and others : as for `Optimizer`

    Source: Tieleman and Hinton 2012, "Neural networks for machine learning", lecture 6.5; centered: Graves 2013,
    arXiv:1308.0850, equations 38 to 45.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
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
        if not 0 <= rho <= 1 or not 0 <= momentum <= 1:
            raise ArgumentError(f"expected rho and momentum from 0 to 1; found {rho!r} and {momentum!r}")
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered
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
        optional = {"momentum": self.momentum, "average_gradient": self.centered}
        return ("velocity", *(name for name, used in optional.items() if used))

    def update(
        self, gradient: Node, parameter: Node, rate: Node, slots: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        velocity = slots["velocity"] + (square(gradient) - slots["velocity"]) * (1.0 - self.rho)
        changed = {"velocity": velocity}
        variance = velocity
        if self.centered:
            average = slots["average_gradient"] + (gradient - slots["average_gradient"]) * (1.0 - self.rho)
            changed["average_gradient"] = average
            variance = velocity - square(average)
        step = rate * gradient * rsqrt(variance + self.epsilon)
        if self.momentum:
            step = self.momentum * slots["momentum"] + step
            changed["momentum"] = step
        return parameter - step, changed
