"""Pipelines and replicas on socket-connected hosts."""
