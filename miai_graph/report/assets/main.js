// Puts the parts together.

const store = new Store(JSON.parse(byId("data").textContent));
const colours = new Colours(byId("theme"));
const graph = new GraphView(byId("graph"), store, colours);
const timeline = new Timeline(byId("timeline"), store, colours);
const table = new Table(byId("table"), store);

function fillSelect(id, options, listener) {
  const select = byId(id);
  select.replaceChildren(...options.map(([value, title]) => element("option", { value }, title)));
  select.addEventListener("change", () => listener(select.value));
}

function availableModes() {
  const others = store.otherSums ? [] : ["difference"];
  if (store.workers.size < 2) others.push("worker");
  return Object.entries(MODES).filter(([mode]) => !others.includes(mode)).map(([mode, { title }]) => [mode, title]);
}

// Opens the layers around a node, and marks it.
function goTo(number) {
  const { box } = store.nodes[number];
  if (box !== null) graph.setOpen(store.ancestors(box), true, box);
  store.selectNode(number);
}

function followLink(number) {
  goTo(number);
  // The link that had the focus is gone.
  byId("details").querySelector("button")?.focus();
}

function showTexts() {
  showSummary(store, colours);
  showScale(store, colours, graph);
  showDetails(store, followLink);
  const { segments } = timeline;
  fillSteps(segments.flatMap(({ steps }) => steps.map(({ step }) => step)));
  byId("cut").textContent = segments.length > 1 ? "time between the traced steps is left out" : "";
}

function fillSteps(steps) {
  const select = byId("step");
  const chosen = select.value;
  const options = [["", "all traced steps"], ...steps.map((step) => [String(step), `step ${step}`])];
  select.replaceChildren(...options.map(([value, title]) => element("option", { value }, title)));
  select.value = steps.includes(Number(chosen)) ? chosen : "";
}

function searched() {
  const count = store.matches?.size;
  byId("found").textContent = count === undefined ? "" : `${count} found`;
}

// Goes through what is found.
function nextMatch(backwards) {
  const found = [...(store.matches ?? [])];
  if (!found.length) return;
  const [current] = store.selection?.nodes.size === 1 ? store.selection.nodes : [];
  const here = found.indexOf(current);
  goTo(found[(here + (backwards ? -1 : 1) + found.length) % found.length] ?? found[0]);
}

fillSelect("mode", availableModes(), (mode) => store.setMode(mode));
fillSelect("by", ["layer", "op", "node", "worker"].map((by) => [by, by]), (by) => table.setBy(by));
byId("by").value = table.by;
fillSelect("paint", [["phase", "phase"], ["layer", "layer"]], (paint) => timeline.setPaint(paint));

byId("step").addEventListener("change", ({ target }) => timeline.showStep(target.value === "" ? null : Number(target.value)));

const actions = {
  "open-all": () => graph.openAll(true),
  "close-all": () => graph.openAll(false),
  "graph-in": () => graph.port.zoom(ZOOM_STEP),
  "graph-out": () => graph.port.zoom(1 / ZOOM_STEP),
  "graph-fit": () => graph.showWhole(),
  "timeline-in": () => timeline.port.zoom(ZOOM_STEP),
  "timeline-out": () => timeline.port.zoom(1 / ZOOM_STEP),
  "timeline-fit": () => timeline.port.fit(),
};
for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);

byId("all-columns").addEventListener("change", (event) => table.setShowsAll(event.target.checked));

const search = byId("search");
search.addEventListener("input", () => store.search(search.value));
search.addEventListener("keydown", (event) => {
  if (event.key === "Enter") nextMatch(event.shiftKey);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (search.value) store.search((search.value = ""));
    else store.select(null);
    if (event.target === search) graph.canvas.focus();
  } else if (event.key === "/" && event.target !== search) {
    event.preventDefault();
    search.focus();
    search.select();
  }
});

store.on("select", () => showDetails(store, followLink));
store.on("search", searched);
store.on("mode", () => showScale(store, colours, graph));
store.on("data", showTexts);
colours.addEventListener("change", showTexts);
if (byId("curves")) {
  new CurvesView(byId("curves"), store, colours);
  followTraining(store, byId("state"));
}
showTexts();
graph.follow();
timeline.follow();

// For programs that look at the page, such as its tests.
window.miaiReport = { store, graph, timeline, table, colours };
