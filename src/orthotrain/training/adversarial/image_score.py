"""What is measured of an image generator at the end of its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.data.image_sets import ImageSet
from orthotrain.data.moments import sprite_moments
from orthotrain.data.sprites import Sprites
from orthotrain.disentangle import (
    Budget,
    ClassifierBudget,
    Evaluation,
    FactorBudget,
    Score,
    evaluate,
    interventions,
    latent_encoder,
    random_rotation,
    rotated,
    sefa_directions,
    variation_predictability,
)
from orthotrain.layers import EigenSubspace
from orthotrain.models.eigengan import EigenGenerator
from orthotrain.models.simple_gan import SimpleGenerator
from orthotrain.training.config import Scale

ImageGenerator = EigenGenerator | SimpleGenerator


@dataclass(frozen=True)
class ScoreBudget:
    """How much a score may draw and train at one scale of a run."""

    evaluation: Budget
    encoder_steps: int
    samples: int


_SMOKE: Final = ScoreBudget(
    Budget(
        latents=8,
        classifier=ClassifierBudget(pairs=120, classifiers=3, epochs=1, width=4),
        paths=16,
        images=32,
        splits=2,
        pca_images=16,
        factors=FactorBudget(
            samples=700,  # MIG's histogram has 20 bins times 32 positions
            train_votes=60,
            evaluation_votes=40,
            chance_repeats=2,
            dci_model="random_forest",
        ),
    ),
    encoder_steps=4,
    samples=8,
)
# On two cores: minutes with the training. What is smaller than published is named here.
_CPU: Final = ScoreBudget(
    Budget(
        latents=100,
        classifier=ClassifierBudget(pairs=4_000, classifiers=3, epochs=12, width=16),
        paths=500,
        images=2_000,
        splits=3,
        pca_images=500,
        factors=FactorBudget(
            samples=1_000,
            train_votes=800,
            evaluation_votes=400,
            chance_repeats=2,
            dci_model="random_forest",
        ),
    ),
    encoder_steps=500,
    samples=200,
)
BUDGETS: Final[dict[Scale, ScoreBudget]] = {
    "smoke": _SMOKE,
    "cpu": _CPU,
    "full": ScoreBudget(Budget(), encoder_steps=5_000, samples=300),
}


def image_scores(
    model: ImageGenerator,
    real: ImageSet,
    *,
    sprites: Sprites | None,
    budget: ScoreBudget,
    seed: int,
    directions: Float[Tensor, "d d"] | None = None,
) -> tuple[dict[str, float], Evaluation]:
    """Scores of a trained generator.

    Args:
        model: The averaged generator.
        real: Real images that no step has seen.
        sprites: Their factors, where the images are sprites.
        budget: How much is drawn.
        seed: Of everything.
        directions: Orthogonal, one a row, along which the latent is moved; None are its axes.

    Returns:
        The few numbers that variants are compared in, by name, and the whole evaluation. Names
        that end in ``_sefa`` and ``_rotated`` are of the latent turned so. ``factor_spread`` is
        the least share of the standard deviation of a factor of real images that generated ones
        have, at most 1.
    """
    dim = model.latent_dim
    turned = {
        "": torch.eye(dim) if directions is None else directions,
        "_sefa": block_directions(model),
        "_rotated": random_rotation(dim, seed=seed),
    }
    plain, latent_dim = one_latent(model)
    generate = rotated(plain, turned[""])
    scores: dict[str, float] = {}
    encode: Callable[[Tensor], Tensor] | None = None
    if sprites is not None:
        shown = _measured(real, budget.samples, seed=seed)
        for suffix, rows in turned.items():
            found = interventions(
                rotated(plain, rows),
                latent_dim,
                measure=sprite_factors,
                seed=seed,
                samples=budget.samples,
                factors=dim,
            )
            scores[f"disentanglement{suffix}"] = found.disentanglement
            scores[f"completeness{suffix}"] = found.completeness
            if not suffix:
                share = found.spread / shown.std(dim=0)
                scores["factor_spread"] = float(share.clamp(max=1).min())
        encoder = latent_encoder(
            generate, latent_dim, seed=seed, steps=budget.encoder_steps, factors=dim
        )
        scores["encoder_r2"] = sum(encoder.r_squared) / dim

        def encode(images: Tensor) -> Tensor:
            return encoder(2 * images - 1)

    evaluation = evaluate(
        generate,
        latent_dim=latent_dim,
        factors=dim,
        seed=seed,
        reference=real,
        encode=encode,
        dataset=sprites,
        factor_columns=None if sprites is None else identifiable(sprites),
        budget=budget.evaluation,
    )
    after = variation_predictability(
        rotated(plain, turned["_sefa"]),
        latent_dim,
        seed=seed,
        budget=budget.evaluation.classifier,
        factors=dim,
    )
    return {**scores, **_summary(evaluation), "vp_sefa": after.accuracy}, evaluation


def identifiable(sprites: Sprites) -> list[int]:
    """Columns of the factors that an image tells: a square looks alike after a quarter turn."""
    return [i for i, name in enumerate(sprites.factor_names) if name != "orientation"]


def one_latent(model: ImageGenerator) -> tuple[Callable[[Tensor], Tensor], int]:
    """The generator as a function of coordinates and noise in one vector, and its length."""
    if isinstance(model, EigenGenerator):
        return model.joint, model.latent_dim + model.noise_dim
    return model, model.latent_dim


def _measured(real: ImageSet, count: int, *, seed: int) -> Float[Tensor, "n 3"]:
    """Factors of real images, drawn at random."""
    index = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[:count]
    return sprite_factors(real[index].float() / 127.5 - 1)


def sprite_factors(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3"]:
    """Side of the blob (root of its area) and where it is, of images in [-1, 1]."""
    moments = sprite_moments(((images + 1) / 2).clamp(0, 1))
    return torch.stack([moments.area.sqrt(), moments.x, moments.y], dim=1)


def block_directions(model: ImageGenerator) -> Float[Tensor, "d d"]:
    """SeFa's directions of each latent layer, which turn its own coordinates only."""
    if isinstance(model, SimpleGenerator):
        return sefa_directions(model.latent.weight.double(), latent_axis=0)[0].cpu()
    weights = [
        (module.scale[:, None] * module.u).detach().double()
        for module in model.modules()
        if isinstance(module, EigenSubspace)
    ]
    turned = [sefa_directions(weight, latent_axis=0)[0].cpu() for weight in weights]
    directions: Tensor = torch.block_diag(*turned)  # type: ignore[no-untyped-call]
    return directions


# Name here, and the row or rows of an evaluation whose mean it is.
_ROWS: Final = {
    "vp": "VP",
    "vp_rotated": "VP, latents rotated",
    "ppl": "PPL[pixels",
    "frechet": "FD[random",
    "coverage": "coverage[random",
    "mig": "MIG",
    "dci_disentanglement": "DCI disentanglement",
    "factor_vae": "FactorVAE score",
}


def _summary(found: Evaluation) -> dict[str, float]:
    """The rows that variants are compared in; means over the three random spaces."""
    scores = {}
    for name, start in _ROWS.items():
        rows = [row for row in found.scores if _is(row, start)]
        if rows:
            scores[name] = sum(row.value for row in rows) / len(rows)
        floors = [row.floor for row in rows if row.floor is not None]
        if floors and name == "frechet":
            scores["frechet_floor"] = sum(floors) / len(floors)
    return scores


def _is(row: Score, start: str) -> bool:
    return row.name == start if "[" not in start else row.name.startswith(start)
