"""Our decorator makes the classes that the standard library's makes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from functools import cached_property
from typing import Any

import pytest

from miai_graph.dataclass import dataclass


@dataclass(frozen=True)
class Point:
    """In a plane."""

    x: int
    y: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)
    secret: str = dataclasses.field(default="", repr=False, compare=False)

    @cached_property
    def total(self) -> int:
        """Of both."""
        return self.x + self.y


@dataclass(frozen=True)
class Named(Point):
    """A point with a name."""

    name: str = "origin"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("expected a name")


@dataclass(frozen=True, slots=True)
class Pair:
    """Of anything."""

    first: Any
    second: Any = None

    def __repr__(self) -> str:
        return f"<{self.first}, {self.second}>"


@dataclass(frozen=True, slots=True)
class Nothing:
    """Without fields."""


@dataclass(frozen=True, eq=False)
class Thing:
    """Only itself."""

    weight: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Heavy(Thing):
    """With what has to be named."""

    height: float
    width: float = 1.0


@dataclass
class Changing:
    """That may change."""

    value: int


def test_fields_are_set_by_place_by_name_and_by_default() -> None:
    point = Point(1, tags=["a"])
    assert (point.x, point.y, point.tags, point.secret) == (1, 0, ["a"], "")
    assert Point(1).tags is not Point(1).tags
    assert Named(1, 2, name="a").name == "a"
    heavy = Heavy(2.0, height=3.0)
    assert (heavy.weight, heavy.height, heavy.width) == (2.0, 3.0, 1.0)
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Heavy(2.0, 3.0)  # type: ignore[misc, call-arg]
    with pytest.raises(ValueError, match="expected a name"):
        Named(1, name="")
    assert list(inspect.signature(Pair).parameters) == ["first", "second"]


def test_values_are_compared_and_hashed_by_their_fields() -> None:
    assert Pair(1, 2) == Pair(1, 2) != Pair(2, 1)
    assert hash(Pair(1, 2)) == hash(Pair(1, 2))
    assert len({Pair(1), Pair(1), Pair(2)}) == 2
    assert Pair(1, 2) != (1, 2)
    assert Nothing() == Nothing() != Pair(1)
    assert Point(1) != Named(1)
    assert Point(1, secret="a") == Point(1, secret="b") != Point(2, secret="a")
    assert Thing(1.0) != Thing(1.0)
    assert len({Thing(1.0), Thing(1.0)}) == 2


@pytest.mark.parametrize("value", [Point(1), Pair(1, 2), Thing(1.0)], ids=repr)
def test_nothing_changes(value: Any) -> None:
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError, match=f"cannot change field '{name}'"):
        setattr(value, name, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(value, name)
    with pytest.raises(AttributeError):
        value.other = 1
    assert getattr(value, name) == 1


def test_others_than_frozen_classes_are_as_ever() -> None:
    changing = Changing(1)
    changing.value = 2
    assert changing == Changing(2)


def test_what_is_shown() -> None:
    assert repr(Point(1, 2, secret="x")) == "Point(x=1, y=2, tags=[])"
    assert repr(Named(1)) == "Named(x=1, y=0, tags=[], name='origin')"
    assert repr(Pair(1)) == "<1, None>"
    assert repr(Nothing()) == "Nothing()"


def test_the_standard_librarys_functions_know_the_classes() -> None:
    assert dataclasses.replace(Pair(1, 2), second=3) == Pair(1, 3)
    assert dataclasses.asdict(Pair(Pair(1), [Pair(2)])) == {
        "first": {"first": 1, "second": None},
        "second": [{"first": 2, "second": None}],
    }
    match Pair(1, 2):
        case Pair(first, second):
            assert (first, second) == (1, 2)


@pytest.mark.parametrize("value", [Point(1, 2, ["a"]), Named(1), Pair(1, [2]), Nothing()], ids=repr)
def test_copies_and_pickles(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == copy.copy(value) == value


def test_properties_are_cached() -> None:
    point = Point(1, 2)
    assert point.total == 3
    assert vars(point)["total"] == 3
