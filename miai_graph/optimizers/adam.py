"""Gradient descent with moments of recent gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from miai_graph.errors import ArgumentError
from miai_graph.node import Node
from miai_graph.ops.arithmetic import maximum, square
from miai_graph.ops.nonlinear import sqrt
from miai_graph.optimizers.optimizer import Optimizer, registry


@registry.register
class Adam(Optimizer):
    """Moving averages m of gradients and v of their squares: w = w - α · m / (√v + epsilon).

    α = learning_rate · √(1 - beta_2ᵗ) / (1 - beta_1ᵗ) at the t-th update makes up for averages that start at 0. It is
    one number for all elements, computed in float64.

    Parameters
    ----------
    beta_1, beta_2 : what shares of m and v stay at a step, from 0 to below 1
    epsilon : keeps the divisor away from 0
    amsgrad : divide by the root of the greatest v so far
    learning_rate and others : as for `Optimizer`; a `weight_decay` makes it what is known as AdamW

    Source: Kingma and Ba 2015, arXiv:1412.6980, end of section 2, where epsilon stands as here; AMSGrad: Reddi, Kale
    and Kumar 2018, arXiv:1904.09237, algorithm 2.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
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
        if not 0 <= beta_1 < 1 or not 0 <= beta_2 < 1:
            raise ArgumentError(f"expected beta_1 and beta_2 from 0 to below 1; found {beta_1!r} and {beta_2!r}")
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad
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
        return ("momentum", "velocity", "velocity_hat") if self.amsgrad else ("momentum", "velocity")

    def step_size(self, learning_rate: Node, step: Node) -> Node:
        return learning_rate * sqrt(1.0 - self.beta_2**step) / (1.0 - self.beta_1**step)

    def update(
        self, gradient: Node, parameter: Node, rate: Node, slots: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        momentum = slots["momentum"] + (gradient - slots["momentum"]) * (1.0 - self.beta_1)
        velocity = slots["velocity"] + (square(gradient) - slots["velocity"]) * (1.0 - self.beta_2)
        changed = {"momentum": momentum, "velocity": velocity}
        greatest = velocity
        if self.amsgrad:
            greatest = changed["velocity_hat"] = maximum(slots["velocity_hat"], velocity)
        return parameter - rate * momentum / (sqrt(greatest) + self.epsilon), changed
