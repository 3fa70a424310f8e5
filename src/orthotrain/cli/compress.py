"""``orthotrain compress``: make a file of weights smaller."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orthotrain.cli.command import Command
from orthotrain.cli.places import require_place
from orthotrain.cli.reading import is_run
from orthotrain.errors import ConfigError

if TYPE_CHECKING:
    from orthotrain.lowrank import RankRule

# Names that promise another format than the one that is written.
_OTHER_FORMATS: Final = (".pt", ".pth", ".bin", ".ckpt")


def run_compress(command: Command) -> int:
    """Write the smaller model as safetensors and print what it stores."""
    given = command.arguments
    source, output = Path(given.file), Path(given.output)
    require_place(output, read=source)
    if output.suffix in _OTHER_FORMATS:
        raise ConfigError(
            f"--out {output}: safetensors are written, which no program expects under "
            f"{output.suffix}; name it {output.with_suffix('.safetensors').name}"
        )
    rule = _rule(given)
    if is_run(source, key=given.key):
        _compress_run(source, output, rule, given)
    else:
        _compress_file(source, output, rule, given)
    return 0


def _rule(given: Namespace) -> RankRule:
    from orthotrain.lowrank import StoredBudget, read_rule

    if given.stored_budget is not None:
        return StoredBudget(given.stored_budget)
    return read_rule(given.rank)


def _compress_file(source: Path, output: Path, rule: RankRule, given: Namespace) -> None:
    from orthotrain.cli.progress import shown_layers
    from orthotrain.lowrank.state_dicts import compress_state, read_any

    stored = read_any(source, key=given.key)
    for file in stored.files:
        require_place(output, read=file)
    made = compress_state(
        stored, rank=rule, form="dense" if given.dense else "factors", also=given.also,
        only=given.only, skip=given.skip, max_aspect=given.max_aspect,
        on_progress=shown_layers(sum(t.numel() for t in stored.tensors.values())),
    )  # fmt: skip
    made.save(output)
    print(stored)
    print(made.report)
    if given.dense:
        print(
            f"{output}: every name and shape as before, weights of the ranks above; as two factors "
            f"they would hold {made.report.stored:,} numbers"
        )
        return
    _say(output, made.report.stored, made.report.stored_before)


def _compress_run(source: Path, output: Path, rule: RankRule, given: Namespace) -> None:
    """The checkpoint of a run, whose network can be built again."""
    from orthotrain.lab.run.restore import read_network
    from orthotrain.lowrank import compress, save, to_dense

    model = read_network(source)
    before = _stored(model.state_dict())
    compress(
        model, rank=rule, only=given.only, skip=given.skip, also=given.also,
        max_aspect=given.max_aspect,
    )  # fmt: skip
    after = _stored(model.state_dict())
    save(to_dense(model) if given.dense else model, output)
    _say(output, after, before)


def _say(output: Path, after: int, before: int) -> None:
    print(f"{output}: {after:,} numbers stored, {100 * after / before:.1f} % of {before:,}")


def _stored(state: dict[str, object]) -> int:
    from torch import Tensor

    return sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))
