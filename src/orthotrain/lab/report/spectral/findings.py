"""A verdict on each claim about spectral layers, computed from the numbers, whichever way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orthotrain.lab.report.findings import Finding, Tone
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import Paired, over_seeds
from orthotrain.lab.report.spectral.measures import (
    LARGEST,
    RIDGE,
    RIDGED,
    SENSES,
    TEST_ERROR,
    compare,
    condition_outcomes,
    direct_parts,
    end_rank,
    find,
    group_of,
    parts,
    rates_of,
)
from orthotrain.lab.report.spectral.sentences import (
    TOLD,
    error_in_short,
    error_sentence,
    error_verdict,
    sense_sentence,
    senses_count,
    senses_in_words,
    senses_verdict,
    times,
)
from orthotrain.lab.report.spectral.tables import short, show_factor
from orthotrain.lab.report.tables import Spread

_NAMES: Final = {"nog": "NOG", "olr": "OLR"}
_OLDER: Final = ("ns", "sn", "ol", "ow")
# Two ratios closer than this in decimal logarithms are called the same (0.05: 12 %).
_SAME: Final = 0.05
_FIXED_RIDGE: Final = 1e-3


def findings(run: Run) -> list[Finding]:
    """A verdict per claim; empty where no variant has a finished seed."""
    if not any(variant.finished for variant in run.variants):
        return []
    said = [
        *(_conditioning(run, name) for name in _NAMES),
        *(_accuracy(run, name) for name in _NAMES),
        *(_fixed(run, name) for name in _NAMES),
        *_senses(run),
        _rates(run),
        *_combinations(run),
        *_others(run),
    ]
    return [finding for finding in said if finding.sentences]


# --- NOG and OLR alone --------------------------------------------------------------------------


def _pair(run: Run, title: str, *wanted: str) -> tuple[Variant, Variant] | Finding:
    """The variant and its reference, or a finding that says which one is not there."""
    fixed = ("fixed",) if "fixed" in wanted else ()
    ours, other = find(run, *wanted), find(run, *fixed)
    suffix = " with the norm fixed" if fixed else " alone"
    lacking = [
        name
        for name, variant in (
            (_NAMES[wanted[0]] + suffix, ours),
            ("the root" + suffix, other),
        )
        if variant is None or not variant.finished
    ]
    if ours is None or other is None or lacking:
        sentence = f"No finished seed of {' and of '.join(lacking)}, so nothing is said."
        return Finding(title, (sentence,), "not measured")
    return ours, other


def _conditioning(run: Run, name: str) -> Finding:
    title = f"Does {_NAMES[name]} improve conditioning?"
    pair = _pair(run, title, name)
    if isinstance(pair, Finding):
        return pair
    outcomes = condition_outcomes(*pair)
    sentences = [sense_sentence(paired) for paired in outcomes]
    if not sentences:
        sentences = ["No condition of a covariance was recorded in the same seed of both."]
    scale = compare(*pair, LARGEST)
    if scale.count:
        sentences.append(f"The largest eigenvalue changes {times(scale)}.{_scale(outcomes, scale)}")
    return Finding(title, tuple(sentences), *senses_verdict(outcomes))


def _scale(outcomes: Sequence[Paired], scale: Paired) -> str:
    """Whether the ridge sees anything but the scale of the covariance."""
    ridge = next((p for p in outcomes if p.measure is RIDGED and p.count), None)
    if ridge is None or abs(ridge.difference.mean) <= _SAME:
        return ""
    added = [over_seeds(variant, RIDGE).mean for variant in (ridge.ours, ridge.other)]
    if not abs(added[0] - added[1]) < _FIXED_RIDGE:
        return ""
    if abs(ridge.difference.mean - scale.difference.mean) > _SAME:
        return ""
    return (
        " The condition with the ridge changes by the same factor: what it shows is the scale of "
        "the weight against a fixed ridge, not the shape of the spectrum."
    )


def _accuracy(run: Run, name: str) -> Finding:
    title = f"Does {_NAMES[name]} improve accuracy?"
    pair = _pair(run, title, name)
    if isinstance(pair, Finding):
        return pair
    paired = compare(*pair, TEST_ERROR)
    sentences = [
        f"{over_seeds(pair[0], TEST_ERROR).show(2)} % test error, {error_sentence(paired)}."
    ]
    if run.baseline is not None:
        beside = error_sentence(compare(pair[0], run.baseline, TEST_ERROR))
        sentences += [f"{beside}."] if beside else []
    if not paired.count:
        sentences = ["No test accuracy was recorded in the same seed of both."]
    return Finding(title, tuple(sentences), *error_verdict(paired))


def _rates(run: Run) -> Finding:
    """How often the optimal learning rate was used, and how small it is."""
    sentences = []
    for variant in (v for v in run.variants if "olr" in parts(v)):
        rates = rates_of(variant)
        if not rates.used:
            continue
        said = f"{variant.title}: used in {rates.used.show(1)} % of the recorded steps"
        if rates.ratio:
            ratio = show_factor(rates.ratio)
            said += f"; where used, its median is {ratio} times the scheduled rate"
        if rates.cosine:
            said += f"; the median of |cos(w, l)| is {show_factor(rates.cosine)}"
        sentences.append(f"{said}.")
    return Finding("How does OLR act?", tuple(sentences))


# --- combinations -------------------------------------------------------------------------------


def _combinations(run: Run) -> list[Finding]:
    found = [v for v in run.variants if group_of(run, v) == "combination" and v.finished]
    return [finding for v in found if (finding := _combination(run, v)) is not None]


def _combination(run: Run, variant: Variant) -> Finding | None:
    title = f"What does {variant.title} add to its parts?"
    others = [part for part in direct_parts(run, variant) if part.finished]
    if not others:
        return Finding(title, ("None of its parts has a finished seed.",), "not measured")
    errors = [compare(variant, other, TEST_ERROR) for other in others]
    by_sense = [
        outcomes
        for sense in SENSES
        if (outcomes := [p for o in others if (p := compare(variant, o, sense)).count])
        and len(outcomes) == len(others)
    ]
    differences = [said for paired in errors if (said := error_in_short(paired))]
    sentences = [f"Test error: {', '.join(differences)}."] if differences else []
    better = [o[0].measure.title for o in by_sense if all(p.outcome == "lower" for p in o)]
    worse = [o[0].measure.title for o in by_sense if any(p.outcome == "higher" for p in o)]
    if by_sense:
        said = f"Better conditioned than every part: {'; '.join(better) or 'in no sense'}."
        cost = f" Worse than at least one part: {'; '.join(worse)}." if worse else ""
        sentences.append(said + cost)
    verdict, tone = _added(errors, by_sense)
    return Finding(title, tuple(sentences), verdict, tone)


def _added(errors: Sequence[Paired], by_sense: Sequence[Sequence[Paired]]) -> tuple[str, Tone]:
    """More than a part means: than each of them."""
    told = [all(p.outcome in TOLD for p in outcomes) for outcomes in (errors, *by_sense)]
    if not any(told):
        return "not told apart", "unclear"
    gains = ["accuracy"] if errors and all(p.outcome == "lower" for p in errors) else []
    senses = sum(all(p.outcome == "lower" for p in outcomes) for outcomes in by_sense)
    gains += [f"conditioning in {senses} of {len(by_sense)} senses"] if senses else []
    costs = sum(p.outcome == "higher" for p in errors)
    cost = f"more error than {costs} of {len(errors)} parts" if costs else ""
    if gains:
        tail = f", at {cost}" if cost else ""
        return f"{' and '.join(gains)}{tail}", "mixed" if cost else "good"
    return (cost, "bad") if cost else ("nothing beyond the spread", "unclear")


# --- the norm held fixed ------------------------------------------------------------------------


def _fixed(run: Run, name: str) -> Finding:
    title = f"What is left of {_NAMES[name]} when the weight norm is held fixed?"
    pair = _pair(run, title, name, "fixed")
    if isinstance(pair, Finding):
        return pair
    held = condition_outcomes(*pair)
    free = _pair(run, title, name)
    loose = [] if isinstance(free, Finding) else condition_outcomes(*free)
    before = {paired.measure.key: paired for paired in loose}
    sentences = []
    for paired in held:
        other = before.get(paired.measure.key)
        was = f"; with the norm free {times(other)}" if other is not None and other.count else ""
        sentences.append(sense_sentence(paired).rstrip(".") + f"{was}.")
    error = error_sentence(compare(*pair, TEST_ERROR))
    sentences += [f"{error}."] if error else []
    return Finding(title, tuple(sentences) or ("Nothing was recorded.",), *_left(held, loose))


def _left(held: Sequence[Paired], free: Sequence[Paired]) -> tuple[str, Tone]:
    kept = {paired.measure.key for paired in held if paired.outcome == "lower"}
    gained = {paired.measure.key for paired in free if paired.outcome == "lower"}
    if not any(paired.outcome in TOLD for paired in held):
        return ("one seed only" if held else "not measured"), "unclear"
    if not gained:
        if kept:
            return f"better in {senses_count(len(kept), len(held))}, only when fixed", "mixed"
        return "no better, norm free or fixed", "bad"
    left = len(kept & gained)
    if not left and kept:
        return "better, but in no sense that it improved before", "mixed"
    if not left:
        return "nothing beyond the spread", "bad"
    tone: Tone = "good" if left == len(gained) else "mixed"
    return f"still better in {senses_count(left, len(gained))} it improved", tone


# --- which sense, and everything else -----------------------------------------------------------


def _senses(run: Run) -> list[Finding]:
    """Where one and the same run gives another verdict in another sense of condition."""
    root = find(run)
    if root is None or not root.finished:
        return []
    by_variant = {
        variant.title: {p.measure.key: p.outcome for p in condition_outcomes(variant, root)}
        for variant in run.variants
        if variant is not root and variant.treatments and "fixed" not in parts(variant)
    }
    if not any(by_variant.values()):
        return []
    title = "Which sense of condition changes the verdict?"
    ranged = {
        name: outcomes
        for name, outcomes in by_variant.items()
        if outcomes.get("condition_range") in TOLD
    }
    if not ranged:
        untold = (*_naive(root), *_order(run))
        return [Finding(title, untold, "no verdict on the range to differ from")]
    sentences, changed = [], set()
    for sense in SENSES[1:]:
        differs = [
            name
            for name, outcomes in ranged.items()
            if outcomes.get(sense.key) in TOLD
            and outcomes[sense.key] != outcomes["condition_range"]
        ]
        changed.update(differs)
        said = f"another verdict than on the range for {', '.join(differs)}" if differs else ""
        sentences.append(
            f"{sense.title[0].upper()}{sense.title[1:]}: {said or 'the same verdicts'}."
        )
    sentences += [*_naive(root), *_order(run)]
    verdict = f"the sense decides for {len(changed)} of {len(ranged)} variants"
    return [Finding(title, tuple(sentences), verdict, "mixed" if changed else "good")]


def _naive(root: Variant) -> list[str]:
    """What the naive numbers divide by, where the covariance has not its full rank."""
    pairs = [end_rank(seed) for seed in root.finished]
    rank, size = Spread.of(pair[0] for pair in pairs), Spread.of(pair[1] for pair in pairs)
    if not rank or not size or rank.mean >= size.mean:
        return []
    values = {sense.key: over_seeds(root, sense) for sense in SENSES}
    single, double = values["condition_float32"], values["condition_float64"]
    between = ""
    if single and double:
        between = (
            f": {short(10**single.mean)} in float32 and {short(10**double.mean)} in float64 for "
            "the same weights"
        )
    return [
        f"The covariance of {root.title} has the numerical rank {rank.mean:.3g} of "
        f"{size.mean:.0f}, so the naive numbers divide by eigenvalues that are rounding{between}."
    ]


def _order(run: Run) -> list[str]:
    """The best-conditioned variant in each sense."""
    best = []
    for sense in SENSES:
        among = [v for v in run.variants if v.treatments or sense is not RIDGED]
        known = [(over_seeds(v, sense).mean, v.title) for v in among if over_seeds(v, sense)]
        if known:
            mean, title = min(known)
            best.append(f"{sense.title} {title} ({short(10**mean)})")
    return [f"The lowest condition has: {'; '.join(best)}."] if best else []


def _others(run: Run) -> list[Finding]:
    """The layer itself against its baseline, and the older treatments against the layer."""
    root, said = find(run), []
    if root is None:
        return []
    if run.baseline is not None and root.finished and run.baseline.finished:
        sentence = _against(root, run.baseline)
        said.append(
            Finding(f"{root.title} against {run.baseline.title}", (sentence,) if sentence else ())
        )
    sentences = [
        f"{variant.title}: {sentence}"
        for name in _OLDER
        if (variant := find(run, name)) is not None and (sentence := _against(variant, root))
    ]
    return [*said, Finding(f"The older treatments against {root.title}", tuple(sentences))]


def _against(ours: Variant, other: Variant) -> str:
    """Error and conditioning against another variant in one sentence; "" where unknown."""
    error = error_in_short(compare(ours, other, TEST_ERROR))
    outcomes = condition_outcomes(ours, other)
    conditioned = senses_in_words(outcomes)
    said = [error] if error else []
    said += [f"conditioning {conditioned}"] if conditioned else []
    return "; ".join(said) + "." if said else ""
