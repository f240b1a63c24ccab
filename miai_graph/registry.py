"""Objects that are known by name and rebuilt from plain data: initializers, losses, optimizers, layers …

Keras's conventions: a user says ``"glorot_uniform"``, ``GlorotUniform(seed=1)`` or
``{"class_name": "GlorotUniform", "config": {"seed": 1}}``, and all three mean the same kind of object. A saved model
holds the last form.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np

from miai_graph.errors import ArgumentError

Definition = TypeVar("Definition", bound=Callable[..., Any])

_NAMED_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_custom_objects: ContextVar[Mapping[str, Any]] = ContextVar("miai_graph_custom_objects", default=MappingProxyType({}))


class Configurable:
    """An object that its constructor's arguments describe.

    A subclass keeps each argument as the attribute of the same name (or overrides `get_config`). A constructor that
    passes ``**options`` on has the arguments of the base class's, too.
    """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data: numbers, strings, lists, dictionaries.

        Raises
        ------
        ArgumentError
            if an argument is not kept as an attribute, or has no name to save it by.
        """
        return {name: as_config(self._argument(name)) for name in _constructor_arguments(type(self))}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new object of the arguments that `get_config` gave.

        Raises
        ------
        ArgumentError
            if the constructor has no such arguments, or needs others.
        """
        try:
            inspect.signature(cls).bind(**config)
        except TypeError as error:
            raise ArgumentError(
                f"expected the arguments of {cls.__name__}{inspect.signature(cls)} as its config; "
                f"found {dict(config)} ({error})"
            ) from None
        return cls(**config)

    def _argument(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            owner = type(self).__name__
            raise ArgumentError(
                f"expected {owner} to keep its argument {name!r} as an attribute; found none. "
                f"Set self.{name} in its __init__, or give {owner} a method get_config"
            ) from None


def _constructor_arguments(definition: type) -> list[str]:
    names: list[str] = []
    for ancestor in definition.__mro__:
        constructor = vars(ancestor).get("__init__")
        if constructor is None or ancestor is object:
            continue
        own = list(inspect.signature(constructor).parameters.values())[1:]
        names += [parameter.name for parameter in own if parameter.kind in _NAMED_KINDS]
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own):
            break
    return list(dict.fromkeys(names))


def as_config(value: Any) -> Any:
    """The value as plain data: objects as class name and config, functions as their names, NumPy's scalars as Python's.

    Raises
    ------
    ArgumentError
        for a function without a name.
    """
    if isinstance(value, list | tuple):
        return [as_config(part) for part in value]
    if isinstance(value, dict):
        return {key: as_config(part) for key, part in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return value.name
    if not isinstance(value, type) and callable(getattr(value, "get_config", None)):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if callable(value):
        return _function_name(value)
    return value


def _function_name(function: Any) -> str:
    name = getattr(function, "__name__", "<no name>")
    if name.startswith("<"):
        raise ArgumentError(
            f"expected a function with a name, by which it can be found again; found {function!r}. Define it with def"
        )
    return str(name)


@contextmanager
def custom_object_scope(objects: Mapping[str, Any] | None) -> Iterator[None]:
    """Within the block, the names of users' own classes and functions are known to all registries.

    Parameters
    ----------
    objects : classes and functions by the names that configs hold
    """
    token = _custom_objects.set({**_custom_objects.get(), **(objects or {})})
    try:
        yield
    finally:
        _custom_objects.reset(token)


class Registry:
    """The classes and functions of one kind, by name.

    Capitals and underscores do not matter: "GlorotUniform" and "glorot_uniform" are one name.

    Parameters
    ----------
    kind : what messages call such an object, with its article: "an initializer"
    base : the class that objects of the kind derive from, unless they are plain functions

    >>> registry = Registry("an initializer", Initializer)
    >>> @registry.register
    ... class Zeros(Initializer): ...
    >>> registry.get("zeros")
    """

    def __init__(self, kind: str, base: type) -> None:
        self.kind = kind
        self.base = base
        self._definitions: dict[str, Callable[..., Any]] = {}

    @property
    def names(self) -> list[str]:
        """The names of the classes and functions, without aliases, sorted."""
        return sorted({definition.__name__ for definition in self._definitions.values()})

    def register(self, definition: Definition) -> Definition:
        """Class or function decorator: make it known by its name."""
        self._enter(definition.__name__, definition)
        return definition

    def alias(self, **definitions: Callable[..., Any]) -> None:
        """Further names: ``alias(mse=MeanSquaredError)``."""
        for name, definition in definitions.items():
            self._enter(name, definition)

    def get(self, identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
        """The object meant.

        Parameters
        ----------
        identifier : a name; a dictionary with "class_name" and "config"; a class, of which one is made with its
            defaults; or an object or a function, which is returned as it is. None gives None.
        custom_objects : the user's own classes and functions by name

        Raises
        ------
        ArgumentError
            for an unknown name, with the known ones, and for anything else.
        """
        with custom_object_scope(custom_objects):
            if isinstance(identifier, str):
                return _instance(self._find(identifier))
            if isinstance(identifier, Mapping) and "class_name" in identifier:
                return _configured(self._find(identifier["class_name"]), identifier.get("config") or {})
        if identifier is None or isinstance(identifier, self.base):
            return identifier
        if not callable(identifier) or isinstance(identifier, Configurable):
            raise ArgumentError(f"expected {self.kind}, its name, its config, or a function; found {identifier!r}")
        return _instance(identifier)

    def serialize(self, value: Any) -> Any:
        """What `get` makes an equal object of: class name and config, a function's name, or None.

        Raises
        ------
        ArgumentError
            if the value is of another kind, or a function without a name.
        """
        return as_config(self.get(value))

    def _enter(self, name: str, definition: Callable[..., Any]) -> None:
        known = self._definitions.setdefault(_key(name), definition)
        if known is not definition:
            raise ArgumentError(f"expected different names; found {name!r} twice as name of {self.kind}")

    def _find(self, name: str) -> Callable[..., Any]:
        definition = _custom_objects.get().get(name) or self._definitions.get(_key(str(name)))
        if definition is None:
            raise ArgumentError(
                f"expected the name of {self.kind}{self._known()}; found {name!r}.{self._suggestion(str(name))} "
                "Pass an object of your own itself; when loading, by name in custom_objects"
            )
        return definition

    def _known(self) -> str:
        return f", one of {', '.join(self.names)}" if self._definitions else ""

    def _suggestion(self, name: str) -> str:
        close = difflib.get_close_matches(_key(name), self._definitions, n=1)
        return f" Did you mean {self._definitions[close[0]].__name__}?" if close else ""


def _key(name: str) -> str:
    return name.replace("_", "").lower()


def _instance(definition: Callable[..., Any]) -> Any:
    return definition() if isinstance(definition, type) else definition


def _configured(definition: Callable[..., Any], config: Mapping[str, Any]) -> Any:
    if not isinstance(definition, type):
        return definition
    from_config = getattr(definition, "from_config", None)
    return from_config(config) if from_config else definition(**config)
