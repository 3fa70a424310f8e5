"""Every score of a generator by one call, each with its spread and its chance level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.disentangle.evaluation import (
    Budget,
    Evaluation,
    Reference,
    Score,
    drawn,
    image_batches,
)
from orthotrain.disentangle.factor_rows import factor_rows
from orthotrain.disentangle.features import FeatureSpace, pixel_features, pixel_pca, random_features
from orthotrain.disentangle.generators import (
    Generate,
    Source,
    ValueRange,
    measuring,
    random_rotation,
    require_range,
    rotated,
)
from orthotrain.disentangle.images import fidelity
from orthotrain.disentangle.interventions import (
    VALUES,
    Interventions,
    activeness_of_latents,
    interventions,
)
from orthotrain.disentangle.path_length import path_length
from orthotrain.disentangle.samples import stream
from orthotrain.disentangle.variation_predictability import variation_predictability
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg import effective_rank

# Two calls on the same latents may differ by the order of sums on an accelerator, not by this.
_SAME_IMAGE = 1e-3

_AT_RANDOM = "latents rotated"

_PARTS = ("disentanglement", "completeness")

#: Seeds of the random spaces. One network may see or miss a fault by luck; report all three.
RANDOM_SPACES = (0, 1, 2)

_PCA_COMPONENTS = 64

# A fifth is set apart for the PCA, and six are the fewest that have five neighbours.
_FEWEST = 15


@checked
def evaluate(  # noqa: PLR0913 - what is scored, by name
    generate: Generate,
    *,
    latent_dim: int,
    seed: int,
    reference: Reference | None = None,
    reference_range: ValueRange | None = None,
    spaces: Sequence[FeatureSpace] = (),
    turned: Mapping[str, Float[Tensor, "k k"]] | None = None,
    measure: Callable[[Tensor], Tensor] | None = None,
    encode: Callable[[Tensor], Tensor] | None = None,
    dataset: object | None = None,
    factor_columns: Sequence[int] | None = None,
    nominal_columns: Sequence[int] = (),
    factor_scores: Mapping[str, float] | None = None,
    factors: int | None = None,
    budget: Budget | None = None,
    batch_size: int = 64,
    value_range: ValueRange = "signed",
) -> Evaluation:
    """Every score of a generator, one row per score, with its spread and its chance level.

    - Always: activeness, the number of active coordinates, VP, PPL, and VP with the latents turned
      at random, which is what VP gives when the axes mean nothing.
    - With ``reference``: Frechet and kernel distance, precision, recall, density and coverage in
      every feature space, each beside real against real.
    - With ``measure``: disentanglement and completeness by intervention, beside those of latents
      turned at random.
    - With ``encode`` and ``dataset``: MIG, SAP, modularity, DCI, FactorVAE and beta-VAE score, each
      beside its chance level.

    Args:
        generate: Latents ``(n, latent_dim)`` to images ``(n, c, h, w)``, as for ``activeness``. A
            generator with a noise input besides its factors takes both in one latent, as
            ``EigenGenerator.joint`` does, with ``factors`` for the number of coordinates.
        latent_dim: Length of a latent, at least 2.
        seed: Seed of all draws.
        reference: Real images: a tensor, uint8 or floating-point, or an object with ``len`` and
            ``[indices]``, in the size and crop of the generated ones.
        reference_range: Of floating-point real images; None is ``value_range``.
        spaces: Feature spaces for fidelity besides three random ones and pixel PCA.
        turned: Directions along which the latent is also moved, for VP and interventions: by name
            orthogonal ``(factors, factors)``, one direction per row, as ``sefa_directions`` gives
            them. ``"latents rotated"`` is ``random_rotation(factors, seed=seed)`` unless given.
        measure: Images to factors ``(n, f)``, as in ``interventions``.
        encode: Images of ``dataset`` to codes ``(n, d)``.
        dataset: Images with true factors, such as ``data.Sprites``; with ``encode`` only.
        factor_columns: Columns of the factors that are scored; None is all. Leave out a factor that
            the image does not show, such as the orientation of a square.
        nominal_columns: Columns of the factors whose values are names and not an order. SAP fits
            classes to them, so each value has to be drawn several times.
        factor_scores: Scores from true factors that were computed elsewhere, as rows of their own.
        factors: How many coordinates, from the first, are factors; None is all. At least two.
        budget: None is ``Budget()``. Its VP alone takes hours on a CPU at 64 pixels.
        batch_size: Images per call.
        value_range: Of the generated images: ``"signed"`` [-1, 1], ``"unit"`` [0, 1], or
            ``"any"``. The first two are checked and measured alike, in [-1, 1].

    Returns:
        ``.scores``, ``.activeness`` and ``.settings``; it prints as a table and has
        ``.to_dict()``.

    Raises:
        ConfigError: A setting out of its range; images out of theirs; a generator that gives two
            images for one latent; one of ``encode`` and ``dataset`` without the other.
        ShapeError: ``generate`` does not return ``(n, c, h, w)``; real images of another shape;
            too few of them.
        NonFiniteError: An image or feature holds NaN or infinity.

    Note:
        The spread is over draws, splits or classifiers of this one generator. To compare two
        methods, train several generators: the spread over them is larger.
    """
    budget = Budget() if budget is None else budget
    source = Source.of("evaluate", generate, latent_dim, factors, batch_size, value_range)
    if (encode is None) != (dataset is None):
        raise ConfigError(
            f"evaluate needs encode and dataset together, got only "
            f"{'dataset' if encode is None else 'encode'}; the scores of true factors need both"
        )
    image_shape = _image_shape(source, seed)
    active = activeness_of_latents(source, seed=seed, samples=budget.latents, values=VALUES)
    ways = _ways(source, turned, seed)
    rows = [_active_dimensions(active), *_latent_rows(source, ways, seed, budget)]
    real_range = value_range if reference_range is None else reference_range
    if reference is not None:
        rows += fidelity_rows(
            source, reference, spaces=spaces, image_shape=image_shape, seed=seed, budget=budget,
            reference_range=real_range,
        )  # fmt: skip
    if measure is not None:
        found, moves = intervention_rows(source, ways, measure, seed=seed, budget=budget)
        rows += found
        if reference is not None:
            index = drawn(reference, stream("evaluate", seed))[: budget.interventions]
            real = image_batches(reference, index, value_range=real_range, batch_size=batch_size)
            rows.append(spread_row(moves.spread, real, measure))
    if encode is not None and dataset is not None:
        rows += factor_rows(
            encode, dataset, columns=factor_columns, nominal=nominal_columns, seed=seed,
            budget=budget.factors,
        )  # fmt: skip
    for name, value in (factor_scores or {}).items():
        rows.append(Score(name, float(value), note="given"))
    return Evaluation(
        scores=tuple(rows),
        activeness=tuple(active.mean(dim=0).tolist()),
        activeness_spread=tuple((active.std(dim=0) / math.sqrt(len(active))).tolist()),
        settings={
            "seed": seed,
            "latent_dim": latent_dim,
            "factors": source.factors,
            "value_range": value_range,
            "image_shape": list(image_shape),
            "budget": asdict(budget),
        },
    )


def _image_shape(source: Source, seed: int) -> tuple[int, ...]:
    """Shape of an image; raises unless the same latents give the same images."""
    z = source.latents(2, stream(source.function, seed))
    with measuring(source.generate):
        first, second = source.images(z), source.images(z)
    apart = float((first - second).abs().max())
    if apart > _SAME_IMAGE:
        raise ConfigError(
            f"evaluate needs a generator that gives one image for one latent, got two that differ "
            f"by {apart:.3g}; make its noise part of the latent and pass factors, or fix it"
        )
    return tuple(first.shape[1:])


def _active_dimensions(active: Float[Tensor, "n d"]) -> Score:
    n = len(active)
    mean = active.mean(dim=0)
    # Jackknife: the mean without each latent in turn. Rounding may leave it below zero.
    left_out = effective_rank(((n * mean - active) / (n - 1)).clamp(min=0))
    return Score(
        "active dimensions",
        float(effective_rank(mean)),
        float(left_out.std(correction=0)) * math.sqrt(n - 1),
        note=f"of {active.shape[1]}; spread: standard error",
    )


def _ways(source: Source, turned: Mapping[str, Tensor] | None, seed: int) -> dict[str, Generate]:
    """The generator as it is and turned, by the end of the rows' names; at random comes last."""
    given = dict(turned or {})
    at_random = given.pop(_AT_RANDOM, None)
    if at_random is None:
        at_random = random_rotation(source.factors, seed=seed)
    ways = {"": source.generate}
    for name, directions in {**given, _AT_RANDOM: at_random}.items():
        if directions.shape != (source.factors, source.factors):
            raise ShapeError(
                f"evaluate needs directions of shape {(source.factors, source.factors)} in turned, "
                f"got {tuple(directions.shape)} for {name!r}; give one direction per coordinate"
            )
        ways[f", {name}"] = rotated(source.generate, directions)
    return ways


