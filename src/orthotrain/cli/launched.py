"""What torchrun told this process: which one of how many it is."""

from __future__ import annotations

import os

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def processes() -> int:
    """How many processes were started together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _NAMES) else 1


def own_name() -> str:
    """Who speaks, for a line of error."""
    return "orthotrain" if processes() == 1 else f"orthotrain: process {os.environ['RANK']}"
