// What is to be known of the slices of a trace, as pure functions.

const LONGEST_GAP = 0.3, GAP_SHOWN = 0.06;

// Stretches of time without long gaps, each with the steps in it.
function segmented({ step, start_seconds: starts, seconds }) {
  const steps = new Map();
  for (let row = 0; row < step.length; row++) {
    const found = steps.get(step[row]) ?? { step: step[row], begin: Infinity, end: 0 };
    found.begin = Math.min(found.begin, starts[row]);
    found.end = Math.max(found.end, starts[row] + seconds[row]);
    steps.set(step[row], found);
  }
  const order = [...steps.values()].sort((first, second) => first.begin - second.begin);
  const mean = order.reduce((sum, { begin, end }) => sum + end - begin, 0) / (order.length || 1);
  const segments = [];
  for (const next of order) {
    const last = segments.at(-1);
    if (last && next.begin - last.end < LONGEST_GAP * mean) {
      last.steps.push(next);
      last.end = Math.max(last.end, next.end);
      last.right = last.left + last.end - last.begin;
    } else {
      const left = last ? last.right + GAP_SHOWN * mean : 0;
      segments.push({ steps: [next], begin: next.begin, end: next.end, left, right: left + next.end - next.begin });
    }
  }
  return segments;
}

// Rows of slices by the link that they have in common.
function rowsByLink(links) {
  const rows = new Map();
  links.forEach((name, row) => {
    if (name === null) return;
    if (!rows.has(name)) rows.set(name, []);
    rows.get(name).push(row);
  });
  return rows;
}

// 1, 2 or 5 times a power of ten, not less than a length.
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least) ?? 10 * power;
}
