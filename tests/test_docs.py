"""The Python blocks of the pages run as they stand, one page in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

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


WITH_CODE = [page for page in PAGES if python_blocks(page).strip()]


def test_the_pages_that_promise_code_have_it():
    promised = (
        *("oialr", "roots", "whitening", "pooling", "nog", "olr", "orthogonal_weights"),
        *("conditioning", "rank_rule", "write_a_method"),
    )
    pages = {"README.md", *(f"{name}.md" for name in promised)}
    assert pages <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_page_runs(page):
    with torch.random.fork_rng(devices=[]):
        # The page stands alone: the future imports of this file are not its own.
        code = compile(python_blocks(page), str(page), "exec", dont_inherit=True)
        exec(code, {"__name__": "page"})


def test_blocks_are_found_between_fences(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n```text\nno\n```\n```python\nx = 1\n```\nno\n```python\ny = 2\n```\n")
    assert re.split(r"\n+", python_blocks(page).strip()) == ["x = 1", "y = 2"]
