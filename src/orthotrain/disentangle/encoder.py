"""The encoder route: a network that reads a generator's coordinates back from its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import (
    Generate,
    Source,
    ValueRange,
    measuring,
    seeded_initialization,
    stream,
)
from orthotrain.disentangle._small_classifier import SmallClassifier
from orthotrain.errors import ConfigError


@dataclass(frozen=True)
class LatentEncoder:
    """Images to the coordinates that a generator would make them with.

    Attributes:
        network: The regression, in evaluation mode.
        r_squared: Share of the variance of each coordinate that it explains in images it was not
            trained on; a coordinate that changes nothing has about 0, and its code is noise.
        value_range: Of the images it takes.
    """

    network: nn.Module
    r_squared: tuple[float, ...]
    value_range: ValueRange

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Codes of images, generated or real, in the range of the generator's.

        They go to the network's device, and the codes stay there.
        """
        codes: Tensor = self.network(images.to(next(self.network.parameters()).device))
        return codes


def latent_encoder(  # noqa: PLR0913 - the budget, by name
    generate: Generate,
    latent_dim: int,
    *,
    seed: int,
    steps: int = 1_000,
    width: int = 32,
    lr: float = 1e-3,
    held_out: int = 1_000,
    factors: int | None = None,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> LatentEncoder:
    """Train a small network to regress ``z`` from ``G(z)``, on new samples at every step.

    Codes of real images with known factors are then scored by ``mig``, ``dci`` and the others.
    Read those scores beside ``r_squared``: where it is low, they speak of the encoder.

    Args:
        generate: Latents ``(n, latent_dim)`` to images, as in ``activeness``; held fixed.
        latent_dim: Length of a latent.
        seed: Of the network and of all latents.
        steps: Of Adam, each on ``batch_size`` new images.
        width: Channels of the network's first convolution.
        lr: Learning rate at the start; a cosine takes it to zero.
        held_out: Images on which ``r_squared`` is measured, at least two.
        factors: Regress this many coordinates, from the first; None is all.
        batch_size: Images a step, at least two.
        value_range: Of the generated images, see ``activeness``. The encoder takes the same.

    Raises:
        ConfigError: A setting out of its range, or images out of theirs.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``.
        NonFiniteError: An image holds NaN or infinity.

    Note:
        The global random state is left alone, and so is the generator.
    """
    source = Source.of(
        "latent_encoder", generate, latent_dim,
        factors=factors, batch_size=batch_size, value_range="any",
    )  # fmt: skip
    require_count("latent_encoder", "steps", steps, at_least=1)
    require_count("latent_encoder", "batch_size", batch_size, at_least=2)
    require_count("latent_encoder", "held_out", held_out, at_least=2)
    if not 0 < lr < float("inf"):
        raise ConfigError(f"latent_encoder needs a finite lr > 0, got {lr}; 1e-3 is the default")
    checked = Source.of(
        "latent_encoder", generate, latent_dim,
        factors=factors, batch_size=batch_size, value_range=value_range,
    )  # fmt: skip
    random = stream("latent_encoder", seed)
    with measuring(generate):
        first = checked.images(checked.latents(2, random))
    with seeded_initialization(random):
        # Regression is a classifier's network without its softmax.
        network = SmallClassifier(first.shape[1], source.factors, width).to(first.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z = source.latents(batch_size, random)
        with measuring(generate):
            images = source.images(z)
        with torch.enable_grad():
            codes = network(images.float())
            loss = F.mse_loss(codes, z[:, : source.factors].to(codes))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    network.requires_grad_(False).eval()
    z = source.latents(held_out, random)
    with measuring(generate):
        codes = torch.cat([network(x.float()) for (x,) in source.batches(z)])
    return LatentEncoder(network, _r_squared(z[:, : source.factors], codes), value_range)


def _r_squared(z: Tensor, codes: Tensor) -> tuple[float, ...]:
    """``1 - residual / variance`` of each column."""
    target = z.double()
    residual = (codes.double().cpu() - target).square().mean(dim=0)
    return tuple((1 - residual / target.var(dim=0, correction=0)).tolist())
