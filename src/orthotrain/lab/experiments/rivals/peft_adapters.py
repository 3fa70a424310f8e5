"""LoRA by the layers of PEFT: frozen weights with one low-rank update each, after a dense start."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from orthotrain.extras import optional_module
from orthotrain.lab.experiments.branches.plan import Plan
from orthotrain.lab.experiments.rivals.config import RivalSettings
from orthotrain.lab.experiments.rivals.layers import linear_layers, rank_of
from orthotrain.lab.experiments.rivals.low_rank_updates import (
    LowRankUpdates,
    Updated,
    rebuilt,
    updates_plan,
)
from orthotrain.lab.run.restore import rebuilds

_ADAPTER = "default"


def put_adapters(model: nn.Module, *, rank_fraction: float) -> list[Updated]:
    """Give every linear layer but the last an adapter of PEFT; the model is changed in place.

    Raises:
        MissingPackageError: PEFT is not installed.
    """
    peft = optional_module("the rival lora-peft", "peft", package="peft", extra="peft")
    layers = linear_layers(model, rival="lora-peft")
    ranks = {name: rank_of(layer, rank_fraction) for name, layer in layers.items()}
    config = peft.LoraConfig(
        target_modules=list(layers),
        rank_pattern=ranks,
        alpha_pattern=ranks,  # so that updates count once
    )
    # PEFT draws from the global state. What it draws is never used: the method draws again.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # PEFT froze all but the adapters
    return [_updated(name, model.get_submodule(name)) for name in layers]


@rebuilds
def with_adapters(*, base: Mapping[str, Any], rank_fraction: float) -> nn.Module:
    """The network of a checkpoint, with adapters beside its weights."""
    return rebuilt(base, partial(put_adapters, rank_fraction=rank_fraction))


def _updated(name: str, layer: Any) -> Updated:
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    return Updated(name, layer.base_layer, a, b, layer.enable_adapters)


def lora_peft(model: nn.Module, settings: RivalSettings, *, total_steps: int, seed: int) -> Plan:
    """One update of low rank per layer after dense training of the same run.

    LoRA (Hu et al. 2021, arXiv:2106.09685) is made for fine-tuning, so the first part of the run
    makes what is fine-tuned. What has no adapter is trained on, as by the other rivals.
    """
    method = LowRankUpdates(
        put_adapters(model, rank_fraction=settings.rank_fraction),
        delay_steps=max(1, round(settings.adapt_fraction * total_steps)),
        every_steps=None,
        seed=seed,
    )
    return updates_plan(method, settings, rebuild=with_adapters, total_steps=total_steps)
