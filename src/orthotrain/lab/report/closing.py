"""The table that ends the output of ``orthotrain train``: a few columns of the run's own page."""

from __future__ import annotations

from pathlib import Path

from orthotrain.lab.report.load import load_run
from orthotrain.lab.report.page_of import page_of


def closing_table(folder: Path) -> str:
    """One line per variant: means and standard deviations over its finished seeds.

    Args:
        folder: A run folder.

    Returns:
        Lines of aligned text, the column titles first.

    Raises:
        ConfigError, DataError: As :func:`load_run`.
    """
    run = load_run(folder)
    page, _ = page_of(run)
    titles = ["variant", *(variant.title for variant in run.variants)]
    cells = {
        key: [row[i].shown for row in table.rows[: len(run.variants)]]
        for table in (declared.table(run) for declared in page.results)
        for i, key in enumerate(table.keys)
    }
    found = [(title, cells[key]) for key, title in page.closing.items() if cells.get(key)]
    columns = [titles, *([title, *shown] for title, shown in found)]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(
            (cell.rjust(width) if i else cell.ljust(width))
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in zip(*columns, strict=True)
    )
