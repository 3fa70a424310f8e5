"""``orthotrain compress``: truncate a trained checkpoint to low rank."""

from __future__ import annotations

from pathlib import Path

from orthotrain.cli.command import Command
from orthotrain.cli.places import require_place
from orthotrain.errors import CheckpointError


def run_compress(command: Command) -> int:
    """Write the truncated model as safetensors and print what it stores."""
    source = Path(command.arguments.checkpoint)
    output = Path(command.arguments.output)
    if source.suffix == ".safetensors":
        raise CheckpointError(
            f"compress: {source} holds weights but not the network they belong to; give the "
            "checkpoint.pt of a run folder, or call orthotrain.compress(model, ...) in Python"
        )

    require_place(output, read=source)

    from orthotrain.lab.run.restore import read_network
    from orthotrain.lowrank import compress, read_rule, save

    rule = read_rule(command.arguments.rank)
    model = read_network(source)
    before = _stored(model.state_dict())
    compress(model, rank=rule)
    after = _stored(model.state_dict())
    save(model, output)
    print(f"{output}: {after:,} numbers stored, {100 * after / before:.1f} % of {before:,}")
    return 0


def _stored(state: dict[str, object]) -> int:
    from torch import Tensor

    return sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))
