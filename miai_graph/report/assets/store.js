// What the page knows: the data with its sums, and what is marked, searched for and coloured by. Parts of the page
// listen to it and never to each other.

const WAIT = "wait", COMMUNICATION = "communication";
// What is no work at a node: it has no part in the time of a box.
const ASIDE = new Set(["wait", "idle", "overhead", "data", "callbacks", "validation", "loop"]);
const PHASE_ORDER = ["forward", "recompute", "backward", "update", "communication", "wait", "overhead", "data", "callbacks", "validation", "loop", "idle"];
const NO_LAYER = "(no layer)";
const MOST_LISTED = 6;

class Store extends EventTarget {
  constructor(data) {
    super();
    this.selection = null;
    this.mode = "time";
    this.query = "";
    this.matches = null;
    this.load(data);
  }

  tell(event) {
    this.dispatchEvent(new Event(event));
  }

  on(events, listener) {
    for (const event of events.split(" ")) this.addEventListener(event, listener);
  }

  load(data) {
    this.data = data;
    this.nodes = data.nodes;
    this.boxes = data.boxes;
    this.edges = data.edges;
    this.steps = Math.max(data.run.steps, 1);
    this.workers = new Map(data.workers.map((worker) => [worker.index, worker]));
    this.children = this.boxes.map(() => []);
    this.roots = [];
    this.boxes.forEach((box, number) => (box.parent === null ? this.roots : this.children[box.parent]).push(number));
    this.nodesOfBox = this.boxes.map(() => []);
    this.nodes.forEach((node, number) => {
      node.outer = node.layer.split("/", 1)[0];
      if (node.box !== null) this.nodesOfBox[node.box].push(number);
    });
    this.kernels = new Kernels(data.kernels);
    this.traffic = sharedTraffic(data.records);
    this.sums = this.summed(data.records, this.steps);
    const other = data.compared;
    this.otherSums = other && this.summed(other.records, Math.max(other.run.steps, 1));
    this.values = {};
    this.kernelLayers = data.kernels.map((numbers) => this.largestLayer(numbers));
    this.titles = this.nodes.map((node) => (node.phase === WAIT && node.name !== WAIT ? `wait for ${node.name}` : node.name));
    this.texts = this.nodes.map((node) => `${node.name} ${node.op} ${node.layer} ${node.phase}`.toLowerCase());
  }

  // New data in the place of the old. What is marked stays so, if it is still there.
  replace(data) {
    const { selection, nodes: before } = this;
    this.load(data);
    const isSame = (number) => this.nodes[number]?.name === before[number].name;
    if (selection && ![...selection.nodes].every(isSame)) this.selection = null;
    if (selection?.slice) this.selection = { ...selection, slice: null };
    this.search(this.query);
    this.tell("data");
  }

  // Sums over workers, by node, for a step.
  summed(records, steps) {
    const zeros = () => new Float64Array(this.nodes.length);
    const sums = { seconds: zeros(), calls: zeros(), flops: zeros(), bytes: zeros(), memory: zeros(), longest: zeros(), timed: zeros() };
    for (let row = 0; row < records.node.length; row++) {
      const node = records.node[row];
      sums.seconds[node] += records.seconds[row] / steps;
      sums.calls[node] += records.calls[row];
      sums.flops[node] += records.flops[row] / steps;
      sums.bytes[node] += records.bytes[row] / steps;
      sums.memory[node] = Math.max(sums.memory[node], records.memory_bytes[row]);
      sums.longest[node] = Math.max(sums.longest[node], records.seconds[row] / steps);
      sums.timed[node] = 1;
    }
    return sums;
  }

  // The figure that a mode shows, for each box: with all that is in it.
  boxValues(mode) {
    if (!this.values[mode]) this.values[mode] = mode === "worker" ? this.busiestWorkers() : this.totals(mode);
    return this.values[mode];
  }

  totals(mode) {
    const values = new Float64Array(this.boxes.length);
    this.nodes.forEach((node, number) => {
      if (node.box !== null) values[node.box] += this.nodeValue(mode, number);
    });
    // Boxes stand behind those that they are in.
    for (let box = this.boxes.length - 1; box >= 0; box--) {
      const parent = this.boxes[box].parent;
      if (parent !== null) values[parent] += values[box];
    }
    return values;
  }

  nodeValue(mode, node) {
    const isAside = ASIDE.has(this.nodes[node].phase);
    if (mode === "wait") return this.nodes[node].phase === WAIT ? this.sums.seconds[node] : 0;
    if (isAside) return 0;
    if (mode === "bytes") return this.sums.bytes[node];
    if (mode === "memory") return this.sums.memory[node];
    if (mode === "difference") return this.differenceOf(node);
    return this.sums.seconds[node];
  }

  // To the other run, by the worker that takes longest in each: what the others have to wait for.
  differenceOf(node) {
    return this.sums.longest[node] - this.otherSums.longest[node];
  }

  // The place of the worker that did most of each box; -1 where nobody did more than the others.
  busiestWorkers() {
    const places = new Map([...this.workers.keys()].map((index, place) => [index, place]));
    const seconds = this.boxes.map(() => new Float64Array(places.size));
    const { node, worker, seconds: taken } = this.data.records;
    for (let row = 0; row < node.length; row++) {
      const { box, phase } = this.nodes[node[row]];
      if (box !== null && !ASIDE.has(phase)) seconds[box][places.get(worker[row])] += taken[row];
    }
    for (let box = this.boxes.length - 1; box >= 0; box--) {
      const parent = this.boxes[box].parent;
      if (parent !== null) seconds[box].forEach((value, place) => (seconds[parent][place] += value));
    }
    return seconds.map((row) => {
      const most = row.indexOf(Math.max(...row));
      const total = row.reduce((sum, value) => sum + value, 0);
      return total > 0 && row[most] > (1.5 * total) / Math.max(places.size, 1.6) ? most : -1;
    });
  }

