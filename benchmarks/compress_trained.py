"""Loss and output error against size right after a cut of trained networks of the laboratory.

For every dense training of a run folder of ``orthotrain train stdlib-gpt`` or ``cifar10-minivit``.
Each cell: loss on held-out data above the dense network's, relative error of its outputs there,
and the share of its numbers that is stored. Nothing is trained after the cut. The three ways differ
in what the cut is chosen by; size and layers are the same.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _cuts import Case, compare
from orthotrain.data.batches import BatchStream, to_float
from orthotrain.data.cifar10 import load_cifar10
from orthotrain.data.stdlib_text import load_stdlib
from orthotrain.data.windows import WindowStream, even_starts, windows_at
from orthotrain.lab.experiments.language.trainer import bits_per_byte, window_loss
from orthotrain.lab.run.restore import read_network

BATCHES, HELD_OUT_BATCHES = 16, 8
BATCH_OF_WINDOWS, WINDOWS, IMAGES = 12, 512, 32
# What the MiniViT of a run folder was trained on at the scale `cpu`.
TRAINED_ON = 10_000


def classified(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a classifier."""
    return F.cross_entropy(model(batch[0]), batch[1])


def gpt_cases(models: Sequence[nn.Module]) -> list[Case]:
    text = load_stdlib()
    cases = []
    for seed, model in enumerate(models):
        length = model.context
        stream = WindowStream(
            text.train, batch_size=BATCH_OF_WINDOWS, length=length, seed=1000 + seed
        )
        starts = even_starts(text.validation, count=HELD_OUT_BATCHES * 32, length=length)
        held_out = [windows_at(text.validation, some, length=length) for some in starts.split(32)]

        def bits(network: nn.Module, length: int = length) -> float:
            return bits_per_byte(network, text.validation, count=WINDOWS, length=length)

        data = [stream.next_batch() for _ in range(BATCHES)]
        cases.append(Case(f"seed {seed}", model, data, held_out, window_loss, bits))
    return cases


def minivit_cases(models: Sequence[nn.Module]) -> list[Case]:
    images = load_cifar10(data=os.environ.get("ORTHOTRAIN_DATA"), train_limit=TRAINED_ON)
    validation = images.validation
    everything = [
        (to_float(validation.images[i]), validation.labels[i])
        for i in torch.arange(len(validation)).split(500)
    ]

    def entropy(network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            total = sum(float(classified(network, b)) * len(b[1]) for b in everything)
        return total / len(validation)

    cases = []
    for seed, model in enumerate(models):
        stream = BatchStream(images.train, batch_size=IMAGES, seed=1000 + seed)
        data = [stream.next_batch() for _ in range(BATCHES)]
        cases.append(Case(f"seed {seed}", model, data, everything[:4], classified, entropy))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder with a variant 'dense'")
    parser.add_argument("--variant", default="dense")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = sorted((arguments.run / "variants" / arguments.variant).glob("seed-*"))
    models = [read_network(folder / "checkpoint.pt") for folder in folders]
    for model in models:
        model.requires_grad_(True)
    kind = type(models[0]).__name__
    make = {"GPT": gpt_cases, "MiniViT": minivit_cases}[kind]
    score = {"GPT": "bits per byte", "MiniViT": "cross-entropy in nats"}[kind]
    title = f"{kind}: {score} on held-out data above dense, error of outputs, share stored"
    compare(title, make(models))


if __name__ == "__main__":
    main()
