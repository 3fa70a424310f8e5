"""Training a forecaster on windows of series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.data.ett import SeriesData, Stretch
from orthotrain.data.windows import even_starts
from orthotrain.lab.experiments.branches.trainer import WindowTrainer
from orthotrain.lab.experiments.forecasting.best import BestModel
from orthotrain.lab.experiments.forecasting.config import ForecastRun
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.trainer import Line

# Evaluation keeps no activations, so a batch only has to fit the memory.
_EVALUATION_BATCH = 128


@dataclass(kw_only=True)
class ForecastTrainer(WindowTrainer):
    """An Autoformer and the series it trains on.

    Attributes:
        config: The run.
        data: Its series, on the device that trains.
        dropout_seed: Of the first step; each step has one of its own.
        best: The model of the lowest validation error.
    """

    parts: ClassVar[tuple[str, ...]] = (*WindowTrainer.parts, "best")

    config: ForecastRun
    data: SeriesData
    dropout_seed: int
    best: BestModel

    @property
    def device(self) -> torch.device:
        """Where the series are."""
        return self.data.train.values.device

    @property
    def data_fingerprint(self) -> str:
        """Of the unpacked file."""
        return self.data.sha256

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean squared error of the forecasts, in deviations of the training part."""
        past, dates, future = batch
        half = self.config.precision == "bfloat16"
        # Dropout draws from torch's global state: what it draws follows from seed, step and
        # process alone, so a resumed training draws the same.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.dropout_seed + self.team.count * self.steps + self.team.rank)
            with torch.autocast(past.device.type, torch.bfloat16, enabled=half):
                forecast = self._called(past, dates)
        return F.mse_loss(forecast.to(torch.promote_types(forecast.dtype, torch.float32)), future)

    def look(self, model: nn.Module) -> float:
        """Mean squared error of some validation windows."""
        return self._errors(model, self.data.validation, self.config.record.eval_windows)[0]

    def evaluate(self, folder: SeedFolder) -> Line:
        """Mean squared error of some validation windows; the best model is kept."""
        line = super().evaluate(folder)
        self.best.looked(line[self.branching.measured], step=self.steps)
        return line

    def measured(self, *, read_test: bool) -> Mapping[str, Any]:
        """Errors of the best model, where it was found, and what the last one reached."""
        model = self.best.model()
        validation = self._errors(model, self.data.validation)
        test = self._errors(model, self.data.read_test()) if read_test else (None, None)
        return {
            "validation_mse": validation[0],
            "validation_mae": validation[1],
            "test_mse": test[0],
            "test_mae": test[1],
            "ahead": self.config.model.ahead,
            "best_step": self.best.step,
            "best_of_looks": self.best.looks,
            "last_validation_mse": self._errors(self.model, self.data.validation)[0],
            "data_sha256": self.data.sha256,
        }

    def _errors(
        self, model: nn.Module, part: Stretch, count: int | None = None
    ) -> tuple[float, float]:
        sizes = self.config.model
        places = part.places(read=sizes.read, ahead=sizes.ahead)
        count = count or -(-places // self.config.data.every)
        starts = even_starts(places, count=count)
        return errors(model, part, starts, read=sizes.read, ahead=sizes.ahead)


@torch.no_grad()
def errors(
    model: nn.Module, part: Stretch, starts: Tensor, *, read: int, ahead: int
) -> tuple[float, float]:
    """Mean squared and mean absolute error over windows, steps and series.

    Args:
        model: A forecaster; looked at in evaluation mode, in float32.
        part: Where the windows lie.
        starts: ``(n,)`` int64, where they begin.
        read: Steps that a window reads.
        ahead: Steps that it forecasts.
    """
    training = model.training
    model.eval()
    squares = absolute = 0.0
    for some in torch.split(starts, _EVALUATION_BATCH):
        past, dates, future = part.windows(some, read=read, ahead=ahead)
        wrong = (model(past, dates) - future).double()
        squares += float(wrong.square().mean()) * len(some)
        absolute += float(wrong.abs().mean()) * len(some)
    model.train(training)
    return squares / len(starts), absolute / len(starts)
