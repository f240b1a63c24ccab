"""From a graph to prepared kernel calls: what is stored where, for how long, and in which order it is computed."""
