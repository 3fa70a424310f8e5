"""``orthotrain inspect``: what a file of weights holds, and what low-rank weights could save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from orthotrain.cli.command import Command
from orthotrain.cli.places import require_place
from orthotrain.cli.reading import is_run
from orthotrain.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from orthotrain.lowrank.state_dicts import StoredModel, Survey
    from orthotrain.lowrank.state_dicts.survey import BudgetSurvey, WeightSurvey


def run_inspect(command: Command) -> int:
    """Print one line per weight, the totals at budgets, and what stays as it is."""
    given = command.arguments
    path = Path(given.file)
    if given.picture is not None and Path(given.picture).suffix.lower() != ".png":
        raise ConfigError(
            f"--picture {given.picture}: a PNG is written; name it "
            f"{Path(given.picture).with_suffix('.png').name}"
        )
    outputs = [Path(output) for output in (given.json, given.picture) if output is not None]
    for output in outputs:
        require_place(output, read=path)
    if given.picture is not None:
        from orthotrain.extras import optional_module

        optional_module("inspect --picture", "matplotlib", package="matplotlib")

    from orthotrain.cli.progress import shown_layers
    from orthotrain.files import write_atomically
    from orthotrain.lowrank.state_dicts.survey import surveyed

    stored, owners = _read(path, given.key)
    for output in outputs:  # a folder has several files
        for file in stored.files:
            require_place(output, read=file)
    found = surveyed(
        stored, also=given.also, max_aspect=given.max_aspect, owners=owners,
        on_progress=shown_layers(sum(t.numel() for t in stored.tensors.values())),
    )  # fmt: skip
    print(table_of(found, network=bool(owners)))
    if given.json is not None:
        write_atomically(given.json, f"{json.dumps(found.to_dict(), indent=2)}\n".encode())
        print(f"numbers: {Path(given.json).resolve()}")
    if given.picture is not None:
        from orthotrain.cli.picture import draw_survey

        write_atomically(given.picture, draw_survey(found))
        print(f"picture: {Path(given.picture).resolve()}")
    return 0


def _read(path: Path, key: str | None) -> tuple[StoredModel, dict[str, nn.Module]]:
    """The weights of a file, and the modules by name where it is the checkpoint of a run."""
    from orthotrain.lowrank.state_dicts import StoredModel, read_any

    if not is_run(path, key=key):
        return read_any(path, key=key), {}
    from orthotrain.lab.run.restore import read_weights

    stored = StoredModel(read_weights(path), str(path), (path,), "checkpoint of a run")
    return stored, _modules_of(path)


def _modules_of(path: Path) -> dict[str, nn.Module]:
    """The modules of the network whose checkpoint a file is, by name."""
    from orthotrain.lab.run.restore import read_network

    try:
        return dict(read_network(path).named_modules(remove_duplicate=False))
    except CheckpointError as error:
        print(f"weights alone, so a convolution with groups is read as one matrix: {error}")
        return {}


def table_of(found: Survey, *, network: bool) -> str:
    """What was found, as it is printed; ``network`` where the modules were known, too."""
    shares = (f"{100 * at.energy:g} % energy" for w in found.weights[:1] for at in w.at)
    headings = ("layer", "kind", "shape", "rank", "stored", "condition", *shares, "pays up to", "")
    cut = [weight for weight in found.weights if not weight.stays]
    outside = found.stored - sum(weight.stored for weight in cut)
    return "\n".join(
        [
            found.source,
            *_aligned([headings, *map(_row, found.weights)]),
            f"{found.stored:,} numbers stored ({_size(found.bytes)}), {outside:,} of them stay",
            *(_totals(found, network) if cut else ["no weight here can be low-rank"]),
            *_left(found),
        ]
    )


def _totals(found: Survey, network: bool) -> list[str]:
    """What budgets would leave, and how far the numbers can be trusted."""
    of = f", as a share of the {found.dense:,} numbers of the dense form"
    lines = ["", "what a budget would leave" + of * (found.dense != found.stored)]
    lines += _aligned([_BUDGET_HEADINGS, *map(_line, found.budgets)])
    lines += [f"{100 * b.share:.0f} %: {b.problem}" for b in found.budgets if b.problem][:1]
    lines.append(
        "Energy is that of the weights, without data: measure a smaller model before you use it."
    )
    if not network and any(weight.kind == "conv" for weight in found.weights):
        lines.append("Convolutions are read without groups: names and shapes do not tell them.")
    return lines


_BUDGET_HEADINGS = ("budget", "stored", "bytes", "layers cut", "energy kept", "least energy kept")


def _row(weight: WeightSurvey) -> tuple[str, ...]:
    tied = f" (tied: {', '.join(weight.aliases)})" if weight.aliases else ""
    return (
        weight.name + tied,
        weight.kind,
        weight.shape,
        f"{weight.rank}/{weight.full_rank}",
        f"{weight.stored:,}",
        _condition(weight),
        *(
            f"{at.rank}: {f'{at.stored:,}' if at.stored < weight.stored else 'as it is'}"
            for at in weight.at
        ),
        f"{weight.break_even_rank}",
        "stays" if weight.stays else "",
    )


def _condition(weight: WeightSurvey) -> str:
    if weight.condition is not None:
        return f"{weight.condition:.3g}"
    return "singular" if weight.dtype == "float64" else "over 4e6"


def _line(budget: BudgetSurvey) -> tuple[str, ...]:
    name = f"{100 * budget.share:.0f} %"
    if budget.stored is None or budget.bytes is None:
        return (name, "out of reach", "", "", "", "")
    kept, worst = budget.kept, budget.worst_kept
    return (
        name,
        f"{budget.stored:,}",
        _size(budget.bytes),
        f"{budget.cut}",
        "" if kept is None else f"{100 * kept:.1f} %",
        "" if worst is None else f"{100 * worst:.1f} % ({budget.worst})",
    )


def _left(found: Survey) -> list[str]:
    """Every tensor that stays, by reason; vectors are counted."""
    from orthotrain.lowrank.state_dicts.weights import VECTOR

    lines = ["", "left as they are"] if found.left else []
    for reason, each in found.left_by_reason.items():
        numbers = f"{sum(one.numbers for one in each):,} numbers"
        names = ", ".join(one.name for one in each)
        lines.append(f"  {reason} ({numbers}): {len(each) if reason == VECTOR else names}")
    return lines


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
