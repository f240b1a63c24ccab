"""Initializers: distributions, fans, determinism and configs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from miai_graph import initializers
from miai_graph.context import set_seed
from miai_graph.errors import ArgumentError, DTypeError, ShapeError

SIGNIFICANCE = 1e-3  # of tests with fixed seeds, which either always pass or never

EACH: dict[str, Any] = {
    "zeros": initializers.Zeros(),
    "ones": initializers.Ones(),
    "constant": initializers.Constant(2.5),
    "identity": initializers.Identity(3.0),
    "random_normal": initializers.RandomNormal(1.0, 2.0, seed=1),
    "random_uniform": initializers.RandomUniform(1.0, 2.0, seed=1),
    "truncated_normal": initializers.TruncatedNormal(1.0, 2.0, seed=1),
    "variance_scaling": initializers.VarianceScaling(2.0, "fan_out", "uniform", 1, [0], [1]),
    "glorot_uniform": initializers.GlorotUniform(seed=1),
    "glorot_normal": initializers.GlorotNormal(seed=1),
    "he_uniform": initializers.HeUniform(seed=1),
    "he_normal": initializers.HeNormal(seed=1),
    "lecun_uniform": initializers.LecunUniform(seed=1, input_axes=[1], output_axes=[0]),
    "lecun_normal": initializers.LecunNormal(seed=1),
    "orthogonal": initializers.Orthogonal(2.0, seed=1),
}
RANDOM = {name: item for name, item in EACH.items() if isinstance(item, initializers.RandomInitializer)}
of_each_random = pytest.mark.parametrize("initializer", RANDOM.values(), ids=RANDOM)

# name: scale of the variance, which fan divides it, and whether the distribution is uniform
SCALINGS = {
    "glorot_uniform": (1.0, "fan_avg", True),
    "glorot_normal": (1.0, "fan_avg", False),
    "he_uniform": (2.0, "fan_in", True),
    "he_normal": (2.0, "fan_in", False),
    "lecun_uniform": (1.0, "fan_in", True),
    "lecun_normal": (1.0, "fan_in", False),
}


def test_each_known_initializer_is_tested() -> None:
    assert {type(item).__name__ for item in EACH.values()} == set(initializers._registry.names)


@pytest.mark.parametrize(("name", "initializer"), EACH.items(), ids=EACH)
def test_names_configs_and_aliases_mean_the_class(name: str, initializer: Any) -> None:
    definition = type(initializer)
    assert type(initializers.get(name)) is definition
    assert type(initializers.get(definition.__name__)) is definition
    assert getattr(initializers, name) is definition
    saved = initializers.serialize(initializer)
    assert saved == {"class_name": definition.__name__, "config": initializer.get_config()}
    again = initializers.get(saved)
    assert type(again) is definition
    assert again.get_config() == initializer.get_config()
    np.testing.assert_array_equal(again((4, 3)), initializer((4, 3)))


@pytest.mark.parametrize(
    ("alias", "name"), [("zero", "zeros"), ("one", "ones"), ("normal", "random_normal"), ("uniform", "random_uniform")]
)
def test_short_names(alias: str, name: str) -> None:
    assert type(initializers.get(alias)) is type(initializers.get(name))


@pytest.mark.parametrize("initializer", EACH.values(), ids=EACH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shape_and_dtype(initializer: Any, dtype: str) -> None:
    for shape in [(5, 7), (7, 5), (1, 1), (0, 3), (3, 0)]:
        value = initializer(shape, dtype)
        assert (value.shape, value.dtype) == (shape, dtype)
        assert value.flags.writeable
        assert np.isfinite(value).all()


def test_constants_have_any_shape_and_dtype() -> None:
    np.testing.assert_array_equal(initializers.Zeros()((2, 1, 3), "int64"), np.zeros((2, 1, 3), "i8"))
    np.testing.assert_array_equal(initializers.Ones()((), "bool"), np.array(True))
    np.testing.assert_array_equal(initializers.Constant(7)(4), np.full(4, 7.0, "f4"))
    np.testing.assert_array_equal(initializers.Identity(2.0)((2, 3)), [[2, 0, 0], [0, 2, 0]])


@of_each_random
def test_an_integer_seed_always_gives_the_same(initializer: Any) -> None:
    first = initializer((6, 6))
    initializers.GlorotUniform()((3, 3))
    np.testing.assert_array_equal(initializer((6, 6)), first)
    config = {**initializer.get_config(), "seed": 2}
    assert (type(initializer).from_config(config)((6, 6)) != first).any()


@of_each_random
def test_without_a_seed_set_seed_decides(initializer: Any) -> None:
    unseeded = type(initializer).from_config({**initializer.get_config(), "seed": None})
    set_seed(3)
    first, second = unseeded((6, 6)), unseeded((6, 6))
    set_seed(3)
    np.testing.assert_array_equal(unseeded((6, 6)), first)
    set_seed(4)
    assert (first != second).any()
    assert (unseeded((6, 6)) != first).any()


@pytest.mark.parametrize(
    ("shape", "fans"),
    [((), (1, 1)), ((5,), (5, 5)), ((3, 4), (3, 4)), ((3, 4, 5), (12, 15)), ((3, 3, 16, 32), (144, 288))],
)
def test_fans(shape: tuple[int, ...], fans: tuple[int, int]) -> None:
    assert initializers.compute_fans(shape) == fans


def test_fans_of_stated_axes() -> None:
    assert initializers.compute_fans((2, 3, 5, 7), [0, 3], [1]) == (14, 3)
    assert initializers.compute_fans((2, 3), [0], None) == (2, 3)


@pytest.mark.parametrize(("name", "scaling"), SCALINGS.items(), ids=SCALINGS)
@pytest.mark.parametrize("shape", [(150, 300), (3, 3, 40, 80)])
def test_scaled_distributions(name: str, scaling: tuple[float, str, bool], shape: tuple[int, ...]) -> None:
    scale, fan, is_uniform = scaling
    fan_in, fan_out = initializers.compute_fans(shape)
    stddev = math.sqrt(scale / (fan_in if fan == "fan_in" else (fan_in + fan_out) / 2))
    value = type(EACH[name])(seed=11)(shape, "float64").ravel()
    limit = math.sqrt(3) * stddev if is_uniform else 2 * stddev / 0.87962566103423978
    assert abs(value).max() <= limit
    assert abs(value).max() > 0.99 * limit
    assert value.std() == pytest.approx(stddev, rel=0.02)
    whole = stats.uniform(-limit, 2 * limit) if is_uniform else stats.truncnorm(-2, 2, scale=limit / 2)
    assert stats.kstest(value, whole.cdf).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_distributions(dtype: str) -> None:
    shape = (200, 200)
    for initializer, expected in [
        (initializers.RandomNormal(1.0, 2.0, seed=3), stats.norm(1, 2)),
        (initializers.TruncatedNormal(1.0, 2.0, seed=3), stats.truncnorm(-2, 2, loc=1, scale=2)),
        (initializers.RandomUniform(-1.0, 3.0, seed=3), stats.uniform(-1, 4)),
        (initializers.VarianceScaling(200.0, distribution="untruncated_normal", seed=3), stats.norm(0, 1)),
        (initializers.VarianceScaling(200.0, mode="fan_out", distribution="normal", seed=3), None),
    ]:
        value = initializer(shape, dtype).ravel().astype("f8")
        if expected is None:
            assert value.std() == pytest.approx(1, rel=0.02)
        else:
            assert stats.kstest(value, expected.cdf).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("shape", [(6, 6), (8, 3), (3, 8), (2, 3, 4, 5), (2, 2, 2, 30)])
def test_orthogonal_matrices_are_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = initializers.Orthogonal(1.5, seed=5)(shape, "float64").reshape(-1, shape[-1])
    product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(product, 1.5**2 * np.eye(len(product)), atol=1e-12)


def test_orthogonal_matrices_turn_both_ways() -> None:
    traces = [np.trace(initializers.Orthogonal(seed=seed)((3, 3))) for seed in range(300)]
    assert abs(np.mean(traces)) < 4 / math.sqrt(300)  # the trace of a random rotation or reflection has variance 1
    assert np.var(traces) == pytest.approx(1, rel=0.4)


def test_a_function_may_be_given() -> None:
    def sevens(shape: Any, dtype: Any = "float32") -> Any:
        return np.full(shape, 7, dtype)

    assert initializers.get(sevens) is sevens
    assert initializers.serialize(sevens) == "sevens"
    assert initializers.get("sevens", {"sevens": sevens}) is sevens


@pytest.mark.parametrize(
    ("error", "build"),
    [
        (ShapeError, lambda: initializers.Identity()((2, 2, 2))),
        (ShapeError, lambda: initializers.Orthogonal()((5,))),
        (ShapeError, lambda: initializers.Zeros()((None, 2))),
        (ShapeError, lambda: initializers.Zeros()((-1,))),
        (DTypeError, lambda: initializers.GlorotUniform()((2, 2), "int32")),
        (DTypeError, lambda: initializers.Ones()((2, 2), "complex64")),
        (ArgumentError, lambda: initializers.Constant([1, 2])),
        (ArgumentError, lambda: initializers.VarianceScaling(0.0)),
        (ArgumentError, lambda: initializers.VarianceScaling(mode="fan")),
        (ArgumentError, lambda: initializers.VarianceScaling(distribution="cauchy")),
        (ArgumentError, lambda: initializers.HeNormal(seed=-1)),
        (ArgumentError, lambda: initializers.HeNormal(seed="x")),
        (ArgumentError, lambda: initializers.get("glorot")),
        (ArgumentError, lambda: initializers.get({"class_name": "Zeros", "config": {"value": 1}})),
    ],
)
def test_what_cannot_be_is_refused(error: type[Exception], build: Any) -> None:
    with pytest.raises(error, match=r"expected|batch size is not known"):
        build()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"name of an initializer, one of Constant, GlorotNormal.*found 'glorot'"):
        initializers.get("glorot")
