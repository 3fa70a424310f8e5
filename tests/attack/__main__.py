"""All attacks, and the table of what became of them."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from attack.counts import TABLE


def main(options):
    """Run the attacks with these options of pytest; give its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.jsonl"
        table.touch()
        os.environ[TABLE] = str(table)
        status = pytest.main(["-q", "-n", "0", "-m", "", str(Path(__file__).parent), *options])
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    print("\n| attack | number | outcomes |\n|---|---|---|")  # noqa: T201
    for row in rows:
        attack = row.pop("attack")
        outcomes = ", ".join(f"{count} {name}" for name, count in row.items())
        print(f"| {attack} | {sum(row.values())} | {outcomes} |")  # noqa: T201
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
