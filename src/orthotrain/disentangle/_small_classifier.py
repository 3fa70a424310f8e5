"""A classifier small enough to be trained for its features alone."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import seeded_initialization
from orthotrain.errors import ConfigError, ShapeError

_NAME = "classifier_features"
_HELD_OUT = 0.2
# Below this a fifth is not even two images.
_FEWEST = 10


class SmallClassifier(nn.Module):
    """``.features`` to ``(n, 4 * width)``, ``.head`` to logits."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
            blocks += [
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


def train_small_classifier(  # noqa: PLR0913 - the settings of a short training, by name
    images: Float[Tensor, "n c h w"],
    labels: Tensor,
    random: torch.Generator,
    *,
    epochs: int,
    width: int,
    batch_size: int,
    lr: float,
) -> tuple[SmallClassifier, float]:
    """A trained classifier and its accuracy on a held-out fifth."""
    classes = _classes(images, labels)
    for name, value, least in (
        ("epochs", epochs, 1),
        ("width", width, 1),
        ("batch_size", batch_size, 2),
    ):
        require_count(_NAME, name, value, at_least=least)
    if not 0 < lr < float("inf"):
        raise ConfigError(f"{_NAME} needs a finite lr > 0, got {lr}; 1e-3 is the default")
    x, y = images.detach().float(), labels.to(images.device)
    with seeded_initialization(random):
        network = SmallClassifier(x.shape[1], classes, width).to(x.device)
    order = torch.randperm(len(x), generator=random).to(x.device)
    held_out = order[: round(_HELD_OUT * len(x))]
    train = order[len(held_out) :]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    with torch.enable_grad():
        for _ in range(epochs):
            mixed = train[torch.randperm(len(train), generator=random).to(x.device)]
            for batch in torch.split(mixed, batch_size):
                # Batch norm has no variance of a single image.
                if len(batch) == 1:
                    continue
                loss = F.cross_entropy(network(x[batch]), y[batch])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
    network.requires_grad_(False).eval()
    return network, _accuracy(network, x, y, held_out, batch_size)


@torch.no_grad()
def _accuracy(network: nn.Module, x: Tensor, y: Tensor, part: Tensor, batch_size: int) -> float:
    hits = 0
    for batch in torch.split(part, batch_size):
        hits += int((network(x[batch]).argmax(dim=1) == y[batch]).sum())
    return hits / len(part)


def _classes(images: Tensor, labels: Tensor) -> int:
    if labels.ndim != 1 or len(labels) != len(images) or len(images) < _FEWEST:
        raise ShapeError(
            f"{_NAME} needs at least {_FEWEST} images and a label for each, got images "
            f"{tuple(images.shape)} and labels {tuple(labels.shape)}; give one class an image"
        )
    if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) < 1:
        raise ConfigError(
            f"{_NAME} needs int64 labels from 0 of at least two classes, got {labels.dtype} from "
            f"{labels.min()} to {labels.max()}; number the classes from 0"
        )
    return int(labels.max()) + 1
