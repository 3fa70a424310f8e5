"""A verdict on each claim about latent weights, computed from the numbers, whichever way."""

from __future__ import annotations

from orthotrain.lab.report.findings import Finding
from orthotrain.lab.report.latent.measures import (
    MIN_SEEDS,
    TURNED,
    Score,
    after_training,
    compare,
    fidelity,
    find,
    identical,
    main_score,
    named_score,
    reference_of,
    scores_of,
)
from orthotrain.lab.report.latent.sentences import sentence, sentences_of, verdict_beside
from orthotrain.lab.report.latent.tables import verdict_of
from orthotrain.lab.report.latent.weight_or_gradient import weight_or_gradient
from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.paired import Paired, over_seeds
from orthotrain.lab.report.spectral.measures import share_used
from orthotrain.lab.report.tables import Spread


def findings(run: Run) -> list[Finding]:
    """A verdict per claim; empty where no variant has a finished seed."""
    main = main_score(run)
    if main is None:
        return []
    said = [
        _better("Does NOG separate the latents better than nothing?", run, main, "nog"),
        _better("Does OLR?", run, main, "olr"),
        _inert(run, main),
        _against_chance(run, main),
        *_against_rivals(run, main),
        weight_or_gradient(run, main),
        _rates(run, main),
        _after_training(run, main),
        *_others(run, main),
    ]
    return [finding for finding in said if finding is not None and finding.sentences]


def _better(title: str, run: Run, main: Score, name: str) -> Finding:
    ours, other = find(run, name), find(run, run.baseline_name)
    if ours is None or other is None:
        return Finding(title, ("One of the two has no finished seed.",), "not measured")
    paired, sentences = compare(ours, other, main), []
    sentences.append(sentence(paired, main))
    near = fidelity(run)
    beside = None if near is None else compare(ours, other, near)
    if near is not None and beside is not None and beside.count:
        sentences.append(sentence(beside, near))
    return Finding(title, tuple(sentences), *verdict_beside(paired, main, beside, near))


def _against_chance(run: Run, main: Score) -> Finding | None:
    """Every treatment against its own latent, turned at random."""
    pairs = [
        compare(variant, turned, main)
        for name in (run.baseline_name, "nog", "olr", "ol", "retraction")
        if (variant := find(run, name)) and (turned := after_training(variant, main, "_rotated"))
    ]
    pairs = [paired for paired in pairs if paired.count]
    if not pairs:
        return None
    words = [verdict_of(paired, main) for paired in pairs]
    verdict = f"yes in {words.count('better')} of {len(pairs)} treatments"
    if min(paired.count for paired in pairs) < MIN_SEEDS:
        verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
    sentences = tuple(sentences_of(pairs, main))
    title = "Do coordinates mean more than directions at random in the same layer?"
    return Finding(title, sentences, verdict, "unclear")


def _rivals(run: Run, main: Score, near: Score | None) -> list[tuple[Variant, Variant]]:
    """Every other way to separate coordinates, each with the variant that has its images."""
    found = [(v, v) for name in ("ol", "hessian", "orojar", "vp") if (v := find(run, name))]
    baseline = find(run, run.baseline_name)
    if baseline is None:
        return found
    if turned := after_training(baseline, main, "_sefa"):
        found.append((turned, baseline))
    if turned := after_training(baseline, main, "_householder"):
        own = None if near is None else after_training(baseline, near, "_householder")
        found.append((turned, own or baseline))
    return found


def _against_rivals(run: Run, main: Score) -> list[Finding]:
    """NOG and OLR as trained against every other way to separate coordinates."""
    near, said = fidelity(run), []
    rivals = _rivals(run, main, near)
    for ours in (find(run, "nog"), find(run, "olr")):
        if ours is None:
            continue
        pairs = [(compare(ours, rival, main), made) for rival, made in rivals]
        pairs = [(paired, made) for paired, made in pairs if paired.count]
        if not pairs:
            continue
        sentences = sentences_of([paired for paired, _ in pairs], main)
        beside: list[Paired | None] = [None] * len(pairs)
        if near is not None:
            of_images = [compare(ours, made, near) for _, made in pairs]
            sentences += sentences_of(of_images, near)
            beside = [*of_images]
        words = [
            verdict_beside(paired, main, images, near)[0]
            for (paired, _), images in zip(pairs, beside, strict=True)
        ]
        gained = [word for word in words if word.startswith("yes")]
        lost = words.count("no, worse")
        verdict = f"better than {len(gained)} of {len(pairs)}, worse than {lost}"
        if worse := sum("worse fidelity" in word for word in gained):
            verdict += f"; at worse fidelity than {worse} of those it is better than"
        if min(paired.count for paired, _ in pairs) < MIN_SEEDS:
            verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
        title = f"Is {ours.title} better than its rivals?"
        said.append(Finding(title, tuple(sentences), verdict, "unclear"))
    return said


