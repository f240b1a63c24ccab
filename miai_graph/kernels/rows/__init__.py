"""What goes over rows: pooling, softmax, sums, lookups; and single numbers."""
