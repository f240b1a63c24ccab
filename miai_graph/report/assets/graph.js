// The graph: layers, and the ops within those that are opened.

const LEAST_READABLE = 0.72;
const LEAST_TEXT = 0.36;
const LEAST_DETAIL = 0.2;
const MARGIN = 24;
const DOUBLE_CLICK = 400;
const PILE = 4;

class GraphView {
  constructor(canvas, store, colours) {
    this.store = store;
    this.colours = colours;
    this.texts = new BoxTexts(store);
    this.layout = new Layout(store);
    this.port = new Viewport(canvas, this);
    this.canvas = canvas;
    this.lastClick = { time: -Infinity, x: 0, y: 0, box: null };
    store.on("select", () => this.follow());
    store.on("search mode", () => this.port.redraw());
    store.on("data", () => this.reload());
    colours.addEventListener("change", () => this.port.redraw());
  }

  reload() {
    const opened = this.layout.opened;
    this.layout = new Layout(this.store);
    this.layout.open([...opened].filter((box) => box < this.store.boxes.length), true);
    this.port.redraw();
  }

  // Moving

  fitted(width, height) {
    const { width: wide, height: high } = this.layout;
    const whole = Math.min((width - 2 * MARGIN) / wide, (height - 2 * MARGIN) / high, 1.25);
    // A drawing that could not be read as a whole is shown from its top on.
    const scale = this.wantsWhole ? whole : Math.max(whole, LEAST_READABLE);
    const x = wide * scale < width ? (width - wide * scale) / 2 : this.startX(scale, width);
    const y = high * scale < height ? (height - high * scale) / 2 : MARGIN;
    return { scale, x, y };
  }

  // What stands on top comes into view.
  startX(scale, width) {
    const top = this.layout.rectangles.get(this.topmost([...this.layout.rectangles.values()]));
    const centre = width / 2 - (top.x + top.width / 2) * scale;
    return Math.min(MARGIN, Math.max(centre, width - MARGIN - this.layout.width * scale));
  }

  showWhole() {
    this.wantsWhole = true;
    this.port.fit();
  }

  zoomLimits(width, height) {
    const whole = Math.min(width / this.layout.width, height / this.layout.height);
    return { least: Math.min(whole * 0.6, 0.3), most: 4 };
  }

  limit(port) {
    const { width, height } = this.layout;
    port.x = Math.min(Math.max(port.x, 60 - width * port.scale), port.width - 60);
    port.y = Math.min(Math.max(port.y, 60 - height * port.scale), port.height - 60);
  }

  reveal(number) {
    const box = this.layout.rectangles.get(number);
    const { port } = this;
    if (!box || !port.width) return;
    const [left, top] = [box.x * port.scale + port.x, box.y * port.scale + port.y];
    const [right, bottom] = [left + box.width * port.scale, top + box.height * port.scale];
    if (left < 0 || right > port.width) port.x += port.width / 2 - (left + right) / 2;
    if (top < 0 || bottom > port.height) port.y += (bottom - top > port.height ? 40 - top : port.height / 2 - (top + bottom) / 2);
    port.isFitted = false;
  }

  // What the user does

  at(x, y) {
    const [left, top] = [(x - this.port.x) / this.port.scale, (y - this.port.y) / this.port.scale];
    const holds = (box) => left >= box.x && left <= box.x + box.width && top >= box.y && top <= box.y + box.height;
    return this.layout.leaves.find(holds) ?? this.layout.frames.findLast(holds) ?? null;
  }

  click(x, y) {
    const { time, box: before, x: beforeX, y: beforeY } = this.lastClick;
    const isDouble = performance.now() - time < DOUBLE_CLICK && Math.hypot(x - beforeX, y - beforeY) < CLICK_DISTANCE;
    // What is double clicked is what stood there at the first click, though marking it may have moved the picture.
    const box = isDouble ? before : (this.at(x, y)?.number ?? null);
    this.lastClick = { time: isDouble ? -Infinity : performance.now(), x, y, box };
    if (box === null) this.store.select(null);
    else if (isDouble) this.toggle(box);
    else this.store.selectBox(box);
  }

