"""From a checkpoint file back to tensors or to a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotrain.errors import CheckpointError
from orthotrain.lab.experiments.classifier.networks import network_from
from orthotrain.lab.experiments.latent.build import Generator, build_players
from orthotrain.lab.experiments.latent.config import GeneratorConfig
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lowrank import restore_structure


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint of a run, or of a safetensors file.

    Of a generator those of its averaged copy, which is the one that is shown and scored.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind.
    """
    if path.suffix != ".safetensors":
        saved = load_checkpoint(path)["training"]
        if "average" in saved:
            return _averaged(saved)
        weights: dict[str, Tensor] = saved["model"]
        return weights
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; need a checkpoint.pt or a safetensors file")
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); write it again with "
            "orthotrain.save"
        ) from error


def read_network(path: Path) -> nn.Module:
    """The trained network of a run's checkpoint, low-rank layers as they were.

    Raises:
        CheckpointError: The file is missing, damaged, or from another kind of network.
    """
    saved = load_checkpoint(path)
    if saved["network"].get("family") == "latent":
        raise CheckpointError(
            f"{path} holds a generator, need a classifier; read_generator gives it back"
        )
    model = network_from(saved["network"])
    weights = saved["training"]["model"]
    restore_structure(model, weights)
    model.load_state_dict(weights)
    return model


def read_generator(path: Path) -> Generator:
    """The averaged generator of a run's checkpoint, in evaluation mode.

    Raises:
        CheckpointError: The file is missing, damaged, or not of a run of generators.
    """
    saved = load_checkpoint(path)
    described = saved["network"]
    if described.get("family") != "latent":
        raise CheckpointError(
            f"{path} holds a classifier, need a generator; read_network gives it back"
        )
    random = torch.Generator().manual_seed(0)
    model = GeneratorConfig(**described["model"])
    generator, _ = build_players(model, shape=tuple(described["shape"]), generator=random)
    generator.load_state_dict(_averaged(saved["training"]))
    return generator.requires_grad_(False).eval()


def _averaged(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of the averaged copy, under the names they have in the generator."""
    prefix = "module."
    return {
        name.removeprefix(prefix): value
        for name, value in saved["average"].items()
        if name.startswith(prefix)
    }
