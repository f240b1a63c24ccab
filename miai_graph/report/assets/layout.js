// Room for opened boxes. Each drawing, of the whole and within each box, came with its places; a box that is opened
// pushes all else aside and apart, so what was left of something or above it stays so, and nothing comes to overlap.

const HEADER = 30, PADDING = 14;

// A growing function of one coordinate that widens each interval [start, end] to at least its wanted length.
function stretching(intervals) {
  const stops = [...new Set(intervals.flatMap(({ start, end }) => [start, end]))].sort((a, b) => a - b);
  const places = new Map(stops.map((stop, place) => [stop, place]));
  const ending = stops.map(() => []);
  for (const interval of intervals) ending[places.get(interval.end)].push(interval);
  const moved = [];
  stops.forEach((stop, place) => {
    moved[place] = place ? moved[place - 1] + stop - stops[place - 1] : stop;
    for (const { start, wanted } of ending[place]) moved[place] = Math.max(moved[place], moved[places.get(start)] + wanted);
  });
  return (value) => {
    if (!stops.length || value <= stops[0]) return value;
    const last = stops.length - 1;
    if (value >= stops[last]) return value + moved[last] - stops[last];
    let [low, high] = [0, last];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (stops[middle] <= value) low = middle;
      else high = middle;
    }
    const share = (value - stops[low]) / (stops[high] - stops[low]);
    return moved[low] + share * (moved[high] - moved[low]);
  };
}

class Layout {
  constructor(store) {
    this.store = store;
    this.opened = new Set();
    this.linksWithin = new Map();
    this.loose = store.data.links.filter(({ points }) => !points.length);
    for (const link of store.data.links) {
      if (!link.points.length) continue;
      const parent = store.boxes[link.from].parent;
      if (!this.linksWithin.has(parent)) this.linksWithin.set(parent, []);
      this.linksWithin.get(parent).push(link);
    }
    this.arrange();
  }

  canOpen(box) {
    return this.store.boxes[box].inside !== null;
  }

  open(boxes, isOpen) {
    for (const box of boxes) if (this.canOpen(box)) this.opened[isOpen ? "add" : "delete"](box);
    this.arrange();
  }

  // The box itself, or the closed one that it is in.
  shown(box) {
    let seen = box;
    for (const outer of this.store.ancestors(box)) if (!this.opened.has(outer)) seen = outer;
    return seen;
  }

  // Rectangles of all boxes that are seen, and lines between them, in the units of the whole drawing.
  arrange() {
    this.rectangles = new Map();
    this.lines = [];
    this.ends = new Map();
    const { width, height } = this.store.data.drawing;
    const frame = this.arranged(null, this.store.roots, width, height);
    this.width = frame.width;
    this.height = frame.height;
    this.put(frame, 0, 0);
    this.frames = [...this.rectangles.values()].filter((rectangle) => rectangle.isOpen);
    this.leaves = [...this.rectangles.values()].filter((rectangle) => !rectangle.isOpen);
    this.stubs = this.foundStubs();
  }

  // The drawing within a box, stretched, with its corner at 0, 0.
  arranged(parent, members, width, height) {
    const { boxes, children } = this.store;
    const inner = new Map();
    const [across, down] = [[], []];
    for (const number of members) {
      if (!this.opened.has(number)) continue;
      const box = boxes[number];
      const frame = this.arranged(number, children[number], ...box.inside);
      inner.set(number, frame);
      const wanted = [frame.width + 2 * PADDING, frame.height + HEADER + PADDING];
      across.push({ start: box.x - box.width / 2, end: box.x + box.width / 2, wanted: wanted[0] });
      down.push({ start: box.y - box.height / 2, end: box.y + box.height / 2, wanted: wanted[1] });
    }
    const [alongX, alongY] = [stretching(across), stretching(down)];
    const rectangles = members.map((number) => {
      const box = boxes[number];
      const frame = inner.get(number);
      const [left, right] = [alongX(box.x - box.width / 2), alongX(box.x + box.width / 2)];
      const [top, bottom] = [alongY(box.y - box.height / 2), alongY(box.y + box.height / 2)];
      const wide = frame ? frame.width + 2 * PADDING : box.width;
      const high = frame ? frame.height + HEADER + PADDING : box.height;
      return { number, x: (left + right - wide) / 2, y: (top + bottom - high) / 2, width: wide, height: high, isOpen: Boolean(frame) };
    });
    const byNumber = new Map(rectangles.map((rectangle) => [rectangle.number, rectangle]));
    const lines = (this.linksWithin.get(parent) ?? []).map((link) => ({
      from: link.from,
      to: link.to,
      points: this.routed(link, byNumber, alongX, alongY),
    }));
    return { rectangles, lines, inner, width: alongX(width), height: alongY(height) };
  }

