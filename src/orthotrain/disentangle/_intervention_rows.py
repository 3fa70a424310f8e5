"""The rows of an evaluation that need a measure of factors: what moving a coordinate does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._generator import Generate, Source, measuring
from orthotrain.disentangle.budget import Budget
from orthotrain.disentangle.evaluation import Score
from orthotrain.disentangle.intervention import Interventions, interventions

_PARTS = ("disentanglement", "completeness")


def intervention_rows(
    source: Source,
    turned: Mapping[str, Generate],
    measure: Callable[[Tensor], Tensor],
    *,
    seed: int,
    budget: Budget,
) -> tuple[list[Score], Interventions]:
    """Both scores of each way to turn the latent, and what was found of the latent as it is.

    Args:
        source: The generator.
        turned: Ways by the end of their rows' names: ``""`` is the latent as it is, and the last
            one is turned at random, which is the chance of all.
        measure: Images to factors.
        seed: Of the latents.
        budget: How many.
    """
    found = {
        end: interventions(
            generate, source.latent_dim, measure=measure, seed=seed, samples=budget.interventions,
            factors=source.factors, batch_size=source.batch_size, value_range=source.value_range,
        )
        for end, generate in turned.items()
    }  # fmt: skip
    *_, by_chance = found.values()
    rows = [
        Score(
            f"{part} by intervention{end}",
            getattr(one, part),
            getattr(one, f"{part}_error"),
            chance=getattr(by_chance, part),
            chance_spread=getattr(by_chance, f"{part}_error"),
            note="higher; spread: standard error",
        )
        for part in _PARTS
        for end, one in found.items()
    ]
    return rows, found[""]


def spread_row(
    spread: Float[Tensor, " f"], real: Iterable[Tensor], measure: Callable[[Tensor], Tensor]
) -> Score:
    """Least standard deviation of a factor, as a share of that in real images, at most 1.

    Args:
        spread: Of each factor in generated images.
        real: Batches of real images.
        measure: Images to factors.
    """
    with measuring(measure):
        factors = torch.cat([measure(images).detach().double().cpu() for images in real])
    deviation = factors.std(dim=0)
    share = torch.where(deviation > 0, spread / deviation, 1.0)
    return Score(
        "least spread of a factor",
        float(share.clamp(max=1).min()),
        note="share of that in real images; where it is small, what moves a factor says little",
    )
