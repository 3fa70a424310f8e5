"""Training a language model on windows of a text, with or without a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain.data.stdlib_text import TextData
from orthotrain.data.windows import even_starts, places, windows_at
from orthotrain.lab.experiments.branches.trainer import WindowTrainer
from orthotrain.lab.experiments.language.config import LanguageRun

# Evaluation keeps no activations, so a batch only has to fit the memory.
_EVALUATION_BATCH = 256


@dataclass(kw_only=True)
class LanguageTrainer(WindowTrainer):
    """A GPT and the text it trains on.

    Attributes:
        config: The run.
        data: Its text, on the device that trains.
    """

    config: LanguageRun
    data: TextData

    @property
    def device(self) -> torch.device:
        """Where the text is."""
        return self.data.train.device

    @property
    def data_fingerprint(self) -> str:
        """Of names and contents of its files."""
        return self.data.sha256

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy in nats of each next byte, mixed with that of a teacher."""
        read, told = batch
        half = self.config.precision == "bfloat16"
        with torch.autocast(read.device.type, torch.bfloat16, enabled=half):
            scores = self._called(read)
            taught = self.branching.taught(read)
        scores = scores.flatten(0, 1).to(torch.promote_types(scores.dtype, torch.float32))
        loss = F.cross_entropy(scores, told.flatten())
        taught = None if taught is None else taught.flatten(0, 1)
        return self.branching.loss(loss, scores, taught)

    def look(self, model: nn.Module) -> float:
        """Bits per byte of some validation windows."""
        return self._bits(model, self.data.validation, self.config.record.eval_windows)

    def _bits(self, model: nn.Module, text: Tensor, count: int) -> float:
        return bits_per_byte(
            model, text.to(self.device), count=count, length=self.config.model.context
        )

    def measured(self, *, read_test: bool) -> Mapping[str, Any]:
        """Bits per byte."""
        count = self.config.record.final_windows
        return {
            "validation_bits": self._bits(self.model, self.data.validation, count),
            "test_bits": self._bits(self.model, self.data.read_test(), count)
            if read_test
            else None,
            "data_sha256": self.data.sha256,
            "data": {part: vars(size) for part, size in self.data.sizes.items()},
        }


def window_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of windows: what a model read and was to tell."""
    read, told = batch
    return F.cross_entropy(model(read).flatten(0, 1), told.flatten())


@torch.no_grad()
def bits_per_byte(model: nn.Module, text: Tensor, *, count: int, length: int) -> float:
    """Mean of -log2 of what ``model`` gives each next byte, over windows spread over a text.

    Args:
        model: Scores of ``(batch, length)`` bytes; looked at in evaluation mode, in float32.
        text: ``(n,)`` uint8, on the model's device.
        count: Windows.
        length: Bytes that a window tells.
    """
    training = model.training
    model.eval()
    starts = even_starts(places(text, length=length), count=count)
    loss = torch.zeros((), dtype=torch.float64, device=text.device)
    for first in range(0, len(starts), _EVALUATION_BATCH):
        some = starts[first : first + _EVALUATION_BATCH]
        read, told = windows_at(text, some, length=length)
        scores: Tensor = model(read)
        loss += F.cross_entropy(scores.flatten(0, 1), told.flatten(), reduction="sum").double()
    model.train(training)
    return loss.item() / (len(starts) * length * math.log(2))
