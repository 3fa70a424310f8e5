"""Compare what two run folders hold, bit for bit, times and descriptions of the machine apart.

    python scripts/compare_runs.py BEFORE AFTER [--rename none=baseline] [--settings]

Every training of BEFORE must be in AFTER with the same weights and state in its checkpoint, the
same lines in metrics.jsonl, the same samples and the same result.json. Ends with status 1 where one
differs and names what differs. Settings in result.json are compared on request: their form may
change where no number does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# What a clock or the machine's memory decides.
TIMES = frozenset(
    {
        "seconds", "step_ms", "step_ms_final", "step_ms_dense_phase", "peak_rss_bytes", "shares",
        "metrics_size",
    }
)  # fmt: skip


def main() -> int:
    """Compare two folders and say how many trainings are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rename", nargs="*", default=[], metavar="OLD=NEW", help="variants")
    parser.add_argument(
        "--settings", action="store_true", help="compare the settings in result.json, too"
    )
    parser.add_argument(
        "--grown", action="store_true", help="what AFTER records besides is no difference"
    )
    arguments = parser.parse_args()
    renamed = dict(pair.split("=") for pair in arguments.rename)
    skipped = TIMES if arguments.settings else TIMES | {"settings"}
    wrong = values = 0
    places = sorted(arguments.before.glob("variants/*/seed-*"))
    for place in places:
        variant = place.parent.name
        variant = "-".join(renamed.get(word, word) for word in variant.split("-"))
        other = arguments.after / "variants" / variant / place.name
        try:
            found = list(differences(place, other, skipped, {place.parent.name: variant}))
            if arguments.grown:
                found = [line for line in found if not line.endswith(" is new")]
            values += count(load(place / "checkpoint.pt"))
        except FileNotFoundError as error:
            found = [f"{error.filename} is missing"]
        wrong += bool(found)
        for line in found[:5]:
            print(f"{other}: {line}")
    print(
        f"{arguments.after}: {len(places) - wrong} of {len(places)} trainings equal bit for bit "
        f"({values:,} numbers in checkpoints)"
    )
    return int(wrong > 0 or not places)


def differences(
    before: Path, after: Path, skipped: frozenset[str], renamed: dict[str, str]
) -> Iterator[str]:
    """What differs between two trainings, one line each."""
    results = [json.loads((place / "result.json").read_text()) for place in (before, after)]
    results[0]["variant"] = renamed.get(results[0]["variant"], results[0]["variant"])
    yield from unlike(results[0], results[1], "result.json", skipped)
    lines = [(place / "metrics.jsonl").read_text().splitlines() for place in (before, after)]
    if len(lines[0]) != len(lines[1]):
        yield f"metrics.jsonl has {len(lines[1])} lines, {len(lines[0])} before"
    for number, (old, new) in enumerate(zip(*lines, strict=False), start=1):
        yield from unlike(json.loads(old), json.loads(new), f"metrics.jsonl line {number}", skipped)
    states = [load(place / "checkpoint.pt")["training"] for place in (before, after)]
    yield from unlike(states[0], states[1], "checkpoint", skipped)
    for name in ("samples", "traversals.npz", "evaluation.json"):
        old, new = before / name, after / name
        files = sorted(old.glob("*")) if old.is_dir() else [old] if old.exists() else []
        for file in files:
            other = new / file.name if old.is_dir() else new
            if not other.exists() or file.read_bytes() != other.read_bytes():
                yield f"{file.name} differs"


def load(path: Path) -> Any:
    """A checkpoint."""
    return torch.load(path, map_location="cpu", weights_only=True)


def unlike(old: Any, new: Any, name: str, skipped: frozenset[str]) -> Iterator[str]:
    """Paths at which two trees of plain values and tensors differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new} - skipped, key=str):
            if key in old and key in new:
                yield from unlike(old[key], new[key], f"{name}.{key}", skipped)
            else:
                yield f"{name}.{key} is {'new' if key in new else 'gone'}"
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            yield f"{name} has {len(new)} entries, {len(old)} before"
        for index, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from unlike(one, other, f"{name}[{index}]", skipped)
    elif not same(old, new):
        yield (
            f"{name} is {new!r}, {old!r} before"
            if isinstance(old, str | int)
            else f"{name} differs"
        )


def same(old: Any, new: Any) -> bool:
    """Equal to the last bit; a NaN is equal to itself."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        bits = [tensor.contiguous().numpy().tobytes() for tensor in (old, new)]
        return old.dtype == new.dtype and old.shape == new.shape and bits[0] == bits[1]
    return bool(old == new)


def count(tree: Any) -> int:
    """Numbers in all tensors of a tree."""
    if isinstance(tree, torch.Tensor):
        return tree.numel()
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(count(part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
