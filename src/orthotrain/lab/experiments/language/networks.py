"""A fresh GPT by configuration, and what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from orthotrain.lab.experiments import narrow
from orthotrain.lab.experiments.language.config import GPTConfig
from orthotrain.lab.run.restore import rebuilds
from orthotrain.models.gpt import GPT


def build_gpt(config: GPTConfig, *, generator: torch.Generator | None = None) -> GPT:
    """A fresh GPT over bytes.

    Raises:
        ConfigError: Sizes that do not fit each other.
    """
    return GPT(
        context=config.context,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        generator=generator,
    )


@rebuilds
def gpt_from(*, model: Mapping[str, Any]) -> GPT:
    """The GPT of a checkpoint, with fresh weights."""
    return build_gpt(GPTConfig(**model))


def numbers_of(config: GPTConfig) -> int:
    """All numbers of the network."""
    return narrow.numbers_of(partial(build_gpt, config))
