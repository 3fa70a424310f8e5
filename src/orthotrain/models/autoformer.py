"""Autoformer: a forecaster of several series at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_number
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models.auto_correlation import AutoCorrelation, Series, decompose
from orthotrain.models.transformer import check_sizes


@checked
class Autoformer(nn.Module):
    """Forecast series by splitting off their trend again and again.

    Args:
        series: Number of series that are read and forecast.
        calendar: Features of a point in time.
        read: Steps that are read.
        known: Last read steps that the decoder begins with.
        ahead: Steps that are forecast.
        width: Width of a step; a multiple of ``heads``.
        encoder_depth: Layers of the encoder.
        decoder_depth: Layers of the decoder.
        heads: Heads of each auto-correlation.
        mlp_ratio: Hidden width of the two pointwise layers over ``width``.
        window: Odd number of steps of the moving average.
        factor: Of the number of delays, see :class:`AutoCorrelation`.
        dropout: Share of zeros behind embeddings, mixing and pointwise layers.
        generator: Source of the initial weights; None takes torch's global state. Dropout draws
            from torch's global state.

    Raises:
        ConfigError: A size below one, an even window, more known than read steps, a share of zeros
            outside ``[0, 1]``, or a width that is no multiple of ``heads``.

    Source:
        Wu, Xu, Wang and Long (2021), arXiv:2106.13008; their convolutions of one step are linear
        layers here.
    """

    def __init__(  # noqa: PLR0913 - the sizes of a network, all by name
        self,
        *,
        series: int,
        calendar: int,
        read: int,
        known: int,
        ahead: int,
        width: int,
        encoder_depth: int = 2,
        decoder_depth: int = 1,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        window: int = 25,
        factor: float = 3.0,
        dropout: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"series": series, "calendar": calendar, "read": read, "known": known,
                 "ahead": ahead, "width": width, "encoder_depth": encoder_depth,
                 "decoder_depth": decoder_depth, "window": window}  # fmt: skip
        check_sizes("Autoformer", heads=heads, mlp_ratio=mlp_ratio, sizes=sizes)
        require_number("Autoformer", "dropout", dropout, least=0, most=1)
        if window % 2 == 0:
            raise ConfigError(f"Autoformer: window={window} must be odd, so that it has a middle")
        if known > read:
            raise ConfigError(
                f"Autoformer: known={known} must be at most read={read}: the decoder begins with "
                "the last steps that are read"
            )
        self.series, self.calendar = series, calendar
        self.read, self.known, self.ahead, self.window = read, known, ahead, window
        sizes_of_layer = _LayerSizes(heads, round(mlp_ratio * width), window, factor, dropout)
        self.encoder_embed = _Embedding(series, calendar, width, dropout=dropout)
        self.decoder_embed = _Embedding(series, calendar, width, dropout=dropout)
        self.encoder = nn.ModuleList(
            _EncoderLayer(width, sizes_of_layer) for _ in range(encoder_depth)
        )
        self.decoder = nn.ModuleList(
            _DecoderLayer(width, sizes_of_layer, series=series) for _ in range(decoder_depth)
        )
        self.encoder_norm = _SeasonalNorm(width)
        self.decoder_norm = _SeasonalNorm(width)
        self.head = nn.Linear(width, series)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: normal ones where values enter, else uniform as in torch."""
        entries = {self.encoder_embed.values, self.decoder_embed.values}
        for module in self.modules():
            if module in entries:
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_in", nonlinearity="leaky_relu", generator=generator
                )
            elif isinstance(module, nn.Linear | nn.Conv1d):
                bound = module.weight[0].numel() ** -0.5
                for weight in module.parameters():
                    nn.init.uniform_(weight, -bound, bound, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    @checked
    def forward(
        self,
        past: Float[Tensor, "batch read series"],
        dates: Float[Tensor, "batch all calendar"],
    ) -> Float[Tensor, "batch ahead series"]:
        """Forecast ``(batch, ahead, series)``.

        Args:
            past: ``(batch, read, series)``, in the scale of training.
            dates: ``(batch, read + ahead, calendar)``: features of each step read and forecast.

        Raises:
            ShapeError: Other shapes than those of the constructor.
        """
        need = (self.read, self.series), (self.read + self.ahead, self.calendar)
        if (past.shape[1:], dates.shape[1:]) != need or len(past) != len(dates):
            raise ShapeError(
                f"Autoformer: got past {tuple(past.shape)} and dates {tuple(dates.shape)}, need "
                f"(batch, {need[0][0]}, {need[0][1]}) and (batch, {need[1][0]}, {need[1][1]})"
            )
        seasonal, trend = decompose(past, window=self.window)
        later = past.mean(dim=1, keepdim=True).expand(-1, self.ahead, -1)
        trend = torch.cat((trend[:, -self.known :], later), dim=1)
        seasonal = F.pad(seasonal[:, -self.known :], (0, 0, 0, self.ahead))
        x = self.encoder_embed(past, dates[:, : self.read])
        for encode in self.encoder:
            x = encode(x)
        x = self.encoder_norm(x)
        y = self.decoder_embed(seasonal, dates[:, self.read - self.known :])
        for decode in self.decoder:
            y, more = decode(y, x)
            trend = trend + more
        forecast: Tensor = self.head(self.decoder_norm(y)) + trend
        return forecast[:, -self.ahead :]


class _Embedding(nn.Module):
    """Three neighbouring steps and the calendar of the middle one; times go round the end."""

    def __init__(self, series: int, calendar: int, width: int, *, dropout: float) -> None:
        super().__init__()
        self.values = _three_steps(series, width)
        self.dates = nn.Linear(calendar, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Series, dates: Series) -> Series:
        embedded: Tensor = self.dropout(_along_time(self.values, values) + self.dates(dates))
        return embedded


@dataclass(frozen=True)
class _LayerSizes:
    """What the layers of encoder and decoder have in common."""

    heads: int
    hidden: int
    window: int
    factor: float
    dropout: float


class _Pointwise(nn.Module):
    """Two layers that act on each step alone."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Series) -> Series:
        changed: Tensor = self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))
        return changed


class _EncoderLayer(nn.Module):
    """Auto-correlation, then pointwise layers; behind each the trend is thrown away."""

    def __init__(self, width: int, sizes: _LayerSizes) -> None:
        super().__init__()
        self.window = sizes.window
        self.attention = AutoCorrelation(width, heads=sizes.heads, factor=sizes.factor)
        self.pointwise = _Pointwise(width, sizes.hidden, dropout=sizes.dropout)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Series) -> Series:
        x, _ = decompose(x + self.dropout(self.attention(x, x)), window=self.window)
        x, _ = decompose(x + self.pointwise(x), window=self.window)
        return x


class _DecoderLayer(nn.Module):
    """Auto-correlation with itself and with what was read; the trends are added up."""

    def __init__(self, width: int, sizes: _LayerSizes, *, series: int) -> None:
        super().__init__()
        self.window = sizes.window
        self.attention = AutoCorrelation(width, heads=sizes.heads, factor=sizes.factor)
        self.cross = AutoCorrelation(width, heads=sizes.heads, factor=sizes.factor)
        self.pointwise = _Pointwise(width, sizes.hidden, dropout=sizes.dropout)
        self.dropout = nn.Dropout(sizes.dropout)
        self.trend = _three_steps(width, series)

    def forward(self, x: Series, read: Series) -> tuple[Series, Series]:
        x, first = decompose(x + self.dropout(self.attention(x, x)), window=self.window)
        x, second = decompose(x + self.dropout(self.cross(x, read)), window=self.window)
        x, third = decompose(x + self.pointwise(x), window=self.window)
        return x, _along_time(self.trend, first + second + third)


class _SeasonalNorm(nn.LayerNorm):
    """Layer norm without the mean over time, which would be a trend."""

    def forward(self, x: Series) -> Series:
        normed = super().forward(x)
        return normed - normed.mean(dim=1, keepdim=True)


def _three_steps(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)


def _along_time(convolution: nn.Conv1d, x: Series) -> Series:
    out: Tensor = convolution(x.transpose(1, 2))
    return out.transpose(1, 2)
