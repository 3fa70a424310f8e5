"""What a page shows of a run of each family: which tables, figures, findings and small print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from orthotrain.lab.report import figures, findings, tables
from orthotrain.lab.report.findings import Finding
from orthotrain.lab.report.latent import figures as latent_figures
from orthotrain.lab.report.latent import findings as latent_findings
from orthotrain.lab.report.latent import tables as latent_tables
from orthotrain.lab.report.latent.gallery import traversal_files
from orthotrain.lab.report.latent.measures import MIN_SEEDS
from orthotrain.lab.report.load import LATENT, LOW_RANK, SPECTRAL, Run
from orthotrain.lab.report.spectral import figures as spectral_figures
from orthotrain.lab.report.spectral import findings as spectral_findings
from orthotrain.lab.report.spectral import method_figures, notes, published_tables
from orthotrain.lab.report.spectral import tables as spectral_tables
from orthotrain.lab.report.spectral.measures import group_of, is_pooling
from orthotrain.lab.report.style import Plot
from orthotrain.lab.report.tables import Table

_NO_VARIANT: Final = "There is no variant, so there is "
_TITLES: Final = {
    "results": "Results",
    "costs": "Time and memory",
    "seeds": "Every seed",
    "ranks": "Final ranks",
    "settings": "Settings",
    "environment": "Environment",
    "comparisons": "Every comparison",
    "rates": "Optimal learning rates",
    "turned": "After training",
    "weights": "Latent weight",
}
_EMPTY: Final = {
    "results": _NO_VARIANT + "no result.",
    "costs": _NO_VARIANT + "nothing to time.",
    "seeds": "No seed was started.",
    "ranks": "No variant has a layer in low-rank form, so there are no ranks.",
    "settings": "No finished seed recorded its settings.",
    "environment": "run.json describes no environment.",
    "conditioning": _NO_VARIANT + "no covariance.",
    "comparisons": "No two variants finished the same seed, so nothing is compared.",
    "rates": "No finished variant has an optimal learning rate.",
    "turned": _NO_VARIANT + "no latent turned after training.",
    "weights": _NO_VARIANT + "no latent weight.",
}


@dataclass(frozen=True)
class Card:
    """Tables in one box of the page, before or after the figures."""

    title: str
    tables: tuple[str, ...]
    note: Callable[[Run], str] = lambda run: ""


@dataclass(frozen=True)
class Family:
    """How runs of one family become a section of the page.

    Attributes:
        tables: All tables of a run; each belongs to the results, a card or the details.
        plots: All figures of a run.
        findings: What the numbers say.
        missing: What is missing beyond the notes of the run itself.
        small_print: How to read the findings.
        results: Names of the tables of the first box.
        details: Names of the tables behind tabs at the end.
        cards: Boxes of tables after the figures.
        titles: Names of the tabs.
        empty: What is said in place of a table without rows.
        files: Further files beside the page, by name; the page links to them.
    """

    tables: Callable[[Run], Sequence[Table]]
    plots: Callable[[Run], Sequence[Plot]]
    findings: Callable[[Run], Sequence[Finding]]
    missing: Callable[[Run], Sequence[str]]
    small_print: str
    results: tuple[str, ...]
    details: tuple[str, ...]
    cards: tuple[Card, ...] = ()
    results_note: str = ""
    titles: Mapping[str, str] = field(default_factory=lambda: _TITLES)
    empty: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    files: Callable[[Run], Mapping[str, bytes]] = lambda run: {}


def family_of(run: Run) -> Family:
    """The family that ``run.json`` names."""
    return _FAMILIES[run.family]


def _spectral_tables(run: Run) -> tuple[Table, ...]:
    return (
        spectral_tables.results_table(run),
        spectral_tables.conditioning_table(run),
        spectral_tables.costs_table(run),
        *published_tables.published_tables(run),
        spectral_tables.comparisons_table(run),
        spectral_tables.rates_table(run),
        spectral_tables.seeds_table(run),
        tables.settings_table(run),
        tables.environment_table(run),
    )


def _latent_tables(run: Run) -> tuple[Table, ...]:
    return (
        latent_tables.results_table(run),
        latent_tables.turned_table(run),
        latent_tables.weights_table(run),
        latent_tables.costs_table(run),
        latent_tables.comparisons_table(run),
        latent_tables.seeds_table(run),
        tables.settings_table(run),
        tables.environment_table(run),
    )


def _spectral_plots(run: Run) -> tuple[Plot, ...]:
    published = () if is_pooling(run) else (spectral_figures.published_plot(run),)
    groups = {group_of(run, variant) for variant in run.variants}
    more = tuple(group for group in ("combination", "fixed") if group in groups)
    return (
        spectral_figures.error_plot(run),
        *(spectral_figures.condition_plot(run, group) for group in ("single", *more)),
        *published,
        spectral_figures.scale_plot(run),
        method_figures.steps_plot(run),
        method_figures.rates_plot(run),
        method_figures.shares_plot(run),
        spectral_figures.training_plot(run),
    )


_FAMILIES: Final = {
    LOW_RANK: Family(
        tables=tables.all_tables,
        plots=figures.all_plots,
        findings=findings.findings,
        missing=lambda run: (),
        small_print="± is one standard deviation over seeds. The spread of a difference is "
        "the root of the two summed variances; a difference inside it may be chance, one outside "
        "it still comes from few seeds on one data split.",
        results=("results", "costs"),
        details=("seeds", "ranks", "settings", "environment"),
    ),
    LATENT: Family(
        tables=_latent_tables,
        plots=latent_figures.all_plots,
        findings=latent_findings.findings,
        files=traversal_files,
        missing=latent_figures.missing,
        small_print="± is one standard deviation over seeds. Variants are compared seed by seed, "
        "because the same seed has the same initial weights and data. A difference is outside the "
        "spread where Student's t over the seeds leaves no change outside its 95 % interval; of "
        "comparisons without any effect about one in twenty lies outside as well. No winner is "
        f"named on fewer than {MIN_SEEDS} seeds.",
        results=("results", "turned", "weights", "costs"),
        details=("comparisons", "seeds", "settings", "environment"),
        results_note="Of images: Frechet distances are means over three networks with random "
        "weights, and of a classifier trained on other images; they are no FID. Path length is in "
        "pixels. What the scores are read against is in the last row of the first table: chance, "
        "or the distance of real images to others at the same number. Latents are rotated within "
        "each latent layer, as SeFa turns them. Further spaces, scores and the spread within one "
        "generator are in each training's evaluation.json.",
    ),
    SPECTRAL: Family(
        tables=_spectral_tables,
        plots=_spectral_plots,
        findings=spectral_findings.findings,
        missing=notes.missing,
        small_print="± is one standard deviation over seeds, "
        f"{spectral_tables.TIMES_OVER} the factor of one standard deviation of the logarithm. "
        "Variants are compared seed by seed, because the same seed has the same initial weights "
        "and batches. A difference is outside the spread where Student's t over the seeds leaves "
        "no change outside its 95 % interval; of comparisons without any effect about one in "
        "twenty lies outside as well, and this page makes many. The end of a training is the last "
        "tenth of its records.",
        results=("results", "conditioning", "costs"),
        details=("comparisons", "rates", "seeds", "settings", "environment"),
        cards=(
            Card(
                "Published numbers",
                ("published", "published-conditions", "published-fine"),
                published_tables.settings_note,
            ),
        ),
        results_note="Error: less is better. Condition numbers are of the covariance that enters "
        "the spectral layer, geometric means over the last tenth of records and over seeds. A "
        "condition number alone means little: read the four senses together with the rank and "
        "the largest eigenvalue. The ridge of a batch norm is its eps, so its condition with the "
        "ridge is of another ridge and not compared.",
    ),
}
