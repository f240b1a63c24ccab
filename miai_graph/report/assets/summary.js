// The verdict, the parts of each worker's time, the scale of the colours, and the details of what is marked.

function showSummary(store, colours) {
  const { run, compared } = store.data;
  const texts = [
    `${run.steps.toLocaleString("en")} steps in ${duration(run.wall_seconds)}`,
    `${duration(store.stepSeconds)} a step`,
    run.start_up_seconds ? `start-up ${duration(run.start_up_seconds)}` : "",
    run.peak_bytes ? `peak memory of values ${size(run.peak_bytes)}` : "",
    `${store.workers.size} worker${store.workers.size === 1 ? "" : "s"}`,
  ];
  byId("figures").textContent = texts.filter(Boolean).join(" · ");
  const others = (compared?.verdict ?? []).map((line) => `Two runs, this one first: ${line}.`);
  const lines = [...run.verdict, ...others];
  byId("verdict").replaceChildren(
    ...lines.map((line) => element("li", {}, line)),
    ...run.notes.map((line) => element("li", { class: "note" }, line)),
  );
  showWorkers(store, colours);
}

function showWorkers(store, colours) {
  const used = new Set();
  const rows = [...store.workers.values()].map((worker) => {
    const total = Math.max(store.data.run.wall_seconds, sum(Object.values(worker.parts))) || 1;
    const parts = orderedPhases(Object.keys(worker.parts)).map((phase) => [phase, worker.parts[phase] / total]);
    const rest = 1 - sum(parts.map(([, share]) => share));
    if (rest > 0.0005) parts.push(["not booked", rest]);
    parts.forEach(([phase, share]) => share > 0 && used.add(phase));
    return workerBar(worker, parts, colours);
  });
  byId("workers").replaceChildren(...rows);
  byId("phases").replaceChildren(...orderedPhases([...used]).map((phase) => element("li", {}, swatch(phase, colours), phase)));
}

function workerBar(worker, parts, colours) {
  const text = parts.map(([phase, share]) => `${phase} ${percent(share)}`).join(", ");
  const bar = element("div", { class: "stack", role: "img", "aria-label": `worker ${worker.index}: ${text}`, title: text });
  for (const [phase, share] of parts) {
    const part = element("span", { class: `part ${phase.replaceAll(/\W/g, "-")}` });
    part.style.flexGrow = share;
    part.style.backgroundColor = colours.phase(phase);
    if (share > 0.07) {
      part.textContent = `${Math.round(share * 100)} %`;
      part.style.color = phase === "idle" ? "inherit" : inkOn(colours.phase(phase));
    }
    bar.append(part);
  }
  const stage = worker.stage === null ? "" : ` · stage ${worker.stage}`;
  return element("div", { class: "worker" }, element("span", { class: "name", title: worker.host }, `worker ${worker.index}${stage}`), bar);
}

function swatch(phase, colours) {
  const mark = element("span", { class: `swatch ${phase}` });
  mark.style.backgroundColor = colours.phase(phase);
  return mark;
}

