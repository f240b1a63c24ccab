"""`dataclasses.dataclass` for classes of values that never change, made in a quarter of the time.

Until Python 3.13 the standard library compiles six methods a class, one by one. That was a fifth of what it takes to
start a worker process, which loads a hundred such classes. Here all that has to be compiled is compiled at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: Any = None, /, *, frozen: bool = False, eq: bool = True, slots: bool = False, **options: bool):
        """The standard library's decorator; it is that itself for classes that are not frozen, or have an order."""
        if cls is None:
            return partial(dataclass, frozen=frozen, eq=eq, slots=slots, **options)
        if not frozen or options.get("order"):
            return dataclasses.dataclass(cls, frozen=frozen, eq=eq, slots=slots, **options)
        own = set(vars(cls))
        made = dataclasses.dataclass(cls, init=False, repr=False, eq=False, slots=slots, **options)
        methods = {"__repr__": _represented, "__setattr__": _refused, "__delattr__": _refused}
        if slots:
            methods |= {"__getstate__": _state, "__setstate__": _set_state}
        for name, method in (methods | _compiled(made, has_comparison=eq)).items():
            if name not in own:
                setattr(made, name, method)
        return made


def _compiled(cls: type, *, has_comparison: bool) -> dict[str, Callable[..., Any]]:
    """The methods that are other ones for each class."""
    fields = dataclasses.fields(cls)
    known: dict[str, Any] = {"_set": object.__setattr__, "_missing": dataclasses.MISSING}
    parameters, body = ["self"], ["pass"]
    for field in sorted(fields, key=attrgetter("kw_only")):
        if field.kw_only and "*" not in parameters:
            parameters.append("*")
        name, value = field.name, field.name
        if field.default_factory is not dataclasses.MISSING:
            known[f"_make_{name}"] = field.default_factory
            parameters.append(f"{name}=_missing")
            value = f"_make_{name}() if {name} is _missing else {name}"
        elif field.default is not dataclasses.MISSING:
            known[f"_default_{name}"] = field.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        body.append(f"_set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    lines = [f"def __init__({', '.join(parameters)}):", *(f"    {line}" for line in body)]
    if has_comparison:
        compared = [field.name for field in fields if field.compare]
        own, others = (f"({''.join(f'{who}.{name}, ' for name in compared)})" for who in ("self", "other"))
        lines += ["def __eq__(self, other):"]
        lines += [f"    return {own} == {others} if other.__class__ is self.__class__ else NotImplemented"]
        lines += ["def __hash__(self):", f"    return hash({own})"]
    made: dict[str, Callable[..., Any]] = {}
    exec("\n".join(lines), known, made)
    for name, method in made.items():
        method.__qualname__ = f"{cls.__qualname__}.{name}"
    return made


def _represented(self: Any) -> str:
    shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refused(*change: Any) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot change field {change[1]!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: Sequence[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
