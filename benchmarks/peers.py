"""Peers beside us: a training step and its memory, every peer of the field by one command.

The first table trains a small ViT with matrices of one rank, a quarter of their side. The
second holds one weight orthogonal, the third makes one step orthogonal. A peer that is not
installed is named with the line that installs it. Orthogonal convolutions and their peer are in
``orthogonal_conv.py``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import orthotrain
from _measure import interleaved_seconds, kept_bytes, ratio, report, train_step
from orthotrain.layers import orthogonal_weight
from orthotrain.lowrank import to_factored
from orthotrain.methods.optimizer_state import state_bytes
from orthotrain.models import MiniViT

T = TypeVar("T")
WIDTH, DEPTH, RANK = 768, 2, 192
TOKENS_PER_IMAGE, CLASSES = 64, 10


@dataclass
class Peer:
    """A model with the optimizers that train it."""

    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]


def adamw(model: nn.Module) -> Peer:
    """The model under AdamW, as every peer but GaLore and Muon is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return Peer(model, (torch.optim.AdamW(trained, lr=1e-4),))


def inner_matrices(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of the blocks; patch embedding and head stay dense with every peer."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.")
    ]


def split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of the blocks, and all other parameters."""
    inner = [m.weight for m in inner_matrices(model)]
    known = set(map(id, inner))
    return inner, [p for p in model.parameters() if id(p) not in known]


def low_rank(model: nn.Module, *, bases: str) -> nn.Module:
    """Ours: every matrix of the blocks in low-rank form."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child in inner_matrices(model):
                made = orthotrain.layers.LowRankLinear.from_linear(child, rank=RANK, bases=bases)
                setattr(parent, name, made)
    return model


def lora(model: nn.Module) -> Peer:
    """PEFT's adapters of the same rank over frozen dense weights."""
    peft = importlib.import_module("peft")
    names = [n for n, m in model.named_modules() if m in inner_matrices(model)]
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
    return adamw(peft.get_peft_model(model, config).base_model.model)


def galore(model: nn.Module) -> Peer:
    """GaLore's AdamW on gradients projected to the same rank; dense weights."""
    # Its package imports an 8-bit library for optimizers that are not used here.
    if "bitsandbytes" not in sys.modules:
        missing = types.ModuleType("bitsandbytes.optim.optimizer")
        missing.Optimizer2State = object  # type: ignore[attr-defined]
        sys.modules["bitsandbytes"] = types.ModuleType("bitsandbytes")
        sys.modules["bitsandbytes.optim"] = types.ModuleType("bitsandbytes.optim")
        sys.modules["bitsandbytes.optim.optimizer"] = missing
    package = importlib.import_module("galore_torch")
    inner, others = split(model)
    projected = {
        "params": inner,
        "rank": RANK,
        "update_proj_gap": 200,
        "scale": 0.25,
        "proj_type": "std",
    }
    rest = {"params": others}
    return Peer(
        model, (package.GaLoreAdamW([projected, rest], lr=1e-4, no_deprecation_warning=True),)
    )


class MuonInFloat32(torch.optim.Muon):
    """torch.optim.Muon with its iteration in float32: bfloat16 products are slow on many CPUs."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """The step of torch, with the cast of its iteration taken out."""
        with mock.patch.object(Tensor, "bfloat16", Tensor.clone):
            return super().step(closure)


def muon(model: nn.Module) -> Peer:
    """Muon on the matrices of the blocks, AdamW on the rest; dense weights."""
    inner, rest = split(model)
    return Peer(
        model, (MuonInFloat32(inner, lr=1e-3, weight_decay=0.0), torch.optim.AdamW(rest, lr=1e-4))
    )


def nearest_orthogonal(model: nn.Module) -> Peer:
    """Ours: the exact nearest orthogonal step of the same matrices, after momentum."""
    inner, rest = split(model)
    turned = torch.optim.SGD(inner, lr=1e-3, momentum=0.95)
    names = [name for name, p in model.named_parameters() if any(p is w for w in inner)]
    nog = orthotrain.NearestOrthogonalGradient(names, when="update", record_every=10**9)
    orthotrain.attach(model, turned, nog)
    return Peer(model, (turned, torch.optim.AdamW(rest, lr=1e-4)))


TRAINED: Mapping[str, tuple[Callable[[nn.Module], Peer], str]] = {
    "dense": (adamw, ""),
    "low rank, frozen bases": (lambda m: adamw(low_rank(m, bases="frozen")), ""),
    "low rank, trained bases": (lambda m: adamw(low_rank(m, bases="trained")), ""),
    "two plain layers": (lambda m: adamw(to_factored(low_rank(m, bases="trained"))), ""),
    "LoRA of PEFT": (lora, "peft"),
    "GaLore": (galore, "galore-torch"),
    "Muon in float32": (muon, ""),
    "NOG after momentum": (nearest_orthogonal, ""),
}


def training_step(peer: Peer, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward, backward and the step of every optimizer."""

    def step() -> None:
        for optimizer in peer.optimizers:
            optimizer.zero_grad()
        F.cross_entropy(peer.model(images), labels).backward()
        for optimizer in peer.optimizers:
            optimizer.step()

    return step


