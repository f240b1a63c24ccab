"""Stages cut by hand: from the names of layers to the places at which to cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate

from miai_graph.errors import ArgumentError


def cut_by_names(
    names: Sequence[str], stages: Sequence[Sequence[str]], *, known: Collection[str] = ()
) -> tuple[int, ...]:
    """The bounds of stages that are given as layers: stage k has the items ``bounds[k]:bounds[k + 1]``.

    Parameters
    ----------
    names : for each item, in the order in which they are computed, the layer that it belongs to: ``encoder/dense`` for
        one within another. "" for none: such an item goes with its predecessor, and so do those of layers that are not
        named, such as losses
    stages : for each stage the names of its layers: ``[["conv", "pool"], ["dense"]]``. A layer within another may be
        named by its own name or by its whole one; who names the outer one means all within it that are not named
    known : layers which may be named although no item belongs to them

    Raises
    ------
    ArgumentError
        for a name that no layer has, a layer that is named twice, a stage with nothing to compute, or a layer that is
        computed before one of an earlier stage.
    """
    stage_of = _stages_by_name(stages)
    _require_known(stage_of, names, known)
    owners = [_owner(name, stage_of) for name in names]
    placed = [stage_of[owner] if owner else 0 for owner in owners]
    reached = list(accumulate(placed, max))
    _require_order(owners, placed, reached)
    for stage, layers in enumerate(stages):
        if stage not in reached:
            raise ArgumentError(
                f"expected something to compute on each stage; found none on stage {stage}, {list(layers)}. "
                "Join it with a neighbour"
            )
    return (*(reached.index(stage) for stage in range(len(stages))), len(names))


def _stages_by_name(stages: Sequence[Sequence[str]]) -> dict[str, int]:
    if not stages or any(isinstance(layers, str) for layers in stages):
        raise ArgumentError(
            f'expected a list of layers\' names for each stage, such as [["conv", "pool"], ["dense"]]; found {stages!r}'
        )
    stage_of: dict[str, int] = {}
    for stage, layers in enumerate(stages):
        for name in layers:
            if name in stage_of:
                raise ArgumentError(
                    f"expected each layer on one stage; found {name!r} on stage {stage_of[name]} and stage {stage}"
                )
            stage_of[name] = stage
    return stage_of


def _require_known(stage_of: Mapping[str, int], names: Sequence[str], known: Collection[str]) -> None:
    existing = {candidate for name in (*names, *known) for candidate in _candidates(name)}
    if unknown := [name for name in stage_of if name not in existing]:
        layers = ", ".join(dict.fromkeys(filter(None, [*names, *known])))
        raise ArgumentError(f"expected names of layers as stages, of {layers}; found {', '.join(map(repr, unknown))}")


def _require_order(owners: Sequence[str], placed: Sequence[int], reached: Sequence[int]) -> None:
    before = ""
    for owner, stage, highest in zip(owners, placed, reached, strict=True):
        if owner and stage < highest:
            raise ArgumentError(
                "expected layers on stages in the order in which they are computed; found that "
                f"{owner!r} of stage {stage} is computed after {before!r} of stage {highest}"
            )
        before = owner or before


def _owner(name: str, stage_of: Mapping[str, int]) -> str:
    """The innermost of the layers on stages that an item with that name belongs to, or ""."""
    return next((candidate for candidate in _candidates(name) if candidate in stage_of), "")


def _candidates(name: str) -> Iterator[str]:
    """``a/b``, then ``b``, then ``a``: what a layer within another, and those around it, may be called."""
    parts = name.split("/") if name else []
    for end in range(len(parts), 0, -1):
        yield "/".join(parts[:end])
        yield parts[end - 1]
