"""What the latent coordinates of each variant do: a figure, and a page where one can drag."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from orthotrain.errors import DataError
from orthotrain.files import UNREADABLE_ARRAYS
from orthotrain.lab.experiments.latent.traversals.arrays import Traversals
from orthotrain.lab.experiments.latent.traversals.page import traversal_page
from orthotrain.lab.report import style
from orthotrain.lab.report.figures import Looks
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.rows import text
from orthotrain.lab.report.style import Plot, Theme

if TYPE_CHECKING:  # drawing loads matplotlib, reading does not
    from matplotlib.figure import Figure

FILE: Final = "traversals.npz"
PAGE: Final = "traversals.html"
_ROWS: Final = 3
_NEEDED: Final = ("frames", "base", "base_values", "values", "activeness")


def shown_seed(run: Run) -> int | None:
    """The first seed that every variant with traversals has: their latents are the same."""
    with_frames = [_seeds(run, variant) for variant in run.variants]
    common = set.intersection(*filter(None, with_frames)) if any(with_frames) else set()
    return min(common, default=None)


def _seeds(run: Run, variant: Variant) -> set[int]:
    return {seed.seed for seed in variant.finished if _path(run, variant, seed.seed).is_file()}


def _path(run: Run, variant: Variant, seed: int) -> Path:
    return run.path / "variants" / variant.name / f"seed-{seed}" / FILE


def is_control(name: str) -> bool:
    """Whether a variant is another one with another learning rate or optimizer."""
    return "-lr" in name or name.endswith("-sgd")


def load_traversals(run: Run) -> dict[str, Traversals]:
    """The traversals of each variant by name, the baseline first; empty where there are none.

    Raises:
        DataError: A file is damaged or of another format.
    """
    seed = shown_seed(run)
    found: dict[str, Traversals] = {}
    if seed is None:
        return found
    finished = [variant for variant in run.variants if variant.finished]
    for variant in sorted(finished, key=lambda variant: variant is not run.baseline):
        path = _path(run, variant, seed)
        if path.is_file():
            found[variant.name] = _read(path, variant.title)
    return found


def _read(path: Path, title: str) -> Traversals:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            return Traversals(title, **{name: packed[name] for name in _NEEDED})
    except UNREADABLE_ARRAYS as error:
        raise DataError(
            f"report: {path} is damaged or of another format ({error}); need the arrays "
            f"{', '.join(_NEEDED)}; train this seed again, or remove the file to report without it"
        ) from error


class TraversalFigure:
    """The most active coordinates of each treatment, on the same latent; controls are left out."""

    def plot(self, run: Run, look: Looks) -> Plot:
        """The plot of a run."""
        found = [one for name, one in load_traversals(run).items() if not is_control(name)]

        def draw(theme: Theme) -> Figure:
            figure = style.new_figure(0.4 + 0.55 * _ROWS * len(found))
            grid = figure.subplots(len(found), 1, squeeze=False)[:, 0]
            for axes, moved in zip(grid, found, strict=True):
                axes.imshow(_strip(moved), cmap="gray", vmin=0, vmax=255, aspect="equal")
                axes.set_ylabel(moved.method, rotation=0, ha="right", va="center")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
            return figure

        return Plot(
            "traversals",
            "What the most active coordinates do",
            "One latent, the same for every variant. One row per coordinate, from -3 on the left "
            f"to 3 on the right, the {_ROWS} most active first. The other coordinates stay. "
            f"{PAGE} beside this page shows all of them, and the controls, with sliders.",
            draw if found else None,
            "No variant has traversals: vectors are not images, and older runs wrote none.",
            "Traversals of the most active latent coordinates of each variant.",
        )


def _strip(moved: Traversals) -> NDArray[np.uint8]:
    """``(rows * h, steps * w)`` or with channels: the first sample's most active coordinates."""
    lines = [np.concatenate(list(moved.frames[i, :, 0]), axis=1) for i in moved.order()[:_ROWS]]
    return np.concatenate(lines, axis=0).squeeze()


def traversal_files(run: Run) -> dict[str, bytes]:
    """The page where one can drag, by its file's name; empty where there is nothing to show."""
    found = load_traversals(run)
    if not found:
        return {}
    page = traversal_page(
        list(found.values()),
        title=f"{text(run.info, 'recipe', run.slug)}: what each latent coordinate does",
        note=f"Averaged generators of seed {shown_seed(run)}, the same latents for every variant.",
    )
    return {PAGE: page.encode(errors="backslashreplace")}
