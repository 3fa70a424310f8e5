"""Traversals in which every pixel of every frame is known, so a page can be held against them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from orthotrain.lab.experiments.latent.traversals.arrays import Traversals

VALUES = (-2.0, 0.0, 1.5, 3.0)
SAMPLES, HEIGHT, WIDTH = 3, 12, 8
# Own values beyond, between and upon the values.
OWN = np.array([[-2.5, 0.4], [0.25, 1.5], [-0.75, 3.5]])


def traversals(
    method: str = "none", *, tint: int = 0, dims: int = 2, **settings: Any
) -> Traversals:
    """Flat frames, one color each, with a marked corner; ``tint`` tells methods apart."""
    steps = len(VALUES)
    frames = np.empty((dims, steps, SAMPLES, HEIGHT, WIDTH, 3), np.uint8)
    dim, step, sample = np.meshgrid(
        np.arange(dims), np.arange(steps), np.arange(SAMPLES), indexing="ij"
    )
    frames[..., 0] = (40 + 60 * sample + tint)[..., None, None]
    frames[..., 1] = (30 + 50 * dim)[..., None, None]
    frames[..., 2] = (20 + 55 * step)[..., None, None]
    frames[..., 0, 0, :] = 255
    base = frames[0, 0].copy()
    base[..., 1:] = 250
    own = np.tile(OWN, (1, -(-dims // 2)))[:, :dims]
    settings = {"base": base, "base_values": own, "values": np.array(VALUES),
                "activeness": np.zeros(dims), **settings}  # fmt: skip
    return Traversals(method, frames, **settings)


def data_of(page: str) -> dict[str, Any]:
    """What the page carries for its script."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return dict(json.loads(text))
