"""What is measured of an image generator at the end of its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.data.image_sets import ImageSet
from orthotrain.data.moments import sprite_moments
from orthotrain.data.splits import Part, random_parts
from orthotrain.data.sprites import Sprites
from orthotrain.disentangle import (
    Budget,
    ClassifierBudget,
    Evaluation,
    FactorBudget,
    FeatureSpace,
    Score,
    classifier_features,
    evaluate,
    latent_encoder,
    random_rotation,
    rotated,
    sefa_directions,
)
from orthotrain.lab.experiments.latent.build import latent_layers
from orthotrain.lab.run.config import Scale
from orthotrain.layers import EigenSubspace
from orthotrain.models.eigengan import EigenGenerator
from orthotrain.models.simple_gan import SimpleGenerator

ImageGenerator = EigenGenerator | SimpleGenerator


@dataclass(frozen=True)
class ScoreBudget:
    """How much a score may draw and train at one scale of a run."""

    evaluation: Budget
    encoder_steps: int
    classifier_images: int


_SMOKE: Final = ScoreBudget(
    Budget(
        latents=8,
        interventions=8,
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
    classifier_images=20,
)
# On two cores: minutes with the training. What is smaller than published is named here.
_CPU: Final = ScoreBudget(
    Budget(
        latents=100,
        interventions=200,
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
    classifier_images=5_000,
)
BUDGETS: Final[dict[Scale, ScoreBudget]] = {
    "smoke": _SMOKE,
    "cpu": _CPU,
    "night": _CPU,
    "full": ScoreBudget(Budget(), encoder_steps=5_000, classifier_images=20_000),
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
        directions: Orthogonal, one per row, along which the latent is moved; None are its axes.

    Returns:
        The few numbers that variants are compared in, by name, and the whole evaluation. Names
        that end in ``_sefa`` and ``_rotated`` are of the latent turned so, in each latent layer by
        itself, and in ``_chance`` of codes that know nothing. ``factor_spread`` is the least share
        of the standard deviation of a factor of real images that generated ones have, at most 1.
    """
    dim = model.latent_dim
    plain, latent_dim = one_latent(model)
    generate = plain if directions is None else rotated(plain, directions)
    sizes = [len(getattr(layer, name)) for layer, name in latent_layers(model)]
    rotation = random_rotation(dim, seed=seed, blocks=sizes)
    turned = {"SeFa": block_directions(model), "latents rotated": rotation}
    if directions is not None:
        # They are of the generator's own coordinates, and what is scored here is turned already.
        turned = {name: rows @ directions.mT for name, rows in turned.items()}
    factors: dict[str, Any] = {}
    spaces: tuple[FeatureSpace, ...] = ()
    if sprites is not None:
        encoder = latent_encoder(
            generate, latent_dim, seed=seed, steps=budget.encoder_steps, factors=dim
        )

        def encode(images: Tensor) -> Tensor:
            return encoder(2 * images - 1)

        spaces = (shape_features(sprites, budget.classifier_images),)
        factors = {
            "measure": sprite_factors,
            "encode": encode,
            "dataset": sprites,
            "factor_columns": identifiable(sprites),
            "nominal_columns": [
                i for i, name in enumerate(sprites.factor_names) if name in ("shape", "color")
            ],
            "factor_scores": {"encoder R^2": sum(encoder.r_squared) / dim},
        }
    evaluation = evaluate(
        generate,
        latent_dim=latent_dim,
        factors=dim,
        seed=seed,
        reference=real,
        spaces=spaces,
        turned=turned,
        budget=budget.evaluation,
        **factors,
    )
    return _summary(evaluation), evaluation


def shape_features(sprites: Sprites, images: int) -> FeatureSpace:
    """Features of a classifier of shapes, trained on sprites that no Frechet distance is of.

    Nor is any generator trained on them. The same for every generator: its seed is none of a run.
    """
    index = random_parts(len(sprites), parts=get_args(Part), title=sprites.title)["validation"]
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    drawn, truth = sprites[index[order[:images]]]
    labels = truth[:, sprites.factor_names.index("shape")]
    return classifier_features(2 * drawn - 1, labels, seed=0, epochs=5, width=16)


def identifiable(sprites: Sprites) -> list[int]:
    """Columns of the factors that an image tells: a square looks alike after a quarter turn."""
    return [i for i, name in enumerate(sprites.factor_names) if name != "orientation"]


def one_latent(model: ImageGenerator) -> tuple[Callable[[Tensor], Tensor], int]:
    """The generator as a function of coordinates and noise in one vector, and its length."""
    if isinstance(model, EigenGenerator):
        return model.joint, model.latent_dim + model.noise_dim
    return model, model.latent_dim


def sprite_factors(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3"]:
    """Side of the blob (root of its area) and where it is, of images in [-1, 1]."""
    moments = sprite_moments(((images + 1) / 2).clamp(0, 1))
    return torch.stack([moments.area.sqrt(), moments.x, moments.y], dim=1)


def block_directions(model: ImageGenerator) -> Float[Tensor, "d d"]:
    """SeFa's directions of each latent layer, which turn its own coordinates only."""
    turned = []
    for layer, name in latent_layers(model):
        weight = getattr(layer, name).detach()
        if isinstance(layer, EigenSubspace):
            weight = layer.scale.detach()[:, None] * weight
        turned.append(sefa_directions(weight.double(), latent_axis=0)[0].cpu())
    directions: Tensor = torch.block_diag(*turned)  # type: ignore[no-untyped-call]
    return directions


# Name here, and the row or rows of an evaluation whose mean it is.
_ROWS: Final = {
    "disentanglement": "disentanglement by intervention",
    "completeness": "completeness by intervention",
    "factor_spread": "least spread of a factor",
    "vp": "VP",
    "ppl": "PPL[pixels",
    "frechet": "FD[random",
    "frechet_classifier": "FD[classifier",
    "coverage": "coverage[random",
    "encoder_r2": "encoder R^2",
    "mig": "MIG",
    "sap": "SAP",
    "modularity": "modularity",
    "dci_disentanglement": "DCI disentanglement",
    "factor_vae": "FactorVAE score",
    "beta_vae": "beta-VAE score",
}
_TURNED: Final = {"_sefa": ", SeFa", "_rotated": ", latents rotated"}


def _summary(found: Evaluation) -> dict[str, float]:
    """The rows that variants are compared in; means over the three random spaces."""
    scores = {}
    for name, start in _ROWS.items():
        rows = [row for row in found.scores if _is(row, start)]
        if not rows:
            continue
        scores[name] = fmean(row.value for row in rows)
        if rows[0].floor is not None:
            scores[f"{name}_floor"] = fmean(row.floor for row in rows if row.floor is not None)
        if rows[0].chance is not None and not start.endswith("by intervention"):
            scores[f"{name}_chance"] = fmean(row.chance for row in rows if row.chance is not None)
        for suffix, end in _TURNED.items():
            turned = [row.value for row in found.scores if row.name == start + end]
            if turned:
                scores[name + suffix] = fmean(turned)
    return scores


def _is(row: Score, start: str) -> bool:
    return row.name == start if "[" not in start else row.name.startswith(start)
