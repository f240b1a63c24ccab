"""Timings made up for pictures: of chains of layers on one worker, and on pipelines of workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, UPDATE, WAIT
from miai_graph.timing import Slice, TimedWorker, Timing, TimingRecord
from miai_graph.timing.records import OVERHEAD

KINDS = ("conv", "norm", "relu", "pool", "dense")
COMPUTED = {FORWARD: 1.0, BACKWARD: 2.0}


@dataclass
class Made:
    """A timing that is being made: what each worker does, one after another.

    clocks : until when each worker is busy
    """

    step: int = 0
    start: float = 0.0
    slices: list[Slice] = field(default_factory=list)
    clocks: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def work(
        self, node: str, phase: str, worker: int, seconds: float, part: int | None, link: str | None = None
    ) -> None:
        at = self.start + self.clocks[worker]
        self.slices.append(Slice(node, phase, worker, worker, part, at, seconds, 2e-6, self.step, link))
        self.clocks[worker] += seconds

    def wait(self, node: str, worker: int, until: float, part: int | None, link: str | None) -> None:
        if until > self.clocks[worker]:
            self.work(node, WAIT, worker, until - self.clocks[worker], part, link)


def layer_names(count: int) -> list[str]:
    return [
        f"block_{place // len(KINDS)}/{KINDS[place % len(KINDS)]}" if count > 12 else name_of(place)
        for place in range(count)
    ]


def name_of(place: int) -> str:
    round_, kind = divmod(place, len(KINDS))
    return KINDS[kind] + (f"_{round_}" if round_ else "")


def made_timing(layers: int = 5, workers: int = 1, parts: int = 4, steps: Sequence[int] = (0, 63)) -> Timing:
    """A timing of a chain of layers; with several workers a pipeline of stages, GPipe's way."""
    names = layer_names(layers)
    made = Made()
    for step in steps:
        made.step = step
        made.clocks.clear()
        _add_step(made, names, workers, parts, slower=3.0 if step == 0 else 1.0)
        made.start += max(made.clocks.values()) * 1.3
    count = max(steps) + 1
    known = [
        TimedWorker(
            number,
            "here" if number < 2 else "there",
            100 + number,
            number if workers > 1 else None,
            0,
            4e11 / (1 + number % 2),
            2.5e10,
        )
        for number in range(workers)
    ]
    return Timing(_records(made.slices, names, count), count, 0.4, 10**6, slices=made.slices, workers=known)


def _add_step(made: Made, names: Sequence[str], workers: int, parts: int, slower: float) -> None:
    share = -(-len(names) // workers)
    stages = [names[first : first + share] for first in range(0, len(names), share)]
    numbers: list[int | None] = list(range(parts)) if workers > 1 else [None]
    for worker in range(len(stages)):
        made.work("feed", OVERHEAD, worker, 2e-5 * slower, None)
    sent: dict[tuple[str, int | None, int], float] = {}
    for phase, order in ((FORWARD, range(len(stages))), (BACKWARD, range(len(stages) - 1, -1, -1))):
        for worker in order:
            for part in numbers:
                before = worker - 1 if phase == FORWARD else worker + 1
                if (phase, part, before) in sent:
                    link = f"{phase} {part} {before} {made.step}"
                    made.wait(f"{stages[worker][0]}/receive", worker, sent[phase, part, before], part, link)
                inner = stages[worker] if phase == FORWARD else stages[worker][::-1]
                for place, name in enumerate(inner):
                    seconds = slower * COMPUTED[phase] * (1 + (len(name) * 7 + place * 3) % 5) * 2e-5
                    made.work(f"{name}/{phase}", phase, worker, seconds, part)
                after = worker + 1 if phase == FORWARD else worker - 1
                if 0 <= after < len(stages):
                    made.work(f"{name}/send", COMMUNICATION, worker, 2e-5, part, f"{phase} {part} {worker} {made.step}")
                    sent[phase, part, worker] = made.clocks[worker] + 1e-5
    for worker in range(len(stages)):
        made.work("adam/update", UPDATE, worker, slower * 6e-5, None)
        made.work("commit", OVERHEAD, worker, 1e-5, None)


def _records(slices: Sequence[Slice], names: Sequence[str], steps: int) -> list[TimingRecord]:
    groups: dict[tuple[str, str, int], list[Slice]] = defaultdict(list)
    for piece in slices:
        groups[piece.node, piece.phase, piece.worker].append(piece)
    records = []
    for place, ((node, phase, worker), members) in enumerate(groups.items()):
        seconds = sum(piece.seconds for piece in members) / len({piece.step for piece in members})
        layer = node.rpartition("/")[0]
        computes = phase in (FORWARD, BACKWARD)
        flops = round(seconds * steps * (1 + place * 37 % 100) * 1e9) if computes else 0
        moved = round(flops / (0.3 * 1.35 ** (place * 13 % 20))) if computes else 0
        stage = worker if members[0].micro_batch is not None else None
        mean = seconds / max(len(members), 1)
        records.append(
            TimingRecord(
                node, node.rpartition("/")[2], layer, phase, worker, "here", steps, seconds * steps,
                mean, mean, flops, moved, stage, 4096 * (1 + place % 7) if computes else 0,
            )
        )  # fmt: skip
    return records
