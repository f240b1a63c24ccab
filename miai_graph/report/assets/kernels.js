// Which nodes are computed together. A kernel that computes several of them has one slice a call, under the number of the
// node that stands for it.

class Kernels {
  constructor({ node, worker, kernel }) {
    this.leaders = new Map();
    this.members = new Map();
    for (let row = 0; row < node.length; row++) {
      if (kernel[row] === null) continue;
      entry(this.leaders, worker[row], () => new Map()).set(node[row], kernel[row]);
      const kernels = entry(this.members, worker[row], () => new Map());
      entry(kernels, kernel[row], () => []).push(node[row]);
    }
  }

  // The number that slices of a node have on a worker.
  leader(node, worker) {
    return this.leaders.get(worker)?.get(node) ?? node;
  }

  // The nodes that slices of this number are of on a worker.
  nodesOf(leader, worker) {
    return this.members.get(worker)?.get(leader) ?? [leader];
  }

  // What is computed together with a node, on any worker.
  beside(node) {
    const found = new Set();
    for (const [worker, leaders] of this.leaders) {
      if (leaders.has(node)) for (const other of this.nodesOf(leaders.get(node), worker)) found.add(other);
    }
    found.delete(node);
    return [...found];
  }

  // Numbers that stand for several nodes, with all of these.
  *shared() {
    for (const kernels of this.members.values()) yield* kernels;
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
