"""Writes ``docs/claims.md``: every claim of the papers and of this library beside its record.

    python scripts/ledger.py            writes the page
    python scripts/ledger.py --check    says whether the page is that of the records

The rows are in ``ledger_rows.py``. A row names a claim, a place in a kept record, and the figure
that was published. The page's figures and verdicts are read from the records.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ledger_records import RESULTS, ROOT, Found, Selector

from orthotrain.lab.report.stats import MIN_SEEDS

PAGE: Final = ROOT / "docs" / "claims.md"
# How a claim is worded decides what a difference has to be: a gain has to show, and of a claim that
# nothing is lost the opposite must not show.
Good = Literal["less", "more", "no less", "no more"]


@dataclass(frozen=True)
class Record:
    """What a run was.

    Attributes:
        scale: Network, data and length.
        command: What made it.
        decide: With fewer seeds than this nothing is decided.
    """

    scale: str
    command: str
    decide: int = MIN_SEEDS


@dataclass(frozen=True)
class Row:
    """One claim on one record.

    Attributes:
        claim: In words.
        figure: Where ours is.
        good: Which direction the claim says.
        published: What was published, from the papers and the authors' code and figures.
        scale: Where the record is not a run that is described once.
    """

    claim: str
    figure: Selector
    good: Good
    published: str = ""
    scale: str = ""


@dataclass(frozen=True)
class Section:
    """The claims of one source.

    Attributes:
        title: Heading.
        note: Under it.
        rows: In the order of the page.
    """

    title: str
    note: str
    rows: Sequence[Row]


VERDICTS: Final = (
    "holds",
    "no loss seen",
    "does not hold",
    "not decided",
    "too few seeds",
    "not run",
)


def verdict(found: Found | None, good: Good, *, decide: int = MIN_SEEDS) -> str:
    """By the one rule: the interval has to exclude what there would be without an effect."""
    if found is None:
        return "not run"
    if found.seeds is not None and found.seeds < decide:
        return "too few seeds"
    below, above = found.high < found.neutral, found.low > found.neutral
    if found.low == found.high == found.neutral:
        return "holds" if good.startswith("no ") else "does not hold"
    if good in ("less", "no more"):
        better, worse = below, above
    else:
        better, worse = above, below
    if better:
        return "holds"
    if worse:
        return "does not hold"
    return "no loss seen" if good.startswith("no ") else "not decided"


def page(sections: Sequence[Section], records: dict[str, Record], folder: Path = RESULTS) -> str:
    """The page as text.

    Args:
        sections: The claims.
        records: What the runs were, by stem of their files.
        folder: Where the records are.

    Raises:
        DataError: A record does not have what a row names.
    """
    lines, counts = [], Counter[str]()
    for section in sections:
        lines += [f"\n## {section.title}\n", f"{section.note}\n"]
        lines += ["| claim | published | ours | compared with | scale | verdict | record |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in section.rows:
            record = records.get(row.figure.record)
            found = row.figure.find(folder)
            said = verdict(found, row.good, decide=record.decide if record else MIN_SEEDS)
            counts[said] += 1
            cells = (
                row.claim,
                row.published or "none",
                found.text if found else "not run",
                found.control if found else "",
                row.scale or (record.scale if record else ""),
                said,
                _name(row.figure),
            )
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    told = ", ".join(f"{word} {counts[word]}" for word in VERDICTS)
    return "\n".join([_HEAD.format(count=sum(counts.values()), told=told), *lines, *_commands(
        sections, records, folder
    )]) + "\n"  # fmt: skip


def _name(figure: Selector) -> str:
    return f"`{figure.record}`"


def _commands(sections: Sequence[Section], records: dict[str, Record], folder: Path) -> list[str]:
    lines = ["\n## Commands\n", "| record | command |", "|---|---|"]
    done = set()
    for figure in (row.figure for section in sections for row in section.rows):
        record = records.get(figure.record)
        command = record.command if record else figure.command(folder)
        if command and (line := f"| {_name(figure)} | `{command}` |") not in done:
            done.add(line)
            lines.append(line)
    return lines


_HEAD: Final = """# The ledger of claims

What the three papers say, and what this library says of itself, each beside a record of a run.
`python scripts/ledger.py` writes this page out of the tables in `benchmarks/results`. A test holds
it to them. Do not edit it by hand.

**{count} rows: {told}.**

- **Published** is what the papers, the authors' code or their figures give. *None* means that no
  number was available.
- **Ours** is our mean against that of the control, then the difference or ratio with its interval.
  Over seeds this is the 95 % interval of Student's t, paired by seed unless the row says otherwise.
  Timings have the median and the middle half of their rounds.
- **Verdict** is by one rule. A gain *holds* where the interval excludes "no effect" on the claimed
  side. It *does not hold* where the interval excludes it on the other side. Otherwise it is *not
  decided*. The claim that nothing is lost is *no loss seen* where the interval contains zero. Its
  worse end is a loss that these seeds do not exclude.
- Fewer than three seeds decide nothing, for generators fewer than five. About one row in twenty
  without any effect gets a verdict by chance.
- *Not run* means that there is no kept record yet."""


def main(arguments: Sequence[str]) -> int:
    from ledger_rows import SECTIONS
    from ledger_runs import RECORDS

    text = page(SECTIONS, RECORDS)
    if "--check" in arguments:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.name} is {'that of the records' if same else 'another; run this again'}")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
