"""A language model on bytes, every size that one dense run gives, and its rivals."""
