"""Pipelines: the training graph, and running it on this machine."""
