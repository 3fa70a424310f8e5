"""``orthotrain report``: one page about one or several runs."""

from __future__ import annotations

from pathlib import Path

from orthotrain.cli.command import Command
from orthotrain.cli.places import require_no_run


def run_report(command: Command) -> int:
    """Write the page and print where it is."""
    from orthotrain.lab.report import write_report

    output = command.arguments.output
    if output is not None:
        require_no_run(Path(output))
    page = write_report(
        [Path(run) for run in command.arguments.runs], None if output is None else Path(output)
    )
    print(f"report: {page.resolve()}")
    return 0
