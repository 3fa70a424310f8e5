"""Paired differences between any two variants of a kept table of seeds.

A page compares what its experiment declares. This prints any other pair from the same file:
``python benchmarks/seed_pairs.py benchmarks/results/stdlib_gpt_cpu_seeds.csv branch-50-20
narrow-50-teacher``. Intervals are 95 %, Student's t over the seeds that both have.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

from scipy import stats


def values(table: Path, variant: str, column: str) -> dict[str, float]:
    """The column of one variant, by seed."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {row["seed"]: float(row[column]) for row in rows if row["variant"] == variant}
    if not found:
        known = ", ".join(dict.fromkeys(row["variant"] for row in rows))
        raise SystemExit(f"{table} has no variant {variant!r}; it has {known}")
    return found


def paired(ours: dict[str, float], other: dict[str, float]) -> tuple[float, float, list[float]]:
    """Mean difference, half its 95 % interval, and the difference of each seed."""
    seeds = sorted(ours.keys() & other.keys())
    if len(seeds) < 2:
        raise SystemExit(
            f"two seeds in common are needed; given {sorted(ours)} and {sorted(other)}"
        )
    differences = [ours[seed] - other[seed] for seed in seeds]
    spread = statistics.stdev(differences) / len(seeds) ** 0.5
    return statistics.mean(differences), stats.t.ppf(0.975, len(seeds) - 1) * spread, differences


def cost(table: Path, variant: str) -> float:
    """Mean compute of a variant's seeds."""
    return statistics.mean(values(table, variant, "compute").values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("pair", nargs="+", help="variants, two by two: ours, the other")
    parser.add_argument("--measure", default="test_bits")
    arguments = parser.parse_args()
    if len(arguments.pair) % 2:
        parser.error("variants come two by two: ours, the other")
    for ours, other in zip(arguments.pair[::2], arguments.pair[1::2], strict=True):
        mine, theirs = (values(arguments.table, name, arguments.measure) for name in (ours, other))
        mean, half, differences = paired(mine, theirs)
        each = ", ".join(f"{d:+.3f}" for d in differences)
        ratio = cost(arguments.table, ours) / cost(arguments.table, other)
        print(f"{ours} - {other}: {mean:+.3f} +- {half:.3f} ({each}); compute {ratio:.3f}")


if __name__ == "__main__":
    main()