  toggle(number) {
    if (!this.layout.canOpen(number)) return;
    this.setOpen([number], !this.layout.opened.has(number), number);
  }

  // Opens or closes boxes; the one named stays where it is on the screen.
  setOpen(numbers, isOpen, anchor = null) {
    const before = this.layout.rectangles.get(anchor);
    this.layout.open(numbers, isOpen);
    const after = this.layout.rectangles.get(anchor);
    if (before && after) {
      const { port } = this;
      port.x += (before.x + before.width / 2 - after.x - after.width / 2) * port.scale;
      port.y += (before.y - after.y) * port.scale;
      port.isFitted = false;
      this.reveal(anchor);
    } else if (this.port.isFitted) {
      this.port.fit();
    }
    this.port.redraw();
  }

  openAll(isOpen) {
    this.wantsWhole = false;
    this.layout.open(this.store.boxes.keys(), isOpen);
    this.port.fit();
  }

  go(across, down) {
    const { rectangles, leaves } = this.layout;
    const here = rectangles.get(this.markedBox());
    const boxes = leaves.concat(this.layout.frames);
    if (!here) return boxes.length && this.store.selectBox(this.topmost(boxes));
    const middle = (box) => [box.x + box.width / 2, box.y + box.height / 2];
    const [x, y] = middle(here);
    let best = null;
    for (const box of boxes) {
      const [otherX, otherY] = middle(box);
      const ahead = (otherX - x) * across + (otherY - y) * down;
      const aside = Math.abs((otherX - x) * down) + Math.abs((otherY - y) * across);
      if (ahead < 2 || box === here) continue;
      const cost = ahead + 2.5 * aside;
      if (!best || cost < best.cost) best = { cost, number: box.number };
    }
    if (best) this.store.selectBox(best.number);
  }

  topmost(boxes) {
    return boxes.reduce((first, box) => (box.y < first.y ? box : first)).number;
  }

  enter() {
    const box = this.markedBox();
    if (box !== null) this.toggle(box);
  }

  markedBox() {
    const box = this.store.selection?.box ?? null;
    return box === null ? null : this.layout.shown(box);
  }

  follow() {
    const box = this.markedBox();
    if (box !== null) this.reveal(box);
    this.announce(box);
    this.port.redraw();
  }

  announce(box) {
    const name = box === null ? "" : `. Marked: ${this.texts.describe(box, this.layout.opened.has(box)).join(", ")}`;
    this.canvas.setAttribute("aria-label", `Graph of ${this.store.nodes.length} nodes${name}`);
  }

  tip(x, y) {
    const box = this.at(x, y);
    return box && this.texts.describe(box.number, box.isOpen);
  }

  // Drawing

  draw(context, port) {
    context.save();
    context.translate(port.x, port.y);
    context.scale(port.scale, port.scale);
    const [left, top] = [-port.x / port.scale, -port.y / port.scale];
    const seen = { left, top, right: left + port.width / port.scale, bottom: top + port.height / port.scale };
    const isSeen = (box) =>
      box.x < seen.right && box.x + box.width > seen.left && box.y < seen.bottom && box.y + box.height > seen.top;
    this.most = this.greatest();
    this.marked = this.markedBoxes();
    this.focus = this.markedBox();
    for (const box of this.layout.frames) if (isSeen(box)) this.drawFrame(context, box);
    this.drawLines(context, seen);
    if (port.scale > LEAST_TEXT * 0.7) {
      for (const box of this.layout.frames) if (isSeen(box)) this.drawFrameTitle(context, box);
    }
    for (const box of this.layout.leaves) if (isSeen(box)) this.drawBox(context, box);
    context.restore();
  }

  greatest() {
    const values = this.store.boxValues(this.store.mode);
    return this.layout.leaves.reduce((most, { number }) => Math.max(most, Math.abs(values[number])), 0);
  }

