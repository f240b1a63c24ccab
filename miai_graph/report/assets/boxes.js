// What is written in and about the boxes of the graph.

const MODES = {
  time: { title: "time", text: duration },
  wait: { title: "wait", text: duration },
  bytes: { title: "bytes moved", text: size },
  memory: { title: "memory", text: size },
  worker: { title: "worker" },
  difference: { title: "difference of two runs", text: (value) => `${value > 0 ? "+" : ""}${duration(value)}` },
};
const REPEATED = " … ";

class BoxTexts {
  constructor(store) {
    this.store = store;
  }

  // All that is to be known of a box, the name first.
  describe(number, isOpen) {
    const { store } = this;
    const box = store.boxes[number];
    const seconds = store.boxValues("time")[number];
    const wait = store.boxValues("wait")[number];
    const node = box.inside === null ? store.nodes[store.nodesOfBox[number][0]] : null;
    return [
      store.boxTitle(number),
      box.times > 1 && `${box.times} times, one like the other`,
      node ? `${node.op}, ${box.phase}` : `${box.phase}, ${this.count(number)} nodes`,
      box.type,
      `${duration(seconds)} a step, ${percent(store.share(seconds))} of the time of all workers`,
      wait > 0 && `waits ${duration(wait)} a step`,
      node && this.together(store.nodesOfBox[number][0]),
      ["bytes", "memory", "difference"].includes(store.mode) && `${MODES[store.mode].title}: ${this.figure(number)}`,
      store.mode === "worker" && this.figure(number),
      node?.source && `built at ${node.source}`,
      box.inside !== null && `double click to ${isOpen ? "close" : "open"} it`,
    ].filter(Boolean);
  }

  together(node) {
    const others = this.store.kernels.beside(node);
    return others.length > 0 && `computed together with ${this.store.listed(others)}`;
  }

  count(number) {
    return this.store.boxesWithin(number).filter((box) => this.store.boxes[box].inside === null).length;
  }

  figure(number) {
    const value = this.store.boxValues(this.store.mode)[number];
    if (this.store.mode !== "worker") return value ? MODES[this.store.mode].text(value) : "";
    return value < 0 ? "" : `worker ${[...this.store.workers.keys()][value]}`;
  }

  // What stands in a box. Where there is no room for the names of the first and the last of several, they get two rows.
  within(context, number, room) {
    const data = this.store.boxes[number];
    const title = this.shortTitle(number, data);
    if (data.inside === null) return { title, rows: [this.opText(number, data)], badge: "" };
    const badge = data.times > 1 ? `×${data.times}` : "";
    const [first, last] = badge ? title.split(REPEATED) : [];
    if (!last || context.measureText(`${title} ${badge}`).width + 20 < room) return { title, rows: [data.phase, data.type], badge };
    return { title: `${first} …`, rows: [last, data.phase], badge };
  }

  // Within an opened layer, names need not begin with its own.
  shortTitle(number, data) {
    const title = this.store.boxTitle(number);
    const outer = data.parent === null ? "" : `${this.store.boxes[data.parent].scope}/`;
    return outer && title.startsWith(outer) ? title.slice(outer.length) : title;
  }

  opText(number, data) {
    const { op } = this.store.nodes[this.store.nodesOfBox[number][0]];
    return `${op} · ${data.type}`;
  }
}
