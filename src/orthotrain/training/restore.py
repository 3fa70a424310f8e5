"""From a checkpoint file back to tensors or to a network."""

from __future__ import annotations

from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotrain.errors import CheckpointError
from orthotrain.lowrank.surgery import restore_structure
from orthotrain.training.checkpoint import load_checkpoint
from orthotrain.training.networks import network_from


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint of a run, or of a safetensors file.

    Raises:
        CheckpointError: The file is missing, damaged or of another kind.
    """
    if path.suffix != ".safetensors":
        weights: dict[str, Tensor] = load_checkpoint(path)["training"]["model"]
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
    model = network_from(saved["network"])
    weights = saved["training"]["model"]
    restore_structure(model, weights)
    model.load_state_dict(weights)
    return model
