"""What rank maintenance costs in a finished run: at most 1 % of the default CIFAR-10 run.

Reads a run folder: the seconds of every update (decompositions, rank decisions, optimizer
state) against the seconds of the whole training they belong to.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from _measure import report, verdict

TARGET_PERCENT = 1.0
DEFAULT_RUN = Path("runs/cifar10-minivit-cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help=f"run folder (default: {DEFAULT_RUN})")
    named = parser.parse_args().run
    run = named or DEFAULT_RUN
    results = sorted(run.glob("variants/*/seed-*/result.json"))
    if not results:
        advice = (
            f"{run} holds no finished training; run `orthotrain train cifar10-minivit "
            f"--scale cpu --run-dir {run}` first, or name another run folder"
        )
        if named is not None:
            parser.error(advice)
        # `orthotrain bench` runs every script, also where nothing was trained yet.
        print(f"rank maintenance was not measured: {advice}")
        return
    rows = []
    for path in results:
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        updates = [e["seconds"] for e in events if e.get("event") == "update"]
        if updates:
            whole = json.loads(path.read_text())["seconds"]
            percent = 100 * sum(updates) / whole
            name = f"{path.parent.parent.name}, {path.parent.name}"
            rows.append(
                (name, len(updates), f"{sum(updates):.2f}", f"{whole:.1f}", f"{percent:.2f}",
                 verdict(percent, TARGET_PERCENT))
            )  # fmt: skip
    report(
        f"Rank maintenance in {run}",
        ("training", "updates", "their seconds", "all seconds", "percent", "target"),
        rows,
    )


if __name__ == "__main__":
    main()