def _latent_rows(
    source: Source, ways: Mapping[str, Generate], seed: int, budget: Budget
) -> list[Score]:
    rows = []
    for end, generate in ways.items():
        found = variation_predictability(
            generate, source.latent_dim, seed=seed, budget=budget.classifier, **source.settings
        )
        note = f"higher; spread over {len(found.accuracies)} classifiers"
        rows.append(Score(f"VP{end}", found.accuracy, found.spread, chance=found.chance, note=note))
    for space in (pixel_features(), *(random_features(seed=number) for number in RANDOM_SPACES)):
        path = path_length(
            source.generate, source.latent_dim, seed=seed, space=space, samples=budget.paths,
            batch_size=source.batch_size, value_range=source.value_range,
        )  # fmt: skip
        note = "lower; spread: standard error"
        rows.append(Score(path.label, path.mean, path.spread, note=note))
    return rows


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
            one is turned at random, which is the chance level of all.
        measure: Images to factors.
        seed: Of the latents.
        budget: How many.
    """
    found = {
        end: interventions(
            generate, source.latent_dim, measure=measure, seed=seed, samples=budget.interventions,
            **source.settings,
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


def fidelity_rows(  # noqa: PLR0913 - what is compared, by name
    source: Source,
    reference: Reference,
    *,
    reference_range: ValueRange,
    spaces: Sequence[FeatureSpace],
    image_shape: tuple[int, ...],
    seed: int,
    budget: Budget,
) -> list[Score]:
    """Every measure in three random spaces, pixel PCA and the given ones, with its floor."""
    require_range("evaluate", reference_range)
    random = stream("evaluate", seed)
    order = drawn(reference, random)
    if len(order) < _FEWEST:
        raise ShapeError(
            f"evaluate needs at least {_FEWEST} real images, got {len(order)}; distances of so few "
            f"say nothing, give thousands"
        )

    def real(index: Int64[Tensor, " k"]) -> Iterator[Tensor]:
        for images in image_batches(
            reference, index, value_range=reference_range, batch_size=source.batch_size
        ):
            if tuple(images.shape[1:]) != image_shape:
                raise ShapeError(
                    f"evaluate needs real images of the shape {image_shape} of generated ones, got "
                    f"{tuple(images.shape[1:])}; crop and resize them as in training"
                )
            yield images

    fitted = max(2, min(budget.pca_images, len(order) // 5))
    scored = order[fitted : fitted + 2 * budget.images]
    fit = torch.cat(list(real(order[:fitted])))
    components = min(_PCA_COMPONENTS, len(fit) - 1, fit[0].numel())
    every = [
        *(random_features(seed=number) for number in RANDOM_SPACES),
        pixel_pca(fit, components=components),
        *spaces,
    ]
    z = source.latents(min(budget.images, len(scored) // 2), random)
    with measuring(source.generate):
        generated = embedded(every, (images for (images,) in source.batches(z)))
    rows = []
    for space, a, b in zip(every, embedded(every, real(scored)), generated, strict=True):
        for found in fidelity(a, b, features=space.name, seed=seed, splits=budget.splits):
            better = "lower" if found.name in ("FD", "KD") else "higher"
            note = f"{better}; spread over {budget.splits} splits"
            rows.append(Score(found.label, found.value, found.spread, floor=found.floor, note=note))
    return rows


def embedded(
    spaces: Sequence[FeatureSpace], batches: Iterable[Tensor]
) -> list[Float[Tensor, "n d"]]:
    """Features of all images in each space, on the CPU; every batch is made once."""
    parts: list[list[Tensor]] = [[] for _ in spaces]
    for images in batches:
        for space, part in zip(spaces, parts, strict=True):
            part.append(space(images).cpu())
    return [torch.cat(part) for part in parts]