  // A link's corners: its ends stay at the borders of their boxes, and straight on there.
  routed(link, rectangles, alongX, alongY) {
    const points = link.points.map(([x, y]) => [alongX(x), alongY(y)]);
    this.attach(points, link.points, link.from, rectangles.get(link.from), 0, 1);
    this.attach(points, link.points, link.to, rectangles.get(link.to), points.length - 1, points.length - 2);
    return points;
  }

  attach(points, original, number, rectangle, end, next) {
    const box = this.store.boxes[number];
    const share = (original[end][0] - box.x) / box.width + 0.5;
    const x = rectangle.x + Math.min(Math.max(share, 0), 1) * rectangle.width;
    const isStraight = original[end][0] === original[next][0];
    if (isStraight && points.length > 2) points[next] = [x, points[next][1]];
    points[end] = [x, original[end][1] < box.y ? rectangle.y : rectangle.y + rectangle.height];
  }

  put(frame, left, top) {
    for (const rectangle of frame.rectangles) {
      rectangle.x += left;
      rectangle.y += top;
      this.rectangles.set(rectangle.number, rectangle);
      const inner = frame.inner.get(rectangle.number);
      if (inner) this.put(inner, rectangle.x + PADDING, rectangle.y + HEADER);
    }
    for (const line of frame.lines) {
      line.points = line.points.map(([x, y]) => [x + left, y + top]);
      this.ends.set(`${line.from} ${line.to}`, line.points);
      this.lines.push(line);
    }
  }

  // Where a line ends at an opened box: from there on to the boxes within that it is meant for.
  foundStubs() {
    const found = new Map();
    const { nodes, edges, boxes } = this.store;
    for (const [source, target] of edges) {
      const [start, end] = [this.shown(nodes[source].box), this.shown(nodes[target].box)];
      if (start === end || boxes[start].parent === boxes[end].parent) continue;
      const [outerStart, outerEnd] = this.siblings(start, end);
      const points = this.ends.get(`${outerStart} ${outerEnd}`);
      if (!points) continue;
      if (start !== outerStart) this.addStub(found, start, points[0], points[1], true);
      if (end !== outerEnd) this.addStub(found, end, points[points.length - 1], points[points.length - 2], false);
    }
    return [...found.values()];
  }

  addStub(found, box, port, before, isStart) {
    const key = `${box} ${port[0]} ${port[1]} ${isStart}`;
    if (found.has(key)) return;
    const rectangle = this.rectangles.get(box);
    const fromAbove = before[1] < port[1];
    const centre = rectangle.x + rectangle.width / 2;
    found.set(key, { box, isStart, from: port, to: [centre, fromAbove ? rectangle.y : rectangle.y + rectangle.height] });
  }

  // The boxes with one parent that two boxes are in.
  siblings(first, second) {
    const paths = [first, second].map((box) => [box, ...this.store.ancestors(box)].reverse());
    let depth = 0;
    while (paths[0][depth] === paths[1][depth]) depth++;
    return [paths[0][depth], paths[1][depth]];
  }
}