  // The outermost layer of which there is most among some nodes.
  largestLayer(numbers) {
    const parts = new Map();
    for (const number of numbers) {
      const { outer } = this.nodes[number];
      parts.set(outer, (parts.get(outer) ?? 0) + this.sums.seconds[number]);
    }
    return [...parts].reduce((most, part) => (part[1] > most[1] ? part : most))[0];
  }

  // The nodes that were computed in a slice.
  computedIn(row) {
    const { node, kernel } = this.data.slices;
    return kernel[row] === null ? [node[row]] : this.data.kernels[kernel[row]];
  }

  // The outermost layers, those that compute longest first.
  layersByTime() {
    const seconds = new Map();
    this.nodes.forEach(({ outer, phase }, number) => {
      if (!ASIDE.has(phase) && phase !== COMMUNICATION) {
        seconds.set(outer, (seconds.get(outer) ?? 0) + this.sums.seconds[number]);
      }
    });
    return [...seconds.keys()].sort((first, second) => seconds.get(second) - seconds.get(first));
  }

  get stepSeconds() {
    return this.data.run.wall_seconds / this.steps;
  }

  // A share of the time that all workers had for a step.
  share(seconds) {
    return seconds / (this.stepSeconds * Math.max(this.workers.size, 1) || 1);
  }

  // Names of nodes, the first of them if there are many.
  listed(numbers) {
    const shown = numbers.length > MOST_LISTED + 1 ? numbers.slice(0, MOST_LISTED) : numbers;
    const more = numbers.length > shown.length ? ` and ${numbers.length - shown.length} more` : "";
    return shown.map((number) => this.titles[number]).join(", ") + more;
  }

  // What is so of one or the other of these nodes, each once.
  distinct(numbers, property) {
    return [...new Set(numbers.map((number) => this.nodes[number][property]))].filter(Boolean);
  }

  boxTitle(number) {
    const box = this.boxes[number];
    if (box.inside === null) return this.nodes[this.nodesOfBox[number][0]].name;
    return box.scope || NO_LAYER;
  }

  boxesWithin(number, found = []) {
    found.push(number);
    for (const child of this.children[number]) this.boxesWithin(child, found);
    return found;
  }

  ancestors(box) {
    const found = [];
    for (let next = this.boxes[box].parent; next !== null; next = this.boxes[next].parent) found.push(next);
    return found;
  }

  // What is marked: {key, title, nodes, boxes, worker, slice}. The key says what was clicked.
  select(selection) {
    this.selection = selection;
    this.tell("select");
  }

  selectBox(number) {
    const boxes = new Set(this.boxesWithin(number));
    const nodes = new Set([...boxes].flatMap((box) => this.nodesOfBox[box]));
    this.select({ key: `box ${number}`, title: this.boxTitle(number), nodes, boxes, box: number });
  }

  selectNode(number) {
    this.selectTogether(`node ${number}`, number, [number], null);
  }

  // A slice: all nodes that its kernel computes.
  selectSlice(row) {
    const { node, kernel } = this.data.slices;
    const key = kernel[row] === null ? `node ${node[row]}` : `kernel ${kernel[row]}`;
    this.selectTogether(key, node[row], this.computedIn(row), row);
  }

  selectTogether(key, leader, numbers, slice) {
    const more = numbers.length > 1 ? ` and ${numbers.length - 1} more` : "";
    const title = this.titles[leader] + more;
    this.select({ key, title, nodes: new Set(numbers), boxes: this.boxesOf(numbers), box: this.nodes[leader].box, slice });
  }

  selectNodes(key, title, numbers, worker = null) {
    const boxes = this.boxesOf(numbers);
    // A layer all of whose boxes are marked is marked itself.
    for (let box = this.boxes.length - 1; box >= 0; box--) {
      if (this.children[box].length && this.children[box].every((child) => boxes.has(child))) boxes.add(box);
    }
    this.select({ key, title, nodes: new Set(numbers), boxes, worker });
  }

  boxesOf(numbers) {
    return new Set(numbers.map((number) => this.nodes[number].box).filter((box) => box !== null));
  }

  search(query) {
    this.query = query;
    const wanted = query.trim().toLowerCase();
    this.matches = null;
    this.matchingBoxes = null;
    if (wanted) {
      this.matches = new Set();
      this.matchingBoxes = new Set();
      this.texts.forEach((text, number) => {
        if (!text.includes(wanted)) return;
        this.matches.add(number);
        const box = this.nodes[number].box;
        if (box !== null) for (const shown of [box, ...this.ancestors(box)]) this.matchingBoxes.add(shown);
      });
    }
    this.tell("search");
  }

  setMode(mode) {
    this.mode = mode;
    this.tell("mode");
  }
}

// Numbers as texts.

function figures(value, digits = 3) {
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "−");
}

function duration(seconds) {
  const size = Math.abs(seconds);
  if (size === 0) return "0 s";
  if (size < 1e-6) return `${figures(seconds * 1e9)} ns`;
  if (size < 1e-3) return `${figures(seconds * 1e6)} µs`;
  if (size < 1) return `${figures(seconds * 1e3)} ms`;
  return `${figures(seconds)} s`;
}

function size(bytes) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(bytes) < 1000) return `${figures(bytes)} ${unit}`;
    bytes /= 1000;
  }
  return `${figures(bytes)} TB`;
}

const speed = (value) => (value < 0.001 ? "<0.001" : figures(value, 2));

function percent(share) {
  if (share > 0 && share < 0.001) return "<0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
