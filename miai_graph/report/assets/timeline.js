// The timeline: a lane for each worker. Long gaps between traced steps are left out. Slices too short to be seen are
// drawn together, a pixel in the colour of what took most of it.

const GUTTER = 132, AXIS = 40, LANE = 26, LANE_GAP = 8;
const MOST_LINKS = 300;

class Timeline {
  constructor(canvas, store, colours) {
    this.canvas = canvas;
    this.store = store;
    this.colours = colours;
    this.paint = "phase";
    this.prepare();
    this.port = new Viewport(canvas, this);
    store.on("select", () => this.follow());
    store.on("search", () => this.port.redraw());
    store.on("data", () => {
      this.prepare();
      if (this.port.isFitted) this.port.fit();
      this.port.redraw();
    });
    colours.addEventListener("change", () => this.setPaint(this.paint));
  }

  // Lanes of slices in the order of their start, by the clock of the picture, in which gaps are short.
  prepare() {
    const { node, worker, step, start_seconds: starts, seconds } = this.store.data.slices;
    this.segments = segmented(this.store.data.slices);
    this.length = this.segments.length ? this.segments.at(-1).right : 1;
    const shifts = new Map(this.segments.flatMap((segment) => segment.steps.map(({ step }) => [step, segment.left - segment.begin])));
    const members = new Map([...this.store.workers.keys()].map((index) => [index, []]));
    worker.forEach((index, row) => members.get(index).push(row));
    this.lanes = [...members].map(([index, rows]) => {
      const lane = { worker: index, rows: Int32Array.from(rows), start: new Float64Array(rows.length), end: new Float64Array(rows.length), reach: new Float64Array(rows.length) };
      let reach = 0;
      rows.forEach((row, place) => {
        lane.start[place] = starts[row] + shifts.get(step[row]);
        lane.end[place] = lane.start[place] + seconds[row];
        reach = lane.reach[place] = Math.max(reach, lane.end[place]);
      });
      return lane;
    });
    this.node = Int32Array.from(node);
    this.links = rowsByLink(this.store.data.slices.link);
    this.canvas.style.height = `${AXIS + this.lanes.length * (LANE + LANE_GAP) + 6}px`;
    this.setPaint(this.paint);
  }

  // The colours, and the number of its colour for each slice.
  setPaint(paint) {
    this.paint = paint;
    const numbers = new Map();
    const layers = new Map(this.store.layersByTime().map((layer, place) => [layer, place]));
    this.fills = [];
    const paintOf = ({ phase }, outer) => {
      const isCompute = phase !== COMMUNICATION && !ASIDE.has(phase);
      const key = paint === "layer" && isCompute ? `layer ${outer}` : phase;
      if (!numbers.has(key)) {
        numbers.set(key, this.fills.length);
        const fill = key === phase ? this.colours.phase(phase) : this.colours.category(layers.get(outer));
        this.fills.push({ fill, isWait: phase === WAIT, isCommunication: phase === COMMUNICATION });
      }
      return numbers.get(key);
    };
    const { nodes, kernels, kernelLayers, data } = this.store;
    const paints = nodes.map((node) => paintOf(node, node.outer));
    const kernelPaints = kernels.all.map(([first], kernel) => paintOf(nodes[first], kernelLayers[kernel]));
    this.paintOf = Int32Array.from(data.slices.kernel, (kernel, row) => (kernel === null ? paints[this.node[row]] : kernelPaints[kernel]));
    this.cover = new Float64Array(this.fills.length);
    this.port?.redraw();
  }

  // Moving

  fitted(width) {
    return { scale: (width - GUTTER - 16) / this.length, x: GUTTER + 4, y: 0 };
  }

  zoomLimits(width) {
    const whole = (width - GUTTER - 16) / this.length;
    return { least: whole, most: Math.max(whole, 2e9) };
  }

  limit(port) {
    port.y = 0;
    const least = port.width - 12 - this.length * port.scale;
    port.x = Math.max(Math.min(port.x, GUTTER + 4), Math.min(least, GUTTER + 4));
  }

  reveal(lane, place) {
    const { port } = this;
    const [left, right] = [lane.start[place], lane.end[place]].map((time) => time * port.scale + port.x);
    if (right > GUTTER && left < port.width) return;
    port.x += (GUTTER + port.width) / 2 - (left + right) / 2;
    port.isFitted = false;
    this.limit(port);
  }

