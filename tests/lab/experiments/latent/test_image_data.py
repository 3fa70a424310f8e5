"""Real samples by configuration: sprites in color, and with places that go together."""

from __future__ import annotations

import pytest
import torch

from orthotrain.data import sprite_moments
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.latent.config import LatentDataConfig
from orthotrain.lab.experiments.latent.image_data import (
    build_images,
    build_sprites,
    image_source,
)

CPU = torch.device("cpu")


def sprites(**settings):
    return LatentDataConfig(name="sprites", image_size=16, **settings)


def correlation_of(images):
    moments = sprite_moments(images.float() / 255)
    return float(torch.corrcoef(torch.stack([moments.x, moments.y]))[0, 1])


def shown(config, part):
    images = build_images(config, part=part)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1_000]]


@pytest.mark.parametrize("r", [0.0, 0.9, -0.6])
def test_places_go_together_in_what_is_trained_on_alone(r):
    config = sprites(correlation=r)
    assert correlation_of(shown(config, "train")) == pytest.approx(r, abs=0.1)
    assert correlation_of(shown(config, "test")) == pytest.approx(0, abs=0.1)


def test_correlated_sprites_are_of_the_training_part_and_the_same_for_every_seed():
    config, every = sprites(correlation=0.5), sprites()
    images = build_images(config, part="train")
    known = {bytes(image.numpy()) for image in build_images(every, part="train")[:].flatten(1)}
    drawn = images[torch.arange(300)].flatten(1)
    assert all(bytes(image.numpy()) in known for image in drawn)
    again = build_images(config, part="train")[torch.arange(300)].flatten(1)
    assert torch.equal(again, drawn)


def test_sprites_in_color_have_three_channels_and_another_factor():
    config = sprites(color=True)
    source = image_source(config, device=CPU)
    assert source.shape == (3, 16, 16)
    assert "color" in build_sprites(config).factor_names
    batch = source.batch(64, generator=torch.Generator().manual_seed(0))
    assert (batch[:, 0] != batch[:, 1]).any()
    assert image_source(sprites(), device=CPU).shape == (1, 16, 16)


@pytest.mark.bad_input
def test_settings_of_sprites_are_refused_elsewhere():
    for settings in ({"color": True}, {"correlation": 0.5}, {"orientation": True}):
        with pytest.raises(ConfigError, match="are of sprites; faces has none"):
            LatentDataConfig(name="faces", **settings)
    with pytest.raises(ConfigError, match=r"data\.correlation=2.* must lie in \[-1, 1\]"):
        sprites(correlation=2.0)