  fill(number) {
    const value = this.store.boxValues(this.store.mode)[number];
    const { colours, most } = this;
    if (this.store.mode === "worker") return value < 0 ? colours.plain : colours.category(value);
    if (this.store.mode === "difference") return mixed(colours.difference, 0.5 + (most ? (Math.sign(value) * Math.sqrt(Math.abs(value) / most)) / 2 : 0));
    return value ? mixed(colours.scale, Math.sqrt(value / most)) : colours.plain;
  }

  isFaint(number) {
    const { matchingBoxes } = this.store;
    return matchingBoxes ? !matchingBoxes.has(number) : false;
  }

  isMarked(number) {
    return this.marked.has(number);
  }

  // What is marked, or the closed boxes that it is in.
  markedBoxes() {
    const { selection } = this.store;
    const boxes = selection ? [...selection.boxes, selection.box ?? null].filter((box) => box !== null) : [];
    return new Set(boxes.map((box) => this.layout.shown(box)));
  }

  drawFrame(context, box) {
    const { colours, store } = this;
    context.globalAlpha = this.isFaint(box.number) ? 0.35 : 1;
    context.fillStyle = colours.region;
    context.strokeStyle = colours.phase(store.boxes[box.number].phase);
    context.lineWidth = 1.4;
    context.beginPath();
    context.roundRect(box.x, box.y, box.width, box.height, 8);
    context.fill();
    context.stroke();
    this.drawMark(context, box);
    context.globalAlpha = 1;
  }

  // The name of an opened box, which can be read where lines run over it.
  drawFrameTitle(context, box) {
    const { colours, store } = this;
    const { phase, times } = store.boxes[box.number];
    const write = (text, x, font, colour) => {
      context.font = font;
      context.fillStyle = colour;
      context.strokeText(text, x, box.y + 19);
      context.fillText(text, x, box.y + 19);
    };
    context.globalAlpha = this.isFaint(box.number) ? 0.35 : 1;
    context.strokeStyle = colours.region;
    context.lineWidth = 5;
    context.lineJoin = "round";
    const bold = `600 12px ${colours.font}`;
    context.font = bold;
    const title = fitted(context, store.boxTitle(box.number), box.width - 90);
    const start = box.x + 20 + context.measureText(title).width;
    write(title, box.x + 12, bold, colours.text);
    const plain = `11px ${colours.font}`;
    context.font = plain;
    const about = times > 1 ? `×${times} · ${phase}` : phase;
    write(fitted(context, about, box.x + box.width - start - 8), start, plain, colours.faint);
    context.globalAlpha = 1;
  }

  drawBox(context, box) {
    const { colours, store } = this;
    const data = store.boxes[box.number];
    const isGroup = data.inside !== null;
    context.globalAlpha = this.isFaint(box.number) ? 0.22 : 1;
    const fill = this.fill(box.number);
    context.fillStyle = fill;
    context.strokeStyle = colours.phase(data.phase);
    context.lineWidth = isGroup ? 2 : 1.2;
    if (data.times > 1) this.drawPile(context, box);
    if (this.port.scale > LEAST_DETAIL) {
      context.beginPath();
      context.roundRect(box.x, box.y, box.width, box.height, isGroup ? 7 : 4);
      context.fill();
      context.stroke();
    } else {
      context.fillRect(box.x, box.y, box.width, box.height);
      context.strokeRect(box.x, box.y, box.width, box.height);
    }
    this.drawMark(context, box);
    if (this.port.scale > LEAST_TEXT) this.drawTexts(context, box, data, inkOn(fill));
    context.globalAlpha = 1;
  }

  // The edges of what lies below a box that stands for several.
  drawPile(context, box) {
    for (const shift of [PILE, PILE / 2]) {
      context.beginPath();
      context.roundRect(box.x + shift, box.y + shift, box.width, box.height, 7);
      context.fill();
      context.stroke();
    }
  }

