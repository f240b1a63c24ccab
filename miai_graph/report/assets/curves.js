// Curves of a training: a chart for the losses, one for each metric, and one for how long steps take.

const CHART_HEIGHT = 190;
const STEP_TIME = "seconds a step";

class CurvesView {
  constructor(root, store, colours) {
    this.root = root;
    this.store = store;
    this.colours = colours;
    this.charts = new Map();
    store.on("data", () => this.show());
    colours.addEventListener("change", () => this.rebuild());
    new ResizeObserver(() => this.resize()).observe(root);
    this.show();
  }

  // Names of curves by the title of their chart.
  groups() {
    const groups = new Map();
    for (const name of Object.keys(this.store.data.curves ?? {})) {
      if (name === "x") continue;
      const plain = name.replace(/^val_/, "");
      const title = name === STEP_TIME ? "time of a step (ms)" : plain.endsWith("loss") ? "loss" : plain;
      if (!groups.has(title)) groups.set(title, []);
      groups.get(title).push(name);
    }
    return groups;
  }

  show() {
    const { curves } = this.store.data;
    const groups = this.groups();
    if (!groups.size) return void (this.root.textContent = "No step is done yet.");
    const shape = JSON.stringify([...groups]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.rebuild();
    } else {
      for (const [title, chart] of this.charts) chart.setData(this.columns(curves, groups.get(title)));
    }
  }

  columns(curves, names) {
    return [curves.x, ...names.map((name) => (name === STEP_TIME ? curves[name].map((value) => value && value * 1e3) : curves[name]))];
  }

  rebuild() {
    for (const chart of this.charts.values()) chart.destroy();
    this.charts.clear();
    const groups = this.groups();
    if (!groups.size) return;
    this.root.replaceChildren();
    for (const [title, names] of groups) {
      const place = element("div", { role: "img", "aria-label": `Curves of ${title}` });
      this.root.append(place);
      this.charts.set(title, new uPlot(this.options(title, names, place), this.columns(this.store.data.curves, names), place));
    }
    this.resize();
  }

  options(title, names, place) {
    const { colours } = this;
    const axis = { stroke: colours.faint, grid: { stroke: colours.grid, width: 1 }, ticks: { stroke: colours.grid, width: 1 }, font: `11px ${colours.font}` };
    const series = names.map((name, number) => ({
      label: name === STEP_TIME ? "ms" : name,
      stroke: colours.category(number),
      width: 2,
      dash: name.startsWith("val_") ? [6, 4] : undefined,
      spanGaps: true,
      points: { show: name.startsWith("val_"), size: 6, fill: colours.category(number) },
      value: (chart, value) => (value === null || value === undefined ? "–" : figures(value, 4)),
    }));
    return {
      title,
      width: Math.max(place.clientWidth, 120),
      height: CHART_HEIGHT,
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 34 }, { ...axis, size: 58 }],
      series: [{ label: "epoch", value: (chart, value) => (value === null || value === undefined ? "–" : figures(value)) }, ...series],
    };
  }

  resize() {
    for (const chart of this.charts.values()) {
      const width = chart.root.parentElement.clientWidth;
      if (width && width !== chart.width) chart.setSize({ width, height: CHART_HEIGHT });
    }
  }
}
