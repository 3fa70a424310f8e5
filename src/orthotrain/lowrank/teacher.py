"""A finished model as the teacher of a smaller one: its probabilities beside the labels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain._checks import require_number, require_share, require_values
from orthotrain._doors import checked
from orthotrain.errors import ShapeError


@checked
def teacher_loss(  # noqa: PLR0913  # one loss of two models, five settings
    logits: Float[Tensor, "*all"],
    teacher_logits: Float[Tensor, "*all"],
    loss: Float[Tensor, ""] | float,
    *,
    weight: float = 0.5,
    temperature: float = 1.0,
    dim: int = -1,
    mask: Bool[Tensor, "*places"] | None = None,
) -> Float[Tensor, ""]:
    """``(1 - weight) * loss + weight * temperature^2 * cross-entropy`` with the teacher.

    The cross-entropy is ``-sum p log q`` over ``dim``, ``p`` and ``q`` the softmax of the
    teacher's and the model's logits over ``temperature``. It is a mean over all other positions.

    Args:
        logits: The model's, with the classes along ``dim``.
        teacher_logits: Those of the teacher for the same input, of the same shape. They get no
            gradient; call the teacher under ``torch.no_grad()``, so that it keeps nothing.
        loss: The loss of the labels, one number, with its graph.
        weight: Share of the teacher, in ``[0, 1]``.
        temperature: Above 1 the teacher's less likely classes count more. Its square keeps the
            size of the gradient.
        dim: The dimension of the classes.
        mask: Positions that count, where it is True: the shape of ``logits`` without ``dim``.
            Transformers marks the others by the label -100. None counts all.

    Returns:
        One number with a backward pass, in float32, or float64 where the logits are: half
        precision and autocast do not round it. Without a position that counts, ``(1 - weight) *
        loss``.

    Raises:
        ShapeError: ``teacher_logits``, ``loss`` or ``mask`` does not fit.
        ConfigError: A setting out of range, logits that are not floating-point, or a mask that
            is not boolean.

    Note:
        Differentiable in ``logits`` and ``loss``. A class that the teacher excludes by a logit of
        minus infinity adds nothing.

    Source:
        Hinton, Vinyals and Dean (2015), arXiv:1503.02531.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> round(float(teacher_loss(logits, logits, torch.tensor(0.0), weight=1.0)), 4)
        0.3653
    """
    require_share("teacher_loss", "weight", weight, zero=True, one=True)
    # Beyond these the softmax of any logits is a single class, or flat.
    require_number("teacher_loss", "temperature", temperature, least=1e-4, most=1e4)
    _check(logits, teacher_logits, loss, dim)
    teacher_logits = teacher_logits.detach().to(logits.device)
    with torch.autocast(device_type=logits.device.type, enabled=False):
        exact = torch.promote_types(logits.dtype, torch.float32)
        log_q = F.log_softmax(logits.to(exact) / temperature, dim)
        p = F.softmax(teacher_logits.to(exact) / temperature, dim)
        entropy = -(p * log_q.masked_fill(p == 0, 0.0)).sum(dim)
        counted = _mean(entropy, mask)
        return (1 - weight) * loss + (weight * temperature**2) * counted


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise ShapeError(
            f"teacher_loss needs a mask of shape {tuple(values.shape)}, that of the logits without "
            f"the classes, got {tuple(mask.shape)}; where labels are shifted, shift both"
        )
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)


def _check(logits: Tensor, teacher_logits: Tensor, loss: Tensor | float, dim: int) -> None:
    require_values("teacher_loss", "logits", logits)
    require_values("teacher_loss", "teacher_logits", teacher_logits)
    if logits.ndim == 0 or teacher_logits.shape != logits.shape:
        raise ShapeError(
            f"teacher_loss needs logits and teacher_logits of one shape, got {tuple(logits.shape)} "
            f"and {tuple(teacher_logits.shape)}; give both models the same batch"
        )
    if not -logits.ndim <= dim < logits.ndim:
        raise ShapeError(
            f"teacher_loss needs dim in [{-logits.ndim}, {logits.ndim}), a dimension of logits of "
            f"shape {tuple(logits.shape)}, got {dim}; -1 is the last one"
        )
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ShapeError(
            f"teacher_loss needs loss to be one number, got shape {tuple(loss.shape)}; take its "
            "mean"
        )
