"""The networks of timm in the recipes; without timm these take the network of this package."""

import warnings
from dataclasses import replace

import pytest
import torch

pytest.importorskip("timm", exc_type=ImportError)

from data.packed import write_folder
from lab.run.tiny import assert_goes_on
from orthotrain.errors import CheckpointError, ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config
from orthotrain.lab.experiments.classifier.config import RecordConfig
from orthotrain.lab.experiments.lowrank.build import build, network_of
from orthotrain.lab.experiments.lowrank.image_config import FoundResNet, FoundViT
from orthotrain.lab.experiments.lowrank.networks import build_network
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder

RECIPES = {"imagenet-vit-b16": 86_567_656, "imagenet-resnetrs101": 63_618_696}


@pytest.mark.parametrize("name", RECIPES)
def test_at_full_scale_it_is_the_network_of_its_name(name):
    config = recipe_config(name, "full")
    size = config.data.image_size
    shape = {"image_shape": (3, size, size), "classes": 1000}
    network = network_of(config, find_recipe(name).variants(config)[0], **shape)
    assert network.source == "timm"
    with torch.device("meta"):
        model = build_network(network, **shape)
    assert sum(p.numel() for p in model.parameters()) == RECIPES[name]


@pytest.mark.parametrize("config", [FoundViT(patch_size=8, width=16, depth=1), FoundResNet(18, 8)])
def test_one_generator_decides_the_weights_and_the_global_state_stays(config):
    def weights(seed):
        generator = torch.Generator().manual_seed(seed)
        model = build_network(
            replace(config, source="timm"), image_shape=(3, 16, 16), classes=3, generator=generator
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    before = torch.get_rng_state()
    one, again, other = weights(0), weights(0), weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "variant"), [("imagenet-vit-b16", "oialr-paper"), ("imagenet-resnetrs101", "half-50")]
)
def test_a_killed_training_goes_on_bit_for_bit(tmp_path, monkeypatch, name, variant):
    images = write_folder(tmp_path / "images", per_class=10)
    config = recipe_config(name, "smoke")
    config = replace(
        config,
        data=replace(config.data, dir=str(images)),
        record=RecordConfig.every(steps=1, epochs=1),
    )
    chosen = next(v for v in find_recipe(name).variants(config) if v.name == variant)

    def train_in(folder, **options):
        trainer = build(config, chosen, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return train(trainer, variant=chosen, seed=0, folder=SeedFolder(folder), **options)

    assert type(build(config, chosen, 0).model).__module__.startswith("timm.")
    assert_goes_on(train_in, tmp_path, at=[4, 7])
    # On a machine without timm the same settings are another network.
    monkeypatch.setattr(
        "orthotrain.lab.experiments.lowrank.image_config.find_spec", lambda name: None
    )
    (tmp_path / "whole" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="does not fit this training"):
        train_in(tmp_path / "whole")


@pytest.mark.bad_input
def test_patches_that_do_not_divide_the_image_are_refused():
    vit = FoundViT(patch_size=5, width=8, source="timm")
    with pytest.raises(ConfigError, match=r"patch_size=5 does not divide the image size 16"):
        build_network(vit, image_shape=(3, 16, 16), classes=3)
