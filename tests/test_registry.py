"""Objects by name and config, for every kind of object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from miai_graph.errors import ArgumentError
from miai_graph.registry import Configurable, Registry, as_config, custom_object_scope


class Shape(Configurable):
    def __init__(self, color: str = "red", **options: Any) -> None:
        self.color = color
        self.options = options


class Dot(Shape):
    """Has no arguments of its own."""


class Circle(Shape):
    def __init__(self, radius: float, center: Any = (0, 0), **options: Any) -> None:
        super().__init__(**options)
        self.radius = radius
        self.center = center


class Framed(Configurable):
    """Holds another object, and ends the chain of constructors."""

    def __init__(self, inner: Any = None, *, scale: Any = 1) -> None:
        self.inner = shapes.get(inner)
        self.scale = scale


class Forgetful(Shape):
    def __init__(self, size: int = 1) -> None:
        super().__init__()


def spiral() -> str:
    return "a function"


shapes = Registry("a shape", Shape)
for definition in (Dot, Circle, Forgetful):
    shapes.register(definition)
shapes.register(spiral)
shapes.alias(point=Dot)


@pytest.mark.parametrize("identifier", ["Dot", "dot", "point", Dot, {"class_name": "Dot", "config": {}}])
def test_get_understands_each_way_to_say_it(identifier: Any) -> None:
    found = shapes.get(identifier)
    assert type(found) is Dot
    assert found.color == "red"


def test_get_gives_back_what_is_one_already() -> None:
    dot = Dot()
    assert shapes.get(dot) is dot
    assert shapes.get(None) is None
    assert shapes.get("spiral") is spiral
    assert shapes.get(spiral) is spiral
    assert shapes.get({"class_name": "Dot", "config": None}).color == "red"
    assert shapes.get({"class_name": "spiral", "config": {}}) is spiral


def test_configs_hold_the_arguments_of_all_constructors() -> None:
    circle = Circle(2.0, (1, np.int64(2)), color="blue")
    config = {"class_name": "Circle", "config": {"radius": 2.0, "center": [1, 2], "color": "blue"}}
    assert shapes.serialize(circle) == config
    again = shapes.get(config)
    assert (again.radius, again.center, again.color) == (2.0, [1, 2], "blue")
    assert shapes.serialize(again) == config
    assert shapes.serialize(spiral) == "spiral"
    assert shapes.serialize(None) is None
    assert shapes.serialize("point") == {"class_name": "Dot", "config": {"color": "red"}}


def test_nested_objects_are_saved_and_come_back() -> None:
    framed = Framed(Circle(1.0), scale=np.float32(0.5))
    config = framed.get_config()
    assert config["scale"] == 0.5
    assert type(config["scale"]) is float
    assert config["inner"]["class_name"] == "Circle"
    again = Framed.from_config(config)
    assert type(again.inner) is Circle
    assert again.get_config() == config
    assert as_config({"a": [framed, np.dtype("f4")]}) == {"a": [{"class_name": "Framed", "config": config}, "float32"]}


def test_custom_objects_are_found_by_name_at_any_depth() -> None:
    class Star(Shape):
        pass

    config = Framed(Star("gold")).get_config()
    with pytest.raises(ArgumentError, match="Star"):
        Framed.from_config(config)
    with custom_object_scope({"Star": Star}):
        assert type(Framed.from_config(config).inner) is Star
    assert type(shapes.get("Star", custom_objects={"Star": Star})) is Star
    with pytest.raises(ArgumentError, match="Star"):
        shapes.get("Star")


def test_custom_objects_may_derive_from_nothing_of_ours() -> None:
    class Foreign:
        def __init__(self, size: int = 3) -> None:
            self.size = size

        def __call__(self) -> int:
            return self.size

        def get_config(self) -> dict[str, Any]:
            return {"size": self.size}

    config = shapes.serialize(Foreign(4))
    assert config == {"class_name": "Foreign", "config": {"size": 4}}
    assert shapes.get(config, {"Foreign": Foreign}).size == 4


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"name of a shape, one of Circle, Dot, Forgetful, spiral; found 'square'"):
        shapes.get("square")
    with pytest.raises(ArgumentError, match="found 3"):
        shapes.get({"class_name": 3})


@pytest.mark.parametrize("wrong", [3, {"config": {}}, Framed(), ["Dot"]])
def test_get_refuses_other_things(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a shape, its name, its config, or a function"):
        shapes.get(wrong)


def test_two_things_cannot_have_one_name() -> None:
    shapes.register(Dot)
    with pytest.raises(ArgumentError, match="'POINT' twice as name of a shape"):
        shapes.alias(POINT=Circle)


def test_wrong_configs_are_told_with_the_right_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"Framed\(inner.*found \{'outer': 1\}.*outer"):
        Framed.from_config({"outer": 1})
    with pytest.raises(ArgumentError, match="radius"):
        shapes.get({"class_name": "Circle", "config": {}})


def test_an_argument_that_is_not_kept_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"Forgetful to keep its argument 'size'.*Set self\.size"):
        Forgetful().get_config()


def test_functions_need_names_to_be_saved() -> None:
    with pytest.raises(ArgumentError, match="lambda"):
        shapes.serialize(lambda: 3)
