"""One step of each player."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotrain.lab.experiments.latent.augment import Augmentation, draw_augmentation
from orthotrain.lab.experiments.latent.config import LatentRun
from orthotrain.lab.experiments.latent.losses import discriminator_loss, generator_loss
from orthotrain.lab.experiments.latent.penalties import gradient_penalty, lazy_weight, r1_penalty
from orthotrain.lab.experiments.latent.state import AdversarialState


def adversarial_step(state: AdversarialState, config: LatentRun) -> dict[str, Tensor]:
    """One step of the discriminator, then one of the generator, then of the average.

    Returns:
        Losses, still on their device: ``loss``, adversarial of the generator without any penalty;
        ``discriminator_loss``, the same of the discriminator; ``penalty``, what a rival added to
        the generator's, weighted, zero without one.
    """
    discriminator = _discriminator_step(state, config)
    generator, penalty = _generator_step(state, config)
    for scheduler in state.schedulers:
        scheduler.step()
    state.average.update_parameters(state.generator)
    state.step += 1
    losses = {"loss": generator, "discriminator_loss": discriminator, "penalty": penalty}
    return {name: loss.detach() for name, loss in losses.items()}


def _discriminator_step(state: AdversarialState, config: LatentRun) -> Tensor:
    optim, n, random = config.optim, config.data.batch_size, state.random
    real = state.source.batch(n, generator=random)
    with torch.no_grad(), _half(real.device, config):
        fake = state.generator(*state.generator.latents(n, generator=random)).float()
    augmentation = _augmentation(state, config)

    def critic(x: Tensor) -> Tensor:
        logits: Tensor = state.discriminator(x if augmentation is None else augmentation(x))
        return logits

    with _half(real.device, config):
        logits = critic(real), critic(fake)
    adversarial = discriminator_loss(*logits, kind=optim.loss)
    # The penalties differentiate twice, which bfloat16 is too coarse for.
    loss = adversarial
    r1 = lazy_weight(state.step, every=optim.r1_every, weight=optim.r1)
    if r1:
        loss = loss + r1 * r1_penalty(critic, real)
    between = lazy_weight(
        state.step, every=optim.gradient_penalty_every, weight=optim.gradient_penalty
    )
    if between:
        loss = loss + between * gradient_penalty(critic, real, fake, generator=random)
    optimizer = state.optimizers[-1]
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return adversarial


def _generator_step(state: AdversarialState, config: LatentRun) -> tuple[Tensor, Tensor]:
    n, random = config.data.batch_size, state.random
    z, *noise = state.generator.latents(n, generator=random)
    augmentation = _augmentation(state, config)
    # The discriminator's own gradients are not needed here, and cost a third of its backward.
    state.discriminator.requires_grad_(False)
    with _half(z.device, config):
        fake = state.generator(z, *noise).float()
        shown = fake if augmentation is None else augmentation(fake)
        scores = state.discriminator(shown)
    adversarial = generator_loss(scores, kind=config.optim.loss)
    penalty = torch.zeros_like(adversarial)
    if state.rival is not None:
        # Differences need all their images in one precision.
        base = fake if config.precision == "float32" else None
        penalty = state.rival.penalty(state.generator, z, noise, base=base)
    for optimizer in state.optimizers[:-1]:
        optimizer.zero_grad()
    torch.autograd.backward(adversarial + penalty)
    state.discriminator.requires_grad_(True)
    for optimizer in state.optimizers[:-1]:
        optimizer.step()
    if state.rival is not None:
        state.rival.step()
    return adversarial, penalty


def _half(device: torch.device, config: LatentRun) -> torch.autocast:
    """Autocast to bfloat16 where the run asks for it; weights and their gradients stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def _augmentation(state: AdversarialState, config: LatentRun) -> Augmentation | None:
    """One draw for all images of a step; None where images are shown as they are."""
    if not config.optim.augment:
        return None
    shape = (config.data.batch_size, *state.source.shape)
    return draw_augmentation(shape, generator=state.random)
