"""How the cost of a step grows with the batch, and with a network's depth, its width or the number of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from miai_graph.bench.measure import Tell, measure_row
from miai_graph.bench.results import Results, Row, SideResult
from miai_graph.bench.specs import SideSpec

PATIENCE_SECONDS = 30.0
"""A side whose first step is expected to take longer is not taken to larger sizes."""


@dataclass(frozen=True)
class Growth:
    """What grows, and what stays.

    Attributes
    ----------
    title : of a picture
    smallest, largest : the sizes between which it is usually measured
    workload : the name of the network of a size
    batch : of a size
    """

    title: str
    smallest: int
    largest: int
    workload: Callable[[int], str]
    batch: Callable[[int], int]

    def sizes(self, points: int) -> list[int]:
        """So many sizes, each as many times as large as the one before."""
        if points == 1:
            return [self.largest]
        ratio = self.largest / self.smallest
        return list(dict.fromkeys(round(self.smallest * ratio ** (point / (points - 1))) for point in range(points)))


GROWTHS = {
    "batch": Growth("batch size, 4 layers of 256 units", 1, 1024, lambda _: "mlp_4x256", lambda size: size),
    "depth": Growth("layers of 64 units, batch 64", 2, 200, lambda size: f"mlp_{size}x64", lambda _: 64),
    "width": Growth("units in each of 2 layers, batch 64", 16, 4096, lambda size: f"mlp_2x{size}", lambda _: 64),
    "nodes": Growth("nodes in a chain, batch 64", 10, 20_000, lambda size: f"chain_{size}", lambda _: 64),
}
"""By what grows."""


def measure_growth(
    growth: Growth,
    sizes: Sequence[int],
    specs: Sequence[SideSpec],
    results: Results,
    peer_python: str,
    begin: Callable[[str], Tell],
) -> None:
    """Measure all sides at each size, from small to large, and add a row for each to the results.

    Parameters
    ----------
    results : whose settings say how many rounds there are, and how many seconds a turn takes
    begin : called with the title of each row; gives what tells of its parts
    """
    dropped: dict[str, str] = {}
    rounds, seconds = results.settings["rounds"], results.settings["seconds"]
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        kept = [spec for spec in specs if spec.text not in dropped]
        name, batch = growth.workload(size), growth.batch(size)
        tell = begin(f"{name}, batch {batch}")
        row = measure_row(name, batch, kept, rounds, seconds, peer_python, tell, with_memory=False)
        found = {side.side: side for side in row.sides}
        row.sides = [found.get(spec.text) or SideResult(spec.text, problem=dropped[spec.text]) for spec in specs]
        results.rows.append(row)
        if following is not None:
            dropped |= _too_slow(row, size, following)


def _too_slow(row: Row, size: int, following: int) -> dict[str, str]:
    """Why sides are not taken to the following size, by side."""
    reasons = {}
    for side in row.sides:
        if side.problem is not None:
            reasons[side.side] = f"it was not measured, for it failed at {size} already"
        elif (side.first_cold or 0.0) * following / size > PATIENCE_SECONDS:
            reasons[side.side] = f"it was not measured, for its first step took {side.first_cold:.1f} s at {size}"
    return reasons
