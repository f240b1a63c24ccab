"""Rewrites and analyses: from a graph to a graph, or to facts about it."""
