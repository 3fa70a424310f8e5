"""The moving parts of one adversarial training, and all of them as one state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from orthotrain.errors import CheckpointError
from orthotrain.lab.experiments.latent.build import (
    Generator,
    build_methods,
    build_optimizers,
    build_players,
    build_schedulers,
)
from orthotrain.lab.experiments.latent.config import LatentRun, LatentVariant
from orthotrain.lab.experiments.latent.rivals import Rival, build_rival
from orthotrain.lab.experiments.latent.sources import Source
from orthotrain.lab.run.reproducibility import stream_seed
from orthotrain.methods import attach
from orthotrain.methods.handle import Handle
from orthotrain.models.average import ema_of


@dataclass
class AdversarialState:
    """Both players, the averaged generator, optimizers, methods and chance.

    The last optimizer is the discriminator's, the others the generator's.

    All chance after the initial weights comes from ``random`` and the rival's own generator, so
    these parts are the whole state.
    """

    generator: Generator
    discriminator: nn.Module
    average: AveragedModel
    optimizers: tuple[Optimizer, ...]
    schedulers: tuple[LambdaLR, ...]
    rival: Rival | None
    handle: Handle
    source: Source
    random: torch.Generator
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "rival": None if self.rival is None else self.rival.state_dict(),
            "handle": self.handle.state_dict(),
            "random": self.random.get_state(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next step is the same bit for bit.

        Raises:
            CheckpointError: It has another number of optimizers; nothing is changed.
        """
        if len(state["optimizers"]) != len(self.optimizers):
            raise CheckpointError(
                f"train: a checkpoint with {len(state['optimizers'])} optimizers does not fit a "
                f"training with {len(self.optimizers)}; it is of another version, and the training "
                f"has to start again in a new --run-dir"
            )
        self.generator.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        if self.rival is not None:
            self.rival.load_state_dict(state["rival"])
        self.handle.load_state_dict(state["handle"])
        self.random.set_state(state["random"])
        self.step = int(state["step"])


def build_adversarial(
    variant: LatentVariant, seed: int, config: LatentRun, *, source: Source, device: torch.device
) -> AdversarialState:
    """Build a training at its step 0, with its methods attached.

    Raises:
        ConfigError: Settings that do not fit each other or the data.
    """
    weights = torch.Generator().manual_seed(stream_seed(seed, "weights"))
    generator, discriminator = build_players(config.model, shape=source.shape, generator=weights)
    generator, discriminator = generator.to(device), discriminator.to(device)
    rival = build_rival(
        variant,
        config,
        shape=source.shape,
        latent_dim=generator.latent_dim,
        random=torch.Generator().manual_seed(stream_seed(seed, "rival")),
        device=device,
    )
    optimizers = build_optimizers(generator, discriminator, config, variant)
    handle = attach(
        generator,
        optimizers[0],
        *build_methods(variant, config),
        total_steps=config.optim.steps,
    )
    average = ema_of(
        generator,
        half_life_images=config.optim.ema_half_life,
        batch_size=config.data.batch_size,
    )
    return AdversarialState(
        generator=generator,
        discriminator=discriminator,
        average=average,
        optimizers=optimizers,
        schedulers=build_schedulers(optimizers, config.optim),
        rival=rival,
        handle=handle,
        source=source,
        random=torch.Generator().manual_seed(stream_seed(seed, "batches")),
    )


def averaged(state: AdversarialState) -> Generator:
    """The averaged generator, which is shown and, where it makes images, scored."""
    return cast("Generator", state.average.module)
