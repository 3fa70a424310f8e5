"""Small networks of every kind of layer, their data, and a training loop."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain import attach
from orthotrain.lowrank import AdaptiveLowRank
from reference.matrices import generator


def filled(model: nn.Module, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with weights of its own seed, in ``dtype``."""
    g = generator(seed)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(values / fan_in**0.5)
    return model


class Flat(nn.Module):
    """Mean over positions, however many dimensions they have."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


class Attention(nn.Module):
    """Self-attention over ``(batch, length, width)`` and the mean over its length."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(x, x, x, need_weights=False)
        return (x + y).mean(1)


class Everything(nn.Module):
    """Convolutions (groups, padding modes), a transformer layer, shared and tied layers.

    ``(batch, 4, 6, 6)`` to ``(batch, 5)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(16, 16, 3, padding="same", groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.line = nn.Conv1d(16, 16, 3, stride=2, padding=1, padding_mode="circular")
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.shared = nn.Linear(16, 16)
        self.tied = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.tied[1].weight = self.tied[0].weight
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.depthwise(F.gelu(self.grouped(F.gelu(self.stem(x))))))
        x = F.gelu(self.line(x.flatten(2))).transpose(1, 2)
        x = self.encoder(x).mean(1)
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        x = self.tied[1](torch.tanh(self.tied[0](x)))
        return self.head(x)

    @staticmethod
    def batch(step: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(8, 4, 6, 6, generator=generator(100 + step), dtype=dtype)


def mlp(width: int = 8, *, depth: int = 3, seed: int = 0, dtype=torch.float64) -> nn.Sequential:
    """Square linear layers with biases and tanh between them."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = filled(nn.Sequential(*layers[:-1]), seed=seed, dtype=dtype)
    assert isinstance(model, nn.Sequential)
    return model


def batch(step: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The inputs of one step: always the same for the same step."""
    return torch.randn(*shape, generator=generator(1000 + step), dtype=dtype)


def mlp_loss(model: nn.Module, step: int) -> Tensor:
    """A loss of the square networks on the batch of a step."""
    first = next(p for p in model.parameters() if p.ndim == 1)
    x = batch(step, 16, len(first), dtype=first.dtype)
    return (model(x) - x.flip(1).sin()).square().mean()


def everything_loss(model: nn.Module, step: int) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(Everything.batch(step, dtype=dtype)).square().mean()


def train(model, optimizer, steps, *, loss_of=mlp_loss, handle=None):
    """Take the steps of a range; the loss of the last one, with its graph."""
    loss = None
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        if handle is not None:
            handle.observe(loss)
        optimizer.step()
    return loss


def as_published(**settings):
    """An ``AdaptiveLowRank`` as in the paper, but for what a test names."""
    paper = dict(
        importance="weight", bases="frozen", layer_fraction=0.1, max_drop=0.5, core_step=1.0,
        spread=False,
    )  # fmt: skip
    if not {"rank", "rank_rtol", "energy", "stored_budget"} & set(settings):
        paper["rank_rtol"] = 0.1
    return AdaptiveLowRank(**paper | settings)


def attached(model, optimizer=None, **settings):
    """Optimizer and handle of an ``AdaptiveLowRank`` that reaches all layers at once."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    defaults = dict(
        delay_steps=2, every_steps=2, layer_fraction=1.0, dense_last=False, only_if_cheaper=False
    )
    return optimizer, attach(model, optimizer, as_published(**defaults | settings))


def through_file(state):
    """What ``torch.load`` gives after ``torch.save``, with ``weights_only``."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and bias in its dense shape, by module and name."""
    found = {}
    for name, module in model.named_modules():
        for key in (*module._parameters, "weight", "in_proj_weight"):
            value = getattr(module, key, None)
            if isinstance(value, Tensor) and not key.endswith("core"):
                found[f"{name}.{key}"] = value.detach().clone()
    return found


def events(handle, name: str) -> list[dict]:
    return [record for record in handle.records if record.get("event") == name]
