"""The page of generators: how far latents are separated, beside fidelity and rivals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from orthotrain.lab.experiments.latent.columns import (
    CONDITIONS,
    COSTS,
    DEVIATION,
    LEAST_SPREAD,
    USED,
    WEIGHTS,
    deviation_of,
    hardly_varies,
    has_any,
    is_turned,
    levels,
    look,
    main_score,
    named,
    of_table,
    pairs,
    scores,
    seed_numbers,
    turned_scores,
    turned_variants,
    with_sgd,
)
from orthotrain.lab.experiments.latent.traversals.gallery import (
    TraversalFigure,
    is_control,
    traversal_files,
)
from orthotrain.lab.experiments.watched import OLR_PANELS, condition_panel
from orthotrain.lab.report.claims import Claim
from orthotrain.lab.report.figures import Curves, FigureOf, Panel, Values, Variants
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.page import Page
from orthotrain.lab.report.rows import field
from orthotrain.lab.report.stats import Measure, paired_by_seed, rank_correlation
from orthotrain.lab.report.tables import BySeed, ByVariant, Compared

# --- claims -------------------------------------------------------------------------------------

_FIDELITY: Final = "frechet"
_OF_THE_WEIGHT: Final = ("ol", "retraction")
_OF_THE_GRADIENT: Final = ("nog", "nog-update")
_RIVALS: Final = ("ol", "hessian", "orojar", "vp")
_TOLD: Final = {"olr", "nog-retraction", *_OF_THE_WEIGHT, *_OF_THE_GRADIENT}


def _claims(run: Run) -> list[Claim]:
    main, base = main_score(run), run.baseline_name
    if main is None:
        return []
    deciding, beside = (main,), named(run, _FIDELITY)
    known = {v.name for v in (*run.variants, *turned_variants(run))}
    treated = [v.name for v in run.variants if not is_control(v.name)]

    def claim(question: str, wanted: Iterable[tuple[str, str]], note: str = "") -> Claim:
        there = tuple(p for p in wanted if known.issuperset(p) and p[0] != p[1])
        return Claim(question, there, deciding, beside, note=note)

    def rivals(ours: str) -> list[tuple[str, str]]:
        after = (base + "_sefa", base + "_householder")
        return [(ours, rival) for rival in (*_RIVALS, *after)]

    rates = _rates(run)
    return [
        claim("Does NOG separate the latents better than the baseline?", [("nog", base)]),
        claim("Does OLR separate the latents better than the baseline?", [("olr", base)],
              _used_note(run)),
        claim("Do treatments of the weight separate the latents better than the baseline?",
              [(name, base) for name in _OF_THE_WEIGHT]),
        claim("Do treatments of the gradient separate the latents better than the baseline?",
              [(name, base) for name in _OF_THE_GRADIENT]),
        claim("Are treatments of the weight better than treatments of the gradient?",
              [(a, b) for a in _OF_THE_WEIGHT for b in _OF_THE_GRADIENT],
              _correlation_note(run, main)),
        claim("Is NOG with retraction better than retraction alone?",
              [("nog-retraction", "retraction")]),
        Claim("Do coordinates mean more than random directions in the same layer?",
              [p for name in treated if known.issuperset(p := (name, name + "_rotated"))],
              deciding),
        claim("Is NOG better than its rivals?", rivals("nog"), _RIVALS_NOTE),
        claim("Is OLR better than its rivals?", rivals("olr"), _RIVALS_NOTE),
        claim("Is any treatment while training better than SeFa after training?",
              [(v.name, base + "_sefa") for v in run.variants if not with_sgd(v)],
              "SeFa turns the latents of the trained baseline, so its images are those of the "
              "baseline."),
        claim("Does NOG separate the latents better at every learning rate?",
              [(f"nog{rate}", base + rate) for rate in rates] if len(rates) > 1 else []),
        claim("Does NOG separate the latents better at the best learning rate of each?",
              _best_rates(run, main, rates),
              "The rates with the largest mean are chosen by these very seeds."),
        claim("Which sums of treatments and rivals separate the latents better than the baseline?",
              [(name, base) for name in treated if name not in _TOLD]),
        claim("With SGD for the latent weight, which treatments are better than the baseline?",
              [(v.name, base + "-sgd") for v in run.variants if with_sgd(v)]),
    ]  # fmt: skip


_RIVALS_NOTE: Final = (
    "The penalties act while training, as NOG and OLR do. SeFa and the Householder projector act "
    "on the trained baseline. Only the projector changes its images."
)


def _used_note(run: Run) -> str:
    """In how many steps OLR was used, and whether any score changed at all."""
    said = []
    for name in ("olr", "olr-sgd"):
        ours, base = run.finished(name), name.replace("olr", run.baseline_name)
        other = run.finished(base)
        if ours is None or other is None or not (used := USED.over_seeds(ours)):
            continue
        changes = [paired_by_seed(ours, other, score).difference for score in scores(run)]
        same = any(changes) and not any(any(change.values) for change in changes)
        what = "equal" if same else "differ from"
        digit = " to the last digit" if same else ""
        said.append(
            f"{ours.title}: OLR was used in {USED.show(used)} % of the steps. "
            f"The scores {what} those of {other.title}{digit}."
        )
    return " ".join(said)


def _correlation_note(run: Run, main: Measure) -> str:
    """How far the score goes with the deviation of the weight, whatever was done to it."""
    seeds = [seed for v in run.variants if not with_sgd(v) for seed in v.finished]
    both = [(DEVIATION.read(seed), main.read(seed)) for seed in seeds]
    known = [pair for pair in both if all(value == value for value in pair)]
    found = rank_correlation(known)
    if found != found:
        return ""
    return (
        f"Over {len(known)} trainings with Adam, the rank correlation of {DEVIATION.title} with "
        f"this score is {found:+.2f}."
    )


def _rates(run: Run) -> list[str]:
    """The ends of names of NOG and the baseline at the same learning rate, if both finished."""
    ends = ["", *sorted(v.name[3:] for v in run.variants if v.name.startswith("nog-lr"))]
    return [e for e in ends if run.finished(f"nog{e}") and run.finished(run.baseline_name + e)]


def _best_rates(run: Run, main: Measure, rates: Sequence[str]) -> list[tuple[str, str]]:
    """NOG and the baseline at the rate with the largest mean; none without a choice of rates."""
    best = [
        _best(run, main, [name + rate for rate in rates]) for name in ("nog", run.baseline_name)
    ]
    return [(best[0], best[1])] if len(rates) > 1 and all(best) else []


def _best(run: Run, main: Measure, names: Sequence[str]) -> str:
    """Of those with the most seeds, the one with the largest mean; empty without any."""
    tried = [v for name in names if (v := run.finished(name)) and main.over_seeds(v)]
    # The mean of fewer seeds than others have is no rank.
    found = max(tried, key=lambda v: (len(main.over_seeds(v).values), main.mean(v)), default=None)
    return found.name if found is not None else ""


# --- figures ------------------------------------------------------------------------------------

# The scores in the figure, as many of these as there is room for.
_DOTS: Final = (
    *("alignment", "alignment_sefa", "disentanglement", "disentanglement_sefa", "vp", "vp_sefa"),
    "orthonormality_error",
)
_MOST_DOTS: Final = 4


def _dots(run: Run) -> list[Measure]:
    """The main score as trained and after SeFa and what stands beside it; fidelity has a place."""
    near = named(run, _FIDELITY)
    found = named(run, *_DOTS)
    return [*found[: _MOST_DOTS - 1], *near, *found[_MOST_DOTS - 1 :]][:_MOST_DOTS]


def _adam(run: Run) -> list[Variant]:
    return [variant for variant in run.variants if not with_sgd(variant)]


def _sgd(run: Run) -> list[Variant]:
    return [variant for variant in run.variants if with_sgd(variant)]


def _weight_figure(name: str, optimizer: str, variants: Variants) -> Curves:
    return Curves(
        name, f"The latent weight over training with {optimizer}",
        "NOG makes the gradient orthogonal, and not the weight. Only a penalty or a retraction "
        "keeps its rows orthonormal. Adam divides each entry of the gradient by a size of its "
        "own, so the executed step is orthogonal only where it was made so. Of several latent "
        "layers the median.",
        (
            Panel("|U U^T - I| of the latent weight", "latent", deviation_of, variants, log=True),
            *(
                condition_panel(what, "condition_range", title, variants)
                for what, title in CONDITIONS.items()
            ),
        ),
        missing="Neither the latent weight nor its gradient was recorded.",
    )  # fmt: skip


def _figures(run: Run) -> list[FigureOf]:
    return [
        Values(
            "scores", "Scores of every variant",
            "The dotted line is the baseline. Bars that overlap decide nothing: the same seed has "
            "the same initial weights and data in every variant, so compare the differences by "
            "seed in the tables.",
            _dots, missing="No finished seed has a score.",
        ),
        _weight_figure("weight", "Adam", _adam),
        *([_weight_figure("weight-sgd", "SGD", _sgd)] if _sgd(run) else []),
        Curves(
            "rates", "What the optimal learning rate did",
            "It is used in a step only where it is positive and below the scheduled rate. The "
            "first panel shows those steps alone, and nothing where there is none.",
            OLR_PANELS, missing="No variant recorded OLR.",
        ),
        TraversalFigure(),
        Curves(
            "training", "Losses of both players",
            "The losses of two players say whether one of them has given up, and nothing about "
            "the samples.",
            (
                Panel("Generator", "step", field("loss")),
                Panel("Discriminator", "step", field("discriminator_loss")),
            ),
            missing="No loss was recorded.",
        ),
    ]  # fmt: skip


# --- what is missing ----------------------------------------------------------------------------


def _missing(run: Run) -> list[str]:
    still = [(v.title, [str(s.seed) for s in v.finished if hardly_varies(s)]) for v in run.variants]
    return [
        f"{title}, seed {', '.join(seeds)}: some factor of its images has less than "
        f"{LEAST_SPREAD:g} of its spread in real ones. So what its coordinates and paths do is "
        "not scored."
        for title, seeds in still
        if seeds
    ]


_RESULTS_NOTE: Final = (
    "Where a row 'Chance, or real data' ends the table, scores are read beside it: the chance "
    "level, or real data compared with as many others. The path length is in pixels. The Frechet "
    "distance of images is the mean over three networks with random weights, no FID. Further "
    "spaces and scores, and the spread within one generator, are in the evaluation.json of each "
    "training."
)


def _table(name: str, title: str, note: str) -> ByVariant:
    only = has_any(name) if name != "results" else lambda variant: True
    return ByVariant(name, title, of_table(name), seeds=True, only=only, more=levels(name),
                     note=note)  # fmt: skip


PAGE: Final = Page(
    results=(
        _table("results", "Results", _RESULTS_NOTE),
        _table("images", "Images",
               "The least spread of a factor is over its spread in real images. The classifier "
               "was trained on other images."),
        _table("codes", "Codes of an encoder",
               "An encoder learns to read the latents back out of generated images, and is "
               "scored on real ones. Where its R^2 is low, its codes say little."),
        ByVariant("turned", "After training", turned_scores, seeds=True, only=is_turned,
                  note="Latents are rotated within each latent layer, as SeFa turns them. "
                  "The Householder projector is trained further, and has images of its own."),
        ByVariant("weights", "Latent weight", WEIGHTS,
                  note="Conditions are geometric means over layers, over the last tenth of the "
                  "records, and over seeds."),
        ByVariant("costs", "Time and memory", COSTS),
    ),
    closing={
        **{key: key.replace("_", " ") for key in _DOTS[:-1]},
        _FIDELITY: "frechet",
        "step_ms": "ms per step",
    },
    claims=_claims,
    figures=_figures,
    details=(Compared(pairs, scores), BySeed(seed_numbers)),
    missing=_missing,
    derived=turned_variants,
    look=look,
    files=traversal_files,
)  # fmt: skip
