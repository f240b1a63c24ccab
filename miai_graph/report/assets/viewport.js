// A canvas that can be moved and zoomed with mouse, wheel, fingers and keys, and is drawn once a frame at most.

const CLICK_DISTANCE = 4;
const ZOOM_STEP = 1.3;
const PAN_STEP = 60;

class Viewport {
  // `view` draws, and says which ways it can be moved: bounds() in its own units, horizontal for sideways only.
  constructor(canvas, view) {
    this.canvas = canvas;
    this.view = view;
    this.context = canvas.getContext("2d");
    this.x = this.y = 0;
    this.scale = 1;
    this.pointers = new Map();
    this.isFitted = true;
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => hideTip());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !clientHeight) return;
    const ratio = window.devicePixelRatio || 1;
    this.width = clientWidth;
    this.height = clientHeight;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.isFitted) this.fit();
    this.draw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    if (!this.width) return;
    const ratio = this.canvas.width / this.width;
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, this.width, this.height);
    this.view.draw(this.context, this);
  }

  fit() {
    if (!this.width) return;
    Object.assign(this, this.view.fitted(this.width, this.height));
    this.isFitted = true;
    this.redraw();
  }

  zoom(factor, centreX = this.width / 2, centreY = this.height / 2) {
    const { least, most } = this.view.zoomLimits(this.width, this.height);
    const scale = Math.min(Math.max(this.scale * factor, least), most);
    const change = scale / this.scale;
    this.x = centreX - (centreX - this.x) * change;
    this.y = centreY - (centreY - this.y) * change;
    this.scale = scale;
    this.changed();
  }

  pan(across, down) {
    this.x += across;
    this.y += down;
    this.changed();
  }

  changed() {
    this.isFitted = false;
    this.view.limit(this);
    this.redraw();
  }

  place(event) {
    const frame = this.canvas.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  }

  press(event) {
    if (event.button > 0) return;
    this.pointers.set(event.pointerId, this.place(event));
    this.pressed = this.pointers.size === 1 ? this.place(event) : null;
    this.canvas.setPointerCapture(event.pointerId);
    hideTip();
  }

  move(event) {
    const now = this.place(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      const tip = this.view.tip(now.x, now.y);
      this.canvas.classList.toggle("over", Boolean(tip));
      return tip ? showTip(tip, event.clientX, event.clientY) : hideTip();
    }
    if (this.pressed && Math.hypot(now.x - this.pressed.x, now.y - this.pressed.y) < CLICK_DISTANCE) return;
    this.pressed = null;
    if (this.pointers.size === 2) {
      const [, other] = [...this.pointers].find(([id]) => id !== event.pointerId);
      const change = Math.hypot(now.x - other.x, now.y - other.y) / Math.hypot(before.x - other.x, before.y - other.y);
      if (Number.isFinite(change) && change > 0) this.zoom(change, other.x, other.y);
    } else {
      this.pan(now.x - before.x, now.y - before.y);
    }
    this.pointers.set(event.pointerId, now);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
    if (!this.pressed) return;
    const { x, y } = this.pressed;
    this.pressed = null;
    this.view.click(x, y);
  }

  wheel(event) {
    event.preventDefault();
    hideTip();
    const { x, y } = this.place(event);
    const unit = event.deltaMode === 1 ? 18 : 1;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      this.pan(-(event.deltaX || event.deltaY) * unit, 0);
    } else {
      this.zoom(Math.exp(-event.deltaY * unit * 0.0018), x, y);
    }
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (direction && event.shiftKey) this.pan(-direction[0] * PAN_STEP, -direction[1] * PAN_STEP);
    else if (direction) this.view.go(...direction);
    else if (event.key === "+" || event.key === "=") this.zoom(ZOOM_STEP);
    else if (event.key === "-" || event.key === "_") this.zoom(1 / ZOOM_STEP);
    else if (event.key === "0") this.fit();
    else if (event.key === "Enter" || event.key === " ") this.view.enter();
    else return;
    event.preventDefault();
  }
}

// A tip beside the pointer: lines of text, the first in bold.
function showTip(lines, x, y) {
  const tip = byId("tip");
  tip.replaceChildren(...lines.filter(Boolean).map((line, place) => element(place ? "div" : "strong", {}, line)));
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = x + 16 + width > innerWidth ? x - 12 - width : x + 16;
  const top = y + 16 + height > innerHeight ? y - 12 - height : y + 16;
  tip.style.transform = `translate(${Math.max(left, 4)}px, ${Math.max(top, 4)}px)`;
}

function hideTip() {
  byId("tip").hidden = true;
}

const widths = new Map();

// A text that is no wider than there is room: cut at its front, for the end of a name tells most.
function fitted(context, text, room) {
  const key = `${context.font}|${text}|${Math.round(room)}`;
  let found = widths.get(key);
  if (found === undefined) {
    found = text;
    if (context.measureText(text).width > room) {
      let [least, most] = [0, text.length];
      while (least < most) {
        const middle = Math.ceil((least + most) / 2);
        if (context.measureText(`…${text.slice(text.length - middle)}`).width <= room) least = middle;
        else most = middle - 1;
      }
      found = least ? `…${text.slice(text.length - least)}` : "";
    }
    if (widths.size > 50000) widths.clear();
    widths.set(key, found);
  }
  return found;
}

// Whether all of a line is outside of what is seen.
function isOutside(points, seen) {
  let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [x, y] of points) {
    if (x < left) left = x;
    if (x > right) right = x;
    if (y < top) top = y;
    if (y > bottom) bottom = y;
  }
  return right < seen.left || left > seen.right || bottom < seen.top || top > seen.bottom;
}

// The head of an arrow, at the end of a line.
function addArrow(path, [fromX, fromY], [x, y]) {
  const angle = Math.atan2(y - fromY, x - fromX);
  for (const side of [-0.5, 0.5]) {
    path.moveTo(x, y);
    path.lineTo(x - 6 * Math.cos(angle + side), y - 6 * Math.sin(angle + side));
  }
}
