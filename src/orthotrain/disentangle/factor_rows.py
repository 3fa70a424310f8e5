"""The rows of an evaluation that need images with true factors."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthotrain.disentangle.codes import DciScore, SapKind, dci, mig, modularity, sap
from orthotrain.disentangle.evaluation import FactorBudget, Score
from orthotrain.disentangle.generators import measuring
from orthotrain.disentangle.samples import chance_level, stream
from orthotrain.disentangle.votes import beta_vae_score, factor_vae_score, fixed_columns
from orthotrain.errors import ConfigError, OrthotrainWarning

_IMAGES_PER_CALL = 256

_RESAMPLES = 10


def factor_rows(
    encode: Callable[[Tensor], Tensor],
    dataset: Any,
    *,
    columns: Sequence[int] | None,
    nominal: Sequence[int],
    seed: int,
    budget: FactorBudget,
) -> list[Score]:
    """MIG, SAP, modularity, DCI, FactorVAE and beta-VAE score, each with its chance level."""
    kept = fixed_columns("evaluate", dataset, columns).tolist()
    if not set(nominal) <= set(kept):
        raise ConfigError(
            f"evaluate needs nominal_columns to be among the scored columns {kept}, got "
            f"{list(nominal)}; name columns of factors whose values are no order"
        )
    codes, factors = _codes(encode, dataset, budget.samples, seed)
    factors = factors[:, kept]
    named = [column in nominal for column in kept]
    rows = []
    for name, score in (("MIG", mig), ("SAP", _sap(named)), ("modularity", modularity)):
        chance = chance_level(score, codes, factors, seed=seed, repeats=budget.chance_repeats)
        spread = _over_resamples(score, codes, factors, seed)
        note = f"higher; spread over {_RESAMPLES} resamples"
        rows.append(
            Score(
                name, float(score(codes, factors)), spread,
                chance=chance.level, chance_spread=chance.spread, note=note,
            )
        )  # fmt: skip
    rows += _dci_rows(codes, factors, seed, budget)
    for name, vote in (("FactorVAE score", factor_vae_score), ("beta-VAE score", beta_vae_score)):
        found = vote(
            encode, dataset, seed=seed, factors=kept,
            train_votes=budget.train_votes, evaluation_votes=budget.evaluation_votes,
        )  # fmt: skip
        note = "higher; spread: standard error over votes"
        rows.append(Score(name, found.score, found.standard_error, chance=found.chance, note=note))
    return rows


def _sap(named: Sequence[bool]) -> Callable[[Tensor, Tensor], float]:
    """SAP that fits classes to the columns whose values are names, and a line to the others."""
    kinds: tuple[tuple[SapKind, bool], ...] = (("discrete", True), ("continuous", False))

    def score(codes: Tensor, factors: Tensor) -> float:
        # What takes one value in a draw is left out of the mean, as sap does.
        varying = (factors != factors[:1]).any(dim=0).tolist()
        if not any(varying):
            return float(sap(codes, factors))
        total = 0.0
        for kind, is_named in kinds:
            columns = [j for j, one in enumerate(named) if one == is_named and varying[j]]
            if columns:
                total += len(columns) * sap(codes, factors[:, columns], kind=kind)
        return float(total / sum(varying))

    return score


def _over_resamples(
    score: Callable[[Tensor, Tensor], float],
    codes: Float[Tensor, "n d"],
    factors: Int[Tensor, "n f"],
    seed: int,
) -> float:
    """Standard deviation of a score over resamples of its images with replacement."""
    random = stream("evaluate", seed)
    values = []
    for _ in range(_RESAMPLES):
        index = torch.randint(len(codes), (len(codes),), generator=random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OrthotrainWarning)
            values.append(float(score(codes[index], factors[index])))
    return statistics.stdev(values)


def _dci_rows(
    codes: Float[Tensor, "n d"], factors: Int[Tensor, "n f"], seed: int, budget: FactorBudget
) -> list[Score]:
    """All three parts of DCI; its classifiers are trained once a permutation, not three times."""
    permuted: list[DciScore] = []

    def recorded(codes: Tensor, factors: Tensor) -> float:
        permuted.append(dci(codes, factors, model=budget.dci_model, seed=seed))
        return permuted[-1].disentanglement

    chance_level(recorded, codes, factors, seed=seed, repeats=budget.chance_repeats)
    found = dci(codes, factors, model=budget.dci_model, seed=seed)
    # A resample has images twice, on which its classifiers would be trained and tested both.
    again = dci(codes, factors, model=budget.dci_model, seed=seed + 1)
    rows = []
    for part in ("disentanglement", "completeness", "informativeness"):
        levels = [getattr(score, part) for score in permuted]
        values = [float(getattr(score, part)) for score in (found, again)]
        rows.append(
            Score(
                f"DCI {part}", values[0], statistics.stdev(values),
                chance=statistics.fmean(levels), chance_spread=statistics.stdev(levels),
                note="higher; spread over two splits into training and test",
            )
        )  # fmt: skip
    return rows


def _codes(
    encode: Callable[[Tensor], Tensor], dataset: Any, samples: int, seed: int
) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n f"]]:
    """Codes and factors of images drawn with replacement, as the published protocol does."""
    random = stream("evaluate", seed)
    index = torch.randint(len(dataset), (samples,), generator=random)
    codes, factors = [], []
    with measuring(encode):
        for part in torch.split(index, _IMAGES_PER_CALL):
            images, truth = dataset[part]
            codes.append(encode(images).cpu())
            factors.append(truth.cpu())
    return torch.cat(codes), torch.cat(factors)
