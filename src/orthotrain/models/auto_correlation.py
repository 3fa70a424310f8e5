"""Auto-correlation and series decomposition: what Autoformer mixes a series with."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.errors import ConfigError

Series = Float[Tensor, "batch time width"]


def decompose(x: Series, *, window: int) -> tuple[Series, Series]:
    """Split a series into what swings and its trend, the moving average.

    Args:
        x: ``(batch, time, width)``; the first and the last value stand for those beyond the ends.
        window: Odd number of steps that the average goes over.

    Returns:
        ``(seasonal, trend)``, whose sum is ``x``.
    """
    ends = (window - 1) // 2
    padded = F.pad(x.transpose(1, 2), (ends, ends), mode="replicate")
    trend = F.avg_pool1d(padded, window, stride=1).transpose(1, 2)
    return x - trend, trend


def delay_scores(
    queries: Float[Tensor, "batch heads time width"], keys: Float[Tensor, "batch heads time width"]
) -> Float[Tensor, "batch time"]:
    """How well queries, delayed by each number of steps, agree with keys.

    ``scores[t] = mean over heads and width of sum over s of queries[s + t] keys[s]``, with times
    taken round the end, by the Fourier transform.

    Args:
        queries: ``(batch, heads, time, width)``.
        keys: The same shape.
    """
    time = queries.shape[-2]
    # There is no half precision transform of any length.
    exact = torch.promote_types(queries.dtype, torch.float32)
    spectrum = torch.fft.rfft(queries.to(exact), dim=-2)
    spectrum = spectrum * torch.fft.rfft(keys.to(exact), dim=-2).conj()
    # The mean before the way back: the transform is linear, so one is enough.
    scores: Tensor = torch.fft.irfft(spectrum.mean(dim=(1, 3)), n=time, dim=-1)
    return scores


def mix_delays(
    values: Float[Tensor, "batch heads time width"],
    scores: Float[Tensor, "batch time"],
    *,
    count: int,
) -> Float[Tensor, "batch heads time width"]:
    """The sum of values at the delays with the highest scores, weighted by their softmax.

    Args:
        values: ``(batch, heads, time, width)``.
        scores: ``(batch, time)``, one per delay.
        count: Delays that take part.

    Returns:
        ``out[s] = sum over chosen t of softmax(scores)[t] values[s + t]``, times taken round the
        end. Each sample has delays of its own, so none depends on what shares its batch.
    """
    time = values.shape[-2]
    best, delays = scores.topk(count, dim=-1)
    weights = best.softmax(dim=-1).to(values.dtype)
    # One circular correlation per sample with a kernel that is zero but at its delays.
    kernel = torch.zeros_like(scores, dtype=values.dtype).scatter(-1, delays, weights)
    rows = torch.arange(time, device=values.device)
    places = (rows[None, :] - rows[:, None]) % time
    mixing = kernel[:, places]
    return mixing[:, None] @ values


class AutoCorrelation(nn.Module):
    """Attention whose weights belong to delays instead of pairs of places.

    Args:
        width: Width of a step, a multiple of ``heads``.
        heads: Heads.
        factor: ``max(1, int(factor * log(time)))`` delays take part.

    Source:
        Wu, Xu, Wang and Long (2021), arXiv:2106.13008. Their code shares the delays of a batch in
        training; here each sample has its own, as their text has it.
    """

    def __init__(self, width: int, *, heads: int, factor: float) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"Autoformer: width={width} must be a multiple of heads={heads}")
        self.heads, self.factor = heads, factor
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Series, other: Float[Tensor, "batch other width"]) -> Series:
        """Mix ``other`` by the delays at which it agrees with ``x``.

        A shorter ``other`` is followed by zeros, a longer one is cut.

        Args:
            x: ``(batch, time, width)``.
            other: ``(batch, other, width)``; ``x`` itself for self-attention.
        """
        time = x.shape[1]
        q, k, v = (
            self._heads(_of_length(layer(source), time))
            for layer, source in ((self.query, x), (self.key, other), (self.value, other))
        )
        count = max(1, int(self.factor * math.log(time)))
        mixed = mix_delays(v, delay_scores(q, k), count=min(count, time))
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Series) -> Float[Tensor, "batch heads time part"]:
        batch, time, width = x.shape
        return x.reshape(batch, time, self.heads, width // self.heads).transpose(1, 2)


def _of_length(x: Tensor, time: int) -> Tensor:
    """The first ``time`` steps, zeros where there are fewer."""
    return F.pad(x[:, :time], (0, 0, 0, max(0, time - x.shape[1])))
