// The table: rows by layer, op, node or worker. Only the rows that are seen are in the document.

const ROW_HEIGHT = 26;
const ROWS_BEYOND = 6;
const TEXT_ORDER = new Intl.Collator("en", { numeric: true });

const COLUMNS = [
  { key: "title", title: "Name", width: 170, isText: true },
  { key: "op", title: "Op", width: 104, isText: true, only: ["node"] },
  { key: "phase", title: "Phase", width: 94, isText: true, only: ["node"] },
  { key: "share", title: "Share", width: 84, text: percent, hint: "of the time of all workers" },
  { key: "seconds", title: "Time", width: 74, text: duration, hint: "a step, without waits, all workers together" },
  { key: "wait", title: "Wait", width: 74, text: duration, hint: "a step, all workers together" },
  { key: "difference", title: "Difference", width: 88, text: (value) => `${value > 0 ? "+" : ""}${duration(value)}`, hint: "of the time of a step, to the other run, by the worker that takes longest in each" },
  { key: "gflops", title: "GFLOP/s", width: 72, text: speed, hint: "arithmetic that was reached" },
  { key: "rate", title: "GB/s", width: 64, text: speed, hint: "memory traffic that was reached" },
  { key: "peak", title: "Of peak", width: 70, text: percent, hint: "of what the machine could do at best, by its arithmetic or its memory; more than all of it where values come from caches" },
  { key: "bytes", title: "Bytes", width: 76, text: size, hint: "memory traffic of a step" },
  { key: "memory", title: "Memory", width: 76, text: size, hint: "of the values" },
  { key: "calls", title: "Calls", width: 66, text: (value) => value.toLocaleString("en"), hint: "of all steps and workers" },
];

