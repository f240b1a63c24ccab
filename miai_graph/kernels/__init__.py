"""Fast ways to compute nodes. The definition of an op is its `forward`; a kernel must agree with it."""
