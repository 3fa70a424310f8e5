"""The rivals of an orthogonal latent weight that act on the generator's loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Adam

from orthotrain.disentangle import hessian_penalty, orojar, vp_loss
from orthotrain.disentangle.vp_network import VariationClassifier
from orthotrain.training.adversarial.build import Generator
from orthotrain.training.latent_run import LatentRun, LatentVariant

#: What a generator takes besides its coordinates.
Noise = Sequence[Tensor | None]


class Rival(Protocol):
    """A term of the generator's loss, with what it needs to be computed."""

    def penalty(
        self, model: Generator, z: Tensor, noise: Noise, *, random: torch.Generator
    ) -> Tensor:
        """The weighted term, with a graph to the generator."""

    def step(self) -> None:
        """Train what the term has of its own."""

    def state_dict(self) -> dict[str, Any]:
        """What the next term depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


class _Smoothness:
    """Hessian penalty or OroJaR: nothing of its own."""

    def __init__(self, kind: str, *, weight: float) -> None:
        self._function = {"hessian": hessian_penalty, "orojar": orojar}[kind]
        self._weight = weight

    def penalty(
        self, model: Generator, z: Tensor, noise: Noise, *, random: torch.Generator
    ) -> Tensor:
        return self._weight * self._function(
            lambda codes: model(codes, *noise), z, generator=random
        )

    def step(self) -> None:
        """Nothing to train."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


class _Variation:
    """VP loss: a classifier that is trained along with the generator."""

    def __init__(self, classifier: VariationClassifier, *, weight: float, lr: float) -> None:
        self._classifier = classifier
        self._optimizer = Adam(classifier.parameters(), lr=lr)
        self._weight = weight

    def penalty(
        self, model: Generator, z: Tensor, noise: Noise, *, random: torch.Generator
    ) -> Tensor:
        self._optimizer.zero_grad()
        loss: Tensor = vp_loss(
            lambda codes: model(codes, *noise), z, classifier=self._classifier, generator=random
        )
        return self._weight * loss

    def step(self) -> None:
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "classifier": self._classifier.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._classifier.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])


def build_rival(
    variant: LatentVariant,
    config: LatentRun,
    *,
    shape: tuple[int, ...],
    latent_dim: int,
    generator: torch.Generator,
    device: torch.device,
) -> Rival | None:
    """The rival that the variant asks for, or None."""
    for kind, weight in (("hessian", config.latent.hessian), ("orojar", config.latent.orojar)):
        if kind in variant.treatments:
            return _Smoothness(kind, weight=weight)
    if "vp" not in variant.treatments:
        return None
    classifier = VariationClassifier(latent_dim, channels=shape[0], generator=generator)
    return _Variation(classifier.to(device), weight=config.latent.vp, lr=config.optim.lr)
