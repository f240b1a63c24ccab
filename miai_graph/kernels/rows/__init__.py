"""What goes over rows: pooling, softmax, sums, lookups, random numbers; and single numbers."""
