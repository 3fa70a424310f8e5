"""Claims are declared; one engine answers all of them with the one rule of ``stats``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from orthotrain.lab.report.load import Run, Variant
from orthotrain.lab.report.stats import MIN_SEEDS, Measure, Paired, Verdict, paired_by_seed

Tone = Literal["good", "bad", "mixed", "unclear"]

#: How the page and the CSV files call each verdict.
WORDS: Final[dict[Verdict, str]] = {
    "better": "better",
    "worse": "worse",
    "higher": "higher",
    "lower": "lower",
    "within": "within the interval",
    "few": "too few seeds",
    "infinite": "not finite in every seed",
    "not measured": "not measured",
}
#: What the words mean, for the page.
HOW_TO_READ: Final = (
    "Variants are compared seed by seed, because the same seed has the same initial weights and "
    "the same data. A variant is better or worse where the 95 % interval of the difference "
    "(Student's t over the seeds) excludes zero. Otherwise the difference lies within the "
    "interval: these seeds show none. "
    f"Fewer than {MIN_SEEDS} seeds decide nothing. About one in twenty comparisons without any "
    "effect is called better or worse as well. ± is one standard deviation over seeds, "
    "\N{MULTIPLICATION SIGN}\N{DIVISION SIGN} "
    "the factor of one standard deviation of the logarithm."
)


@dataclass(frozen=True)
class Claim:
    """A question that comparisons of variants answer.

    Attributes:
        question: In words.
        pairs: Names of a variant and of what it is compared with.
        measures: What decides. One without a better direction is shown and decides nothing.
        beside: What is compared as well and does not decide. Where a better variant is worse in
            it, the answer says so.
        decide: With fewer seeds than this nothing is decided.
        note: What the reader needs to know about the question.
    """

    question: str
    pairs: Sequence[tuple[str, str]]
    measures: Sequence[Measure]
    beside: Sequence[Measure] = ()
    decide: int = MIN_SEEDS
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """What the seeds of a run say about a claim.

    Attributes:
        claim: The question.
        verdict: In a few words.
        tone: How the page colors the verdict.
        compared: Every comparison that was measured, those that decide first.
        missing: Variants without a finished seed, so without a comparison.
    """

    claim: Claim
    verdict: str
    tone: Tone
    compared: tuple[Paired, ...]
    missing: tuple[str, ...]


def answer(run: Run, claim: Claim, *, derived: Sequence[Variant] = ()) -> Answer:
    """Compare every pair in every measure and put the verdicts together.

    Args:
        run: The run.
        claim: The question.
        derived: Further variants that the claim may name.
    """
    known = {v.name: v for v in (*run.variants, *derived)}
    titles = {name: v.title for name, v in known.items()}
    unfinished = [
        titles.get(name, name)
        for name in dict.fromkeys(name for pair in claim.pairs for name in pair)
        if name not in known or not known[name].finished
    ]
    pairs = [(known[a], known[b]) for a, b in claim.pairs if a in known and b in known]
    deciding, beside = (
        [
            paired
            for ours, other in pairs
            for measure in measures
            if (paired := paired_by_seed(ours, other, measure)).verdict() != "not measured"
        ]
        for measures in (claim.measures, claim.beside)
    )
    verdict, tone = _verdict([p for p in deciding if p.measure.better], beside, claim.decide)
    return Answer(claim, verdict, tone, (*deciding, *beside), tuple(unfinished))


def _verdict(deciding: Sequence[Paired], beside: Sequence[Paired], decide: int) -> tuple[str, Tone]:
    counts = Counter(paired.verdict(decide) for paired in deciding)
    known = counts["better"] + counts["worse"] + counts["within"]
    if not known:
        if counts["few"]:
            seeds = min(paired.count for paired in deciding if not paired.infinite)
            return f"undecided: {_seeds(seeds)}, {decide} needed", "unclear"
        return ("not finite" if counts["infinite"] else "not measured"), "unclear"
    words: tuple[Verdict, ...] = ("better", "worse")
    parts = [
        word if counts[word] == len(deciding) else f"{word} {_which(deciding, word, decide)}"
        for word in words
        if counts[word]
    ]
    said = ", ".join(parts) or WORDS["within"]
    if counts["few"]:
        said += f", undecided {_which(deciding, 'few', decide)}"
    gained = {(p.ours.name, p.other.name) for p in deciding if p.verdict(decide) == "better"}
    costs = dict.fromkeys(
        _inside(paired.measure.title)
        for paired in beside
        if paired.verdict(decide) == "worse" and (paired.ours.name, paired.other.name) in gained
    )
    if costs:
        said += f", at a worse {' and '.join(costs)}"
    if not parts:
        return said, "unclear"
    if counts["better"] and (counts["worse"] or costs):
        return said, "mixed"
    return said, "good" if counts["better"] else "bad"


# As many names a verdict lists; more are counted.
_MOST_NAMES: Final = 3
_NAMES: Final[Sequence[Callable[[Paired], str]]] = (
    lambda paired: paired.ours.title,
    lambda paired: paired.other.title,
    lambda paired: _inside(paired.measure.title),
)


def _inside(title: str) -> str:
    """A title in the middle of a sentence: a small first letter, but for an abbreviation."""
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def _which(deciding: Sequence[Paired], word: Verdict, decide: int) -> str:
    """Of what a verdict holds: ``in 2 of 4``, or the names that tell the comparisons apart."""
    mine = [paired for paired in deciding if paired.verdict(decide) == word]
    for name in _NAMES:
        if len(set(map(name, deciding))) == len(deciding) and len(mine) <= _MOST_NAMES:
            return f"({'; '.join(map(name, mine))})"
    return f"in {len(mine)} of {len(deciding)}"


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


def each(variants: Iterable[Variant], other: Variant | None) -> tuple[tuple[str, str], ...]:
    """Every variant paired with the same other one, but for itself; empty without one."""
    return () if other is None else tuple((v.name, other.name) for v in variants if v is not other)
