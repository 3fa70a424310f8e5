"""Rivals of adaptive low-rank training: the same recipe, loop and budget, another method."""
