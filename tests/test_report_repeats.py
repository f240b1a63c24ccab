"""Layers that repeat in the report: one box until they are unfolded, and linked like all others; in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_browser import Opened, launched_browser
from report_actions import LIT, OVERLAPS, marked_rows, settle, slices_of
from report_files import data_of
from report_timings import made_graph, made_timing

import miai_graph as mg
from miai_graph.context import WAIT

BLOCKS = 20
FOLDED = "store.boxes.findIndex((box) => box.times > 1 && box.phase === argument)"
"""The number of the box of all layers of a phase that repeat."""
CENTRE = """
    const { graph } = report, { port } = graph;
    const box = graph.layout.rectangles.get(argument), frame = graph.canvas.getBoundingClientRect();
    return { x: frame.left + port.x + (box.x + box.width / 2) * port.scale,
             y: frame.top + port.y + (box.y + 6) * port.scale };
"""
SEEN = "return report.graph.layout.rectangles.has(argument)"
IS_MARKED = "report.graph.port.draw(); return report.graph.isMarked(argument)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    """A report on a chain of layers that look alike, but for the first and what comes behind the last."""
    graph = made_graph(BLOCKS, has_skips=False)
    path = mg.report(graph, made_timing(graph, workers=2), tmp_path / "report.html")
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = Opened(context, path.as_uri())
    yield page
    assert page.complaints == []
    context.close()


@pytest.fixture
def forward(opened: Opened) -> int:
    return opened.ask(f"const {{ store }} = report; return {FOLDED}", "forward")


def click(opened: Opened, box: int, *, count: int = 1) -> None:
    place = opened.ask(CENTRE, box)
    opened.page.mouse.click(place["x"], place["y"], click_count=count, delay=0)


def is_repeated(name: str) -> bool:
    return name.startswith("block_") and name != "block_0"


def test_the_data_says_how_often_what_repeats(tmp_path: Path) -> None:
    graph = made_graph(BLOCKS, has_skips=False)
    data = data_of(mg.report(graph, made_timing(graph), tmp_path / "report.html"))
    folded = {box["phase"]: (number, box) for number, box in enumerate(data["boxes"]) if box["times"] > 1}
    assert folded.keys() == {"forward", "backward"}
    for number, box in folded.values():
        assert box["parent"] is None
        assert box["scope"] == "block_1 … block_19"
        inner = [part for part in data["boxes"] if part["parent"] == number]
        assert box["times"] == len(inner) == BLOCKS - 1
        assert {part["scope"] for part in inner} == {f"block_{place}" for place in range(1, BLOCKS)}
    shown = [box for box in data["boxes"] if box["parent"] is None]
    assert len(shown) < 12
    waiting = [node for node in data["nodes"] if node["phase"] == WAIT]
    assert all(data["boxes"][node["box"]]["scope"] == "sgd" for node in waiting)


def test_what_is_timed_besides_belongs_to_its_layer_within_the_repeat(tmp_path: Path) -> None:
    graph = made_graph(BLOCKS, has_skips=False)
    timing = made_timing(graph)
    record = timing.records[-1]
    other = type(record)("block_7/send", "send", "block_7", "communication", 0, "host-0", 1, 1.0, 1.0, 1.0, 0, 0)
    data = data_of(
        mg.report(graph, mg.timing.Timing([*timing.records, other], 1, graph=graph), tmp_path / "report.html")
    )
    (node,) = (node for node in data["nodes"] if node["name"] == "block_7/send")
    assert data["boxes"][node["box"]]["scope"] == "block_7"


def test_few_layers_are_not_folded(tmp_path: Path) -> None:
    graph = made_graph(5, has_skips=False)
    data = data_of(mg.report(graph, made_timing(graph), tmp_path / "report.html"))
    assert {box["times"] for box in data["boxes"]} == {1}


@pytest.mark.browser
def test_a_folded_box_has_the_sums_of_its_layers(opened: Opened, forward: int) -> None:
    within = (
        "store.nodes.forEach(({ outer, phase }, number) => { if (COND) total += store.nodeValue('time', number); })"
    )
    condition = "outer.startsWith('block_') && outer !== 'block_0' && phase === 'forward'"
    total = opened.ask(f"const {{ store }} = report; let total = 0; {within.replace('COND', condition)}; return total")
    assert total > 0
    assert opened.ask("return report.store.boxValues('time')[argument]", forward) == pytest.approx(total)
    described = opened.ask("return report.graph.texts.describe(argument, false)", forward)
    assert described[:2] == ["block_1 … block_19", "19 times, one like the other"]


@pytest.mark.browser
def test_clicking_a_folded_box_marks_the_slices_and_rows_of_all_its_layers(opened: Opened, forward: int) -> None:
    click(opened, forward)
    assert opened.ask(IS_MARKED, forward)
    rows = marked_rows(opened)
    assert rows
    assert all(map(is_repeated, rows))
    marked = opened.ask(
        "return report.table.rows.filter((row) => report.table.isMarked(row)).map(({ title }) => title)"
    )
    assert sorted(marked) == sorted(f"block_{number}" for number in range(1, BLOCKS))
    own = "node.phase === 'forward' && node.outer.startsWith('block_') && node.outer !== 'block_0'"
    expected = slices_of(opened, own)
    for worker, lit in enumerate(opened.ask(LIT)):
        places = [(piece["x"] - 3, piece["x"] + piece["width"] + 3) for piece in expected if piece["worker"] == worker]
        assert lit
        assert all(any(left <= x <= right for left, right in places) for x in lit)


@pytest.mark.browser
@pytest.mark.parametrize("by", ["layer", "node"])
def test_clicking_a_row_of_one_layer_marks_the_folded_box_it_is_in(opened: Opened, forward: int, by: str) -> None:
    opened.page.locator("#by").select_option(by)
    opened.page.locator("#search").fill("block_7/" if by == "node" else "block_7")
    opened.page.locator("#table .rows .row").first.click()
    title = opened.page.locator("#details strong").inner_text()
    assert title.startswith("block_7")
    backward = opened.ask(f"const {{ store }} = report; return {FOLDED}", "backward")
    assert opened.ask(IS_MARKED, forward) or opened.ask(IS_MARKED, backward)
    others = "return [...report.graph.layout.rectangles.keys()].filter((box) => report.graph.isMarked(box))"
    assert set(opened.ask(others)) <= {forward, backward}


@pytest.mark.browser
def test_a_slice_leads_to_the_folded_box_and_unfolded_to_its_own(opened: Opened, forward: int) -> None:
    mark = """
        const { store, timeline } = report;
        const isIt = (row) => store.nodes[timeline.node[row]].name === "block_7/matmul";
        const [lane] = timeline.lanes;
        timeline.mark(lane, lane.rows.findIndex(isIt));
        return report.graph.markedBox();
    """
    assert opened.ask(mark) == forward
    opened.ask("report.graph.toggle(argument); return 0", forward)
    inner = opened.ask("return report.graph.markedBox()")
    assert inner != forward
    assert opened.ask("return [report.store.boxes[argument].scope, report.store.boxes[argument].parent]", inner) == [
        "block_7",
        forward,
    ]


@pytest.mark.browser
def test_a_double_click_unfolds_and_folds(opened: Opened, forward: int) -> None:
    inner = opened.ask("return report.store.children[argument][6]", forward)
    assert not opened.ask(SEEN, inner)
    click(opened, forward, count=2)
    settle(opened)
    assert opened.ask(SEEN, inner)
    assert opened.ask(OVERLAPS) == []
    opened.page.locator("#open-all").click()
    assert opened.ask(OVERLAPS) == []
    opened.page.locator("#close-all").click()
    assert not opened.ask(SEEN, inner)


@pytest.mark.browser
def test_a_key_unfolds_and_folds(opened: Opened, forward: int) -> None:
    click(opened, forward)
    opened.page.locator("#graph").focus()
    opened.page.keyboard.press("Enter")
    assert opened.ask("return report.graph.layout.opened.has(argument)", forward)
    assert opened.ask("return report.graph.markedBox()") == forward
    opened.page.keyboard.press("Enter")
    assert not opened.ask("return report.graph.layout.opened.has(argument)", forward)


@pytest.mark.browser
def test_search_finds_layers_within_what_is_folded_and_unfolds_it(opened: Opened, forward: int) -> None:
    opened.page.locator("#search").fill("block_7/matmul")
    assert opened.page.locator("#found").inner_text() != "0 found"
    assert not opened.ask("return report.graph.isFaint(argument)", forward)
    assert opened.ask("return report.graph.isFaint(report.store.boxes.findIndex(({ scope }) => scope === 'loss'))")
    opened.page.locator("#search").press("Enter")
    shown = opened.ask("return report.store.boxTitle(report.graph.markedBox())")
    assert shown.startswith("block_7/matmul")
    assert opened.ask("return report.graph.layout.opened.has(argument)", forward)
