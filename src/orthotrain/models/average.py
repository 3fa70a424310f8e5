"""An averaged copy of a model: exponential, with a half-life in images and a warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.methods.select import unwrap

_Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class ImageDecay:
    """The decay of an exponential average whose weights halve over a number of images.

    Attributes:
        half_life_images: Half-life after the warm-up.
        batch_size: Images per step.
        warmup: Largest half-life as a share of the images averaged so far.
    """

    half_life_images: float
    batch_size: int
    warmup: float

    def decay(self, averaged: int) -> float:
        """Share of the old average that stays, when ``averaged`` steps are in it already."""
        half_life = self.half_life_images
        if self.warmup:
            half_life = min(half_life, self.warmup * averaged * self.batch_size)
        return 0.5 ** (self.batch_size / half_life) if half_life > 0 else 0.0

    def __call__(self, average: _Tensors, current: _Tensors, averaged: Tensor | int) -> None:
        """Move ``average`` towards ``current``, as ``AveragedModel`` asks for it."""
        move = get_ema_multi_avg_fn(self.decay(int(averaged)))  # type: ignore[no-untyped-call]
        move(average, current, averaged)


@checked
def ema_of(
    model: nn.Module, *, half_life_images: float, batch_size: int, warmup: float = 0.05
) -> AveragedModel:
    """A copy of a model that averages its weights over training, from now on.

    Call ``ema.update_parameters(model)`` after each step. ``ema.module`` is the copy: in
    evaluation mode, its parameters without gradients. After ``t`` steps its half-life is
    ``min(half_life_images, warmup * images seen)``, so that the untrained weights of the start do
    not linger; the first update copies.

    Args:
        model: Any module, wrapped or not; it is not changed.
        half_life_images: Images over which the weight of a step halves. For a decay ``d`` per step
            that is ``batch_size * log(0.5) / log(d)``: 692.8 batches for 0.999.
        batch_size: Images per step.
        warmup: As above, at least 0. With 0 there is no warm-up: the weights of the first step
            decay like those of any other.

    Returns:
        torch's ``AveragedModel``. Buffers are those of the model, not averaged. Its ``state_dict``
        holds how far the warm-up is. Call ``handle.track(ema)`` where a method changes the
        structure of the model.

    Raises:
        ConfigError: A half-life or batch that is not positive and finite, or a negative warm-up.

    Source:
        ``torch.optim.swa_utils``; the warm-up is that of Karras et al. (2020), arXiv:2006.06676,
        whose ramp-up of 0.05 is the default.
    """
    if not 0 < half_life_images < float("inf"):
        raise ConfigError(
            f"ema_of needs a positive, finite half_life_images, got {half_life_images}; for a "
            "decay d per step it is batch_size * log(0.5) / log(d)"
        )
    if batch_size < 1:
        raise ConfigError(f"ema_of needs batch_size of at least 1, got {batch_size}")
    if not 0 <= warmup < float("inf"):
        raise ConfigError(
            f"ema_of needs a finite warmup of at least 0, got {warmup}; it is a share of the "
            "images seen, and 0 leaves the warm-up out"
        )
    rule = ImageDecay(half_life_images, batch_size, warmup)
    ema = AveragedModel(unwrap(model), multi_avg_fn=rule)
    ema.eval()
    ema.requires_grad_(False)
    return ema
