"""Nodes that one kernel computes, in the report: they and the kernel's slices lead to each other; in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real_browser import Opened, launched_browser
from report_actions import LIT, slices_of
from report_files import data_of
from report_timings import made_graph, made_timing

import miai_graph as mg
from miai_graph.timing import Timing

TOGETHER = ("block_1/add", "block_1/tanh")
ACROSS = ("block_2/add", "block_2/tanh", "block_3/add")
MANY = tuple(
    f"sgd/{op}"
    for op in ("multiply", "subtract", *(f"{op}_{n}" for n in range(1, 4) for op in ("multiply", "subtract")))
)
MARKED = "return report.table.rows.filter((row) => report.table.isMarked(row)).map(({ title }) => title)"
SELECT = "report.store.selectNode(report.store.nodes.findIndex(({ name }) => name === argument)); return 0"


def fused(timing: Timing, *kernels: tuple[str, ...]) -> Timing:
    """The timing if each of these groups of nodes were computed by one kernel, in the time that its last node took."""
    leaders = {node: kernel[-1] for kernel in kernels for node in kernel}
    records = [replace(record, kernel=leaders.get(record.node, "")) for record in timing.records]
    nodes = {kernel[-1]: kernel for kernel in kernels}
    slices = [
        replace(piece, nodes=nodes.get(piece.node, ()))
        for piece in timing.slices
        if leaders.get(piece.node, piece.node) == piece.node
    ]
    return Timing(records, timing.steps, slices=slices, workers=timing.workers, graph=timing.graph)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graph = made_graph(4)
    timing = fused(made_timing(graph, workers=2), TOGETHER, ACROSS, MANY)
    assert {*TOGETHER, *ACROSS, *MANY} <= {record.node for record in timing.records}
    return mg.report(graph, timing, tmp_path / "report.html")


def test_records_name_the_node_that_stands_for_their_kernel(path: Path) -> None:
    data = data_of(path)
    names = [node["name"] for node in data["nodes"]]
    records = data["records"]
    kernels = {
        names[node]: kernel if kernel is None else names[kernel]
        for node, kernel in zip(records["node"], records["kernel"], strict=True)
    }
    assert {name for name, kernel in kernels.items() if kernel == TOGETHER[-1]} == set(TOGETHER)
    assert kernels["block_0/add"] is None
    assert names.count(TOGETHER[-1]) == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = Opened(context, path.as_uri())
    page.page.locator("#by").select_option("node")
    yield page
    assert page.complaints == []
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", [*TOGETHER, *ACROSS])
def test_each_node_lights_the_slices_of_its_kernel(opened: Opened, name: str) -> None:
    opened.ask(SELECT, name)
    assert opened.ask(MARKED) == [name]
    leader = (TOGETHER if name in TOGETHER else ACROSS)[-1]
    expected = slices_of(opened, f"node.name === '{leader}'")
    assert {piece["worker"] for piece in expected} == {0, 1}
    for worker, lit in enumerate(opened.ask(LIT)):
        own = [piece for piece in expected if piece["worker"] == worker]
        wide = [piece for piece in own if piece["width"] > 4]
        assert lit
        assert all(any(piece["x"] <= x <= piece["x"] + piece["width"] for x in lit) for piece in wide)
        assert all(any(piece["x"] - 3 <= x <= piece["x"] + piece["width"] + 3 for piece in own) for x in lit)


@pytest.mark.browser
def test_what_is_found_lights_the_slices_of_its_kernel(opened: Opened) -> None:
    opened.page.locator("#search").fill(TOGETHER[0])
    assert all(opened.ask(LIT))


@pytest.mark.browser
def test_a_box_and_its_details_name_the_others_and_lead_to_them(opened: Opened) -> None:
    opened.page.locator("#open-all").click()
    opened.ask(SELECT, ACROSS[0])
    details = opened.page.locator("#details")
    assert "computed together with" in details.inner_text()
    assert "shared out by arithmetic" in details.inner_text()
    links = details.locator("button.link")
    assert links.all_inner_texts() == list(ACROSS[1:])
    number = "report.store.nodes.findIndex(({ name }) => name === argument)"
    described = opened.ask(
        f"const n = {number}; return report.graph.texts.describe(report.store.nodes[n].box)", ACROSS[0]
    )
    assert f"computed together with {', '.join(ACROSS[1:])}" in described
    before = opened.ask(LIT)
    links.first.focus()
    opened.page.keyboard.press("Enter")
    assert opened.ask(MARKED) == [ACROSS[1]]
    assert opened.ask("return report.store.boxTitle(report.graph.markedBox())") == ACROSS[1]
    assert opened.ask(LIT) == before
    # Within one layer, its name is not said again; who was at a link is at one still.
    assert opened.ask("return document.activeElement.className") == "link"
    opened.ask(SELECT, TOGETHER[0])
    assert links.all_inner_texts() == [TOGETHER[1].removeprefix("block_1/")]


@pytest.mark.browser
def test_a_closed_layer_is_opened_around_the_node_that_a_link_leads_to(opened: Opened) -> None:
    opened.ask(SELECT, ACROSS[0])
    opened.page.locator("#details button.link").first.click()
    assert opened.ask("return report.store.boxTitle(report.graph.markedBox())") == ACROSS[1]


@pytest.mark.browser
def test_a_slice_marks_all_nodes_that_it_computes(opened: Opened) -> None:
    opened.page.locator("#timeline").scroll_into_view_if_needed()
    piece = max(slices_of(opened, f"node.name === '{ACROSS[-1]}'"), key=lambda piece: piece["width"])
    frame = opened.page.locator("#timeline").bounding_box()
    place = frame["x"] + piece["x"] + piece["width"] / 2, frame["y"] + 40 + piece["worker"] * 34 + 10
    opened.page.mouse.move(*place)
    assert f"one kernel computes {', '.join(ACROSS)}" in opened.page.locator("#tip").inner_text()
    opened.page.mouse.click(*place)
    assert opened.ask("return [...report.store.selection.nodes].map((n) => report.store.nodes[n].name)") == list(ACROSS)
    assert opened.ask(MARKED) == list(ACROSS)
    assert opened.page.locator("#details button.link").all_inner_texts() == list(ACROSS)
    assert f"{ACROSS[-1]} and 2 more" in opened.page.locator("#details").inner_text()
    assert all(name in opened.page.locator("#timeline").get_attribute("aria-label") for name in ACROSS)
    opened.page.locator("#open-all").click()
    shown = "return [...report.graph.markedBoxes()].map((box) => report.store.boxTitle(box)).sort()"
    assert opened.ask(shown) == sorted(ACROSS)


@pytest.mark.browser
def test_of_many_nodes_the_first_are_named_until_more_are_asked_for(opened: Opened) -> None:
    opened.ask(SELECT, MANY[0])
    links = opened.page.locator("#details button.link")
    assert links.count() == 7
    opened.ask(
        "const { kernels, nodes } = report.store; kernels.beside = () => [...nodes.keys()].slice(0, 12); return 0"
    )
    opened.ask(SELECT, MANY[1])
    assert links.count() == 6
    opened.page.locator("#details button.more").click()
    assert links.count() == 12


@pytest.mark.browser
def test_a_slice_of_several_layers_has_the_colour_of_the_largest_part(opened: Opened) -> None:
    opened.page.locator("#paint").select_option("layer")
    fills = opened.ask(
        "const { store, timeline } = report, { node } = store.data.slices;"
        "return Object.fromEntries(node.map((n, row) => [store.nodes[n].name, timeline.paintOf[row]]))"
    )
    sums = opened.ask(
        "const sums = {}, { store } = report;"
        "const add = (outer, n) => (sums[outer] = (sums[outer] ?? 0) + store.sums.seconds[n]);"
        "store.nodes.forEach(({ name, outer }, n) => argument.includes(name) && add(outer, n)); return sums",
        list(ACROSS),
    )
    assert len(sums) == 2
    assert fills[ACROSS[-1]] == fills[f"{max(sums, key=sums.get)}/matmul"]


@pytest.mark.browser
def test_nodes_of_one_kernel_are_equally_fast(opened: Opened) -> None:
    rows = {row["title"]: row for row in opened.ask("return report.table.all.map(({ nodes, ...row }) => row)")}
    own = [rows[name] for name in ACROSS]
    whole = sum(row["bytes"] for row in own) / sum(row["seconds"] for row in own) / 1e9
    assert [row["rate"] for row in own] == pytest.approx([whole] * 3)


@pytest.mark.browser
def test_steps_may_compute_other_nodes_together(browser: Any, tmp_path: Path) -> None:
    graph = made_graph(4)
    timing = fused(made_timing(graph, workers=1), ACROSS)
    fewer = [replace(piece, nodes=ACROSS[1:]) if piece.nodes and piece.step else piece for piece in timing.slices]
    other = Timing(timing.records, timing.steps, slices=fewer, workers=timing.workers, graph=graph)
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    opened = Opened(context, mg.report(graph, other, tmp_path / "report.html").as_uri())
    lit = (
        "const lit = report.timeline.litSlices(); const { step } = report.store.data.slices;"
        "return step.filter((_, row) => lit(row))"
    )
    for name, steps in ((ACROSS[0], [0]), (ACROSS[1], [0, 49]), (ACROSS[2], [0, 49])):
        opened.ask(SELECT, name)
        assert opened.ask(lit) == steps
    opened.ask("report.store.selectSlice(report.store.data.slices.kernel.findLastIndex((k) => k !== null)); return 0")
    opened.page.locator("#by").select_option("node")
    assert sorted(opened.ask(MARKED)) == sorted(ACROSS[1:])
    assert opened.complaints == []
    context.close()
