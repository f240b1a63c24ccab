"""Optimizers: steps by formulas of their own in NumPy, options, learning rates, state, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import miai_graph as mg
from miai_graph import losses, optimizers
from miai_graph.errors import ArgumentError, ExecutionError
from miai_graph.function import Function
from miai_graph.graph import Graph, check_graph
from miai_graph.interpreter import evaluate
from miai_graph.node import Node
from miai_graph.op import Array
from miai_graph.split_interpreter import evaluate_split

STEPS = 6
SHAPES = {"kernel": (3, 2), "bias": (2,), "scale": ()}


@pytest.fixture(autouse=True)
def _seed() -> None:
    mg.set_seed(13)


def first_values(dtype: str) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def all_gradients(dtype: str) -> list[dict[str, Array]]:
    rng = np.random.default_rng(2)
    return [
        {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()} for _ in range(STEPS)
    ]


def prepared(optimizer: optimizers.Optimizer, dtype: str = "float64") -> tuple[list[Node], Function]:
    """Parameters, and a function that takes their gradients and makes a step."""
    parameters = [mg.parameter(value, name=name) for name, value in first_values(dtype).items()]
    gradients = [mg.input(f"d_{node.name}", node.shape, dtype) for node in parameters]
    updates = optimizer.updates(gradients, parameters)
    check_graph(Graph([], updates))
    return parameters, mg.function(gradients, [], updates)


def run(optimizer: optimizers.Optimizer, dtype: str = "float64") -> list[dict[str, Array]]:
    """The parameters after each step."""
    parameters, step = prepared(optimizer, dtype)
    history = []
    for gradients in all_gradients(dtype):
        step(*gradients.values())
        history.append({node.name: node.value for node in parameters})
    return history


def run_formula(rule: Any, gradients: Sequence[dict[str, Array]] | None = None) -> list[dict[str, Array]]:
    """The same by a generator that is sent a gradient and a parameter, and gives the parameter after it."""
    values, history = first_values("float64"), []
    rules = {name: rule() for name in values}
    for generator in rules.values():
        next(generator)
    for given in all_gradients("float64") if gradients is None else gradients:
        values = {name: rules[name].send((given[name], value)) for name, value in values.items()}
        history.append(values)
    return history


def sgd(rate: float, momentum: float = 0.0, nesterov: bool = False) -> Any:
    velocity: Any = 0.0
    g, w = yield
    while True:
        velocity = momentum * velocity - rate * g
        g, w = yield w + (momentum * velocity - rate * g if nesterov else velocity)


def rmsprop(rate: float, rho: float, momentum: float, epsilon: float, centered: bool) -> Any:
    mean: Any = 0.0
    squares: Any = 0.0
    velocity: Any = 0.0
    g, w = yield
    while True:
        squares = rho * squares + (1 - rho) * g * g
        mean = rho * mean + (1 - rho) * g
        step = rate * g / np.sqrt(squares - (mean * mean if centered else 0) + epsilon)
        velocity = momentum * velocity + step
        g, w = yield w - (velocity if momentum else step)


def adam(rate: float, beta_1: float, beta_2: float, epsilon: float, amsgrad: bool) -> Any:
    m: Any = 0.0
    v: Any = 0.0
    greatest: Any = 0.0
    g, w = yield
    for t in range(1, 1000):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        greatest = np.maximum(greatest, v)
        alpha = rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        g, w = yield w - alpha * m / (np.sqrt(greatest if amsgrad else v) + epsilon)


RULES: dict[str, tuple[type, dict[str, Any], Any]] = {
    "SGD": (optimizers.SGD, {"learning_rate": 0.1}, lambda: sgd(0.1)),
    "SGD momentum": (optimizers.SGD, {"learning_rate": 0.1, "momentum": 0.9}, lambda: sgd(0.1, 0.9)),
    "SGD nesterov": (
        optimizers.SGD,
        {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        lambda: sgd(0.1, 0.9, True),
    ),
    "RMSprop": (optimizers.RMSprop, {}, lambda: rmsprop(0.001, 0.9, 0.0, 1e-7, False)),
    "RMSprop momentum": (optimizers.RMSprop, {"momentum": 0.5}, lambda: rmsprop(0.001, 0.9, 0.5, 1e-7, False)),
    "RMSprop centered": (
        optimizers.RMSprop,
        {"centered": True, "rho": 0.7, "epsilon": 1e-3},
        lambda: rmsprop(0.001, 0.7, 0.0, 1e-3, True),
    ),
    "Adam": (optimizers.Adam, {}, lambda: adam(0.001, 0.9, 0.999, 1e-7, False)),
    "Adam amsgrad": (
        optimizers.Adam,
        {"learning_rate": 0.1, "amsgrad": True, "beta_1": 0.5, "beta_2": 0.6, "epsilon": 1e-3},
        lambda: adam(0.1, 0.5, 0.6, 1e-3, True),
    ),
}
of_each_rule = pytest.mark.parametrize("rule", RULES)


def assert_histories_agree(
    found: list[dict[str, Array]], expected: list[dict[str, Array]], rtol: float = 1e-12
) -> None:
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol, atol=rtol, err_msg=f"{name} after step {step}")


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 2e-5)])
@of_each_rule
def test_steps_follow_the_formulas(rule: str, dtype: str, rtol: float) -> None:
    kind, options, formula = RULES[rule]
    assert_histories_agree(run(kind(**options), dtype), run_formula(formula), rtol)


@of_each_rule
def test_configs_make_equal_optimizers(rule: str) -> None:
    kind, options, formula = RULES[rule]
    saved = optimizers.serialize(kind(**options))
    again = optimizers.get(saved)
    assert type(again) is kind
    assert optimizers.serialize(again) == saved
    assert_histories_agree(run(again), run_formula(formula))


def clipped(change: Any) -> list[dict[str, Array]]:
    return [change(gradients) for gradients in all_gradients("float64")]


def scaled_to_norm(gradients: Mapping[str, Array]) -> dict[str, Array]:
    return {name: g * min(1, 0.5 / np.linalg.norm(g)) for name, g in gradients.items()}


def scaled_to_global_norm(gradients: Mapping[str, Array]) -> dict[str, Array]:
    norm = np.sqrt(sum((g * g).sum() for g in gradients.values()))
    return {name: g * min(1, 2.0 / norm) for name, g in gradients.items()}


GRADIENT_OPTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "clipvalue": ({"clipvalue": 0.4}, lambda gs: {name: np.clip(g, -0.4, 0.4) for name, g in gs.items()}),
    "clipnorm": ({"clipnorm": 0.5}, scaled_to_norm),
    "global clipnorm": ({"global_clipnorm": 2.0}, scaled_to_global_norm),
    "loss scale": ({"loss_scale_factor": 4.0}, lambda gs: {name: g / 4 for name, g in gs.items()}),
}


@pytest.mark.parametrize("option", GRADIENT_OPTIONS)
def test_gradients_are_changed_before_the_step(option: str) -> None:
    options, change = GRADIENT_OPTIONS[option]
    assert_histories_agree(
        run(optimizers.SGD(0.1, 0.9, **options)), run_formula(lambda: sgd(0.1, 0.9), clipped(change))
    )


def test_gradients_of_zero_and_without_bound_are_clipped_as_numbers_can_be() -> None:
    for option, expected in (("clipnorm", [0.0, 0.0, np.nan]), ("global_clipnorm", [np.nan] * 3)):
        parameters, step = prepared(optimizers.SGD(1.0, **{option: 1.0}))
        step(np.zeros((3, 2)), np.zeros(2), np.array(np.inf))
        before = first_values("float64").values()
        for node, value, change in zip(parameters, before, expected, strict=True):
            np.testing.assert_array_equal(node.value, value + change)


def test_weights_decay_but_for_those_excluded() -> None:
    def decaying(share: float) -> Any:
        g, w = yield
        while True:
            g, w = yield w * (1 - share * 0.1) - 0.1 * g

    everything = run(optimizers.SGD(0.1, weight_decay=0.5))
    assert_histories_agree(everything, run_formula(lambda: decaying(0.5)))
    optimizer = optimizers.SGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "^sc"])
    plain = run_formula(lambda: decaying(0.0))
    mixed = [
        {**decayed, "bias": kept["bias"], "scale": kept["scale"]}
        for decayed, kept in zip(everything, plain, strict=True)
    ]
    assert_histories_agree(run(optimizer), mixed)
    with pytest.raises(ArgumentError, match="before optimizer 'sgd_1' is built"):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


def test_parameters_are_excluded_from_weight_decay_by_themselves() -> None:
    w, v = mg.parameter(1.0, name="w"), mg.parameter(1.0, name="v")
    optimizer = optimizers.SGD(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[v])
    mg.function([], [], optimizer.updates([mg.zeros_like(w), mg.zeros_like(v)], [w, v]))()
    assert (float(w.value), float(v.value)) == (0.75, 1.0)


@of_each_rule
def test_gradients_are_accumulated(rule: str) -> None:
    kind, options, formula = RULES[rule]
    given = all_gradients("float64")
    means = [{name: (a[name] + b[name] + c[name]) / 3 for name in a} for a, b, c in (given[:3], given[3:])]
    updated = run_formula(formula, means)
    start = first_values("float64")
    expected = [start, start, updated[0], updated[0], updated[0], updated[1]]
    assert_histories_agree(run(kind(**options, gradient_accumulation_steps=3)), expected)


def test_moving_averages_take_the_parameters_place_when_told_to() -> None:
    optimizer = optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)
    parameters, step = prepared(optimizer)
    history, averages = run_formula(lambda: sgd(0.1)), {}
    for gradients, values in zip(all_gradients("float64"), history, strict=True):
        step(*gradients.values())
        averages = {name: 0.8 * averages.get(name, value) + 0.2 * value for name, value in values.items()}
    for node in parameters:
        np.testing.assert_allclose(node.value, history[-1][node.name], rtol=1e-12)
    optimizer.finalize_variable_values(parameters)
    for node in parameters:
        np.testing.assert_allclose(node.value, averages[node.name], rtol=1e-12)


def test_moving_averages_take_the_parameters_place_during_training() -> None:
    def overwritten() -> Any:
        average: Any = None
        g, w = yield
        for t in range(1, 100):
            w = w - 0.1 * g
            average = w if average is None else 0.8 * average + 0.2 * w
            g, w = yield average if t % 2 == 0 else w

    found = run(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2))
    assert_histories_agree(found, run_formula(overwritten))


def test_a_new_learning_rate_holds_from_the_next_step_on_without_compiling() -> None:
    optimizer = optimizers.SGD(0.1)
    w = mg.parameter(np.zeros(1), name="w")
    step = mg.function([], [], optimizer.updates([mg.ones_like(w)], [w]))
    step()
    executable = step.executable
    optimizer.learning_rate = 0.5
    assert optimizer.learning_rate == 0.5
    assert optimizer.get_config()["learning_rate"] == 0.5
    step()
    assert step.executable is executable
    assert w.value == pytest.approx(-0.6)


def halving(iterations: Node) -> Node:
    return 0.5 ** mg.cast(iterations, "float32")


def test_the_learning_rate_may_follow_a_schedule() -> None:
    optimizer = optimizers.SGD(halving)
    w = mg.parameter(np.zeros(1), name="w", dtype="float64")
    step = mg.function([], [], optimizer.updates([mg.ones_like(w)], [w]))
    rates = []
    for _ in range(3):
        rates.append(optimizer.learning_rate)
        step()
    assert rates == [1.0, 0.5, 0.25]
    assert w.value == -1.75
    assert [node.name for node in optimizer.variables] == ["sgd/iteration"]
    with pytest.raises(ArgumentError, match="found the schedule"):
        optimizer.learning_rate = 0.1
    saved = optimizers.serialize(optimizer)
    assert saved["config"]["learning_rate"] == "halving"
    assert optimizers.get(saved, {"halving": halving}).learning_rate == 1.0
    with pytest.raises(ArgumentError, match="a scalar node of floats"):
        optimizers.SGD(lambda iterations: iterations)


def test_variables_are_named_after_the_optimizer_and_the_parameter() -> None:
    optimizer = optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)
    with mg.name_scope("dense"):
        kernel = mg.parameter(np.ones((2, 1), "f4"), name="kernel")
    optimizer.build([kernel])
    slots = ["momentum", "velocity", "gradient_accumulator", "average"]
    names = ["adam/iteration", "adam/learning_rate", *(f"adam/dense/kernel/{slot}" for slot in slots)]
    assert [node.name for node in optimizer.variables] == names
    assert optimizer.iterations.dtype == "int64"
    assert optimizer.variables[2].type == kernel.type
    built = optimizer.variables
    optimizer.build([kernel])
    assert optimizer.variables == built
    assert optimizers.Adam().name == "adam_1"
    assert optimizers.RMSprop().name == "rmsprop"
    assert optimizers.SGD(name="mine").iterations.name == "mine/iteration"


def test_new_nodes_are_of_the_update_phase_and_the_optimizers_scope() -> None:
    w = mg.parameter(np.ones(3), name="w")
    (gradient,) = mg.grad((w * w).sum(), [w])
    before = max(node.index for node in Graph(gradient).nodes)
    graph = Graph([], optimizers.Adam().updates([gradient], [w]))
    new = [node for node in graph.nodes if node.index > before]
    assert new
    assert all((node.phase, node.scope) == ("update", "adam") for node in new)


def test_corrections_of_adam_are_computed_on_scalars() -> None:
    w, v = (mg.parameter(np.ones((5, 5)), name=name) for name in "wv")
    optimizer = optimizers.Adam(weight_decay=0.1)
    graph = Graph([], optimizer.updates([mg.ones_like(w), mg.ones_like(v)], [w, v]))
    powers = [node for node in graph.nodes if node.op.name == "power"]
    assert [node.shape for node in powers] == [(), ()]
    elementwise = [node for node in graph.nodes if node.shape == (5, 5) and node.op.name != "broadcast_to"]
    computed = [node for node in elementwise if node.op.name not in ("variable", "constant")]
    assert len(computed) == 2 * 13


def test_parameters_of_two_dtypes_are_clipped_together() -> None:
    w = mg.parameter(np.zeros(1, "f4"), name="w")
    v = mg.parameter(np.zeros(1, "f8"), name="v")
    updates = optimizers.Adam(1.0, global_clipnorm=1.0).updates([3.0 * mg.ones_like(w), 4.0 * mg.ones_like(v)], [w, v])
    momentum = {node.name: value for node, value in updates.items()}
    found = [momentum["adam/w/momentum"], momentum["adam/v/momentum"]]
    np.testing.assert_allclose([value[0] for value in evaluate(Graph(found), {}, batch_size=1)[0]], [0.06, 0.08], 1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"global_clipnorm": 0.1}, {"gradient_accumulation_steps": 2}, {"clipvalue": 0.01}]
)
def test_parts_of_a_batch_make_the_step_of_the_whole(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, y = mg.input("x", (None, 4), "float64"), mg.input("y", (None,), "int64")
    w, b = mg.parameter(rng.standard_normal((4, 3)), name="w"), mg.parameter(np.zeros(3), name="b")
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)(y, x @ w + b)
    graph = Graph([loss], optimizers.Adam(0.1, **options).updates(mg.grad(loss, [w, b]), [w, b]))
    feeds = {x: rng.standard_normal((7, 4)), y: rng.integers(0, 3, 7)}
    whole = evaluate(graph, feeds, batch_size=7)[1]
    for node, value in evaluate_split(graph, feeds, [4, 1, 2])[1].items():
        np.testing.assert_allclose(value, whole[node], rtol=1e-9, atol=1e-15)


def test_a_step_that_fails_changes_nothing() -> None:
    x, y = mg.input("x", (None, 4)), mg.input("y", (None,), "int64")
    w = mg.parameter(np.ones((4, 3), "f4"), name="w")
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)(y, x @ w)
    optimizer = optimizers.Adam(use_ema=True)
    step = mg.function([x, y], [loss], optimizer.updates(mg.grad(loss, [w]), [w]))
    step(np.ones((2, 4)), [0, 1])
    before = [node.value for node in [w, *optimizer.variables]]
    with pytest.raises(ExecutionError, match="expected labels from 0 to 2"):
        step(np.ones((2, 4)), [0, 7])
    for node, value in zip([w, *optimizer.variables], before, strict=True):
        np.testing.assert_array_equal(node.value, value)
    assert optimizer.iterations.value == 1


def test_some_of_the_parameters_may_be_trained_on() -> None:
    w, v = mg.parameter(1.0, name="w"), mg.parameter(1.0, name="v")
    optimizer = optimizers.SGD(0.5, momentum=0.5)
    both = mg.function([], [], optimizer.updates([mg.ones_like(w), mg.ones_like(v)], [w, v]))
    one = mg.function([], [], optimizer.updates([mg.ones_like(w)], [w]))
    both()
    one()
    assert (float(w.value), float(v.value)) == (-0.25, 0.5)
    assert optimizer.iterations.value == 2


def test_the_loss_is_scaled_before_gradients_are_taken() -> None:
    w = mg.parameter(2.0, name="w")
    optimizer = optimizers.SGD(1.0, loss_scale_factor=1024.0)
    loss = optimizer.scale_loss(w * w)
    mg.function([], [], optimizer.updates(mg.grad(loss, [w]), [w]))()
    assert w.value == -2.0
    assert optimizers.SGD().scale_loss(w) is w


def test_users_optimizer() -> None:
    class Signs(optimizers.Optimizer):
        def update(
            self, gradient: Node, parameter: Node, rate: Node, slots: Mapping[str, Node]
        ) -> tuple[Node, dict[str, Node]]:
            return parameter - rate * mg.sign(gradient), {}

    optimizer = optimizers.get({"class_name": "Signs", "config": {"learning_rate": 0.5}}, {"Signs": Signs})
    w = mg.parameter(np.zeros(2), name="w")
    mg.function([], [], optimizer.updates([w + np.array([3.0, -0.1])], [w]))()
    assert w.value.tolist() == [-0.5, 0.5]
    assert optimizer.name == "signs"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two kinds of clipping": ({"clipnorm": 1.0, "clipvalue": 1.0}, "at most one of clipnorm"),
    "clipping to nothing": ({"global_clipnorm": 0.0}, "above 0, or None, as global_clipnorm"),
    "rate": ({"learning_rate": "fast"}, "a learning rate schedule"),
    "rate of nan": ({"learning_rate": float("nan")}, "a finite number, or a schedule"),
    "decay": ({"weight_decay": "some"}, "as weight_decay"),
    "average": ({"use_ema": True, "ema_momentum": 1.5}, "ema_momentum from 0 to 1"),
    "overwriting without average": ({"ema_overwrite_frequency": 3}, "expected use_ema=True"),
    "overwriting at no step": ({"use_ema": True, "ema_overwrite_frequency": 0}, "integer of at least 1"),
    "accumulation over one": ({"gradient_accumulation_steps": 1}, "integer of at least 2"),
    "accumulation over half": ({"gradient_accumulation_steps": 2.5}, "integer of at least 2"),
    "loss scale": ({"loss_scale_factor": -1}, "as loss_scale_factor"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", [optimizers.SGD, optimizers.RMSprop, optimizers.Adam])
def test_arguments_that_cannot_be_are_refused(kind: Any, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ArgumentError, match=message):
        kind(**options)


def test_other_misuse_is_refused() -> None:
    w = mg.parameter(np.ones(2), name="w")
    for make in (
        lambda: optimizers.SGD(momentum=2),
        lambda: optimizers.RMSprop(rho=-1),
        lambda: optimizers.Adam(beta_2=1),
    ):
        with pytest.raises(ArgumentError, match="from 0 to"):
            make()
    with pytest.raises(ArgumentError, match="a gradient for each of 1 parameters; found 2"):
        optimizers.SGD().updates([w, w], [w])
    with pytest.raises(ArgumentError, match="gradient of the parameter's shape"):
        optimizers.SGD().updates([mg.sum(w)], [w])
    with pytest.raises(ArgumentError, match="expected a parameter or variable"):
        optimizers.SGD().updates([w], [w * 2.0])
    with pytest.raises(ArgumentError, match="was built for"):
        optimizers.SGD(use_ema=True).finalize_variable_values([w])
    with pytest.raises(ArgumentError, match="an optimizer, one of Adam, RMSprop, SGD"):
        optimizers.get("adagrad")
    optimizer = optimizers.SGD()
    with pytest.raises(ArgumentError, match="finite number"):
        optimizer.learning_rate = None  # type: ignore[assignment]
