"""From a configuration to one training of a language model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from orthotrain.data.stdlib_text import TextData, load_stdlib
from orthotrain.data.windows import WindowStream
from orthotrain.diagnostics.stability import BasisStability
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.language.compute import short_steps
from orthotrain.lab.experiments.language.config import GPTConfig, LanguageRun
from orthotrain.lab.experiments.language.method import low_rank_method
from orthotrain.lab.experiments.language.networks import build_gpt, gpt_from, numbers_of
from orthotrain.lab.experiments.language.trainer import LanguageTrainer
from orthotrain.lab.experiments.language.variants import LanguageVariant
from orthotrain.lab.experiments.narrow import narrowest
from orthotrain.lab.run.record import read_json
from orthotrain.lab.run.reproducibility import resolve_device, stream_seed
from orthotrain.lab.run.restore import network_entry, read_network
from orthotrain.lowrank import rate_after_cut
from orthotrain.methods import attach
from orthotrain.methods.copies import frozen_copy
from orthotrain.methods.protocol import Method

# Measurements of the bases per dense training.
_STABILITY_PER_RUN = 20


@dataclass(frozen=True)
class _Schedule:
    """What AdamW is told here: the cosine ends at zero."""

    lr: float
    warmup_fraction: float
    weight_decay: float
    min_lr: float = 0.0


def build(config: LanguageRun, variant: LanguageVariant, seed: int) -> LanguageTrainer:
    """A training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other or the length of the run.
        DataError: Python's standard library cannot be read.
        CheckpointError: The finished dense training is needed and its checkpoint is damaged.
    """
    return build_on(load_stdlib(config.data.dir), config, variant, seed)


def build_on(
    data: TextData, config: LanguageRun, variant: LanguageVariant, seed: int
) -> LanguageTrainer:
    """The same, on this text."""
    device, optim = resolve_device(config.device), config.optim
    data = replace(data, train=data.train.to(device), validation=data.validation.to(device))
    network = network_of(config, variant)
    dense, compute_before = _finished(variant, device=device)
    teacher = frozen_copy(dense) if dense is not None and variant.teacher else None
    total_steps, lr = steps_of(config, variant, network), variant.lr
    if dense is not None and variant.branch is not None:
        # A branch goes on: what it reads is not what the dense model has read first.
        stream, warmup = "branch", config.branch.warmup_fraction
        lr = rate_after_cut(lr, steps=total_steps, dense_steps=optim.steps)
        model: nn.Module = dense.train()
    else:
        stream, warmup = "batches", optim.warmup_fraction
        weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
        model = build_gpt(network, generator=weights).to(device)
    optimizer, scheduler = adamw(
        model,
        _Schedule(lr, warmup, optim.weight_decay),
        total_steps=total_steps,
        betas=optim.betas,
    )
    methods: list[Method] = [BasisStability(every_steps=max(1, optim.steps // _STABILITY_PER_RUN))]
    cuts = None
    if variant.cut is not None:
        cutting = low_rank_method(variant.cut, total_steps=total_steps)
        methods.append(cutting)
        cuts = cutting.schedule(total_steps)
    return LanguageTrainer(
        config=config,
        data=data,
        batches=WindowStream(
            data.train,
            batch_size=config.data.batch_size,
            length=network.context,
            seed=stream_seed(seed, stream),
        ),
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        handle=attach(model, optimizer, *methods, total_steps=total_steps),
        network=network_entry(gpt_from, {"model": asdict(network)}),
        total_steps=total_steps,
        teacher=teacher,
        cuts=cuts,
        compute_before=compute_before,
        settings={
            "model": asdict(network),
            "steps": total_steps,
            "warmup_fraction": warmup,
            **variant.settings(),
            "learning_rate": lr,
        },
    )


def _finished(variant: LanguageVariant, *, device: torch.device) -> tuple[nn.Module | None, int]:
    """The finished dense model that a variant needs, and its operations."""
    if variant.dense is not None:
        model = read_network(variant.dense.checkpoint).to(device)
        return model, int(read_json(variant.dense.result)["compute"])
    if variant.needs is not None:
        raise ConfigError(
            f"variant {variant.name} is built from the finished {variant.needs} training of its "
            "seed; train it in one run with that, or give its folder to with_trainings"
        )
    return None, 0


def network_of(config: LanguageRun, variant: LanguageVariant) -> GPTConfig:
    """The network that a variant trains."""
    if variant.stored is None:
        return config.model
    stored = round(variant.stored * numbers_of(config.model))
    return narrowest(config.model, stored=stored, build=build_gpt)


def steps_of(config: LanguageRun, variant: LanguageVariant, network: GPTConfig) -> int:
    """Optimizer steps of a variant."""
    if variant.branch is not None:
        return max(2, round(variant.branch * config.optim.steps))
    if variant.as_branch is not None and variant.stored is not None:
        return short_steps(
            config, network,
            stored=variant.stored, branch=variant.as_branch, teacher=variant.teacher,
        )  # fmt: skip
    return config.optim.steps