def tensors(model: nn.Module) -> tuple[Tensor, ...]:
    """Parameters, and buffers such as frozen bases."""
    return (*model.parameters(), *model.buffers())


def memory(peer: Peer, images: Tensor) -> tuple[float, float]:
    """MiB of weights, gradients and state after a step, and with what a forward keeps."""
    weights = sum(t.nbytes for t in tensors(peer.model))
    gradients = sum(p.nbytes for p in peer.model.parameters() if p.requires_grad)
    state = sum(map(state_bytes, peer.optimizers)) + sum(map(projections, peer.optimizers))
    standing = weights + gradients + state
    return standing / 2**20, (standing + kept_bytes(peer.model, images)) / 2**20


def projections(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of GaLore's projections, which its state holds inside objects."""
    held = (values.get("projector") for values in optimizer.state.values())
    return sum(p.ortho_matrix.nbytes for p in held if p is not None)


def step_table(*, rounds: int, batch: int) -> None:
    """The first table: one step of each peer, ratios to dense within a round."""
    generator = torch.Generator().manual_seed(0)
    side = int(TOKENS_PER_IMAGE**0.5) * 4
    dense = MiniViT(
        image_size=side,
        channels=3,
        classes=CLASSES,
        patch_size=4,
        width=WIDTH,
        depth=DEPTH,
        heads=12,
        generator=generator,
    )
    images = torch.randn(batch, 3, side, side, generator=generator)
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    peers = installed(
        {
            k: (lambda make=make: make(copy.deepcopy(dense)), pip)
            for k, (make, pip) in TRAINED.items()
        }
    )
    steps = {name: training_step(peer, images, labels) for name, peer in peers.items()}
    seconds = interleaved_seconds(steps, rounds=rounds)
    rows = []
    for name, peer in peers.items():
        trained = sum(p.numel() for p in peer.model.parameters() if p.requires_grad)
        stored = sum(t.numel() for t in tensors(peer.model))
        standing, whole = memory(peer, images)
        rows.append(
            (
                name,
                ratio(seconds, name, "dense"),
                f"{trained / 1e6:.1f} M",
                f"{stored / 1e6:.1f} M",
                f"{standing:.0f} MiB",
                f"{whole:.0f} MiB",
            )
        )
    report(
        f"MiniViT {WIDTH}x{DEPTH}, rank {RANK}, {batch} images of {TOKENS_PER_IMAGE} tokens: "
        "forward, backward and optimizer, ratios to dense within a round",
        ("peer", "step", "trained", "stored", "weights, gradients, state", "and kept for backward"),
        rows,
    )
    print(
        "Not in a step: GaLore's decompositions (each 200 steps) and the low-rank updates\n"
        "(benchmarks/maintenance.py)."
    )


def geotorch_linear() -> nn.Module:
    """A linear layer whose weight geotorch holds orthogonal."""
    layer = nn.Linear(WIDTH, WIDTH)
    importlib.import_module("geotorch").orthogonal(layer, "weight")
    return layer


ORTHOGONAL: Mapping[str, tuple[Callable[[], nn.Module], str]] = {
    "nn.Linear": (lambda: nn.Linear(WIDTH, WIDTH), ""),
    "orthogonal_weight": (lambda: orthogonal_weight(nn.Linear(WIDTH, WIDTH)), ""),
    "torch parametrizations.orthogonal": (
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)),
        "",
    ),
    "geotorch.orthogonal": (geotorch_linear, "geotorch"),
}


