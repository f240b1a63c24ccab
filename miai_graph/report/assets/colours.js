// The colours of all pictures, which the styles hold as variables. They can be told apart with any kind of colour vision,
// and nothing is said by colour alone.

const INK = { dark: "#14181d", light: "#f4f6f8" };

const rgb = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));

function mixed(stops, position) {
  const place = Math.min(Math.max(position, 0), 1) * (stops.length - 1);
  const before = Math.min(Math.floor(place), stops.length - 2);
  const [first, second] = [rgb(stops[before]), rgb(stops[before + 1])];
  const parts = first.map((value, channel) => Math.round(value + (second[channel] - value) * (place - before)));
  return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

const inkCache = new Map();

// Dark or light text, whichever can be read better on a colour.
function inkOn(fill) {
  if (!inkCache.has(fill)) {
    const [red, green, blue] = rgb(fill).map((part) => (part / 255) ** 2.2);
    inkCache.set(fill, 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? INK.dark : INK.light);
  }
  return inkCache.get(fill);
}

class Colours extends EventTarget {
  constructor(button) {
    super();
    this.button = button;
    this.preferred = matchMedia("(prefers-color-scheme: dark)");
    this.chosen = null;
    this.preferred.addEventListener("change", () => this.apply());
    button.addEventListener("click", () => {
      this.chosen = this.isDark ? "light" : "dark";
      this.apply();
    });
    this.apply();
  }

  get isDark() {
    return this.chosen ? this.chosen === "dark" : this.preferred.matches;
  }

  apply() {
    const root = document.documentElement;
    root.dataset.theme = this.isDark ? "dark" : "light";
    this.button.textContent = this.isDark ? "☀ Light" : "☾ Dark";
    this.button.setAttribute("aria-label", this.isDark ? "Switch to light colours" : "Switch to dark colours");
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(`--${name}`).trim();
    for (const name of ["paper", "text", "line", "grid", "mark", "region", "font"]) this[name] = value(name);
    this.faint = value("faint-text");
    this.plain = value("grey");
    this.scale = value("share-steps").split(", ");
    this.difference = value("change-steps").split(", ");
    this.categories = value("classes").split(", ");
    this.phases = Object.fromEntries(PHASE_ORDER.map((phase) => [phase, value(`phase-${phase}`)]));
    this.dispatchEvent(new Event("change"));
  }

  phase(name) {
    return this.phases[name] || this.line;
  }

  category(place) {
    return this.categories[place % this.categories.length];
  }
}
