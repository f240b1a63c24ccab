"""Values in lists, tuples and dictionaries, one in another if need be: what layers are called on and return."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SEQUENCES = list, tuple


def flat(value: Any) -> Iterator[Any]:
    """The values in order, or the value itself if it is in none."""
    if isinstance(value, _SEQUENCES):
        for part in value:
            yield from flat(part)
    elif isinstance(value, Mapping):
        yield from flat(list(value.values()))
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and dictionaries with a function applied to each value in them; tuples become lists."""
    if isinstance(value, Mapping):
        return {name: mapped(function, part) for name, part in value.items()}
    if isinstance(value, _SEQUENCES):
        return [mapped(function, part) for part in value]
    return function(value)