def orthogonal_table(*, rounds: int, rows_of_input: int) -> None:
    """The second table: passes of one linear layer whose weight stays orthogonal."""
    generator = torch.Generator().manual_seed(0)
    layers = installed(ORTHOGONAL)
    x = torch.randn(rows_of_input, WIDTH, generator=generator)
    grad = torch.randn(rows_of_input, WIDTH, generator=generator)
    training = interleaved_seconds(
        {name: train_step(layer, x, grad) for name, layer in layers.items()}, rounds=rounds
    )
    for layer in layers.values():
        layer.eval()
    with torch.no_grad():
        evaluation = interleaved_seconds(
            {name: (lambda layer=layer: layer(x)) for name, layer in layers.items()}, rounds=rounds
        )
    rows = []
    for name, layer in layers.items():
        error = "" if name == "nn.Linear" else f"{distance(layer.weight):.1e}"
        times = (ratio(s, name, "nn.Linear") for s in (training, evaluation))
        rows.append((name, *times, error))
    report(
        f"A linear layer {WIDTH}x{WIDTH} with an orthogonal weight, {rows_of_input} rows",
        ("peer", "forward and backward", "evaluation", "max |W W' - 1|"),
        rows,
    )


def distance(weight: Tensor) -> float:
    """How far from orthogonal, in float64."""
    w = weight.detach().double()
    return float((w @ w.T - torch.eye(len(w), dtype=w.dtype)).abs().max())


def orthogonal_steps(weight: nn.Parameter) -> dict[str, torch.optim.Optimizer]:
    """Optimizers with momentum on copies of one weight, each with a gradient."""

    def copied() -> nn.Parameter:
        copy_of = nn.Parameter(weight.detach().clone())
        copy_of.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        return copy_of

    layer = nn.Module()
    layer.weight = copied()
    nog = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.95)
    method = orthotrain.NearestOrthogonalGradient("weight", when="update", record_every=10**9)
    orthotrain.attach(layer, nog, method)
    return {
        "SGD": torch.optim.SGD([copied()], lr=1e-3, momentum=0.95),
        "NOG after momentum": nog,
        "torch.optim.Muon": torch.optim.Muon([copied()], lr=1e-3, weight_decay=0.0),
        "Muon in float32": MuonInFloat32([copied()], lr=1e-3, weight_decay=0.0),
    }


def singular_values(optimizer: torch.optim.Optimizer) -> str:
    """Range of the singular values of one more step, relative to their mean."""
    (weight,) = optimizer.param_groups[0]["params"]
    before = weight.detach().double().clone()
    optimizer.step()
    s = torch.linalg.svdvals(weight.detach().double() - before)
    return f"{s.min() / s.mean():.2f} to {s.max() / s.mean():.2f}"


def orthogonal_step_table(*, rounds: int) -> None:
    """The third table: the step of one weight alone."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for shape in ((64, 27), (256, 1024)):
        weight = nn.Parameter(torch.randn(shape, generator=generator))
        optimizers = orthogonal_steps(weight)
        seconds = interleaved_seconds({k: o.step for k, o in optimizers.items()}, rounds=rounds)
        for name, optimizer in optimizers.items():
            to_nog = ratio(seconds, name, "NOG after momentum")
            rows.append((f"{shape[0]}x{shape[1]}", name, to_nog, singular_values(optimizer)))
    report(
        "The optimizer's step of one weight, ratios to NOG after momentum",
        ("weight", "peer", "step", "singular values of the step, to their mean"),
        rows,
    )


def installed(makers: Mapping[str, tuple[Callable[[], T], str]]) -> dict[str, T]:
    """What each maker makes; a peer that is not installed is said so."""
    made = {}
    for name, (make, package) in makers.items():
        try:
            made[name] = make()
        except ModuleNotFoundError as missing:
            if not package:
                raise
            print(f"{name}: {missing}; pip install {package}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step_table(rounds=arguments.rounds, batch=arguments.batch)
    orthogonal_table(rounds=arguments.rounds, rows_of_input=256)
    orthogonal_step_table(rounds=arguments.rounds)


if __name__ == "__main__":
    main()
