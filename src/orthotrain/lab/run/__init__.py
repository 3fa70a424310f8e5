"""One training run: configuration, loop, checkpoints, record. Imports nothing by itself."""
