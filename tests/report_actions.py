"""What tests ask of a report that is open in a browser, and do in it."""

from __future__ import annotations

from typing import Any

from real_browser import Opened

BOX = """
    const { graph, store } = report;
    const [scope, phase] = argument;
    const isIt = (box) => box.parent === null && box.scope === scope && box.phase === phase;
    const number = store.boxes.findIndex(isIt);
    const box = graph.layout.rectangles.get(number), { port } = graph;
    const frame = graph.canvas.getBoundingClientRect();
    return {
        number,
        x: frame.left + port.x + (box.x + box.width / 2) * port.scale,
        y: frame.top + port.y + (box.y + 6) * port.scale,
    };
"""
LIT = """
    const { timeline } = report, ratio = timeline.canvas.width / timeline.port.width;
    const colour = report.colours.mark;
    timeline.port.draw();
    const copy = new OffscreenCanvas(timeline.canvas.width, timeline.canvas.height);
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(timeline.canvas, 0, 0);
    return timeline.lanes.map((lane, place) => {
        const y = AXIS_TOP + place * 34 + 28;
        const row = context.getImageData(0, Math.round(y * ratio), timeline.canvas.width, 1).data;
        const wanted = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
        const lit = [];
        for (let x = 0; x < timeline.canvas.width; x++)
            if (wanted.every((value, channel) => row[4 * x + channel] === value)) lit.push(x / ratio);
        return lit;
    });
""".replace("AXIS_TOP", "40")
SLICES = """
    const { timeline, store } = report, { port } = timeline;
    const found = [];
    for (const lane of timeline.lanes)
        lane.rows.forEach((row, place) => {
            const node = store.nodes[store.data.slices.node[row]];
            const x = lane.start[place] * port.scale + port.x;
            const width = (lane.end[place] - lane.start[place]) * port.scale;
            if (argument(node)) found.push({ worker: lane.worker, name: node.name, x, width });
        });
    return found;
"""


OVERLAPS = """
    const { layout } = report.graph, { boxes } = report.store;
    const ends = ({ x, y, width, height }) => ({ left: x, right: x + width, top: y, bottom: y + height });
    const all = [...layout.rectangles.values()].map((box) => ({ number: box.number, ...ends(box) }));
    const byNumber = new Map(all.map((box) => [box.number, box]));
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.01
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.01;
    const isWithin = (a, b) => a.left >= b.left && a.top >= b.top && a.right <= b.right && a.bottom <= b.bottom;
    const found = [];
    for (const a of all) {
        const { parent } = boxes[a.number];
        const outer = byNumber.get(parent);
        if (outer && !isWithin(a, outer)) found.push([a.number, "leaves", outer.number]);
        const others = all.filter((b) => a.number < b.number && boxes[b.number].parent === parent);
        for (const b of others) if (meet(a, b)) found.push([a.number, b.number]);
    }
    return found;
"""


def slices_of(opened: Opened, condition: str) -> list[dict[str, Any]]:
    return opened.ask(SLICES.replace("argument(node)", f"({condition})"))


def marked_rows(opened: Opened) -> list[str]:
    return [text.split("\n")[0] for text in opened.page.locator("#table .row.marked").all_inner_texts()]


def click_box(opened: Opened, layer: str, phase: str, *, count: int = 1) -> int:
    opened.page.locator("#graph-fit").click()
    box = opened.ask(BOX, [layer, phase])
    opened.page.mouse.click(box["x"], box["y"], click_count=count, delay=0)
    return box["number"]


def settle(opened: Opened) -> None:
    """Wait until all that was asked for is drawn."""
    opened.ask("await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))); return 0")


INTERACTIONS = """
    const { store, graph, timeline, table } = report;
    const frame = () => new Promise((done) => requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = done;
        channel.port2.postMessage(0);
    }));
    const actions = {
        "show all ops": () => graph.openAll(true),
        "fit the graph": () => graph.showWhole(),
        "move the graph": () => graph.port.pan(30, 20),
        "zoom the graph": () => graph.port.zoom(1.3),
        "click the graph": () => graph.click(graph.port.width / 2, graph.port.height / 2),
        "mark a layer": (turn) => store.selectBox(20 + turn),
        "mark a slice": (turn) => timeline.click(500 + 40 * turn, 55),
        "next slice": () => timeline.go(1, 0),
        "colours": (turn) => store.setMode(["bytes", "memory", "worker"][turn % 3]),
        "search": (turn) => store.search("matmul".slice(turn)),
        "end the search": () => store.search(""),
        "rows by node": () => table.setBy("node"),
        "sort": () => table.sortBy("title"),
        "rows by layer": () => table.setBy("layer"),
        "zoom the timeline": () => timeline.port.zoom(1.3),
        "move the timeline": () => timeline.port.pan(-20, 0),
        "fit the timeline": () => timeline.port.fit(),
        "paint": (turn) => timeline.setPaint(turn % 2 ? "layer" : "phase"),
        "close a layer": (turn) => graph.toggle(5 + turn),
        "theme": () => document.getElementById("theme").click(),
        "layers only": () => graph.openAll(false),
    };
    const times = Object.fromEntries(Object.keys(actions).map((name) => [name, []]));
    for (let turn = 0; turn < 5; turn++) {
        for (const [name, action] of Object.entries(actions)) {
            await frame();
            const start = performance.now();
            action(turn);
            await frame();
            times[name].push(performance.now() - start);
        }
    }
    return times;
"""
