"""One self-contained HTML page from run folders, and its figures and tables as files beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final

from orthotrain.errors import ConfigError
from orthotrain.files import write_atomically
from orthotrain.lab.report.family import Family, family_of
from orthotrain.lab.report.findings import Finding
from orthotrain.lab.report.load import Run, load_run
from orthotrain.lab.report.rows import text
from orthotrain.lab.report.style import LIGHT, THEMES, Plot, styled, to_png
from orthotrain.lab.report.tables import Cell, Table

_NOTHING_SHOWN: Final = "<p>Nothing yet: no variant has a finished seed to compare.</p>"


@dataclass(frozen=True)
class _Picture:
    """A figure as drawn, or its plot alone where there is nothing to draw."""

    plot: Plot
    images: tuple[bytes, ...]


def write_report(run_dirs: Sequence[Path], out_dir: Path | None = None) -> Path:
    """Write ``index.html`` with the figures as PNG and the tables as CSV beside it.

    The page holds everything it shows and asks the network for nothing. Files of one run are
    named ``accuracy.png``; of several, ``<run>-accuracy.png``. A ``-dark`` file is the same
    figure for dark mode.

    Args:
        run_dirs: Folders that ``orthotrain train`` wrote, finished or not; one section each.
        out_dir: Where to write. Defaults to ``report`` in the run, or beside the first of several.

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
    default = paths[0] / "report" if alone else paths[0].resolve().parent / "report"
    folder = default if out_dir is None else Path(out_dir)
    files: dict[str, bytes] = {}
    sections = []
    for run in runs:
        prefix = "" if alone else f"{run.slug}-"
        pictures = _draw(run)
        tables = family_of(run).tables(run)
        files.update(_pictures_as_files(pictures, prefix))
        files.update((f"{prefix}{t.name}.csv", t.csv().encode()) for t in tables if t.rows)
        more = {f"{prefix}{name}": content for name, content in family_of(run).files(run).items()}
        files.update(more)
        sections.append(_section(run, pictures, tables, prefix, links=tuple(more)))
    page = _page(runs, sections)
    _write_all(folder, {**files, "index.html": page.encode()})
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
            f"report could not write into {folder}: {error.strerror}. Free some space, mend the "
            "permissions, or give another output folder."
        ) from error


def _draw(run: Run) -> list[_Picture]:
    pictures = []
    for plot in family_of(run).plots(run):
        images = []
        for theme in THEMES if plot.draw is not None else ():
            with styled(theme):
                assert plot.draw is not None
                images.append(to_png(plot.draw(theme)))
        pictures.append(_Picture(plot, tuple(images)))
    return pictures


def _pictures_as_files(pictures: Sequence[_Picture], prefix: str) -> dict[str, bytes]:
    return {
        f"{prefix}{picture.plot.name}{'' if theme is LIGHT else '-' + theme.name}.png": image
        for picture in pictures
        for theme, image in zip(THEMES, picture.images, strict=False)
    }


