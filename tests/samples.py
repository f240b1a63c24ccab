"""The table of samples: at least one row for each op, and for each public function that builds nodes."""

from __future__ import annotations

import samples_elementwise
import samples_other
import samples_structure

SAMPLES = {
    sample.title: sample
    for sample in (*samples_elementwise.SAMPLES, *samples_structure.SAMPLES, *samples_other.SAMPLES)
}
COUNT = len(samples_elementwise.SAMPLES) + len(samples_structure.SAMPLES) + len(samples_other.SAMPLES)
