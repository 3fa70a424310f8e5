"""What could be saved: of each weight of a file the rank and size at an energy, of all a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from torch import Tensor, nn

from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.lowrank.cut import OPEN
from orthotrain.lowrank.decide import decided_ranks
from orthotrain.lowrank.no_form import Kind
from orthotrain.lowrank.rank_rule import Candidate, RankRule
from orthotrain.lowrank.rules import Energy, StoredBudget
from orthotrain.lowrank.settings import MAX_ASPECT
from orthotrain.lowrank.state_dicts.choose import Chosen, choose, without_broken
from orthotrain.lowrank.state_dicts.read import StoredModel, stored_model
from orthotrain.lowrank.state_dicts.weights import LeftOut, StoredWeight, dtype_name

#: Shares of energy at which ranks are told.
ENERGIES: Final = (0.9, 0.99, 0.999)
#: Shares of the numbers of the dense form at which totals are told.
BUDGETS: Final = (0.75, 0.5, 0.25)
#: Called with how many weights were decomposed, of how many, and the name of the next.
OnProgress = Callable[[int, int, str], None]

# Of float32 and less singular values come from a Gram matrix: right down to 2.4e-7 of the largest.
_RESOLVED: Final = 2.4e-7


@dataclass(frozen=True)
class RankAt:
    """A rank and its size.

    Attributes:
        energy: Share of the squared singular values that the rank keeps at least.
        rank: As ``compress`` takes it: of convolutions rounded up to a multiple of 16.
        stored: Numbers at that rank, those of the dense weight where factors hold no fewer.
    """

    energy: float
    rank: int
    stored: int


@dataclass(frozen=True)
class WeightSurvey:
    """What could be saved of one weight.

    Attributes:
        name: Of its layer.
        aliases: Other names of the same weight.
        kind: What it belongs to, as far as names and shapes tell.
        shape: As matrices, such as ``"3 of 64x64"``.
        dtype: Its dtype, such as ``"float32"``.
        rank: Its rank now; the full one while it is dense.
        full_rank: The largest rank it could have.
        stored: Numbers that hold it now.
        condition: Largest over smallest singular value, the worst of its matrices; None where
            the smallest one is rounding.
        at: Rank and size at 90, 99 and 99.9 % of its energy.
        break_even_rank: The largest rank at which factors hold fewer numbers than the dense weight.
        stays: Why it is left out of the budgets: cut on request only, or too thin; else empty.
        spectrum: ``(blocks, r)`` singular values; no part of ``to_dict``.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    shape: str
    dtype: str
    rank: int
    full_rank: int
    stored: int
    condition: float | None
    at: tuple[RankAt, ...]
    break_even_rank: int
    stays: str
    spectrum: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class BudgetSurvey:
    """What a budget would leave.

    Attributes:
        share: Of the numbers of the dense model, also where the file is low-rank already.
        stored: Numbers that would be stored; None where no ranks meet the budget.
        bytes: Bytes that would be stored.
        cut: Weights that would be cut.
        kept: Mean share of energy that cut weights keep; None where nothing is cut.
        worst: The weight that keeps least.
        worst_kept: The share of energy it keeps.
        problem: Why the budget cannot be met.
    """

    share: float
    stored: int | None
    bytes: int | None = None
    cut: int = 0
    kept: float | None = None
    worst: str = ""
    worst_kept: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Survey:
    """What could be saved of a model.

    Attributes:
        source: The file and what it is.
        stored: Numbers it holds.
        dense: Numbers of its dense form, of which budgets are shares; as many as ``stored``, but
            where weights are held in factors.
        bytes: Bytes of all its tensors.
        weights: One per weight of a kind that can be low-rank.
        left: Each tensor that stays as it is by these settings, with the reason.
        budgets: At 75, 50 and 25 % of the numbers of the dense form.
    """

    source: str
    stored: int
    dense: int
    bytes: int
    weights: tuple[WeightSurvey, ...]
    left: tuple[LeftOut, ...]
    budgets: tuple[BudgetSurvey, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        content = asdict(self)
        for weight in content["weights"]:
            del weight["spectrum"]
        return content

    @property
    def left_by_reason(self) -> dict[str, list[LeftOut]]:
        """Tensors that stay, by the reason for it."""
        by_reason: dict[str, list[LeftOut]] = {}
        for each in self.left:
            by_reason.setdefault(each.reason, []).append(each)
        return by_reason


@checked
def survey(
    stored: StoredModel | Mapping[str, Tensor],
    *,
    also: Sequence[Kind] = (),
    max_aspect: float = MAX_ASPECT,
    on_progress: OnProgress | None = None,
) -> Survey:
    """What could be saved of a state dict by low-rank weights.

    Energies are those of weights, with no data: they do not say how far outputs move. A weight
    with NaN or infinity is among what is left, with that reason.

    Args:
        stored: What :func:`read_any` read, or tensors by name.
        also: Kinds of weights to count that are cut on request only.
        max_aspect: A weight whose larger side is this many times the smaller, or more, stays dense.
        on_progress: Called before each weight.

    Raises:
        CheckpointError: There are no tensors.
        ConfigError: ``max_aspect`` is 1 or less.
    """
    return surveyed(stored_model(stored), also=also, max_aspect=max_aspect, on_progress=on_progress)


def surveyed(
    stored: StoredModel,
    *,
    also: Sequence[Kind] = (),
    max_aspect: float = MAX_ASPECT,
    on_progress: OnProgress | None = None,
    owners: Mapping[str, nn.Module] | None = None,
) -> Survey:
    """``survey``, where the modules of the network may be known by name."""
    chosen = without_broken(
        choose(stored, also=also, only=(), skip=(), max_aspect=max_aspect, owners=owners)
    )
    place = {key: i for i, key in enumerate(stored.tensors)}
    weights = sorted((*chosen.weights, *chosen.others), key=lambda weight: place[weight.key])
    spectra = spectra_of(weights, "inspect", on_progress)
    candidates = {
        weight.key: weight.candidate(s, only_if_cheaper=True)
        for weight, s in zip(weights, spectra, strict=True)
    }
    cut = [candidates[weight.key] for weight in chosen.weights]
    return Survey(
        source=str(stored),
        stored=chosen.other_numbers + sum(weight.stored for weight in chosen.weights),
        dense=chosen.other_numbers + sum(weight.dense_numbers for weight in chosen.weights),
        bytes=chosen.other_bytes + sum(weight.bytes_at(None) for weight in chosen.weights),
        weights=tuple(_weight(weight, candidates[weight.key]) for weight in weights),
        left=chosen.left,
        budgets=tuple(_budget(share, chosen, cut) for share in BUDGETS),
    )


def spectra_of(
    weights: Sequence[StoredWeight], function: str, on_progress: OnProgress | None
) -> list[Tensor]:
    """The singular values of each weight, in float64."""
    spectra = []
    for i, weight in enumerate(weights):
        if on_progress is not None:
            on_progress(i, len(weights), weight.name)
        spectra.append(weight.spectrum(function))
    return spectra


def ranks_by(
    rule: RankRule, chosen: Chosen, candidates: Sequence[Candidate], *, only_if_cheaper: bool = True
) -> list[int | None]:
    """The rank that each weight is cut to; None where it stays as it is.

    Raises:
        ConfigError: No ranks meet the budget; the message names what stands in the way.
    """
    try:
        wanted = decided_ranks(
            candidates, rule=rule, limits=OPEN, other_numbers=chosen.other_numbers
        )
    except ConfigError as error:
        largest = sorted(chosen.left, key=lambda each: -each.numbers)[:3]
        named = "; ".join(f"{e.name}, {e.numbers:,} ({e.reason})" for e in largest if e.numbers)
        raise ConfigError(f"{error}{f'. What stays as it is: {named}' * bool(named)}") from error
    return [
        k if not only_if_cheaper or weight.stored_at(k) < weight.stored else None
        for weight, k in zip(chosen.weights, wanted, strict=True)
    ]


def kept_energy(spectrum: Tensor, rank: int) -> float:
    """Share of the squared singular values within a rank; 1 of zeros."""
    squares = spectrum.square()
    total = float(squares.sum())
    return float(squares[:, :rank].sum()) / total if total else 1.0


def _weight(weight: StoredWeight, candidate: Candidate) -> WeightSurvey:
    s = candidate.spectrum
    ranks = [candidate.rounded(max(1, Energy(share).rank(candidate))) for share in ENERGIES]
    exact = weight.form == "dense" and weight.held[0].dtype.itemsize == 8
    least = 0.0 if exact or weight.form != "dense" else _RESOLVED
    resolved = bool((s[:, -1] > least * s[:, 0]).all())
    return WeightSurvey(
        name=weight.name,
        aliases=weight.aliases,
        kind=weight.kind,
        shape=str(weight.layout),
        dtype=dtype_name(weight.held[0]),
        rank=weight.rank,
        full_rank=weight.layout.full_rank,
        stored=weight.stored,
        condition=float((s[:, 0] / s[:, -1]).max()) if resolved else None,
        at=tuple(
            RankAt(share, k, min(weight.stored, weight.stored_at(k)))
            for share, k in zip(ENERGIES, ranks, strict=True)
        ),
        break_even_rank=weight.break_even_rank,
        stays=weight.stays,
        spectrum=s,
    )


def _budget(share: float, chosen: Chosen, candidates: Sequence[Candidate]) -> BudgetSurvey:
    if not candidates:
        return BudgetSurvey(share, None, problem="no weight here can be low-rank")
    try:
        ranks = ranks_by(StoredBudget(share), chosen, candidates)
    except ConfigError as error:
        return BudgetSurvey(share, None, problem=str(error))
    stored, size, kept = chosen.other_numbers, chosen.other_bytes, {}
    for weight, candidate, k in zip(chosen.weights, candidates, ranks, strict=True):
        stored += weight.stored if k is None else weight.stored_at(k)
        size += weight.bytes_at(k)
        if k is not None:
            kept[weight.name] = kept_energy(candidate.spectrum, k)
    if not kept:
        return BudgetSurvey(share, stored, size)
    worst = min(kept, key=lambda name: kept[name])
    mean = sum(kept.values()) / len(kept)
    return BudgetSurvey(share, stored, size, len(kept), mean, worst, kept[worst])