  showStep(step) {
    const segment = this.segments.find(({ steps }) => steps.some((one) => one.step === step));
    if (!segment) return this.port.fit();
    const { begin, end } = segment.steps.find((one) => one.step === step);
    const { port } = this;
    port.scale = (port.width - GUTTER - 16) / (end - begin);
    port.x = GUTTER + 4 - (begin - segment.begin + segment.left) * port.scale;
    port.changed();
  }

  // What the user does

  laneAt(y) {
    const place = Math.floor((y - AXIS) / (LANE + LANE_GAP));
    return this.lanes[place] ?? null;
  }

  // The first slice of a lane that ends behind a time.
  firstAfter(lane, time) {
    let [low, high] = [0, lane.rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lane.reach[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  at(x, y) {
    const lane = this.laneAt(y);
    if (!lane || x < GUTTER) return null;
    const time = (x - this.port.x) / this.port.scale;
    const near = 2.5 / this.port.scale;
    let best = null;
    for (let place = this.firstAfter(lane, time - near); place < lane.rows.length && lane.start[place] <= time + near; place++) {
      const distance = Math.max(lane.start[place] - time, time - lane.end[place], 0);
      if (!best || distance < best.distance || (distance === 0 && best.distance === 0)) best = { lane, place, distance };
    }
    return best;
  }

  click(x, y) {
    const lane = this.laneAt(y);
    const found = this.at(x, y);
    if (found) this.mark(found.lane, found.place);
    else if (lane && x < GUTTER) this.store.selectNodes(`worker ${lane.worker}`, `worker ${lane.worker}`, [], lane.worker);
    else this.store.select(null);
  }

  mark(lane, place) {
    this.current = { lane: this.lanes.indexOf(lane), place };
    this.store.selectSlice(lane.rows[place]);
    this.reveal(lane, place);
  }

  go(across, down) {
    const here = this.current && this.lanes[this.current.lane];
    if (!here || this.current.place >= here.rows.length) {
      const lane = this.lanes.find(({ rows }) => rows.length);
      return lane && this.mark(lane, Math.min(this.firstAfter(lane, (GUTTER - this.port.x) / this.port.scale), lane.rows.length - 1));
    }
    const lane = this.lanes[this.current.lane + down];
    if (!lane?.rows.length) return;
    const time = (here.start[this.current.place] + here.end[this.current.place]) / 2;
    const place = down ? this.firstAfter(lane, time) : this.current.place + across;
    this.mark(lane, Math.min(Math.max(place, 0), lane.rows.length - 1));
  }

  enter() {
    if (!this.current) this.go(1, 0);
  }

  follow() {
    const { selection } = this.store;
    if (selection?.slice === undefined || selection.slice === null) this.current = null;
    const text = selection?.nodes.size ? `. Marked: ${this.sliceText(selection)}` : "";
    this.canvas.setAttribute("aria-label", `Timeline of ${this.lanes.length} workers${text}`);
    this.port.redraw();
  }

  sliceText(selection) {
    return selection.slice === null || selection.slice === undefined ? selection.title : this.describe(selection.slice).join(", ");
  }

  describe(row) {
    const { slices, workers } = this.store.data;
    const node = this.store.nodes[slices.node[row]];
    const worker = workers.find(({ index }) => index === slices.worker[row]);
    const micro = slices.micro_batch[row];
    const computed = this.store.computedIn(row);
    const layers = this.store.distinct(computed, "layer");
    const ops = this.store.distinct(computed, "op").filter((op) => op !== node.name);
    return [
      this.store.titles[slices.node[row]],
      computed.length > 1 && `one kernel computes ${this.store.listed(computed)}`,
      [node.phase, ops.join(", "), layers.join(", ")].filter(Boolean).join(" · "),
      `${duration(slices.seconds[row])} on worker ${slices.worker[row]}${worker.host ? ` (${worker.host})` : ""}`,
      `step ${slices.step[row]}${micro === null ? "" : `, micro-batch ${micro}`}`,
      slices.link[row] && `linked with ${this.links.get(slices.link[row]).length - 1} other`,
    ].filter(Boolean);
  }

  tip(x, y) {
    const found = this.at(x, y);
    return found && this.describe(found.lane.rows[found.place]);
  }

  // Drawing

  draw(context, port) {
    const { colours } = this;
    context.textBaseline = "alphabetic";
    context.save();
    context.beginPath();
    context.rect(GUTTER, 0, port.width - GUTTER, port.height);
    context.clip();
    this.drawAxis(context, port);
    this.lit = this.litSlices();
    this.lanes.forEach((lane, place) => this.drawLane(context, port, lane, AXIS + place * (LANE + LANE_GAP)));
    this.drawLinks(context, port);
    context.restore();
    const workers = this.store.workers;
    this.lanes.forEach(({ worker }, place) => {
      const top = AXIS + place * (LANE + LANE_GAP);
      const { host, stage } = workers.get(worker);
      const isMarked = this.store.selection?.worker === worker;
      context.fillStyle = isMarked ? colours.mark : colours.text;
      context.font = `600 12px ${colours.font}`;
      context.fillText(`worker ${worker}${stage === null ? "" : ` · stage ${stage}`}`, 8, top + 12);
      context.fillStyle = colours.faint;
      context.font = `10.5px ${colours.font}`;
      context.fillText(fitted(context, host, GUTTER - 16), 8, top + 25);
    });
    if (this.lanes.every(({ rows }) => !rows.length)) {
      context.fillStyle = colours.faint;
      context.font = `12px ${colours.font}`;
      context.fillText("No step was traced.", GUTTER + 8, 24);
    }
  }

  drawAxis(context, port) {
    const { colours } = this;
    const bottom = AXIS + this.lanes.length * (LANE + LANE_GAP);
    const tick = niceStep(85 / port.scale);
    context.font = `10.5px ${colours.font}`;
    this.freeFrom = -Infinity;
    for (const segment of this.segments) {
      const [left, right] = [segment.left * port.scale + port.x, segment.right * port.scale + port.x];
      if (right < GUTTER || left > port.width) continue;
      context.fillStyle = colours.region;
      context.fillRect(left, AXIS - 4, right - left, bottom - AXIS + 4);
      const first = Math.max(0, Math.floor((GUTTER - left) / port.scale / tick));
      let free = -Infinity;
      for (let number = first; number * tick * port.scale + left <= Math.min(right, port.width); number++) {
        const x = number * tick * port.scale + left;
        context.fillStyle = colours.grid;
        context.fillRect(Math.round(x), AXIS - 8, 1, bottom - AXIS + 8);
        const label = duration(number * tick);
        const wide = context.measureText(label).width;
        if (x + 3 < free || x + 3 + wide > right) continue;
        context.fillStyle = colours.faint;
        context.fillText(label, x + 3, AXIS - 10);
        free = x + 3 + wide + 10;
      }
      this.drawSteps(context, port, segment, bottom);
    }
  }

  drawSteps(context, port, segment, bottom) {
    const { colours } = this;
    for (const { step, begin, end } of segment.steps) {
      const left = (begin - segment.begin + segment.left) * port.scale + port.x;
      const right = left + (end - begin) * port.scale;
      if (right < GUTTER || left > port.width) continue;
      context.fillStyle = colours.line;
      context.fillRect(Math.round(left), 4, 1, bottom - 4);
      const label = `step ${step}`;
      context.font = `600 11px ${colours.font}`;
      const wide = context.measureText(label).width;
      const x = Math.min(Math.max(left, GUTTER) + 5, port.width - wide - 4);
      if (x < this.freeFrom) continue;
      context.fillStyle = colours.text;
      context.fillText(label, x, 14);
      this.freeFrom = x + wide + 10;
    }
    context.font = `10.5px ${colours.font}`;
  }

  drawLane(context, port, lane, top) {
    const [from, to] = [(GUTTER - port.x) / port.scale, (port.width - port.x) / port.scale];
    const { lit } = this;
    const pixel = { x: -1, isLit: false, isUsed: false };
    for (let place = this.firstAfter(lane, from); place < lane.rows.length && lane.start[place] <= to; place++) {
      const row = lane.rows[place];
      const left = lane.start[place] * port.scale + port.x;
      const width = (lane.end[place] - lane.start[place]) * port.scale;
      const isLit = lit !== null && lit(row);
      if (width < 1.5) {
        const x = Math.floor(left);
        if (x !== pixel.x) this.drawPixel(context, pixel, top, lit);
        pixel.x = x;
        pixel.isUsed = true;
        pixel.isLit ||= isLit;
        this.cover[this.paintOf[row]] += Math.max(width, 1e-9);
      } else {
        this.drawPixel(context, pixel, top, lit);
        this.drawSlice(context, row, left, width, top, lit ? isLit : null);
      }
    }
    this.drawPixel(context, pixel, top, lit);
    this.drawCurrent(context, port, lane, top);
  }

  // Which slices stand out, if any do: those of what is marked, else of what is found.
  litSlices() {
    const { selection, matches, nodes, kernels, data } = this.store;
    const chosen = selection?.nodes.size ? selection.nodes : matches;
    if (!chosen) return null;
    const [lit, litKernels] = [new Uint8Array(nodes.length), new Uint8Array(kernels.all.length)];
    for (const number of chosen) {
      lit[number] = 1;
      for (const kernel of kernels.of(number)) litKernels[kernel] = 1;
    }
    const { kernel } = data.slices;
    return (row) => (kernel[row] === null ? lit[this.node[row]] : litKernels[kernel[row]]) === 1;
  }

  drawPixel(context, pixel, top, lit) {
    if (!pixel.isUsed) return;
    let most = 0;
    for (let paint = 1; paint < this.cover.length; paint++) if (this.cover[paint] > this.cover[most]) most = paint;
    this.cover.fill(0);
    context.globalAlpha = lit && !pixel.isLit ? 0.25 : 1;
    context.fillStyle = this.fills[most].fill;
    const lower = this.fills[most].isCommunication ? LANE / 3 : 0;
    context.fillRect(pixel.x, top + lower, 1, LANE - lower);
    context.globalAlpha = 1;
    if (pixel.isLit) this.underline(context, pixel.x, 1, top);
    pixel.isUsed = pixel.isLit = false;
  }

  drawSlice(context, row, left, width, top, isLit) {
    const { colours } = this;
    const { fill, isWait, isCommunication } = this.fills[this.paintOf[row]];
    const start = Math.max(left, GUTTER - 2);
    const seen = Math.min(left + width, this.port.width + 2) - start;
    const lower = isCommunication ? LANE / 3 : 0;
    context.globalAlpha = isLit === false ? 0.25 : 1;
    const inner = Math.max(seen - (seen > 4 ? 1 : 0), 1);
    if (fill !== "transparent") {
      context.fillStyle = fill;
      context.fillRect(start, top + lower, inner, LANE - lower);
    }
    if (isWait && seen > 2) {
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      context.strokeRect(start + 0.5, top + 0.5, inner - 1, LANE - 1);
    }
    if (seen > 26 && fill !== "transparent") {
      context.globalAlpha = 1;
      context.fillStyle = isLit === false ? colours.faint : inkOn(fill);
      context.font = `10.5px ${colours.font}`;
      const label = this.labels(row).find((text) => context.measureText(text).width < seen - 8);
      if (label) context.fillText(label, start + 4, top + lower / 2 + LANE / 2 + 4);
    }
    context.globalAlpha = 1;
    if (isLit) this.underline(context, start, Math.max(seen, 2), top);
  }

  // What a slice may be called, the longest first.
  labels(row) {
    const node = this.node[row];
    const { op, phase } = this.store.nodes[node];
    const others = this.store.computedIn(row).length - 1;
    const more = others ? ` (+${others})` : "";
    return [this.store.titles[node] + more, ...(phase === WAIT ? [] : [op + more]), phase];
  }

  underline(context, x, width, top) {
    context.fillStyle = this.colours.mark;
    context.fillRect(x, top + LANE + 1, Math.max(width, 2), 4);
  }

  drawCurrent(context, port, lane, top) {
    const { selection } = this.store;
    if (!this.current || this.lanes[this.current.lane] !== lane || selection?.slice === null) return;
    const { place } = this.current;
    const left = lane.start[place] * port.scale + port.x;
    const width = Math.max((lane.end[place] - lane.start[place]) * port.scale, 3);
    context.strokeStyle = this.colours.mark;
    context.lineWidth = 2.5;
    context.strokeRect(left - 1, top - 2, width + 2, LANE + 4);
  }

  // From the sends that are marked to what receives them, and the other way round.
  drawLinks(context, port) {
    const { selection, data } = this.store;
    if (!selection?.nodes.size) return;
    context.strokeStyle = this.colours.mark;
    context.lineWidth = 1.5;
    let count = 0;
    for (const rows of this.links.values()) {
      if (rows.length < 2 || !rows.some((row) => selection.nodes.has(data.slices.node[row]))) continue;
      if (count++ > MOST_LINKS) return;
      const [sent, received] = rows.map((row) => this.middleOf(row, port));
      context.beginPath();
      context.moveTo(sent.x, sent.y);
      context.lineTo(received.x, received.y);
      context.stroke();
      context.beginPath();
      context.arc(received.x, received.y, 3, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  middleOf(row, port) {
    const { slices } = this.store.data;
    const place = this.lanes.findIndex(({ worker }) => worker === slices.worker[row]);
    const segment = this.segments.find(({ steps }) => steps.some(({ step }) => step === slices.step[row]));
    const time = slices.start_seconds[row] + slices.seconds[row] / 2 - segment.begin + segment.left;
    return { x: time * port.scale + port.x, y: AXIS + place * (LANE + LANE_GAP) + LANE / 2 };
  }
}
