"""Low-rank training beside dense training and its rivals."""