class Table {
  constructor(root, store) {
    this.root = root;
    this.store = store;
    this.by = store.nodes.some(({ layer }) => layer) ? "layer" : "node";
    this.sort = { key: "share", isFalling: true };
    this.showsAll = false;
    this.head = element("div", { class: "row head", role: "row" });
    this.body = element("div", { class: "rows", role: "rowgroup" });
    root.append(element("div", { role: "rowgroup", class: "heads" }, this.head), this.body);
    root.addEventListener("scroll", () => this.show());
    root.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => {
      this.fitColumns();
      this.show();
    }).observe(root);
    store.on("select", () => this.follow());
    store.on("search", () => this.arrange());
    store.on("data", () => this.rebuild());
    this.rebuild();
  }

  setBy(by) {
    this.by = by;
    this.rebuild();
    this.follow();
  }

  // Rows

  rebuild() {
    this.all = this.by === "worker" ? this.workerRows() : this.groupRows();
    const has = (key) => this.all.some((row) => row[key]);
    this.useful = COLUMNS.filter(({ key, isText, only }) => (!only || only.includes(this.by)) && (isText || key === "seconds" || has(key)));
    this.columns = [];
    this.fitColumns();
    this.arrange();
  }

  // The first columns, as many as there is room for; or all, and the table scrolls sideways.
  fitColumns() {
    let room = this.showsAll ? Infinity : this.root.clientWidth;
    const shown = this.useful.filter(({ width }) => (room -= width) >= 0);
    if (shown.length === this.columns.length) return;
    this.columns = shown;
    const [{ width: first }, ...others] = shown.length ? shown : this.useful;
    this.root.style.setProperty("--columns", [`minmax(${first}px, 1fr)`, ...others.map(({ width }) => `${width}px`)].join(" "));
    byId("all-columns").parentElement.hidden = !this.showsAll && shown.length === this.useful.length;
    this.drawHead();
  }

  setShowsAll(showsAll) {
    this.showsAll = showsAll;
    this.fitColumns();
    this.show();
  }

  groupKey(number) {
    const node = this.store.nodes[number];
    if (this.by === "node") return String(number);
    if (this.by === "op") return ASIDE.has(node.phase) && node.phase !== WAIT ? `(${node.phase})` : node.op;
    // Who waits is not slow itself.
    if (node.phase === WAIT) return `(${WAIT})`;
    return node.outer || (ASIDE.has(node.phase) || node.phase === COMMUNICATION ? `(${node.phase})` : NO_LAYER);
  }

  groupRows() {
    const { store } = this;
    const rows = new Map();
    const [ideal, traffic] = this.idealWork();
    store.nodes.forEach((node, number) => {
      if (!store.sums.timed[number] && !store.otherSums?.timed[number]) return;
      const key = this.groupKey(number);
      if (!rows.has(key)) rows.set(key, this.emptyRow(key, number));
      this.add(rows.get(key), number, ideal[number], traffic[number]);
    });
    return [...rows.values()].map((row) => this.finished(row));
  }

  emptyRow(key, number) {
    const node = this.store.nodes[number];
    const title = this.by === "node" ? this.store.titles[number] : key;
    return { key: `${this.by} ${key}`, title, op: node.op, phase: node.phase, nodes: [], seconds: 0, wait: 0, calls: 0, flops: 0, bytes: 0, traffic: 0, memory: 0, ideal: 0, difference: 0 };
  }

  add(row, number, ideal, traffic) {
    const { sums, otherSums, nodes } = this.store;
    row.nodes.push(number);
    row[nodes[number].phase === WAIT ? "wait" : "seconds"] += sums.seconds[number];
    row.calls = this.by === "op" ? row.calls + sums.calls[number] : Math.max(row.calls, sums.calls[number]);
    row.flops += sums.flops[number];
    row.bytes += sums.bytes[number];
    row.memory += sums.memory[number];
    row.ideal += ideal;
    row.traffic += traffic;
    if (otherSums) row.difference += this.store.differenceOf(number);
  }

  finished(row) {
    row.share = this.store.share(row.seconds + row.wait);
    if (row.seconds > 0) {
      row.gflops = row.flops / row.seconds / 1e9;
      row.rate = row.traffic / row.seconds / 1e9;
      row.peak = row.ideal / row.seconds;
    }
    return row;
  }

  // What a step's work at each node would take if it went as fast as the machine can, and its memory traffic.
  idealWork() {
    const { store } = this;
    const [ideal, moved] = [new Float64Array(store.nodes.length), new Float64Array(store.nodes.length)];
    const { node, worker, flops } = store.data.records;
    store.traffic.forEach((bytes, row) => {
      const { flops_per_second: arithmetic, bytes_per_second: memory } = store.workers.get(worker[row]);
      const seconds = Math.max(arithmetic ? flops[row] / arithmetic : 0, memory ? bytes / memory : 0);
      ideal[node[row]] += seconds / store.steps;
      moved[node[row]] += bytes / store.steps;
    });
    return [ideal, moved];
  }

  workerRows() {
    const { store } = this;
    const rows = new Map();
    for (const [index, { host }] of store.workers) {
      const row = this.emptyRow(String(index), 0);
      rows.set(index, Object.assign(row, { title: `worker ${index} · ${host}`, worker: index }));
    }
    const { node, worker, calls, seconds, flops, bytes } = store.data.records;
    for (let at = 0; at < node.length; at++) {
      const row = rows.get(worker[at]);
      row[store.nodes[node[at]].phase === WAIT ? "wait" : "seconds"] += seconds[at] / store.steps;
      row.calls = Math.max(row.calls, calls[at]);
      row.flops += flops[at] / store.steps;
      row.bytes += bytes[at] / store.steps;
      row.traffic += bytes[at] / store.steps;
    }
    return [...rows.values()].map((row) => this.finished(row));
  }

  // In order, and of those that are searched for only.
  arrange() {
    const { key, isFalling } = this.sort;
    const { matches } = this.store;
    const isText = COLUMNS.find((column) => column.key === key).isText;
    const rows = matches && this.by !== "worker" ? this.all.filter((row) => row.nodes.some((number) => matches.has(number))) : this.all;
    const compare = isText ? (a, b) => TEXT_ORDER.compare(a[key], b[key]) : (a, b) => (a[key] ?? 0) - (b[key] ?? 0);
    this.rows = [...rows].sort((first, second) => (isFalling ? compare(second, first) : compare(first, second)));
    this.most = Math.max(...this.rows.map(({ share }) => share), 0);
    this.body.style.height = `${this.rows.length * ROW_HEIGHT}px`;
    this.root.setAttribute("aria-rowcount", this.rows.length + 1);
    byId("rows").textContent = `${this.rows.length} row${this.rows.length === 1 ? "" : "s"}`;
    this.drawHead();
    this.show();
  }

  sortBy(key) {
    const isSame = this.sort.key === key;
    const isText = COLUMNS.find((column) => column.key === key).isText;
    this.sort = { key, isFalling: isSame ? !this.sort.isFalling : !isText };
    this.arrange();
    this.head.querySelector(`[data-key="${key}"]`)?.focus();
  }

  // Drawing

  drawHead() {
    const { key: sorted, isFalling } = this.sort;
    this.head.replaceChildren(
      ...this.columns.map(({ key, title, isText, hint }) => {
        const isSorted = key === sorted;
        const button = element("button", { type: "button", "data-key": key, title: hint ?? "", onclick: () => this.sortBy(key) }, title);
        if (isSorted) button.append(element("span", { "aria-hidden": "true" }, isFalling ? " ▾" : " ▴"));
        const order = isSorted ? (isFalling ? "descending" : "ascending") : "none";
        return element("div", { class: isText ? "cell" : "cell number", role: "columnheader", "aria-sort": order }, button);
      }),
    );
  }

  show() {
    if (!this.rows) return;
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
    const last = Math.min(this.rows.length, first + Math.ceil(this.root.clientHeight / ROW_HEIGHT) + 2 * ROWS_BEYOND);
    const made = [];
    for (let place = first; place < last; place++) made.push(this.drawRow(this.rows[place], place));
    this.body.replaceChildren(...made);
    this.root.setAttribute("aria-activedescendant", made.find((row) => row.classList.contains("current"))?.id ?? "");
  }

  drawRow(row, place) {
    const isMarked = this.isMarked(row);
    const row_ = element("div", { class: "row", role: "row", id: `row-${place}`, "aria-rowindex": place + 2, "aria-selected": isMarked, onclick: () => this.mark(row) });
    row_.classList.toggle("marked", isMarked);
    row_.classList.toggle("current", this.store.selection?.key === row.key);
    row_.style.top = `${place * ROW_HEIGHT}px`;
    for (const column of this.columns) {
      const value = row[column.key];
      const text = column.isText ? value : value || column.key === "seconds" ? column.text(value) : "";
      const cell = element("div", { class: column.isText ? "cell" : "cell number", role: "gridcell" }, text);
      if (column.isText) cell.title = text;
      if (column.key === "share" && this.most > 0) cell.style.setProperty("--part", `${((row.share / this.most) * 100).toFixed(1)}%`);
      if (column.key === "share") cell.classList.add("bar");
      row_.append(cell);
    }
    return row_;
  }

  isMarked(row) {
    const { selection } = this.store;
    if (!selection) return false;
    if (this.by === "worker") return selection.worker === row.worker;
    // A layer's own waits are among its nodes, but its row is another one.
    if (row.key === `layer (${WAIT})`) return [...selection.nodes].every((number) => this.store.nodes[number].phase === WAIT);
    return row.nodes.some((number) => selection.nodes.has(number));
  }

  // What the user does

  mark(row) {
    if (this.by === "worker") this.store.selectNodes(row.key, row.title, [], row.worker);
    else if (this.by === "node") this.store.selectNode(row.nodes[0]);
    else this.store.selectNodes(row.key, row.title, row.nodes);
  }

  follow() {
    const place = this.rows.findIndex((row) => this.isMarked(row));
    if (place >= 0) this.reveal(place);
    this.show();
  }

  reveal(place) {
    const top = place * ROW_HEIGHT;
    const room = this.root.clientHeight - this.head.offsetHeight - ROW_HEIGHT;
    if (top < this.root.scrollTop || top > this.root.scrollTop + room) this.root.scrollTop = Math.max(0, top - room / 2);
  }

  key(event) {
    if (event.target !== this.root) return;
    const jumps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
    if (!(event.key in jumps) || !this.rows.length) return;
    event.preventDefault();
    const here = this.rows.findIndex((row) => row.key === this.store.selection?.key);
    const start = here >= 0 ? here : this.rows.findIndex((row) => this.isMarked(row));
    const place = Math.min(Math.max(start + jumps[event.key], 0), this.rows.length - 1);
    this.mark(this.rows[place]);
    this.reveal(place);
    this.show();
  }
}
