"""Grids of samples in the run folder, to look at while a generator trains."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from orthotrain.data._pixels import pillow
from orthotrain.files import write_atomically
from orthotrain.lab.experiments.latent.state import AdversarialState, averaged
from orthotrain.lab.run.record import saving

_SIDE: Final = 8


def write_samples(state: AdversarialState, folder: Path, *, seed: int) -> None:
    """Write ``step-000500.png``: samples of the averaged generator at the same latents each time.

    Raises:
        CheckpointError: The file cannot be written.
    """
    images = averaged(state).sample(_SIDE**2, generator=torch.Generator().manual_seed(seed))
    buffer = io.BytesIO()
    pixels = sample_grid(to_pixels(images), columns=_SIDE)
    pillow("samples").fromarray(pixels.squeeze(-1).numpy()).save(buffer, format="PNG")
    with saving(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step-{state.step:06d}.png", buffer.getvalue())


def to_pixels(images: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n h w c"]:
    """Images in [-1, 1] as bytes, rounded to the nearest; what lies outside is cut off."""
    scaled = (images.detach().float().cpu() + 1) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def sample_grid(pixels: UInt8[Tensor, "n h w c"], *, columns: int) -> UInt8[Tensor, "rows cols c"]:
    """Images side by side, ``columns`` per row; what is missing in the last row is black."""
    n, h, w, c = pixels.shape
    rows = -(-n // columns)
    grid = torch.zeros(rows * columns, h, w, c, dtype=torch.uint8)
    grid[:n] = pixels
    grid = grid.view(rows, columns, h, w, c).transpose(1, 2)
    return grid.reshape(rows * h, columns * w, c)
