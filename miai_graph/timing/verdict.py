"""A handful of sentences on where the time went, and on what to change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, RECOMPUTE, UPDATE, WAIT
from miai_graph.timing.account import COMPUTING, Account, theoretical_bubble
from miai_graph.timing.rates import Rates
from miai_graph.timing.records import CALLBACKS, DATA, IDLE, OVERHEAD, VALIDATION, TimingRecord
from miai_graph.timing.words import duration, enumerate_words, percent, plural

if TYPE_CHECKING:
    from miai_graph.timing.timing import Timing

_KINDS = {
    COMPUTING: "computing",
    WAIT: "waiting",
    COMMUNICATION: "communication",
    IDLE: "idle",
    OVERHEAD: "overhead",
    DATA: "drawing batches",
    CALLBACKS: "callbacks",
    VALIDATION: "validation",
}
_LEAST_SHARE = 0.005
_LEAST_GAIN = 0.05
_MUCH_START_UP = 0.25
_MUCH_COMPUTING = 0.8
_NOTABLE_BUBBLE = 0.1

Gain = tuple[float, str]
"""The share of the time that may be saved, and the sentence on it."""


class Verdict(tuple[str, ...]):
    """Sentences; shown one a line."""

    def __str__(self) -> str:
        return "\n".join(self)

    __repr__ = __str__


def judge(timing: Timing) -> Verdict:
    """The sentences of `Timing.verdict`."""
    account = Account(timing)
    if not timing.steps or not account.total_seconds or not account.wall_seconds:
        return Verdict(["No step was timed."])
    sentences = [say(account) for say in (_whole, _start_up, _top, _bubble, _straggler, _next)]
    return Verdict(sentence for sentence in sentences if sentence is not None)


def _whole(account: Account) -> str:
    timing = account.timing
    workers = f" on {plural(len(account.by_worker), 'worker')}" if len(account.by_worker) > 1 else ""
    parts = [
        f"{percent(account.share(kind))} {name}{_phases(account) if kind == COMPUTING else ''}"
        for kind, name in sorted(_KINDS.items(), key=lambda item: -account.share(item[0]))
        if account.share(kind) >= _LEAST_SHARE
    ]
    took = f"{plural(timing.steps, 'step')} took {duration(account.wall_seconds)}{workers}"
    return f"{took}, {duration(account.wall_seconds / timing.steps)} each: {enumerate_words(parts)}."


def _phases(account: Account) -> str:
    seconds = {FORWARD: 0.0, RECOMPUTE: 0.0, BACKWARD: 0.0, UPDATE: 0.0}
    for record in account.computing:
        seconds[record.phase] = seconds.get(record.phase, 0.0) + record.seconds
    shares = {phase: value / account.total_seconds for phase, value in seconds.items()}
    shown = [f"{phase} {percent(share)}" for phase, share in shares.items() if share >= _LEAST_SHARE]
    return f" ({', '.join(shown)})" if len(shown) > 1 else ""


def _start_up(account: Account) -> str | None:
    seconds = account.timing.start_up_seconds
    if seconds < _MUCH_START_UP * account.wall_seconds:
        return None
    return f"Start-up took {duration(seconds)} besides; it is paid once, and again for each new size of batch."


def _top(account: Account) -> str | None:
    records = account.computing
    seconds = sum(record.seconds for record in records)
    if not seconds:
        return None
    layer, of_layer = _longest(records, lambda record: record.layer)
    op, of_op = _longest(records, lambda record: record.op)
    op_text = f"{op!r} takes {percent(_sum(of_op) / seconds)}"
    if not layer:
        return f"Of the computing, op {op_text}, the most of all ops{_rate(account, of_op)}."
    backward = sum(record.seconds for record in of_layer if record.phase == BACKWARD) / _sum(of_layer)
    detail = f" ({percent(backward)} of that backward)" if backward >= _LEAST_SHARE else ""
    return (
        f"Of the computing, layer {layer!r} takes {percent(_sum(of_layer) / seconds)}{detail}, the most of all "
        f"layers{_rate(account, of_layer)}; of the ops, {op_text}."
    )


def _longest(records: Iterable[TimingRecord], name: Callable[[TimingRecord], str]) -> tuple[str, list[TimingRecord]]:
    groups: dict[str, list[TimingRecord]] = defaultdict(list)
    for record in records:
        groups[name(record)].append(record)
    return max(groups.items(), key=lambda group: _sum(group[1]))


def _sum(records: Iterable[TimingRecord]) -> float:
    return sum(record.seconds for record in records)


def _rate(account: Account, records: list[TimingRecord]) -> str:
    rates = Rates(account.timing)
    speed, share = rates.flops_per_second(records), rates.roofline_share(records)
    if speed is None:
        return ""
    of_peak = "" if share is None else f", {percent(share)} of what the machine can do"
    return f", at {speed / 1e9:.3g} GFLOP/s{of_peak}"


def _bubble(account: Account) -> str | None:
    bubble = account.bubble
    if bubble is None:
        return None
    stages, parts = bubble.stages, bubble.micro_batches
    return (
        f"In step {bubble.step} the pipeline of {stages} stages stood still for {percent(bubble.measured)} of its "
        f"time; with equal stages and {parts} micro-batch{'' if parts == 1 else 'es'} it is "
        f"({stages} - 1) / ({parts} + {stages} - 1) = {percent(bubble.theoretical)}."
    )


def _straggler(account: Account) -> str | None:
    slowest = account.straggler
    if slowest is None:
        return None
    name = f"{'Stage' if slowest.is_stage else 'Worker'} {slowest.number}"
    host = f" on {slowest.host}" if slowest.host else ""
    more = slowest.seconds / slowest.others_seconds - 1 if slowest.others_seconds else None
    longer = "while the others compute nothing" if more is None else f"{percent(more)} longer than the others"
    return f"{name}{host} is the slowest: it computes {duration(slowest.seconds)} a step, {longer}, who wait for it."


def _next(account: Account) -> str | None:
    """What saves most, if anything saves much."""
    candidates = [find(account) for find in _CANDIDATES]
    gain, sentence = max((found for found in candidates if found is not None), default=(0.0, ""))
    if gain >= _LEAST_GAIN:
        return f"Next: {sentence}."
    return _compute_bound(account)


def _of_wall(account: Account, kind: str) -> float:
    return account.longest(kind) / account.wall_seconds


def _up_to(gain: float) -> str:
    return f"up to {1 / (1 - gain):.2f} times as fast" if gain < 0.99 else "much faster"


def _data(account: Account) -> Gain:
    share = _of_wall(account, DATA)
    return share, (
        f"drawing batches takes {percent(share)} of the time; give arrays, or a source that does less for each batch, "
        f"to be {_up_to(share)}"
    )


def _callbacks(account: Account) -> Gain:
    share = _of_wall(account, CALLBACKS)
    return share, f"callbacks take {percent(share)} of the time; let them do less, to be {_up_to(share)}"


def _validation(account: Account) -> Gain:
    share = _of_wall(account, VALIDATION)
    return share / 2, f"validation takes {percent(share)} of the time; validation_freq=2 halves that"


def _overhead(account: Account) -> Gain:
    share = _of_wall(account, OVERHEAD)
    each = duration(account.longest(OVERHEAD) / account.timing.steps)
    # Twice the batch size means half as many steps.
    return share / 2, (
        f"each step has {each} of overhead, {percent(share)} of the time; larger batches need fewer steps"
    )


def _idle(account: Account) -> Gain | None:
    if len(account.by_worker) < 2:
        return None
    share = min(kinds.get(IDLE, 0.0) for kinds in account.by_worker.values()) / account.wall_seconds
    return share / 2, (
        f"all workers are idle for {percent(share)} of the time or more, between steps; larger batches need fewer steps"
    )


def _communication(account: Account) -> Gain | None:
    share = account.share(COMMUNICATION)
    if account.stage_of or len(account.by_worker) < 2:
        return None
    return share / 2, (
        f"communication takes {percent(share)} of the workers' time; with larger batches, as much is sent for more "
        "samples"
    )


def _fewer(account: Account) -> Gain | None:
    """One worker need neither wait nor send."""
    if account.stage_of or len(account.by_worker) < 2:
        return None
    alone = account.by_kind[COMPUTING] + sum(map(account.longest, (OVERHEAD, DATA, CALLBACKS, VALIDATION)))
    count = len(account.by_worker)
    return 1 - alone / account.wall_seconds, (
        f"what {count} workers compute takes {duration(account.by_kind[COMPUTING])} in all, and their steps took "
        f"{duration(account.wall_seconds)}; one worker, or larger batches, would be faster"
    )


def _parts(account: Account) -> Gain | None:
    bubble = account.bubble
    if bubble is None or bubble.theoretical < _NOTABLE_BUBBLE:
        return None
    # If it is far from what theory says, something else than the number of micro-batches makes it.
    if not bubble.theoretical / 2 <= bubble.measured <= 2 * bubble.theoretical:
        return None
    after = theoretical_bubble(bubble.stages, 2 * bubble.micro_batches)
    return bubble.theoretical - after, (
        f"more micro-batches; with {2 * bubble.micro_batches} instead of {bubble.micro_batches}, a pipeline of equal "
        f"stages stands still for {percent(after)} instead of {percent(bubble.theoretical)} of its time"
    )


def _balance(account: Account) -> Gain | None:
    slowest = account.straggler
    if slowest is None:
        return None
    gain = (slowest.seconds - slowest.mean_seconds) * account.timing.steps / account.wall_seconds
    kind = "stage" if slowest.is_stage else "worker"
    return gain, (
        f"less work for {kind} {slowest.number}; if all {kind}s computed equally long, steps would be {_up_to(gain)}"
    )


_CANDIDATES: Sequence[Callable[[Account], Gain | None]] = (
    _data,
    _callbacks,
    _validation,
    _overhead,
    _idle,
    _communication,
    _fewer,
    _parts,
    _balance,
)


def _compute_bound(account: Account) -> str | None:
    share = account.share(COMPUTING)
    if share < _MUCH_COMPUTING:
        return None
    if len(account.by_worker) == 1:
        return (
            f"Next: {percent(share)} of the time is computing by one worker; more workers or less to compute help most."
        )
    return (
        f"Next: {percent(share)} of the workers' time is computing; more workers help where there are cores for them."
    )
