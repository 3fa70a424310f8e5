"""Traversals that a person drags in a browser: one HTML file with every frame drawn before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.files import write_atomically
from orthotrain.lab.experiments.latent.traversals.arrays import Traversals
from orthotrain.lab.experiments.latent.traversals.sheets import Quality, columns_of, sheet_uri

# The page may run its own script and style and show its own pictures; the browser refuses the rest.
_POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
_HOW_TO: Final = (
    "Drag a slider, or choose it and press the arrow keys. Frames exist for one moved dimension "
    "at a time: moving a slider puts the others back to the sample's own value, the mark below "
    "each."
)


def save_traversals(
    path: str | PathLike[str],
    traversals: Sequence[Traversals],
    *,
    values: Sequence[float] | Float[np.ndarray, " steps"],
    title: str,
    note: str = "",
    quality: Quality = 90,
) -> Path:
    """Write the page of ``traversal_page`` to a file that opens from disk.

    Args:
        path: The file, replaced as a whole; its folder is made.
        traversals: As ``values``, ``title``, ``note`` and ``quality`` for ``traversal_page``.
        values: See there.
        title: See there.
        note: See there.
        quality: See there.

    Returns:
        ``path``.

    Raises:
        ConfigError: The file cannot be written; also what ``traversal_page`` raises.
        ShapeError, NonFiniteError: As there.
    """
    path = Path(path)
    page = traversal_page(traversals, values=values, title=title, note=note, quality=quality)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise ConfigError(
            f"save_traversals could not write {path}: {error.strerror}. Free some space, mend the "
            "permissions, or give another file."
        ) from error
    return path


def traversal_page(
    traversals: Sequence[Traversals],
    *,
    values: Sequence[float] | Float[np.ndarray, " steps"],
    title: str,
    note: str = "",
    quality: Quality = 90,
) -> str:
    """A self-contained page: a slider for each latent dimension, methods side by side.

    Every frame is in the page, in one picture for each method and sample, so it asks the network
    for nothing and works from disk. Eight methods of six dimensions, eleven steps and six samples
    take 5 MB at 64 x 64 pixels of photographs, less of drawn shapes.

    Args:
        traversals: One for each method, on the same samples, in the order of the page.
        values: ``(steps,)``, what the dimensions are set to, increasing. With traversals that
            have no ``base`` they are offsets and must hold zero.
        title: Heading of the page.
        note: A paragraph below it, or nothing.
        quality: Of the frames, 1 to 100, or ``"lossless"``. Sheets that are no larger without
            loss, such as those of flat shapes, keep every pixel at any quality.

    Returns:
        The page as HTML.

    Raises:
        ConfigError: No traversals; two of one name; ``values`` do not increase, or hold no zero
            where a base is missing; ``quality`` is none of the above; Pillow lacks WebP.
        ShapeError: Methods differ in their number of samples or have another number of steps
            than ``values``, or a sheet of frames is too large for a picture.
        NonFiniteError: ``values`` holds NaN or infinity.
    """
    values = [float(value) for value in values]
    _check_quality(quality)
    _check_values(values)
    _check_together(traversals, values)
    data = {
        "values": values,
        "methods": [_method(moved, values, quality) for moved in traversals],
    }
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
        f"<main>\n{_body(traversals, values, note)}\n</main>\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _check_quality(quality: Quality) -> None:
    if quality == "lossless" or (type(quality) is int and 1 <= quality <= 100):
        return
    raise ConfigError(
        f"traversal_page needs quality from 1 to 100 or 'lossless', got {quality!r}; 90 is good"
    )


def _check_values(values: Sequence[float]) -> None:
    if not np.isfinite(values).all():
        raise NonFiniteError(f"traversal_page needs finite values, got {list(values)}; mend them")
    if len(values) < 2 or not (np.diff(values) > 0).all():
        raise ConfigError(
            f"traversal_page needs at least two values in increasing order, got {list(values)}; "
            "sort values and frames alike"
        )


def _check_together(traversals: Sequence[Traversals], values: Sequence[float]) -> None:
    if not traversals:
        raise ConfigError("traversal_page needs at least one method, got none; give Traversals")
    names = [moved.method for moved in traversals]
    if len(set(names)) < len(names):
        raise ConfigError(f"traversal_page needs a name for each method of its own, got {names}")
    first = traversals[0]
    for moved in traversals:
        if moved.steps != len(values):
            raise ShapeError(
                f"traversal_page needs a value for each step: {moved.method!r} has {moved.steps} "
                f"steps, values are {len(values)}; give the values the frames were drawn with"
            )
        if moved.samples != first.samples:
            raise ShapeError(
                f"traversal_page needs methods on the same samples: {first.method!r} has "
                f"{first.samples}, {moved.method!r} has {moved.samples}; draw both from one seed"
            )
        if moved.base is None:
            if 0.0 not in values:
                raise ConfigError(
                    f"traversal_page: {moved.method!r} has no base, and values hold no zero to "
                    "take it from; give base= and base_values=, or values with 0.0"
                )
            moved.require_offset_frames(values.index(0.0))


def _method(moved: Traversals, values: Sequence[float], quality: Quality) -> dict[str, Any]:
    """What the script needs to know of one method. The last cell of a sheet is the base."""
    cells = moved.dims * moved.steps
    base = moved.frames[0, values.index(0.0)] if moved.base is None else moved.base
    sheets = []
    for sample in range(moved.samples):
        frames = moved.frames[:, :, sample].reshape(cells, *moved.frames.shape[3:])
        sheets.append(
            sheet_uri(np.concatenate((frames, base[sample, np.newaxis])), quality=quality)
        )
    own = np.zeros((moved.samples, moved.dims)) if moved.base_values is None else moved.base_values
    return {
        "name": moved.method,
        "note": moved.note,
        "labels": moved.names(),
        "order": moved.order(),
        "activeness": None if moved.activeness is None else [float(a) for a in moved.activeness],
        "own": np.asarray(own, np.float64).tolist(),
        "height": moved.frames.shape[3],
        "width": moved.frames.shape[4],
        "columns": columns_of(cells + 1),
        "sheets": sheets,
    }


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _body(traversals: Sequence[Traversals], values: Sequence[float], note: str) -> str:
    samples = traversals[0].samples
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
{f'<p class="note">{escape(note)}</p>' if note else ""}
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
<p class="small" id="method-note" hidden></p>
<p class="small">{escape(_HOW_TO)}</p>
<div id="sliders"></div>
</section>
</div>"""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