def _inert(run: Run, main: Score) -> Finding:
    """How often OLR acted, and whether anything came of it."""
    title = "Does OLR do anything under Adam?"
    sentences, acted, verdict = [], None, ""
    for name, other_name in (("olr", run.baseline_name), ("olr-sgd", f"{run.baseline_name}-sgd")):
        ours, other = find(run, name), find(run, other_name)
        if ours is None or other is None:
            continue
        used = Spread.of(100 * share_used(seed) for seed in ours.finished)
        if not used:
            continue
        same = identical(ours, other, scores_of(run))
        what = (
            "the scores are those of nothing done, to the last digit"
            if same
            else "its scores differ from those of nothing done"
        )
        sentences.append(f"{ours.title}: used in {used.show(2)} % of the steps; {what}.")
        paired = compare(ours, other, main)
        if not same:
            sentences.append(sentence(paired, main))
        if name == "olr":
            acted = used.mean > 0
            word = verdict_of(paired, main)
            if paired.count < MIN_SEEDS:
                word = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
            verdict = f"it acts, in {used.mean:.2g} % of the steps; {word}"
    if acted is None:
        return Finding(title, tuple(sentences), "not measured" if sentences else "")
    if not acted:
        return Finding(title, tuple(sentences), "no: it was never seen to act", "bad")
    return Finding(title, tuple(sentences), verdict, "unclear")


def _rates(run: Run, main: Score) -> Finding | None:
    """NOG changes the norm of the gradient, so it is held against nothing at three rates each."""
    pairs = [
        (ours, other)
        for suffix in ("", *sorted({v.name[3:] for v in run.variants if "nog-lr" in v.name}))
        if (ours := find(run, f"nog{suffix}")) and (other := find(run, f"none{suffix}"))
    ]
    if len(pairs) < 2:
        return None
    at_each = [compare(ours, other, main) for ours, other in pairs]
    best, untreated = (
        max(tried, key=lambda v: over_seeds(v, main.measure).mean)
        for tried in zip(*pairs, strict=True)
    )
    of_best = compare(best, untreated, main)
    near = fidelity(run)
    beside = () if near is None else (sentence(compare(best, untreated, near), near),)
    words = {verdict_of(paired, main) for paired in at_each}
    verdict = "the same at every rate" if len(words) == 1 else "depends on the rate"
    verdict = f"{verdict}; at the best rate of each: {verdict_of(of_best, main)}"
    if min(paired.count for paired in (*at_each, of_best)) < MIN_SEEDS:
        verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
    return Finding(
        "Does the learning rate decide what NOG does?",
        (
            *sentences_of(at_each, main),
            f"The best rate of each, chosen by these seeds: {sentence(of_best, main)}",
            *beside,
        ),
        verdict,
        "unclear" if len(words) == 1 else "mixed",
    )


def _after_training(run: Run, main: Score) -> Finding | None:
    """What is found without any treatment, and whether a treatment is better than that."""
    baseline = find(run, run.baseline_name)
    if baseline is None:
        return None
    untreated = {
        what: over_seeds(baseline, score.measure)
        for suffix, what in TURNED.items()
        if (score := named_score(run, main.key + suffix)) is not None
    }
    sefa = untreated.get(TURNED["_sefa"])
    if not sefa:
        return None
    scored = {
        v.name: (over_seeds(v, main.measure), v)
        for v in run.variants
        if v.finished and not v.name.endswith("-sgd")
    }
    # The mean of fewer seeds than others have is no rank.
    most = max(len(spread.values) for spread, _ in scored.values())
    best = max(
        (pair for pair in scored.values() if len(pair[0].values) == most),
        key=lambda pair: pair[0].mean,
    )[1]
    own = over_seeds(best, main.measure)
    after = named_score(run, f"{main.key}_sefa")
    assert after is not None
    as_trained = f"{over_seeds(baseline, main.measure).show(main.digits)} as trained"
    turned = (f"{spread.show(main.digits)} {what}" for what, spread in untreated.items())
    sentences = [
        f"{baseline.title}: {', '.join((as_trained, *turned))}.",
        f"The best as trained, chosen by these seeds, is {best.title}, {own.show(main.digits)}; "
        f"after SeFa it has {over_seeds(best, after.measure).show(after.digits)}.",
    ]
    turned_baseline = after_training(baseline, main, "_sefa")
    assert turned_baseline is not None
    paired = compare(best, turned_baseline, main)
    sentences.append(sentence(paired, main))
    enough = verdict_of(paired, main) != "better"
    verdict = (
        "nothing is better than SeFa on nothing done"
        if enough
        else "no: the best treatment is above SeFa on nothing done"
    )
    if paired.count < MIN_SEEDS:
        verdict = f"fewer than {MIN_SEEDS} seeds: nothing is decided"
    title = "Is SeFa after training enough?"
    return Finding(title, tuple(sentences), verdict, "mixed" if enough else "unclear")


def _others(run: Run, main: Score) -> list[Finding]:
    """Everything else in one block, against nothing done with the same optimizer."""
    told = {"nog", "olr", "ol", "retraction", "nog-update", "nog-retraction"}
    pairs = []
    for variant in run.variants:
        other = reference_of(run, variant)
        if other is None or not variant.finished or variant.name in told:
            continue
        if "-lr" not in variant.name:
            pairs.append(compare(variant, other, main))
    return [Finding("Everything else", tuple(sentences_of(pairs, main)))]