function orderedPhases(phases) {
  const place = (phase) => (PHASE_ORDER.includes(phase) ? PHASE_ORDER.indexOf(phase) : PHASE_ORDER.length);
  return phases.sort((first, second) => place(first) - place(second));
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

// What the colours of the boxes mean.
function showScale(store, colours, graph) {
  const root = byId("scale");
  const { mode } = store;
  if (mode === "worker") {
    const items = [...store.workers.keys()].map((index, place) => {
      const mark = element("span", { class: "swatch" });
      mark.style.backgroundColor = colours.category(place);
      return element("span", { class: "item" }, mark, `worker ${index}`);
    });
    const rest = element("span", { class: "swatch" });
    rest.style.backgroundColor = colours.plain;
    root.replaceChildren(...items, element("span", { class: "item" }, rest, "shared"));
    return;
  }
  const most = graph.greatest();
  const { text } = MODES[mode];
  const band = element("span", { class: "band" });
  band.style.backgroundImage = `linear-gradient(to right, ${(mode === "difference" ? colours.difference : colours.scale).join(", ")})`;
  const title = mode === "difference" ? "this run, less the other" : `${MODES[mode].title}, a step`;
  // Colours follow the root of the figure, so that what is not the greatest can be told apart too.
  const marks = mode === "difference" ? [-most, 0, most] : [0, most / 4, most];
  const labels = marks.map((mark) => element("span", {}, most ? text(mark) : ""));
  root.replaceChildren(title, most ? element("span", { class: "ramp" }, band, element("span", { class: "marks" }, ...labels)) : ": nothing");
}

// What is marked, in figures. `goTo` marks a node, wherever it is.
function showDetails(store, goTo) {
  const root = byId("details");
  const { selection } = store;
  root.classList.toggle("empty", !selection);
  if (!selection) {
    root.textContent = "Click a box, a slice or a row: it is marked in all three.";
    return;
  }
  const node = selection.nodes.size === 1 ? store.nodes[[...selection.nodes][0]] : null;
  const figures_ = selection.worker !== null && selection.worker !== undefined ? workerFigures(store, selection.worker) : nodeFigures(store, selection.nodes);
  const facts = [
    node?.op && ["op", node.op],
    node?.phase && ["phase", node.phase],
    node?.layer && ["layer", node.layer],
    node?.type && ["value", node.type],
    node?.attributes && ["attributes", node.attributes],
    node?.source && ["built at", node.source],
    !node && selection.nodes.size > 1 && ["nodes", String(selection.nodes.size)],
    ...figures_,
    ...kernelFacts(store, selection, goTo),
  ].filter(Boolean);
  root.replaceChildren(
    element("strong", {}, selection.title),
    element("dl", {}, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
  );
}

// Which nodes share a kernel with the one that is marked, or are computed in the slice that is marked.
function kernelFacts(store, { nodes, slice }, goTo) {
  const [first] = nodes;
  if (nodes.size > 1) return typeof slice === "number" ? [["one kernel computes", nodeLinks(store, [...nodes], [...nodes], goTo)]] : [];
  const others = nodes.size ? store.kernels.beside(first) : [];
  if (!others.length) return [];
  const seconds = sum([first, ...others].map((number) => store.sums.seconds[number]));
  return [
    ["computed together with", nodeLinks(store, others, [first, ...others], goTo)],
    ["all of them", `${duration(seconds)} a step, shared out by arithmetic`],
  ];
}

// The names of nodes, which lead to them; of many, the first until the others are asked for. Where all are of one layer,
// it is not said again.
function nodeLinks(store, numbers, all, goTo) {
  const root = element("span", { class: "links" });
  const layers = store.distinct(all, "layer");
  const short = (title) => (layers.length === 1 && title.startsWith(`${layers[0]}/`) ? title.slice(layers[0].length + 1) : title);
  const link = (number) =>
    element("button", { type: "button", class: "link", onclick: () => goTo(number) }, short(store.titles[number]));
  const show = (shown) => {
    root.replaceChildren(...numbers.slice(0, shown).map(link));
    const rest = numbers.length - shown;
    if (rest > 0) root.append(element("button", { type: "button", class: "more", onclick: () => show(numbers.length) }, `and ${rest} more`));
  };
  show(numbers.length > MOST_LISTED + 1 ? MOST_LISTED : numbers.length);
  return root;
}

function nodeFigures(store, nodes) {
  let [seconds, wait, least, most] = [0, 0, Infinity, 0];
  for (const number of nodes) {
    if (store.nodes[number].phase === WAIT) wait += store.sums.seconds[number];
    else seconds += store.sums.seconds[number];
  }
  const { node, min_seconds: shortest, max_seconds: longest } = store.data.records;
  if (nodes.size === 1) {
    const [only] = nodes;
    node.forEach((number, row) => {
      if (number === only) [least, most] = [Math.min(least, shortest[row]), Math.max(most, longest[row])];
    });
  }
  return [
    ["a step", `${duration(seconds)} (${percent(store.share(seconds))})`],
    wait > 0 && ["wait", duration(wait)],
    most > 0 && ["a call", `${duration(least)} to ${duration(most)}`],
  ];
}

function workerFigures(store, index) {
  const worker = store.workers.get(index);
  return [
    worker.host && ["host", worker.host],
    worker.pid !== null && ["process", String(worker.pid)],
    worker.stage !== null && ["stage", String(worker.stage)],
    worker.flops_per_second && ["at best", `${figures(worker.flops_per_second / 1e9)} GFLOP/s`],
    worker.bytes_per_second && ["memory", `${figures(worker.bytes_per_second / 1e9)} GB/s`],
    worker.clock_uncertainty_seconds > 0 && ["clock", `± ${duration(worker.clock_uncertainty_seconds)}`],
    ...orderedPhases(Object.keys(worker.parts)).map((phase) => [phase, percent(worker.parts[phase] / (store.data.run.wall_seconds || 1))]),
  ];
}
