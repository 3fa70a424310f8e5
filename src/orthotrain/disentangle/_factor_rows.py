"""The rows of an evaluation that need images with true factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import measuring, stream
from orthotrain.disentangle.beta_vae_score import beta_vae_score
from orthotrain.disentangle.budget import FactorBudget
from orthotrain.disentangle.chance import chance_level
from orthotrain.disentangle.dci import DciScore, dci
from orthotrain.disentangle.evaluation import Score
from orthotrain.disentangle.factor_vae_score import factor_vae_score
from orthotrain.disentangle.mig import mig
from orthotrain.disentangle.modularity import modularity
from orthotrain.disentangle.sap import sap

_IMAGES_PER_CALL = 256


def factor_rows(
    encode: Callable[[Tensor], Tensor], dataset: Any, *, seed: int, budget: FactorBudget
) -> list[Score]:
    """MIG, SAP, modularity, DCI, FactorVAE and beta-VAE score, each with its chance."""
    require_count("evaluate", "factors.samples", budget.samples, at_least=2)
    codes, factors = _codes(encode, dataset, budget.samples, seed)
    repeats = budget.chance_repeats
    rows = []
    for name, score in (("MIG", mig), ("SAP", sap), ("modularity", modularity)):
        chance = chance_level(score, codes, factors, seed=seed, repeats=repeats)
        rows.append(_row(name, score(codes, factors), chance.level, chance.spread, budget))
    rows += _dci_rows(codes, factors, seed, budget)
    for name, vote in (("FactorVAE score", factor_vae_score), ("beta-VAE score", beta_vae_score)):
        found = vote(
            encode, dataset, seed=seed,
            train_votes=budget.train_votes, evaluation_votes=budget.evaluation_votes,
        )  # fmt: skip
        note = "higher; spread: standard error over votes"
        rows.append(Score(name, found.score, found.standard_error, chance=found.chance, note=note))
    return rows


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
    rows = []
    for part in ("disentanglement", "completeness", "informativeness"):
        values = torch.tensor([getattr(score, part) for score in permuted], dtype=torch.float64)
        level, spread = float(values.mean()), float(values.std())
        rows.append(_row(f"DCI {part}", getattr(found, part), level, spread, budget))
    return rows


def _row(name: str, value: float, chance: float, spread: float, budget: FactorBudget) -> Score:
    note = f"higher; spread of the chance over {budget.chance_repeats} permutations"
    return Score(name, float(value), spread, chance=chance, note=note)


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