  drawTexts(context, box, data, ink) {
    const { colours } = this;
    const isGroup = data.inside !== null;
    const room = box.width - 20;
    const top = box.y + (isGroup ? 19 : 17);
    const figure = this.texts.figure(box.number);
    context.fillStyle = ink;
    context.font = `11px ${colours.font}`;
    const wide = figure ? context.measureText(figure).width + 8 : 0;
    if (figure) context.fillText(figure, box.x + box.width - 2 - wide, isGroup ? top + 17 : top);
    const { title, rows, badge } = this.texts.within(context, box.number, room);
    rows.forEach((text, place) => {
      const free = room - (isGroup && place === 0 ? wide : 0);
      context.fillText(fitted(context, text, free), box.x + 10, top + 17 + 16 * place);
    });
    context.font = `600 12px ${colours.font}`;
    const taken = badge ? context.measureText(badge).width + 8 : 0;
    if (badge) context.fillText(badge, box.x + box.width - 2 - taken, top);
    context.fillText(fitted(context, title, isGroup ? room - taken : room - wide), box.x + 10, top);
  }

  drawMark(context, box) {
    if (!this.isMarked(box.number)) return;
    const isFocus = this.focus === box.number;
    // Of many boxes at once, each too small for them, dashes take long to draw.
    const isPlain = isFocus || this.port.scale < LEAST_DETAIL;
    context.strokeStyle = this.colours.mark;
    context.lineWidth = (isFocus ? 3.5 : 2.5) / Math.min(this.port.scale, 1);
    context.setLineDash(isPlain ? [] : [7, 4]);
    const air = 3 / Math.min(this.port.scale, 1);
    context.beginPath();
    context.roundRect(box.x - air, box.y - air, box.width + 2 * air, box.height + 2 * air, 9);
    context.stroke();
    context.setLineDash([]);
  }

  drawLines(context, seen) {
    const { layout, colours } = this;
    const marked = this.markedBox();
    const [plain, inner, lit] = [new Path2D(), new Path2D(), new Path2D()];
    for (const { from, to, points } of layout.lines) {
      const path = from === marked || to === marked ? lit : plain;
      if (isOutside(points, seen)) continue;
      path.moveTo(...points[0]);
      for (let place = 1; place < points.length; place++) path.lineTo(...points[place]);
      if (this.port.scale > LEAST_DETAIL) addArrow(path, points[points.length - 2], points[points.length - 1]);
    }
    for (const { box, from, to } of layout.stubs) {
      if (isOutside([from, to], seen)) continue;
      const path = box === marked ? lit : inner;
      const middle = (from[1] + to[1]) / 2;
      path.moveTo(...from);
      path.bezierCurveTo(from[0], middle, to[0], middle, ...to);
    }
    this.drawLooseLines(context, marked);
    context.lineJoin = "round";
    context.strokeStyle = colours.line;
    context.lineWidth = Math.max(1, 0.5 / this.port.scale);
    context.globalAlpha = this.store.matches ? 0.3 : 0.75;
    context.stroke(plain);
    context.globalAlpha *= 0.45;
    context.stroke(inner);
    context.globalAlpha = 1;
    context.strokeStyle = colours.mark;
    context.lineWidth = 2 / Math.min(this.port.scale, 1);
    context.stroke(lit);
  }

  // Links without a place of their own: from border to border, for the box that is marked.
  drawLooseLines(context, marked) {
    const path = new Path2D();
    for (const { from, to } of this.layout.loose) {
      if (from !== marked && to !== marked) continue;
      const [start, end] = [from, to].map((number) => this.layout.rectangles.get(number));
      if (!start || !end) continue;
      const isRight = end.x + end.width / 2 > start.x + start.width / 2;
      const x = isRight ? start.x + start.width : start.x;
      const endX = isRight ? end.x : end.x + end.width;
      const [y, endY] = [start.y + start.height / 2, end.y + end.height / 2];
      const middle = (x + endX) / 2;
      path.moveTo(x, y);
      path.bezierCurveTo(middle, y, middle, endY, endX, endY);
      addArrow(path, [middle, endY], [endX, endY]);
    }
    context.strokeStyle = this.colours.mark;
    context.lineWidth = 1.2 / Math.min(this.port.scale, 1);
    context.globalAlpha = 0.6;
    context.stroke(path);
    context.globalAlpha = 1;
  }
}
