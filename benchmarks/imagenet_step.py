"""The cost of one training step of the true ImageNet networks, dense and low-rank.

ViT-B/16 at 224 pixels and ResNet-RS-101 at 160, timm's where it is installed, as the recipes
``imagenet-vit-b16`` and ``imagenet-resnetrs101`` train them: forward, backward and AdamW's step in
float32. Beside the dense network: the same with half of its numbers stored, both factors trained or
a core between frozen bases, and the narrow network of that size. Weights are fresh, so the ranks
are those of fresh weights. With one thread, its own time is taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _measure import interleaved_seconds, kept_bytes, ratio, report
from orthotrain import compress
from orthotrain.lab.experiments.branches.variants import narrow
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.lowrank.build import network_of
from orthotrain.lab.experiments.lowrank.config import ImageRun
from orthotrain.lab.experiments.lowrank.networks import build_network
from orthotrain.methods.optimizer_state import state_bytes

RECIPES = {"vit": "imagenet-vit-b16", "resnet": "imagenet-resnetrs101"}
HALF, CLASSES = 50, 1000


class Training:
    """A network under AdamW, on one batch."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        self.model, self.batch = model.train(), batch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(self) -> None:
        """Forward, backward and the optimizer's step."""
        images, labels = self.batch
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()

    @property
    def stored(self) -> int:
        """Numbers of parameters, and of factors that are not trained."""
        frozen = sum(
            b.numel() for name, b in self.model.named_buffers() if name.split(".")[-1] in "u vh"
        )
        return frozen + sum(p.numel() for p in self.model.parameters())

    @property
    def memory(self) -> float:
        """MiB of weights, gradients and optimizer state."""
        trained = list(self.model.parameters())
        numbers = sum(t.nbytes for t in (*trained, *self.model.buffers()))
        numbers += sum(p.nbytes for p in trained)
        return (numbers + state_bytes(self.optimizer)) / 2**20


def trainings(name: str, batch_size: int) -> dict[str, Training]:
    """The dense network of a recipe and what stands beside it."""
    experiment = find_recipe(RECIPES[name])
    config = experiment.at("full")
    assert isinstance(config, ImageRun)
    size = config.data.image_size
    assert size is not None
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    batch = images, torch.randint(CLASSES, (batch_size,), generator=generator)
    shape = {"image_shape": (3, size, size), "classes": CLASSES}

    def fresh(variant: object) -> nn.Module:
        network = network_of(config, variant, **shape)  # type: ignore[arg-type]
        print(f"{RECIPES[name]}: {network}", flush=True)
        return build_network(network, **shape, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    dense = experiment.variants(config)[0]
    made: dict[str, Callable[[], nn.Module]] = {
        "dense": partial(fresh, dense),
        "trained factors, 50 %": lambda: compress(fresh(dense), stored_budget=HALF / 100),
        "frozen bases, 50 %": lambda: compress(
            fresh(dense), stored_budget=HALF / 100, bases="frozen"
        ),
        "narrow, 50 %": partial(fresh, narrow(HALF)),
    }
    return {title: Training(make(), batch) for title, make in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=[*RECIPES], default=[*RECIPES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    for name in arguments.networks:
        sides = trainings(name, arguments.batch)
        steps = {title: side.step for title, side in sides.items()}
        seconds = interleaved_seconds(steps, rounds=arguments.rounds, warmup=1, clock=clock)
        dense = sides["dense"]
        kept = {title: kept_bytes(side.model, side.batch[0]) for title, side in sides.items()}
        rows = [
            (
                title, ratio(seconds, title, "dense"), f"{min(seconds[title]):.2f}",
                f"{100 * side.stored / dense.stored:.1f}", f"{side.memory:.0f}",
                f"{kept[title] / kept['dense']:.3f}",
            )
            for title, side in sides.items()
        ]  # fmt: skip
        report(
            f"{RECIPES[name]}, one step of {arguments.batch} images, AdamW",
            (
                "network", "step to dense", "least s", "stored %", "training memory MiB",
                "kept for backward to dense",
            ),
            rows,
        )  # fmt: skip


if __name__ == "__main__":
    main()
