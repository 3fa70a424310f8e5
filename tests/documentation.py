"""The pages of the documentation and the code that they show."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> str:
    """The fenced Python of a page, padded so that line numbers are those of the page."""
    kept, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        kept.append(line if inside and not fence else "")
        if fence:
            inside = not inside and line == "```python"
    return "\n".join(kept)


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows, fenced as "python NAME", by name."""
    return dict(re.findall(r"^```python (\S+)\n(.*?)^```$", page.read_text(), re.M | re.S))
