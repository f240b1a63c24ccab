"""What an optimizer is: a rule by which a step changes parameters, as nodes of the step's own graph.

Around the rule of each kind stand the options that Keras gives all of them. In this order: gradients are unscaled,
averaged over steps and clipped, weights decay, the rule is applied, and moving averages of the parameters follow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from miai_graph.context import UPDATE, build_context, unique_name
from miai_graph.errors import ArgumentError
from miai_graph.graph import Graph
from miai_graph.interpreter import evaluate
from miai_graph.messages import describe
from miai_graph.node import Node
from miai_graph.op import as_node
from miai_graph.ops.arithmetic import clip, maximum, minimum, square
from miai_graph.ops.casting import cast
from miai_graph.ops.comparisons import equal, not_equal
from miai_graph.ops.elementwise import where
from miai_graph.ops.leaves import assign, variable, variable_of, variable_of_zeros
from miai_graph.ops.nonlinear import sqrt
from miai_graph.ops.structure import sum
from miai_graph.registry import Configurable, Registry, as_config
from miai_graph.state import Variable


class Optimizer(Configurable):
    """What all have in common. A subclass defines `update`, and as needed `slot_names` and `step_size`.

    Parameters
    ----------
    learning_rate : a number; or a schedule: a function from the number of steps done, an int64 scalar node, to a scalar
        node of floats
    weight_decay : with each update, parameters lose this share of themselves times the learning rate
    clipnorm : the greatest Euclidean norm of the gradient of one parameter; longer ones are scaled down
    clipvalue : the greatest absolute value of an element of a gradient
    global_clipnorm : the greatest norm of all gradients together
    use_ema : keep moving averages of the parameters, which take the parameters' place after training
        (see `finalize_variable_values`)
    ema_momentum : what share of an average stays at a step, from 0 to 1
    ema_overwrite_frequency : let the averages take the parameters' place after each so many updates as well
    loss_scale_factor : by what the loss was multiplied (see `scale_loss`), so that gradients are divided by it
    gradient_accumulation_steps : update only at each so many-th step, at least 2, by the mean of the gradients since
    name : of the scope and the variables; made from the class's name if None

    Raises
    ------
    ArgumentError
        for values out of range, more than one kind of clipping, or `ema_overwrite_frequency` without `use_ema`.

    Attributes
    ----------
    iterations : int64 variable node; the number of steps done, those that only accumulated gradients included
    """

    def __init__(
        self,
        learning_rate: Any,
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
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._check_options()
        self.name = name or unique_name(type(self).__name__.lower())
        self._schedule: Any = None
        self._slots: dict[Variable, dict[str, Node]] = {}
        self._undecayed: set[Variable] = set()
        self._undecayed_names: re.Pattern[str] | None = None
        with self._building():
            self.iterations = variable(0, "iteration")
            self._rate = self._rate_node(learning_rate)

    def _check_options(self) -> None:
        above_zero = ("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor")
        for option in above_zero:
            value = getattr(self, option)
            if value is not None and not (_is_number(value) and value > 0):
                raise ArgumentError(f"expected a finite number above 0, or None, as {option}; found {value!r}")
        clipping = [option for option in above_zero[:3] if getattr(self, option) is not None]
        if len(clipping) > 1:
            raise ArgumentError(f"expected at most one of clipnorm, clipvalue and global_clipnorm; found {clipping}")
        if self.weight_decay is not None and not _is_number(self.weight_decay):
            raise ArgumentError(f"expected a finite number, or None, as weight_decay; found {self.weight_decay!r}")
        if not _is_number(self.ema_momentum) or not 0 <= self.ema_momentum <= 1:
            raise ArgumentError(f"expected an ema_momentum from 0 to 1; found {self.ema_momentum!r}")
        for option, least in (("ema_overwrite_frequency", 1), ("gradient_accumulation_steps", 2)):
            value = getattr(self, option)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ArgumentError(f"expected an integer of at least {least}, or None, as {option}; found {value!r}")
        if self.ema_overwrite_frequency is not None and not self.use_ema:
            raise ArgumentError(
                f"expected use_ema=True with ema_overwrite_frequency={self.ema_overwrite_frequency}; "
                f"found use_ema={self.use_ema!r}"
            )

    def _rate_node(self, learning_rate: Any) -> Node:
        """The learning rate as a float64 scalar: a variable, or what the schedule makes of the iterations."""
        if isinstance(learning_rate, str | Mapping):
            learning_rate = _schedules.get(learning_rate)
        if not callable(learning_rate):
            return variable(_checked_rate(learning_rate), "learning_rate", dtype=np.float64)
        self._schedule = learning_rate
        rate = as_node(learning_rate(self.iterations))
        if rate.type.shape or not rate.type.is_floating:
            raise ArgumentError(f"expected a schedule that gives a scalar node of floats; found {describe(rate)}")
        return cast(rate, np.float64)

    def _building(self) -> Any:
        return build_context(phase=UPDATE, scope=self.name, call=None)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step. Setting it takes effect at once, without compiling anything anew.

        Raises
        ------
        ArgumentError
            when it is set, if it follows a schedule, or for anything but a number.
        """
        if self._schedule is None:
            return float(self._rate.value)
        return float(evaluate(Graph(self._rate), {}, batch_size=1)[0][0])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if self._schedule is not None:
            raise ArgumentError(
                f"expected a learning rate that is a number, to set it; found the schedule {self._schedule!r}. "
                "Make the optimizer with a number"
            )
        assign(self._rate, _checked_rate(value))

    @property
    def variables(self) -> list[Node]:
        """The nodes of all that the optimizer keeps: iterations, learning rate, and each parameter's slots."""
        own = [self.iterations] if self._schedule is not None else [self.iterations, self._rate]
        return own + [node for slots in self._slots.values() for node in slots.values()]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; the learning rate as it is now."""
        config = super().get_config()
        if self._schedule is not None:
            config["learning_rate"] = as_config(self._schedule)
        return config

    def slot_names(self) -> Sequence[str]:
        """What the rule keeps for each parameter, in variables of its shape that start at 0."""
        return ()

    def step_size(self, learning_rate: Node, step: Node) -> Node:
        """What `update` gets as its rate, computed once for all parameters.

        Parameters
        ----------
        learning_rate, step : float64 scalars; the number of this update, from 1
        """
        return learning_rate

    def update(
        self, gradient: Node, parameter: Node, rate: Node, slots: Mapping[str, Node]
    ) -> tuple[Node, dict[str, Node]]:
        """The new value of a parameter and those of its slots, by name.

        Parameters
        ----------
        gradient, parameter, rate : of the parameter's dtype; the rate a scalar (see `step_size`)
        slots : the values before, by name
        """
        raise NotImplementedError(f"{type(self).__name__} has no method update(gradient, parameter, rate, slots)")

    def build(self, parameters: Sequence[Node]) -> None:
        """Make the slots of those parameters that have none yet, named like ``adam/dense/kernel/momentum``."""
        names = [*self.slot_names()]
        names += ["gradient_accumulator"] if self.gradient_accumulation_steps else []
        names += ["average"] if self.use_ema else []
        with self._building():
            for parameter in parameters:
                key = variable_of(parameter)
                if key not in self._slots:
                    self._slots[key] = {name: variable_of_zeros(key.type, f"{key.name}/{name}") for name in names}

    def exclude_from_weight_decay(
        self, var_list: Sequence[Node] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Let some parameters not decay.

        Parameters
        ----------
        var_list : parameters
        var_names : regular expressions; parameters whose name has a part that fits one, such as "bias" in "dense/bias"

        Raises
        ------
        ArgumentError
            if the optimizer is built already.
        """
        if self._slots:
            raise ArgumentError(
                f"expected exclusions from weight decay before optimizer {self.name!r} is built; "
                "found it built. Call exclude_from_weight_decay first"
            )
        self._undecayed = {variable_of(node) for node in var_list or ()}
        self._undecayed_names = re.compile("|".join(var_names)) if var_names else None

    def scale_loss(self, loss: Node) -> Node:
        """The loss to differentiate, times `loss_scale_factor`."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def finalize_variable_values(self, parameters: Sequence[Node]) -> None:
        """After training, with `use_ema`: let the moving averages take the parameters' place."""
        if self.use_ema:
            for parameter in parameters:
                assign(parameter, self._slots_of(parameter)["average"].value)

    def updates(self, gradients: Sequence[Node], parameters: Sequence[Node]) -> dict[Node, Node]:
        """What one step changes: new values by parameter, slot and iterations.

        Parameters
        ----------
        gradients : of the (scaled) loss, one for each of the parameters
        parameters : nodes of parameters; `build` is called for them

        Raises
        ------
        ArgumentError
            if there are more or fewer gradients than parameters, or one is of another shape.
        """
        gradients, parameters = list(gradients), list(parameters)
        if len(gradients) != len(parameters):
            raise ArgumentError(f"expected a gradient for each of {len(parameters)} parameters; found {len(gradients)}")
        for gradient, parameter in zip(gradients, parameters, strict=True):
            if gradient.type.shape != parameter.type.shape:
                raise ArgumentError(
                    "expected a gradient of the parameter's shape\n"
                    f"  parameter: {describe(parameter)}\n  gradient: {describe(gradient)}"
                )
        self.build(parameters)
        with self._building():
            return self._updates([cast(g, p.dtype) for g, p in zip(gradients, parameters, strict=True)], parameters)

    def _updates(self, gradients: list[Node], parameters: list[Node]) -> dict[Node, Node]:
        if self.loss_scale_factor is not None:
            gradients = [gradient * (1.0 / self.loss_scale_factor) for gradient in gradients]
        every = self.gradient_accumulation_steps
        if every is None:
            done = self.iterations
            result = self._rule(self._clipped(gradients), parameters, done)
        else:
            done = _quotient(self.iterations, every)
            result = self._rule_at_times(gradients, parameters, done, every)
        if self.use_ema:
            result |= self._averages(result, parameters, done)
        result[self.iterations] = self.iterations + 1
        return result

    def _rule(self, gradients: Sequence[Node], parameters: Sequence[Node], done: Node) -> dict[Node, Node]:
        """The parameters and slots after an update, the one after `done` others."""
        size = self.step_size(self._rate, cast(done, np.float64) + 1.0)
        dtypes = list(dict.fromkeys(parameter.dtype for parameter in parameters))
        sizes = {dtype: cast(size, dtype) for dtype in dtypes}
        remaining = None if self.weight_decay is None else 1.0 - self.weight_decay * self._rate
        kept = {} if remaining is None else {dtype: cast(remaining, dtype) for dtype in dtypes}
        result: dict[Node, Node] = {}
        for gradient, parameter in zip(gradients, parameters, strict=True):
            slots = self._slots_of(parameter)
            start = parameter * kept[parameter.dtype] if kept and self._decays(parameter) else parameter
            result[parameter], changed = self.update(gradient, start, sizes[parameter.dtype], slots)
            result |= {slots[name]: value for name, value in changed.items()}
        return result

    def _rule_at_times(
        self, gradients: Sequence[Node], parameters: Sequence[Node], done: Node, every: int
    ) -> dict[Node, Node]:
        """The same at each `every`-th step; only sums of gradients at others."""
        now = equal(_remainder(self.iterations + 1, every), 0)
        sums = {self._slots_of(p)["gradient_accumulator"]: g for p, g in zip(parameters, gradients, strict=True)}
        sums = {slot: slot + gradient for slot, gradient in sums.items()}
        means = [total * (1.0 / every) for total in sums.values()]
        changed = self._rule(self._clipped(means), parameters, done)
        result = {node: where(now, value, node) for node, value in changed.items()}
        return result | {slot: where(now, 0.0, total) for slot, total in sums.items()}

    def _averages(self, values: Mapping[Node, Node], parameters: Sequence[Node], done: Node) -> dict[Node, Node]:
        """The moving averages of the parameters' new values, and these themselves where averages take their place."""
        momentum = self.ema_momentum * cast(not_equal(done, 0), np.float64)
        overwritten = self.ema_overwrite_frequency and equal(_remainder(done + 1, self.ema_overwrite_frequency), 0)
        result: dict[Node, Node] = {}
        for parameter in parameters:
            slot, value = self._slots_of(parameter)["average"], values[parameter]
            average = slot + (value - slot) * cast(1.0 - momentum, parameter.dtype)
            result[slot] = average
            if overwritten is not None:
                result[parameter] = where(overwritten, average, value)
        return result

    def _clipped(self, gradients: Sequence[Node]) -> list[Node]:
        if self.clipvalue is not None:
            return [clip(gradient, -float(self.clipvalue), float(self.clipvalue)) for gradient in gradients]
        if self.clipnorm is not None:
            return [g * (self.clipnorm / maximum(sqrt(sum(square(g))), self.clipnorm)) for g in gradients]
        if self.global_clipnorm is None:
            return list(gradients)
        squares = [cast(sum(square(gradient)), np.float64) for gradient in gradients]
        total = squares[0]
        for part in squares[1:]:
            total = total + part
        norm = sqrt(total)
        # norm - norm is 0, but nan if the norm is inf or nan: then all gradients shall be nan, not only some.
        factor = minimum(self.global_clipnorm / norm, 1.0) + (norm - norm)
        return [gradient * cast(factor, gradient.dtype) for gradient in gradients]

    def _decays(self, parameter: Node) -> bool:
        key = variable_of(parameter)
        if key in self._undecayed:
            return False
        return self._undecayed_names is None or self._undecayed_names.search(key.name) is None

    def _slots_of(self, parameter: Node) -> Mapping[str, Node]:
        slots = self._slots.get(variable_of(parameter))
        if slots is None:
            raise ArgumentError(
                f"expected a parameter that optimizer {self.name!r} was built for; found {describe(parameter)}"
            )
        return slots


def _quotient(node: Node, divisor: int) -> Node:
    """How often the divisor goes into an int64 node of at least 0."""
    return cast(node / divisor, np.int64)


def _remainder(node: Node, divisor: int) -> Node:
    return node - divisor * _quotient(node, divisor)


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float | np.number) and math.isfinite(value)


def _checked_rate(value: Any) -> float:
    if not _is_number(value):
        raise ArgumentError(f"expected a finite number, or a schedule, as learning_rate; found {value!r}")
    return float(value)


registry = Registry("an optimizer", Optimizer)
_schedules = Registry("a learning rate schedule", Configurable)
