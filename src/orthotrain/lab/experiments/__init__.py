"""Experiments with a name. Each is data only: no recipe imports torch."""
