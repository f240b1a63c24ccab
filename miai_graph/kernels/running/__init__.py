"""How kernels run one after another, and in several threads."""
