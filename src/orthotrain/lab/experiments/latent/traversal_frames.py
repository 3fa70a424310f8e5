"""Traversals of a trained generator as bytes in the run folder, for the report to show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orthotrain.disentangle import activeness
from orthotrain.files import write_atomically
from orthotrain.lab.experiments.latent.image_score import ImageGenerator, one_latent
from orthotrain.lab.experiments.latent.samples import to_pixels
from orthotrain.lab.run.record import saving

#: What each coordinate is set to, from left to right.
VALUES: Final = tuple(0.5 * k for k in range(-6, 7))
_SAMPLES: Final = 4
_LATENTS: Final = 100


def write_traversals(model: ImageGenerator, path: Path, *, seed: int) -> None:
    """Write ``frames``, ``base``, ``base_values``, ``values`` and ``activeness`` as one npz.

    Args:
        model: The averaged generator.
        path: Where to.
        seed: Of the base latents: those of one seed are the same for every variant.

    Raises:
        CheckpointError: The file cannot be written.
    """
    generate, latent_dim = one_latent(model)
    dim = model.latent_dim
    z = torch.randn(_SAMPLES, latent_dim, generator=torch.Generator().manual_seed(seed))
    device = next(model.parameters()).device

    def draw(latents: Tensor) -> NDArray[np.uint8]:
        with torch.no_grad():
            return to_pixels(generate(latents.to(device))).numpy()

    frames = np.stack(
        [
            np.stack([draw(z.index_fill(1, torch.tensor(i), value)) for value in VALUES])
            for i in range(dim)
        ]
    )
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        frames=frames,
        base=draw(z),
        base_values=z[:, :dim].numpy(),
        values=np.array(VALUES),
        activeness=activeness(
            generate, latent_dim, seed=seed, samples=_LATENTS, factors=dim
        ).numpy(),
    )
    with saving(path):
        write_atomically(path, buffer.getvalue())
