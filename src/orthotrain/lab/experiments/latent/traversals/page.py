"""Traversals that a person drags in a browser: one HTML file with every frame drawn before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any, Final

import numpy as np

from orthotrain.errors import ShapeError
from orthotrain.lab.experiments.latent.traversals.arrays import Traversals
from orthotrain.lab.experiments.latent.traversals.sheets import columns_of, sheet_uri

# The page may run its own script and style and show its own pictures; the browser refuses the rest.
_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
_HOW_TO: Final = (
    "Drag a slider, or choose it and press the arrow keys. Frames exist for one moved dimension "
    "at a time: moving a slider puts the others back to the sample's own value, the mark below "
    "each."
)


def traversal_page(traversals: Sequence[Traversals], *, title: str, note: str) -> str:
    """A self-contained page: a slider for each latent dimension, methods side by side.

    Every frame is in the page, in one picture for each method and sample, so it asks the network
    for nothing and works from disk. Eight methods of six dimensions, eleven steps and six samples
    take 5 MB at 64 x 64 pixels of photographs, less of drawn shapes.

    Args:
        traversals: At least one. One for each method, on the same samples, in the order of the
            page.
        title: Heading of the page.
        note: A paragraph below it.

    Returns:
        The page as HTML.

    Raises:
        ConfigError: Pillow lacks WebP.
        ShapeError: Methods differ in their values or their number of samples, or a sheet of
            frames is too large for a picture.
    """
    first = traversals[0]
    for moved in traversals:
        if moved.samples != first.samples or not np.array_equal(moved.values, first.values):
            raise ShapeError(
                f"traversal_page needs methods of one run, with the same samples and values: "
                f"{first.method!r} and {moved.method!r} differ; train one of them again"
            )
    data = {"values": first.values.tolist(), "methods": [_method(moved) for moved in traversals]}
    folders = ("orthotrain.lab.report", "orthotrain.lab.experiments.latent.traversals")
    style, script = (
        "".join(
            (resources.files(folder) / f"page.{kind}").read_text(encoding="utf-8")
            for folder in folders
        )
        for kind in ("css", "js")
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header class="top"><h1>{escape(title)}</h1>'
        '<button type="button" id="theme">Dark</button></header>\n'
        f"<main>\n{_body(traversals, note)}\n</main>\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _method(moved: Traversals) -> dict[str, Any]:
    """What the script needs to know of one method. The last cell of a sheet is the base."""
    cells = moved.dims * moved.steps
    sheets = []
    for sample in range(moved.samples):
        frames = moved.frames[:, :, sample].reshape(cells, *moved.frames.shape[3:])
        sheets.append(sheet_uri(np.concatenate((frames, moved.base[sample, np.newaxis]))))
    return {
        "name": moved.method,
        "labels": [f"z[{i}]" for i in range(moved.dims)],
        "order": moved.order(),
        "activeness": moved.activeness.tolist(),
        "own": moved.base_values.tolist(),
        "height": moved.frames.shape[3],
        "width": moved.frames.shape[4],
        "columns": columns_of(cells + 1),
        "sheets": sheets,
    }


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _body(traversals: Sequence[Traversals], note: str) -> str:
    samples, values = traversals[0].samples, traversals[0].values
    facts = " · ".join(
        (
            _count(len(traversals), "method"),
            _count(samples, "sample"),
            _count(max(moved.dims for moved in traversals), "latent dimension"),
            f"{len(values)} steps from {values[0]:g} to {values[-1]:g}".replace(
                "-", "\N{MINUS SIGN}"
            ),
        )
    )
    options = "".join(
        f'<option value="{index}">{escape(moved.method)}</option>'
        for index, moved in enumerate(traversals)
    )
    several = "" if len(traversals) > 1 else " hidden"
    return f"""<p class="facts">{facts}</p>
<p class="note">{escape(note)}</p>
<noscript><p class="card missing">This page draws its pictures with a script; turn scripts on. \
Nothing is loaded from elsewhere.</p></noscript>
<form class="card controls" id="controls" autocomplete="off">
<label{several}>Method <select id="method">{options}</select></label>
<label class="check"{several}><input type="checkbox" id="beside" checked> Side by side</label>
<label id="match-label"{several}>Other methods move <select id="match">
<option value="index">the same dimension</option>
<option value="rank">their dimension of the same rank</option></select></label>
<fieldset id="samples"><legend>Sample</legend></fieldset>
</form>
<div class="bench">
<div class="stage" id="stage"></div>
<section class="card sliders" aria-labelledby="sliders-title">
<div class="heading"><h2 id="sliders-title"></h2>
<button type="button" id="reset">Reset</button></div>
<p class="small">{escape(_HOW_TO)}</p>
<div id="sliders"></div>
</section>
</div>"""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
