// Which nodes are computed together: lists of their numbers, which slices refer to.

class Kernels {
  constructor(kernels) {
    this.all = kernels;
    this.withNode = new Map();
    kernels.forEach((numbers, kernel) => numbers.forEach((number) => entry(this.withNode, number, () => []).push(kernel)));
  }

  // The numbers of those that compute a node together with others.
  of(node) {
    return this.withNode.get(node) ?? [];
  }

  // What is computed together with a node, at some time or on some worker.
  beside(node) {
    const found = new Set(this.of(node).flatMap((kernel) => this.all[kernel]));
    found.delete(node);
    return [...found];
  }
}

// The memory traffic of each record. What one kernel computes was equally fast: its traffic is shared out as its time is.
function sharedTraffic({ worker, kernel, seconds, bytes }) {
  const sums = new Map();
  const sumOf = (row) => entry(sums, `${worker[row]} ${kernel[row]}`, () => ({ seconds: 0, bytes: 0 }));
  kernel.forEach((leader, row) => {
    if (leader === null) return;
    sumOf(row).seconds += seconds[row];
    sumOf(row).bytes += bytes[row];
  });
  return bytes.map((own, row) => {
    if (kernel[row] === null || !sumOf(row).seconds) return own;
    return (sumOf(row).bytes * seconds[row]) / sumOf(row).seconds;
  });
}

// The value of a key, made if there is none.
function entry(map, key, make) {
  if (!map.has(key)) map.set(key, make());
  return map.get(key);
}
