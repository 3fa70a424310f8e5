"""The small networks that are trained here: two classifiers, and the encoder of a generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_count, require_number
from orthotrain._doors import checked
from orthotrain.disentangle.generators import Generate, Source, ValueRange, measuring
from orthotrain.disentangle.samples import stream


@contextmanager
def seeded_initialization(random: torch.Generator) -> Iterator[None]:
    """Let modules that draw from torch's global state follow ``random``; the state is restored."""
    seed = torch.randint(2**62, (), generator=random, device=random.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield


class _Classifier(nn.Module):
    """Convolutions, the mean over the image (``.features``), and a linear layer (``.head``)."""

    def __init__(self, convolutions: Sequence[nn.Module], *, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


class SmallClassifier(_Classifier):
    """Three times Conv3x3 with stride 2, batch norm and ReLU, with doubling channels."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        widths = (channels, width, 2 * width, 4 * width)
        blocks = [_block(*pair, stride=2) for pair in pairwise(widths)]
        super().__init__([*chain(*blocks)], width=4 * width, classes=classes)


@checked
class VariationClassifier(_Classifier):
    """Convolutions over the difference of two images, to one logit per latent coordinate.

    Conv7x7 stride 2, Conv3x3, max pool, two times Conv3x3 with twice the channels, global average
    pool, linear; batch norm and ReLU after each convolution.

    Args:
        factors: Coordinates to choose from.
        channels: Of the images; 1 and 3 alike.
        width: Channels of the first two convolutions, 64 as published.
        generator: Draws the weights; torch's global state is left alone. None follows that state.

    Shape:
        In ``(n, channels, h, w)``, ``x1 - x2``; out ``(n, factors)``.

    Source:
        Zhu, Xu and Tao (2020), arXiv:2007.12885, the published network with the difference of the
        images as its input.
    """

    def __init__(
        self,
        factors: int,
        *,
        channels: int = 3,
        width: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value in (("factors", factors), ("channels", channels), ("width", width)):
            require_count("VariationClassifier", name, value, least=1)
        random = torch.default_generator if generator is None else generator
        with seeded_initialization(random):
            blocks = [
                *_block(channels, width, kernel=7, stride=2),
                *_block(width, width),
                nn.MaxPool2d(3, stride=2, padding=1),
                *_block(width, 2 * width),
                *_block(2 * width, 4 * width),
            ]
            super().__init__(blocks, width=4 * width, classes=factors)


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Float[Tensor, "n c h w"],
    labels: Tensor,
    order: Tensor,
    batch_size: int,
) -> None:
    """Steps of cross entropy over the rows ``order`` of the images, in that order."""
    network.train()
    with torch.enable_grad():
        for batch in torch.split(order.to(x.device), batch_size):
            # Batch norm has no variance of a single image, which a remainder may be.
            if len(batch) == 1:
                continue
            loss = F.cross_entropy(network(x[batch]), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


@torch.no_grad()
def accuracy_and_gain(
    network: nn.Module, x: Tensor, labels: Tensor, part: Tensor, batch_size: int
) -> tuple[float, float]:
    """Accuracy and negative mean loss on the rows ``part``; larger is better in both."""
    network.eval()
    hits, loss = 0, 0.0
    for batch in torch.split(part.to(x.device), batch_size):
        logits = network(x[batch])
        hits += int((logits.argmax(dim=1) == labels[batch]).sum())
        loss += float(F.cross_entropy(logits, labels[batch], reduction="sum"))
    return hits / len(part), -loss / len(part)


@dataclass(frozen=True)
class LatentEncoder:
    """Images to the coordinates that a generator would make them with.

    Attributes:
        network: The regression, in evaluation mode.
        r_squared: Share of the variance of each coordinate that it explains in images it was not
            trained on. A coordinate that changes nothing has about 0, and its code is noise.
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


@checked
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
    """A small network that reads ``z`` from ``G(z)``, trained on new samples at every step.

    Codes of real images with known factors can then be scored by ``mig``, ``dci`` and the others.
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
        batch_size: Images per step, at least two.
        value_range: Of the generated images, see ``activeness``. The encoder takes the same.

    Raises:
        ConfigError: A setting out of its range, or images out of theirs.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``.
        NonFiniteError: An image holds NaN or infinity.

    Note:
        The global random state is left alone, and so is the generator.
    """
    name = "latent_encoder"
    source = Source.of(name, generate, latent_dim, factors, batch_size, "any")
    shown = Source.of(name, generate, latent_dim, factors, batch_size, value_range)
    require_count(name, "steps", steps, least=1)
    require_count(name, "batch_size", batch_size, least=2)
    require_count(name, "held_out", held_out, least=2)
    require_number(name, "lr", lr, above=0, most=1e3)
    require_count(name, "width", width)
    random = stream(name, seed)
    with measuring(generate):
        first = shown.images(shown.latents(2, random))
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
    target = z[:, : source.factors].double()
    residual = (codes.double().cpu() - target).square().mean(dim=0)
    r_squared = 1 - residual / target.var(dim=0, correction=0)
    return LatentEncoder(network, tuple(r_squared.tolist()), value_range)


def _block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