def _section(
    run: Run,
    pictures: Sequence[_Picture],
    tables: Sequence[Table],
    prefix: str,
    *,
    links: Sequence[str],
) -> str:
    family = family_of(run)
    shown = {table.name: _table_html(table, family) for table in tables}
    parts = [
        f'<section class="run" id="{escape(run.slug)}">',
        f"<h2>{escape(text(run.info, 'recipe', run.slug))} <small>{escape(run.slug)}</small></h2>",
        f'<p class="facts">{escape(_facts(run))}</p>',
        _missing_card([*run.notes, *family.missing(run)]),
        _findings_card(family.findings(run), family.small_print),
        _card("Results", [shown[name] for name in family.results], family.results_note, run),
        *(f'<p><a href="{escape(name)}">{escape(name)}</a></p>' for name in links),
        *(_figure_html(picture, prefix) for picture in pictures),
        *(
            _card(
                card.title, [shown[name] for name in card.tables if name in shown], card.note(run)
            )
            for card in family.cards
        ),
        _details(run, [(family.titles[name], shown[name]) for name in family.details]),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


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


def _list_html(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _card(title: str, tables: Sequence[str], note: str, run: Run | None = None) -> str:
    """Tables in one box; the first box also tells what the variants are."""
    first, *more = tables
    return (
        f'<div class="card"><h3>{escape(title)}</h3>{first}'
        + "".join(f'<div class="gap">{table}</div>' for table in more)
        + (f'<p class="small">{escape(note)}</p>' if note else "")
        + (_variant_notes(run) if run is not None else "")
        + "</div>"
    )


def _missing_card(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f'<div class="card missing"><h3>What is missing</h3>{_list_html(notes)}</div>'


def _findings_card(said: Sequence[Finding], small_print: str) -> str:
    blocks = "".join(
        f"<div><h4>{escape(finding.title)}</h4>{_verdict(finding)}{_list_html(finding.sentences)}"
        "</div>"
        for finding in said
    )
    return (
        '<div class="card"><h3>What this shows</h3>'
        f'<div class="findings">{blocks or _NOTHING_SHOWN}</div>'
        f'<p class="small">{escape(small_print)}</p></div>'
    )


def _verdict(finding: Finding) -> str:
    if not finding.verdict:
        return ""
    return f'<p class="verdict {finding.tone}">{escape(finding.verdict)}</p>'


def _variant_notes(run: Run) -> str:
    noted = [v for v in run.variants if v.note]
    items = "".join(f"<li><b>{escape(v.title)}</b>: {escape(v.note)}</li>" for v in noted)
    return f'<ul class="small gap">{items}</ul>' if items else ""


def _figure_html(picture: _Picture, prefix: str) -> str:
    plot = picture.plot
    if not picture.images:
        return (
            f'<div class="card missing"><h3>{escape(plot.title)}</h3>'
            f"<p>No figure: {escape(plot.missing)}</p></div>"
        )
    images = "".join(
        f'<img class="{theme.name}" data-file="{escape(prefix + plot.name)}'
        f'{"" if theme is LIGHT else "-" + theme.name}.png" alt="{escape(plot.alt or plot.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for theme, image in zip(THEMES, picture.images, strict=True)
    )
    return (
        f"<figure><h3>{escape(plot.title)}</h3>{images}"
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _details(run: Run, tables: Sequence[tuple[str, str]]) -> str:
    panels = list(tables)
    if run.config is not None:
        panels.append(("config.yaml", f"<pre>{escape(run.config)}</pre>"))
    buttons = "".join(
        f'<button type="button" role="tab">{escape(title)}</button>' for title, _ in panels
    )
    bodies = "".join(
        f'<div class="panel" role="tabpanel"><h4>{escape(title)}</h4>{body}</div>'
        for title, body in panels
    )
    return (
        f'<div class="card tabbed"><div class="tabs" role="tablist">{buttons}</div>{bodies}</div>'
    )


def _table_html(table: Table, family: Family) -> str:
    if not table.rows:
        return f"<p>{escape(family.empty[table.name])}</p>"
    numeric = [_is_numeric([row[i] for row in table.rows]) for i in range(len(table.head))]
    head = "".join(
        f"<th{_align(right)}>{escape(title)}</th>"
        for title, right in zip(table.head, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(_cell_html(cell, right) for cell, right in zip(row, numeric, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table data-name="{table.name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _is_numeric(cells: Sequence[Cell]) -> bool:
    return any(cell.spread is not None or cell.exact is not None for cell in cells)


def _cell_html(cell: Cell, right: bool) -> str:
    value = ""
    if cell.spread is not None and cell.spread:
        value = f' data-value="{cell.spread.mean!r}"'
    elif cell.exact is not None:
        value = f' data-value="{escape(cell.exact)}"'
    shown = escape(cell.shown)
    if right:
        shown = re.sub(r" (\([^()]*\))$", r"<br><small>\1</small>", shown)
    return f"<td{_align(right)}{value}>{shown}</td>"


def _align(right: bool) -> str:
    return ' class="n"' if right else ""


def _page(runs: Sequence[Run], sections: Sequence[str]) -> str:
    names = ", ".join(run.slug for run in runs)
    links = "".join(f'<a href="#{escape(r.slug)}">{escape(r.slug)}</a>' for r in runs)
    assets = resources.files("orthotrain.lab.report")
    style = (assets / "page.css").read_text(encoding="utf-8")
    script = (assets / "page.js").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>orthotrain report: {escape(names)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n<header class="top"><h1>orthotrain report</h1>'
        f"<nav>{links if len(runs) > 1 else ''}</nav>"
        '<button type="button" id="theme">Dark</button></header>\n<main>\n'
        + "\n".join(sections)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
