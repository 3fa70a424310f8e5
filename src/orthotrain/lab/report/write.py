"""One self-contained HTML page from run folders, and its figures and tables as files beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from orthotrain.errors import ConfigError
from orthotrain.files import remedy, write_atomically
from orthotrain.lab.report.claims import HOW_TO_READ, Answer, answer
from orthotrain.lab.report.load import Run, load_run
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.page_of import page_of
from orthotrain.lab.report.rows import text
from orthotrain.lab.report.settings import environment_table, settings_table
from orthotrain.lab.report.style import LIGHT, THEMES, Plot, styled, to_png
from orthotrain.lab.report.tables import (
    Table,
    TableOf,
    compared_table,
    given,
    without_constants,
)


@dataclass(frozen=True)
class Picture:
    """A figure as drawn.

    Attributes:
        plot: What it shows.
        images: Name of the theme, name of the file, and address of each drawing; none where there
            is nothing to draw.
    """

    plot: Plot
    images: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Section:
    """One run as the template reads it.

    Attributes:
        run: The run.
        facts: Where and when it was made.
        notes: What is missing.
        answers: The claims, each with its comparisons as a table.
        results: The first tables, one box each.
        links: Files beside the page.
        lead: The figures above the first table.
        pictures: The other figures.
        cards: Title, tables and note of each further box.
        details: Tables behind tabs.
    """

    run: Run
    facts: str
    notes: Sequence[str]
    answers: Sequence[tuple[Answer, Table]]
    results: Sequence[Table]
    links: Sequence[str]
    lead: Sequence[Picture]
    pictures: Sequence[Picture]
    cards: Sequence[tuple[str, Sequence[Table], str]]
    details: Sequence[Table]

    @property
    def tables(self) -> Sequence[Table]:
        """Every table that becomes a CSV file."""
        return [*self.results, *(t for _, tables, _ in self.cards for t in tables), *self.details]


def write_report(run_dirs: Sequence[Path], out_dir: Path | None = None) -> Path:
    """Write ``index.html`` with the figures as PNG and the tables as CSV beside it.

    The page holds everything it shows and asks the network for nothing. Files of one run are
    named ``curves.png``; of several, ``<run>-curves.png``. A ``-dark`` file is the same
    figure for dark mode.

    Args:
        run_dirs: Folders that ``orthotrain train`` wrote, finished or not, or files of
            ``JsonlWriter``; one section each.
        out_dir: Where to write. Defaults to ``report`` in the run, or beside the first of several
            and beside a file.

    Returns:
        Path of ``index.html``.

    Raises:
        ConfigError: No folder was given, ``out_dir`` cannot be written, or a ``run.json`` is no
            run description.
        DataError: A folder is no run, or one of its records is broken.
    """
    paths = [Path(path) for path in run_dirs]
    if not paths:
        raise ConfigError("report needs at least one run folder; got none. Give 'runs/<name>'.")
    runs = [load_run(path, slug=slug) for path, slug in zip(paths, _slugs(paths), strict=True)]
    alone = len(runs) == 1
    inside = alone and paths[0].is_dir()
    default = (paths[0] if inside else paths[0].resolve().parent) / "report"
    folder = default if out_dir is None else Path(out_dir)
    files: dict[str, bytes] = {}
    sections = [_section(run, "" if alone else f"{run.slug}-", files) for run in runs]
    _write_all(folder, {**files, "index.html": _html(sections).encode(errors="backslashreplace")})
    return folder / "index.html"


def _slugs(paths: Sequence[Path]) -> list[str]:
    """A unique, file-safe name for each run: its folder's name, numbered where taken."""
    taken: list[str] = []
    for path in paths:
        stem = re.sub(r"[^\w.-]+", "-", path.resolve().name) or "run"
        slug, count = stem, 2
        while slug in taken:
            slug, count = f"{stem}-{count}", count + 1
        taken.append(slug)
    return taken


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write every file, each as a whole; the page last, so that it never points to nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise ConfigError(
            f"report could not write into {folder} ({error}); {remedy(error)}. Another folder can "
            "be given with --output."
        ) from error


def _section(run: Run, prefix: str, files: dict[str, bytes]) -> Section:
    """One run for the template; its figures, tables and further files are added to ``files``."""
    page, notes = page_of(run)
    more = {f"{prefix}{name}": content for name, content in page.files(run).items()}
    section = Section(
        run,
        _facts(run),
        [*notes, *run.notes, *page.missing(run)],
        _answers(run, page),
        _tables(run, page.results),
        tuple(more),
        [_draw(figure.plot(run, page.look), prefix, files) for figure in page.lead],
        [_draw(figure.plot(run, page.look), prefix, files) for figure in given(page.figures, run)],
        [
            (card.title, [t for t in _tables(run, card.tables) if t.rows], card.note)
            for card in given(page.cards, run)
        ],
        [*_tables(run, page.details), *_origin(run)],
    )
    files.update(
        (f"{prefix}{t.name}.csv", t.csv().encode(errors="backslashreplace"))
        for t in section.tables
        if t.rows
    )
    files.update(more)
    return section


def _origin(run: Run) -> list[Table]:
    """How a run was made; a file of one training does not tell."""
    return [settings_table(run), environment_table(run)] if run.info else []


def _tables(run: Run, declared: Sequence[TableOf]) -> list[Table]:
    return [one.table(run) for one in declared]


def _answers(run: Run, page: Page) -> list[tuple[Answer, Table]]:
    """What can be answered: claims of which nothing was run are left out."""
    if not any(variant.finished for variant in run.variants):
        return []
    derived = page.derived(run)
    answers = [answer(run, claim, derived=derived) for claim in given(page.claims, run)]
    return [
        (
            found,
            without_constants(
                compared_table(found.compared, decide=found.claim.decide),
                ("variant", "compared_with", "measure"),
            ),
        )
        for found in answers
        if found.compared
    ]


def _draw(plot: Plot, prefix: str, files: dict[str, bytes]) -> Picture:
    images = []
    for theme in THEMES if plot.draw is not None else ():
        with styled(theme):
            assert plot.draw is not None
            image = to_png(plot.draw(theme))
        name = f"{prefix}{plot.name}{'' if theme is LIGHT else '-' + theme.name}.png"
        files[name] = image
        address = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        images.append((theme.name, name, address))
    return Picture(plot, tuple(images))


def _facts(run: Run) -> str:
    said = [
        f"{label} {value}".strip()
        for label, value in (
            ("scale", text(run.info, "scale")),
            ("on", text(run.info, "device")),
            ("torch", text(run.info, "torch")),
            ("made", text(run.info, "created")),
            ("commit", text(run.info, "git_commit")[:10]),
        )
        if value
    ]
    changed = " with uncommitted changes" if run.info.get("git_dirty") is True else ""
    return " · ".join(said) + changed


def _html(sections: Sequence[Section]) -> str:
    folder = resources.files("orthotrain.lab.report")
    page, css, js = (
        (folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(page)
    return template.render(sections=sections, how_to_read=HOW_TO_READ, css=css, js=js) + "\n"
