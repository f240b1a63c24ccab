"""Timings are read rightly: by group, as tables and lanes of text, in sentences, and beside each other."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_timings import STEPS, idle_record, parallel_timing, piece, pipeline_timing, record, serial_timing

import miai_graph as mg
from miai_graph import layers
from miai_graph.context import BACKWARD, COMMUNICATION, FORWARD, UPDATE, WAIT
from miai_graph.errors import ArgumentError, SavingError
from miai_graph.model import Sequential
from miai_graph.timing import Timing
from miai_graph.timing.clocks import align_clocks
from miai_graph.timing.records import CALLBACKS, DATA, IDLE, LOOP, OVERHEAD, VALIDATION

ASCII_SCRIPT = """
from made_timings import pipeline_timing

timing = pipeline_timing(seconds=5e-6)
timing.table()
print(end="~~~")
timing.timeline()
print(end="~~~")
(timing - timing).table()
print(end="~~~")
print(timing.verdict(ascii_only=True))
"""

BESIDE = (IDLE, DATA, CALLBACKS, VALIDATION, LOOP)
GROUPINGS = ["layer", "op", "node", "phase", "worker", "host", "stage"]


def sentence(timing: Timing, word: str) -> str | None:
    """The sentence of the verdict that has a word in it."""
    found = [text for text in timing.verdict() if word in text]
    assert len(found) < 2
    return found[0] if found else None


def names(timing: Timing, by: Any, **options: Any) -> list[str]:
    return [group.node for group in timing.grouped(by, **options)]


class TestGroups:
    @pytest.mark.parametrize("by", GROUPINGS)
    @pytest.mark.parametrize("timing", [serial_timing(), parallel_timing(), pipeline_timing()])
    def test_groups_sum_to_the_whole(self, timing: Timing, by: Any) -> None:
        groups = timing.grouped(by)
        workers = [item.seconds for item in timing.records if item.worker < 2]
        assert sum(group.seconds for group in groups) == pytest.approx(sum(workers))
        assert [group.seconds for group in groups] == sorted((group.seconds for group in groups), reverse=True)
        assert len({group.node for group in groups}) == len(groups)

    def test_a_calling_process_that_only_waits_is_left_out_and_told_of(self) -> None:
        timing = pipeline_timing()
        assert names(timing, "worker") == ["0", "1"]
        assert names(timing, "stage") == ["0", "1"]
        (waiting,) = [group for group in timing.grouped("phase") if group.node == WAIT]
        assert waiting.seconds == pytest.approx(2.0)
        told = "Not counted: the calling process, which only gives the workers their work (wait 100 %)"
        assert told in timing.format_table().splitlines()
        assert told in timing._repr_html_()
        assert sum(float(row.split()[4][:-1]) for row in timing.format_table("worker").splitlines()[2:4]) == 100.0
        (of_wait,) = [item for item in (timing - timing).grouped("phase") if item.name == WAIT]
        assert of_wait.first_seconds == pytest.approx(1.0)
        assert "Not counted" not in parallel_timing().format_table()

    def test_what_is_no_layer_stands_under_its_phase(self) -> None:
        beside = [record(phase, 0.1, phase=phase, op=phase) for phase in (*BESIDE, COMMUNICATION)]
        timing = Timing([*serial_timing().records, *beside, record("bare", 0.1)], STEPS)
        assert set(names(timing, "layer")) == {
            *("wide", "narrow", "sgd", "(no layer)", "(overhead)"),
            *("(idle)", "(data)", "(callbacks)", "(validation)", "(loop)", "(communication)"),
        }
        assert names(parallel_timing(), "layer") == ["dense", "(wait)"]

    def test_what_differs_within_a_group_is_left_open(self) -> None:
        wide, *_ = serial_timing().grouped("worker")
        assert (wide.node, wide.op, wide.layer, wide.phase, wide.worker, wide.host) == ("0", "", "", "", 0, "near")
        dense, waiting = parallel_timing().grouped("layer")
        assert (dense.op, dense.phase, dense.worker, dense.host, dense.calls) == ("", "", -1, "", STEPS)
        assert (waiting.op, waiting.phase) == ("barrier", WAIT)

    def test_a_node_named_like_an_overhead_is_another_one(self) -> None:
        timing = Timing([record("feed", 1.0), record("feed", 2.0, phase=OVERHEAD, op="feed")], STEPS)
        assert [(group.node, group.seconds) for group in timing.grouped("node")] == [("feed", 2.0), ("feed", 1.0)]

    def test_orders(self) -> None:
        timing = serial_timing()
        assert names(timing, "layer", sort="seconds") == ["(overhead)", "wide", "narrow", "sgd"]
        assert names(timing, "layer", sort="order") == ["wide", "narrow", "sgd", "(overhead)"]
        assert names(timing, "layer", sort="name") == ["(overhead)", "narrow", "sgd", "wide"]
        workers = Timing([record("x", 0.1, worker=number) for number in (10, 9, 0)], STEPS)
        assert names(workers, "worker", sort="name") == ["0", "9", "10"]
        often = Timing([record("rare", 3.0, calls=1), record("often", 1.0, calls=7)], STEPS)
        assert names(often, "node", sort="calls") == ["often", "rare"]

    def test_the_order_is_that_of_the_model(self) -> None:
        model = Sequential([layers.Input((4,)), layers.Dense(8), layers.Dropout(0.5), layers.Dense(2)])
        model.compile("sgd", "mse")
        x = np.ones((8, 4), "float32")
        timing = model.fit(x, x[:, :2], verbose=0).timing
        found = names(timing, "layer", sort="order")
        own = [layer.name for layer in model.layers]
        assert [name for name in found if name in own] == own

    @pytest.mark.parametrize(("arguments", "problem"), [(("colour",), "by to be one of layer"), ((3,), "found 3")])
    def test_other_groupings_are_refused(self, arguments: tuple[Any, ...], problem: str) -> None:
        with pytest.raises(ArgumentError, match=problem):
            serial_timing().grouped(*arguments)

    def test_other_orders_are_refused(self) -> None:
        with pytest.raises(ArgumentError, match="sort to be one of seconds, order, name, calls; found 'size'"):
            serial_timing().grouped("layer", sort="size")


class TestTables:
    def test_names_take_their_places_whatever_characters_they_have(self) -> None:
        records = [record(name, 0.1, layer=name) for name in ("ab", "中文", "cafe\u0301", "two\nlines", "\u202eback")]
        lines = Timing(records, STEPS).format_table("layer").splitlines()
        assert [line.split()[0] for line in lines[2:7]] == ["ab", "中文", "cafe\u0301", "two�lines", "�back"]
        # Wide characters take two places, and accents none.
        assert {len(line) for line in lines[2:7]} == {len(lines[0]), len(lines[0]) - 2, len(lines[0]) + 1}
        long = Timing([record("x", 0.1, layer="中" * 100)], STEPS).format_table("layer", width=40).splitlines()[2]
        assert len(long) + long.count("中") <= 40

    @pytest.mark.parametrize("width", [0, -3, 1.5, True, "80"])
    def test_only_positive_widths_are_taken(self, width: Any) -> None:
        for show in (serial_timing().table, serial_timing().timeline, (serial_timing() - serial_timing()).table):
            with pytest.raises(ArgumentError, match="expected width to be a positive number of characters, or None"):
                show(width=width)

    def test_figures(self) -> None:
        head, _, *rows = serial_timing().format_table("layer").splitlines()
        assert re.split(r"  +", head) == [
            *("layer", "calls", "total ms", "mean µs", "share", "GFLOP/s", "GB/s", "roofline")
        ]
        cells = {row.split()[0]: row.split()[1:] for row in rows[:4]}
        # Wide computes for 0.375 s; at the peaks it needs 0.1 s for its product and 0.1 s for moving its gradient.
        assert cells["wide"] == ["10", "375.00", "37500.0", "37.5%", "10.67", "3.73", "53%"]
        assert cells["(overhead)"] == ["10", "500.00", "50000.0", "50.0%"]
        assert rows[4:] == ["10 steps in 1.000 s, after 0.050 s of start-up; peak memory of values 8.00 MB", "one note"]

    def test_memory_by_node(self) -> None:
        table = serial_timing().format_table("node").splitlines()
        assert table[0].endswith("MB")
        assert [row.split()[-1] for row in table if row.startswith("narrow/matmul")] == ["2.50"]

    def test_rates_are_those_while_computing(self) -> None:
        (row,) = (line.split() for line in serial_timing().format_table("worker").splitlines() if line.startswith("0 "))
        assert row[5:] == ["10.00", "3.02", "45%"]

    def test_no_roofline_without_peaks(self) -> None:
        timing = serial_timing()
        assert "roofline" not in Timing(timing.records, STEPS).format_table()

    def test_the_rest_is_one_row(self) -> None:
        lines = serial_timing().format_table("layer", limit=1).splitlines()
        assert lines[2].startswith("(overhead)")
        assert lines[3].split()[:5] == ["(3", "more)", "10", "500.00", "50000.0"]
        with pytest.raises(ArgumentError, match="positive number of rows"):
            serial_timing().table(limit=0)

    @pytest.mark.parametrize("by", GROUPINGS)
    @pytest.mark.parametrize("width", [40, 60, 80, 100])
    def test_tables_fit(self, by: Any, width: int) -> None:
        long = record(
            "encoder/block_17/attention/very_long_name_of_a_node/matmul_123", 0.2, op="conv2d_kernel_gradient"
        )
        timing = Timing([*serial_timing().records, long], STEPS, notes=["a note of many words " * 10])
        lines = timing.format_table(by, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert "share" in lines[0]

    def test_names_lose_their_middle(self) -> None:
        timing = Timing([record("encoder/attention/long_name/matmul_123", 0.2)], STEPS)
        assert "\nencoder/att…e/matmul_123  " in timing.format_table("node", width=50)

    def test_printing(self) -> None:
        text = io.StringIO()
        serial_timing().table("layer", 2, text, sort="name", width=60)
        assert text.getvalue() == serial_timing().format_table("layer", 2, sort="name", width=60) + "\n"
        old = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        serial_timing().table(file=old)
        pipeline_timing().timeline(file=old)
        old.seek(0)
        assert "?" not in old.read()

    def test_outputs_that_know_ascii_only(self) -> None:
        environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"}
        folder = Path(__file__).parent
        command = [sys.executable, "-c", ASCII_SCRIPT]
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60, check=False)
        assert finished.returncode == 0, finished.stderr
        # What is printed is what those get who ask for a text.
        table, timeline, difference, sentences = finished.stdout.decode("ascii").split("~~~")
        timing = pipeline_timing(seconds=5e-6)
        assert table == timing.format_table(ascii_only=True) + "\n"
        assert timeline == timing.format_timeline(ascii_only=True) + "\n"
        assert sentences == f"{timing.verdict(ascii_only=True)}\n"
        for text, shown in ((table, "mean us"), (timeline, "# forward"), (difference, "first us"), (sentences, " us ")):
            assert shown in text
            assert "?" not in text

    def test_nothing_timed(self) -> None:
        empty = Timing([], 0)
        assert empty.format_table().splitlines()[0].split()[0] == "layer"
        assert empty.format_timeline() == "no step was traced"
        assert list(empty.verdict()) == ["No step was timed."]


class TestTimelines:
    def test_lanes(self) -> None:
        slices = [
            piece("feed", OVERHEAD, 1.0, 0.1),
            piece("a", FORWARD, 1.1, 0.3),
            piece("b", BACKWARD, 1.4, 0.3),
            piece("c", UPDATE, 1.7, 0.1),
            piece("barrier", WAIT, 1.8, 0.2),
            piece("send", COMMUNICATION, 1.0, 0.5, worker=1),
        ]
        lines = Timing([], 1, slices=slices).format_timeline(width=31).splitlines()
        assert lines == [
            "step 0, 1.00 s",
            "worker 0 |░███▓▓▓▒··| 80 % busy",
            "worker 1 |━━━━━     | 50 % busy",
            "          0   1.00 s",
            "█ forward  ▓ backward  ▒ update",
            "  ━ sending and reducing",
            "  ░ feeding and committing",
            "  · waiting  blank: idle",
        ]

    def test_the_last_step_is_shown_unless_another_is_named(self) -> None:
        slices = [piece("a", FORWARD, 0.0, 1.0), piece("a", FORWARD, 9.0, 2.0, step=4)]
        timing = Timing([], 5, slices=slices)
        assert timing.format_timeline().startswith("step 4, 2.00 s")
        assert timing.format_timeline(0).startswith("step 0, 1.00 s")
        with pytest.raises(ArgumentError, match=r"step that was traced \(0, 4\); found 2"):
            timing.format_timeline(2)

    @pytest.mark.parametrize(
        ("width", "label"), [(40, "worker 0"), (60, "worker 0, stage 0"), (120, "worker 0, stage 0")]
    )
    def test_timelines_fit(self, width: int, label: str) -> None:
        lines = pipeline_timing(8, 4).format_timeline(width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert len({len(line) for line in lines if line.startswith("worker")}) == 1
        assert lines[1].startswith(f"{label} |█")

    def test_uncertain_clocks_are_told_of(self) -> None:
        timing = Timing([], 1, slices=[piece("a", FORWARD, 0.0, 1.0, uncertainty_seconds=2e-4)])
        assert timing.format_timeline().startswith("step 0, 1.00 s; clocks of workers agree within 200 µs\n")


class TestVerdicts:
    def test_where_the_time_went(self) -> None:
        first, top, following = serial_timing().verdict()
        assert first == (
            "10 steps took 1.00 s, 100 ms each: 50 % computing (forward 30 %, backward 18 %, update 2 %) and 50 % "
            "overhead."
        )
        assert top == (
            "Of the computing, layer 'wide' takes 75 % (47 % of that backward), the most of all layers, at 10.7 "
            "GFLOP/s, 53 % of what the machine can do; of the ops, 'matmul' takes 60 %."
        )
        assert (
            following == "Next: each step has 50.0 ms of overhead, 50 % of the time; larger batches need fewer steps."
        )

    def test_it_is_shown_line_by_line(self) -> None:
        verdict = serial_timing().verdict()
        assert str(verdict) == repr(verdict) == "\n".join(verdict)

    def test_without_layers_the_op_is_named(self) -> None:
        timing = Timing([record("a", 3.0, op="exp"), record("b", 1.0)], STEPS)
        assert timing.verdict()[1] == "Of the computing, op 'exp' takes 75 %, the most of all ops."

    def test_computing_alone(self) -> None:
        timing = Timing([record("a", 0.9), record("feed", 0.1, phase=OVERHEAD)], STEPS)
        assert timing.verdict()[-1] == (
            "Next: each step has 10.0 ms of overhead, 10 % of the time; larger batches need fewer steps."
        )
        timing = Timing([record("a", 0.95), record("feed", 0.05, phase=OVERHEAD)], STEPS)
        assert timing.verdict()[-1] == (
            "Next: 95 % of the time is computing by one worker; more workers or less to compute help most."
        )

    def test_start_up_is_told_of_if_it_is_long(self) -> None:
        timing = serial_timing()
        assert sentence(timing, "Start-up") is None
        long = Timing(timing.records, STEPS, start_up_seconds=0.5)
        assert sentence(long, "Start-up") == (
            "Start-up took 500 ms besides; it is paid once, and again for each new size of batch."
        )

    @pytest.mark.parametrize(
        ("phase", "expected"),
        [
            (DATA, "Next: drawing batches takes 40 % of the time; give arrays, .*, to be up to 1.67 times as fast."),
            (VALIDATION, "Next: validation takes 40 % of the time; validation_freq=2 halves that."),
            (CALLBACKS, "Next: callbacks take 40 % of the time; let them do less, to be up to 1.67 times as fast."),
            (LOOP, "Next: each step has 40.0 ms of overhead, 40 % of the time; larger batches need fewer steps."),
        ],
    )
    def test_what_is_beside_the_steps(self, phase: str, expected: str) -> None:
        timing = Timing([record("a", 0.6), record(phase, 0.4, phase=phase, op=phase)], STEPS)
        assert re.fullmatch(expected, timing.verdict()[-1])

    def test_several_workers(self) -> None:
        first = parallel_timing().verdict()[0]
        assert first == (
            "10 steps took 1.00 s on 2 workers, 100 ms each: 60 % computing, 30 % waiting and 10 % communication."
        )

    def test_communication(self) -> None:
        assert parallel_timing((0.6, 0.6), sending=0.4).verdict()[-1] == (
            "Next: communication takes 40 % of the workers' time; with larger batches, as much is sent for more "
            "samples."
        )

    def test_the_straggler(self) -> None:
        timing = parallel_timing((0.4, 0.8, 0.4))
        assert sentence(timing, "slowest") == (
            "Worker 1 on host-1 is the slowest: it computes 80.0 ms a step, 100 % longer than the others, who "
            "wait for it."
        )
        assert timing.verdict()[-1] == (
            "Next: less work for worker 1; if all workers computed equally long, steps would be up to 1.36 "
            "times as fast."
        )

    def test_no_straggler_where_workers_are_alike_or_nobody_waits(self) -> None:
        assert sentence(parallel_timing((0.6, 0.65)), "slowest") is None
        busy = [record("a", 0.8), record("a", 0.4, worker=1), record("feed", 0.4, phase=OVERHEAD, worker=1)]
        assert sentence(Timing(busy, STEPS), "slowest") is None

    def test_who_took_part_in_fewer_steps_waits_for_nobody(self) -> None:
        records = [record("a", 0.9), record("a", 0.1, worker=1, calls=1), record("b", 0.8, worker=1, phase=WAIT)]
        assert sentence(Timing(records, STEPS), "slowest") is None

    def test_fewer_workers(self) -> None:
        timing = parallel_timing((0.1, 0.1, 0.1), wall=1.0)
        assert timing.verdict()[-1] == (
            "Next: what 3 workers compute takes 300 ms in all, and their steps took 1.00 s; one worker, or larger "
            "batches, would be faster."
        )

    def test_idle_workers(self) -> None:
        records = [item for worker in (0, 1) for item in (record("a", 0.6, worker=worker), idle_record(0.4, worker))]
        assert Timing(records, STEPS).verdict()[-1] == (
            "Next: all workers are idle for 40 % of the time or more, between steps; larger batches need fewer steps."
        )

    @pytest.mark.parametrize(("micro_batches", "stages", "share"), [(4, 2, "20 %"), (8, 4, "27 %"), (2, 2, "33 %")])
    def test_the_bubble(self, micro_batches: int, stages: int, share: str) -> None:
        timing = pipeline_timing(micro_batches, stages)
        assert sentence(timing, "stood still") == (
            f"In step 7 the pipeline of {stages} stages stood still for {share} of its time; with equal stages and "
            f"{micro_batches} micro-batches it is ({stages} - 1) / ({micro_batches} + {stages} - 1) = {share}."
        )
        assert timing.verdict()[0].count(f"on {stages} workers") == 1

    def test_the_bubble_is_that_of_a_typical_step(self) -> None:
        timing = pipeline_timing(8, 4)
        short = [replace(part, step=8) for part in pipeline_timing(2, 4).slices]
        last = Timing(timing.records, 1, slices=[*timing.slices, *short], workers=timing.workers)
        assert "In step 8 " in sentence(last, "stood still")
        for typical, expected in ((7, "In step 7 the pipeline of 4 stages stood still for 27 %"), (5, "In step 8 ")):
            chosen = Timing.from_json(last.to_json() | {"typical_step": typical})
            assert sentence(chosen, "stood still").startswith(expected)

    def test_more_micro_batches(self) -> None:
        assert pipeline_timing(4, 2).verdict()[-1] == (
            "Next: more micro-batches; with 8 instead of 4, a pipeline of equal stages stands still for 11 % instead "
            "of 20 % of its time."
        )

    def test_a_slow_stage(self) -> None:
        timing = pipeline_timing(4, 2)
        slow = [replace(item, seconds=item.seconds * 2) if item.worker == 1 else item for item in timing.records]
        waiting = [replace(item, seconds=5.0) if item.phase == WAIT and item.worker == 0 else item for item in slow]
        found = sentence(Timing(waiting, 1, slices=timing.slices, wall_seconds=9.0), "slowest")
        assert (
            found == "Stage 1 is the slowest: it computes 8.00 s a step, 100 % longer than the others, who wait for it."
        )

    def test_no_bubble_without_a_pipeline(self) -> None:
        assert sentence(parallel_timing(), "stood still") is None
        assert sentence(replaced_slices(pipeline_timing(), ()), "stood still") is None


def replaced_slices(timing: Timing, slices: Any) -> Timing:
    return Timing(timing.records, timing.steps, slices=slices, workers=timing.workers)


class TestDifferences:
    def test_times_are_those_of_a_step_on_the_longest_worker(self) -> None:
        serial = Timing([record("dense/matmul", 1.2, layer="dense")], 10)
        parallel = parallel_timing((0.6, 0.4), wall=0.8)
        difference = serial - parallel
        dense, waiting = difference.grouped("layer")
        assert (dense.name, waiting.name) == ("dense", "(wait)")
        assert dense.first_seconds == pytest.approx(0.12)
        assert dense.second_seconds == pytest.approx(0.07)
        assert dense.seconds == pytest.approx(0.05)
        assert waiting.seconds == pytest.approx(-0.03)
        assert difference.seconds == pytest.approx(0.04)

    def test_runs_of_other_lengths_can_be_compared(self) -> None:
        (only,) = (Timing([record("a", 1.0)], 10) - Timing([record("a", 3.0)], 30)).records
        assert (only.name, only.phase, only.seconds) == ("a", FORWARD, 0.0)

    def test_the_other_way_round_it_is_the_opposite(self) -> None:
        first, second = serial_timing(), parallel_timing()
        there = {(item.name, item.phase): item.seconds for item in (first - second).records}
        back = {(item.name, item.phase): -item.seconds for item in (second - first).records}
        assert there == back

    @pytest.mark.parametrize("by", ["layer", "op", "node", "phase"])
    def test_tables_fit_a_narrow_terminal(self, by: Any) -> None:
        lines = (serial_timing() - parallel_timing()).format_table(by, width=40).splitlines()
        assert max(map(len, lines)) <= 40
        assert lines[0].endswith("difference µs")

    def test_the_table(self) -> None:
        difference = serial_timing() - Timing([record("wide/matmul", 0.1, layer="wide")], 10)
        lines = difference.format_table("node", limit=2, width=60).splitlines()
        assert max(map(len, lines)) <= 60
        assert lines[2].split() == ["feed", "overhead", "30000.0", "0.0", "+30000.0"]
        text = str(difference).splitlines()
        assert ["wide", "37500.0", "10000.0", "+27500.0", "3.75"] in [line.split() for line in text]
        assert text[-1] == ("A step takes 100 ms in the first run, 10.0 ms in the second: 90.0 ms (900 %) longer")
        out = io.StringIO()
        difference.table(file=out)
        assert out.getvalue() == f"{difference}\n"
        assert "90.000 ms" in repr(difference)
        assert json.loads(json.dumps(difference.to_json()))["layers"][0]["name"] == "(overhead)"

    def test_what_cannot_be_compared(self) -> None:
        with pytest.raises(ArgumentError, match="at least one step"):
            _ = serial_timing() - Timing([], 0)
        with pytest.raises(TypeError):
            _ = serial_timing() - 3
        with pytest.raises(ArgumentError, match="by to be one of layer, op, node, phase"):
            (serial_timing() - serial_timing()).table("worker")


class TestData:
    @pytest.mark.parametrize("timing", [serial_timing(), parallel_timing(), pipeline_timing(), Timing([], 0)])
    def test_there_and_back(self, timing: Timing) -> None:
        written = json.dumps(timing.to_json(), allow_nan=False)
        read = Timing.from_json(json.loads(written))
        for name in (
            "records",
            "slices",
            "workers",
            "notes",
            "steps",
            "wall_seconds",
            "start_up_seconds",
            "peak_bytes",
        ):
            assert getattr(read, name) == getattr(timing, name), name
        assert read.graph is None

    def test_a_graph_can_be_given(self) -> None:
        graph = mg.Graph(mg.input("x", (None,)))
        assert Timing.from_json(serial_timing().to_json(), graph).graph is graph

    @pytest.mark.parametrize("data", [None, [], {}, {"format": "miai_graph.timing", "version": 2}])
    def test_other_data_is_refused(self, data: Any) -> None:
        with pytest.raises(SavingError, match=r"expected what Timing\.to_json gives, in version 1; found"):
            Timing.from_json(data)

    @pytest.mark.parametrize(
        "damage", [{"records": [{"node": "a"}]}, {"slices": {"fields": ["node"], "rows": [[1, 2]]}}]
    )
    def test_damaged_data_is_refused(self, damage: dict[str, Any]) -> None:
        with pytest.raises(SavingError, match="lacks or adds parts"):
            Timing.from_json(serial_timing().to_json() | damage)
        with pytest.raises(SavingError, match="lacks or adds parts"):
            Timing.from_json({key: value for key, value in serial_timing().to_json().items() if key != "records"})


class TestNotebooks:
    def test_names_are_escaped(self) -> None:
        timing = Timing([record("a", 1.0, layer="<script>alert(1)</script>")], STEPS, notes=["<b>"])
        for html in (timing._repr_html_(), (timing - timing)._repr_html_()):
            assert "<script>" not in html
            assert "&lt;script&gt;" in html
        assert "<b>" not in timing._repr_html_()

    def test_table_and_verdict_are_shown(self) -> None:
        html = serial_timing()._repr_html_()
        assert html.count("<tr>") == 5
        assert all(text in html for text in ("37.5%", "one note", "Next: each step has 50.0 ms of overhead"))


class TestClocks:
    def test_nothing_arrives_before_it_is_sent(self) -> None:
        sent = piece("send", COMMUNICATION, 5.0, 0.1, link="0:a", uncertainty_seconds=0.5)
        received = piece("receive", WAIT, 4.0, 0.4, worker=1, link="0:a", uncertainty_seconds=0.5)
        after = piece("b", FORWARD, 4.4, 0.1, worker=1)
        first, second, third = align_clocks([sent, received, after])
        assert first == sent
        assert second.start_seconds == pytest.approx(4.6, abs=1e-5)
        assert third.start_seconds == second.start_seconds + second.seconds

    def test_along_a_chain(self) -> None:
        slices = [
            piece("send", COMMUNICATION, 2.0, 0.1, link="a", uncertainty_seconds=1.0),
            piece("receive", WAIT, 1.0, 0.5, worker=1, link="a"),
            piece("send", COMMUNICATION, 1.5, 0.1, worker=1, link="b"),
            piece("receive", WAIT, 1.0, 0.7, worker=2, link="b"),
        ]
        starts = [part.start_seconds for part in align_clocks(slices)]
        assert starts == pytest.approx([2.0, 1.5, 2.0, 1.3], abs=1e-5)

    @pytest.mark.parametrize("uncertainty", [0.0, 0.1])
    def test_more_than_they_may_be_off_they_are_not_moved(self, uncertainty: float) -> None:
        sent = piece("send", COMMUNICATION, 5.0, 0.1, link="a", uncertainty_seconds=uncertainty)
        received = piece("receive", WAIT, 4.0, 0.4, worker=1, link="a", uncertainty_seconds=uncertainty)
        assert list(align_clocks([sent, received])) == [sent, received]

    def test_contradictions_are_left_alone(self) -> None:
        there = [piece("s", COMMUNICATION, 5.0, 0.1, link="a"), piece("r", WAIT, 4.0, 0.1, worker=1, link="a")]
        back = [piece("s", COMMUNICATION, 5.0, 0.1, worker=1, link="b"), piece("r", WAIT, 4.0, 0.1, link="b")]
        slices = [replace(part, uncertainty_seconds=9.0) for part in (*there, *back)]
        assert list(align_clocks(slices)) == slices


class TestRealTimings:
    def test_what_was_trained_can_be_read(self, rng: np.random.Generator) -> None:
        model = Sequential([layers.Input((16,)), layers.Dense(32, activation="relu"), layers.Dense(2)])
        model.compile("adam", "mse")
        x = rng.normal(size=(64, 16)).astype("float32")
        timing = model.fit(x, x[:, :2], epochs=2, verbose=0).timing
        assert timing.verdict()[0].startswith("4 steps took ")
        assert {"dense", "dense_1", "adam"} <= set(names(timing, "layer"))
        assert "█" in timing.format_timeline(width=100)
        assert Timing.from_json(json.loads(json.dumps(timing.to_json()))).records == timing.records
        assert (timing - timing).seconds == 0.0
        assert f"{timing:}" == timing.format_table()
