"""From a configuration to one training of a language model."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn

from orthotrain.data.stdlib_text import TextData, load_stdlib
from orthotrain.data.windows import WindowStream, places, windows_at
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.lab.experiments.branches.branching import Branching
from orthotrain.lab.experiments.branches.method import low_rank_method
from orthotrain.lab.experiments.branches.plan import PlanOf, plain
from orthotrain.lab.experiments.branches.start import OwnRate, start_of
from orthotrain.lab.experiments.branches.steps import (
    Passes,
    branch_steps,
    short_steps,
    squares_of,
)
from orthotrain.lab.experiments.branches.variants import BranchedVariant
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.language.config import GPTConfig, LanguageRun
from orthotrain.lab.experiments.language.networks import build_gpt, gpt_from, numbers_of
from orthotrain.lab.experiments.language.trainer import LanguageTrainer, window_loss
from orthotrain.lab.experiments.narrow import narrowest
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.lab.run.restore import network_entry
from orthotrain.methods import attach
from orthotrain.methods.protocol import Method

# Measurements of the bases per dense training.
_STABILITY_PER_RUN = 20


def build(config: LanguageRun, variant: BranchedVariant, seed: int) -> LanguageTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other or the length of the run.
        DataError: Python's standard library cannot be read.
        CheckpointError: The finished dense training is needed and its checkpoint is damaged.
    """
    return build_on(load_stdlib(config.data.dir), config, variant, seed)


def build_on(
    data: TextData,
    config: LanguageRun,
    variant: BranchedVariant,
    seed: int,
    plan_of: PlanOf = plain,
) -> LanguageTrainer:
    """The same, on this text, with what a rival changes."""
    device, optim = resolve_device(config.device), config.optim
    data = replace(data, train=data.train.to(device), validation=data.validation.to(device))
    network = network_of(config, variant)

    def fresh() -> nn.Module:
        weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
        return build_gpt(network, generator=weights)

    branches = variant.branch is not None
    # A branch goes on: what it reads is not what the dense model has read first.
    batches = WindowStream(
        places(data.train, length=network.context),
        partial(windows_at, data.train, length=network.context),
        batch_size=config.data.batch_size,
        seed=stream_seed(seed, "branch" if branches else "batches"),
    )
    start = start_of(
        variant, fresh=fresh, device=device, next_batch=batches.next_batch, loss=window_loss
    )
    total_steps = steps_of(config, variant, network)
    rate = start.peak_rate(optim.lr, steps=total_steps, dense_steps=optim.steps)
    if branches:
        rate *= config.branch.rate_factor
    warmup = config.branch.warmup_fraction if branches else optim.warmup_fraction
    plan = plan_of(start.model, total_steps)
    optimizer, scheduler = adamw(
        start.model,
        OwnRate(rate, warmup, optim.weight_decay),
        total_steps=total_steps,
        betas=optim.betas,
        kind=plan.optimizer,
        rhythm=plan.rhythm,
    )
    methods: list[Method] = [
        BasisStability(every_steps=max(1, optim.steps // _STABILITY_PER_RUN)),
        *start.methods(),
        *plan.methods,
    ]
    cuts = None
    if variant.cut is not None and not branches:
        cutting = low_rank_method(variant.cut, total_steps=total_steps)
        methods.append(cutting)
        cuts = cutting.schedule(total_steps)
    return LanguageTrainer(
        config=config,
        data=data,
        batches=batches,
        batch_size=config.data.batch_size,
        model=start.model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=attach(start.model, optimizer, *methods, total_steps=total_steps),
        network=plan.network(network_entry(gpt_from, {"model": asdict(network)})),
        total_steps=total_steps,
        branching=Branching(
            start.model,
            "bits",
            start.teacher,
            config.branch.teacher_share,
            start.compute_before,
            cuts,
            start.branch,
            start.cut_compute,
        ),
        clip_norm=optim.clip_norm,
        record=config.record,
        settings={
            "model": asdict(network),
            "steps": total_steps,
            "warmup_fraction": warmup,
            "learning_rate": rate,
            **variant.settings(),
        },
    )


def network_of(config: LanguageRun, variant: BranchedVariant) -> GPTConfig:
    """The network that a variant trains."""
    if variant.stored is None:
        return config.model
    stored = round(variant.stored * numbers_of(config.model))
    return narrowest(config.model, stored=stored, build=build_gpt, step=config.model.heads)


def steps_of(config: LanguageRun, variant: BranchedVariant, network: GPTConfig) -> int:
    """Optimizer steps of a variant."""
    steps = config.optim.steps
    if variant.branch is not None:
        return branch_steps(variant.branch, steps)
    if variant.as_branch is None or variant.stored is None:
        return steps
    return short_steps(
        branch=branch_steps(variant.as_branch, steps),
        cut=passes_of(config.model, batch=config.data.batch_size, stored=variant.stored),
        dense=passes_of(config.model, batch=config.data.batch_size),
        narrow=passes_of(network, batch=config.data.batch_size),
        teacher=variant.teacher,
    )


def passes_of(model: GPTConfig, *, batch: int, stored: float = 1.0) -> Passes:
    """What the passes of a GPT over a batch of windows compute.

    Args:
        model: Network.
        batch: Windows.
        stored: Share of all numbers that is stored after a cut.
    """
    width, depth, context = model.width, model.depth, model.context
    with torch.device("meta"):
        squared = squares_of(build_gpt(model))
    # Positions and norms are added and scaled, all other numbers are multiplied with each byte.
    rest = context * width + (2 * depth + 1) * width
    return Passes(
        places=batch * context,
        multiplied=stored * numbers_of(model) - rest,
        mixed=context * width * depth,
        squared=squared,
    )
