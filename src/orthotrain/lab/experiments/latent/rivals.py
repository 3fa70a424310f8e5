"""The rivals of an orthogonal latent weight that act on the generator's loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from orthotrain.disentangle import VariationClassifier, hessian_penalty, orojar, vp_loss
from orthotrain.lab.experiments.latent.build import Generator
from orthotrain.lab.experiments.latent.config import LatentRun, LatentVariant
from orthotrain.lab.experiments.treatments import HESSIAN, OROJAR, VP

#: What a generator takes besides its coordinates.
Noise = Sequence[Tensor | None]


class Rival(ABC):
    """A term of the generator's loss, with what it needs to be computed.

    It draws from a generator of its own, so that the data stay those of the other variants.

    Args:
        weight: Of the term in the loss.
        random: Source of what it draws at each step.
    """

    def __init__(self, *, weight: float, random: torch.Generator) -> None:
        self._weight = weight
        self._random = random

    @abstractmethod
    def penalty(self, model: Generator, z: Tensor, noise: Noise, *, base: Tensor | None) -> Tensor:
        """The weighted term, with a graph to the generator; ``base`` is ``model(z, *noise)``."""

    def step(self) -> None:  # noqa: B027
        """Train what the term has of its own."""

    def state_dict(self) -> dict[str, Any]:
        """What the next term depends on."""
        return {"random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._random.set_state(state["random"])


class _Smoothness(Rival):
    """Hessian penalty or OroJaR: nothing of its own."""

    def __init__(
        self, function: Callable[..., Tensor], *, weight: float, random: torch.Generator
    ) -> None:
        super().__init__(weight=weight, random=random)
        self._function = function

    def penalty(self, model: Generator, z: Tensor, noise: Noise, *, base: Tensor | None) -> Tensor:
        return self._weight * self._function(
            lambda codes: model(codes, *noise), z, generator=self._random, base=base
        )


class _Variation(Rival):
    """VP loss: a classifier that is trained along with the generator."""

    def __init__(
        self,
        classifier: VariationClassifier,
        *,
        weight: float,
        lr: float,
        random: torch.Generator,
    ) -> None:
        super().__init__(weight=weight, random=random)
        self._classifier = classifier
        self._optimizer = Adam(classifier.parameters(), lr=lr)

    def penalty(self, model: Generator, z: Tensor, noise: Noise, *, base: Tensor | None) -> Tensor:
        self._optimizer.zero_grad()
        loss: Tensor = vp_loss(
            lambda codes: model(codes, *noise),
            z,
            classifier=self._classifier,
            generator=self._random,
        )
        return self._weight * loss

    def step(self) -> None:
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "classifier": self._classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            **super().state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        super().load_state_dict(state)


def build_rival(
    variant: LatentVariant,
    config: LatentRun,
    *,
    shape: tuple[int, ...],
    latent_dim: int,
    random: torch.Generator,
    device: torch.device,
) -> Rival | None:
    """The rival that the variant asks for, or None.

    Args:
        variant: What is trained.
        config: The run.
        shape: Of one sample.
        latent_dim: Coordinates of the generator.
        random: Source of the initial weights of what it trains, then of what it draws at each step.
        device: Of the players.
    """
    if HESSIAN.name in variant.treatments:
        return _Smoothness(hessian_penalty, weight=config.latent.hessian, random=random)
    if OROJAR.name in variant.treatments:
        return _Smoothness(orojar, weight=config.latent.orojar, random=random)
    if VP.name not in variant.treatments:
        return None
    classifier = VariationClassifier(latent_dim, channels=shape[0], generator=random)
    return _Variation(
        classifier.to(device), weight=config.latent.vp, lr=config.optim.lr, random=random
    )
