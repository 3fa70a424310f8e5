import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lab.run.tiny import LOWRANK, assert_goes_on, tiny_data
from orthotrain.errors import ConfigError, MissingPackageError
from orthotrain.lab.experiments.branches.variants import short
from orthotrain.lab.experiments.classifier.config import (
    ModelConfig,
    OptimConfig,
    RecordConfig,
    ResNetConfig,
)
from orthotrain.lab.experiments.lowrank.build import build_on, network_of
from orthotrain.lab.experiments.lowrank.image_config import (
    FoundResNet,
    FoundViT,
    ResNetRun,
    image_variants,
)
from orthotrain.lab.experiments.lowrank.networks import build_network, entry_of, narrow_to
from orthotrain.lab.experiments.lowrank.recipes.cifar10_resnet import SEARCH
from orthotrain.lab.experiments.narrow import numbers_of
from orthotrain.lab.run.checkpoint import save_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder
from orthotrain.lab.run.restore import read_network
from orthotrain.lab.run.space import own_config

SHAPE = {"image_shape": (3, 16, 16), "classes": 4}
CONFIG = ResNetRun(
    recipe="tiny",
    scale="smoke",
    data=replace(ResNetRun(recipe="tiny").data, batch_size=8, mixup=0.5),
    model=ResNetConfig(width=6, stem_channels=6, stem="strided"),
    optim=OptimConfig(epochs=4, lr=1e-2, min_lr=1e-3, label_smoothing=0.1),
    paper=LOWRANK,
    record=RecordConfig.every(steps=1, epochs=1),
    seeds=(0,),
    device="cpu",
)


def variant_of(name, config=CONFIG):
    return next(v for v in image_variants(config) if v.name == name)


def trainer_of(name, config=CONFIG):
    return build_on(tiny_data(channels=3), config, variant_of(name, config), 0)


def train_here(folder, name, **options):
    return train(
        trainer_of(name), variant=variant_of(name), seed=0, folder=SeedFolder(folder), **options
    )


@pytest.mark.parametrize(
    ("config", "step"),
    [(ResNetConfig(width=64), 8), (ResNetConfig(width=12), 1), (FoundResNet(depth=101), 8),
     (FoundViT(patch_size=4, width=24, depth=2, heads=3), 3)],
)  # fmt: skip
def test_the_rival_is_the_narrowest_of_its_kind_that_stores_as_much(config, step):
    if isinstance(config, FoundResNet | FoundViT):
        config = replace(config, source="own")
    stored = numbers_of(partial(build_network, config, **SHAPE)) // 2
    narrow = narrow_to(config, stored=stored, **SHAPE)
    thinner = replace(narrow, width=narrow.width - step)
    assert narrow.width % step == 0
    assert replace(narrow, width=config.width) == config
    assert numbers_of(partial(build_network, narrow, **SHAPE)) >= stored
    assert numbers_of(partial(build_network, thinner, **SHAPE)) < stored


@pytest.mark.parametrize(
    "config",
    [ResNetConfig(width=8), FoundViT(patch_size=4, width=8, depth=1, heads=2, source="own"),
     ModelConfig(width=8, depth=1)],
)  # fmt: skip
def test_a_checkpoint_gives_its_network_back(tmp_path, config):
    model = build_network(config, **SHAPE)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(
        path, {"training": {"model": model.state_dict()}, "network": entry_of(config, **SHAPE)}
    )
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(read_network(path).eval()(images), model.eval()(images))


def test_every_network_has_the_rate_of_the_run_or_its_own():
    config = replace(CONFIG, own={"narrow-50": {"optim.lr": 3e-2}})
    for one in image_variants(CONFIG):
        found = trainer_of(one.name, own_config(config, one.name)).settings["learning_rate"]
        assert found == (3e-2 if one.name == "narrow-50" else 1e-2), one.name


def test_oialr_may_have_a_schedule_of_its_own():
    schedule = {"optim.lr": 4e-2, "optim.min_lr": 2e-2, "optim.warmup_fraction": 0.5}
    config = replace(CONFIG, own={"oialr-paper": schedule})
    for name in ("dense", "half-50", "narrow-50"):
        assert lrs_of(trainer_of(name, own_config(config, name))) == lrs_of(trainer_of(name))
    lrs = lrs_of(trainer_of("oialr-paper", own_config(config, "oialr-paper")))
    assert max(lrs) == lrs[8] == pytest.approx(4e-2)  # 8 of 16 steps of warm-up
    assert lrs[-1] == pytest.approx(2e-2)


def lrs_of(trainer):
    scheduler = trainer.scheduler
    return [
        scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step) for step in range(trainer.total_steps)
    ]


@pytest.mark.parametrize(
    ("name", "steps"),
    [("half-50", [8, 9]), pytest.param("oialr-paper", [5, 9], marks=pytest.mark.slow)],
)
def test_a_killed_training_with_mixup_goes_on_bit_for_bit(tmp_path, name, steps):
    assert_goes_on(partial(train_here, name=name), tmp_path, at=steps)


def test_a_training_for_as_much_compute_needs_a_transformer():
    dense, *_, narrow = image_variants(CONFIG)
    with pytest.raises(ConfigError, match="narrow-50-short: operations are foreseen"):
        build_on(tiny_data(channels=3), CONFIG, short(narrow, replace(dense, branch=0.2)), 0)


def test_auto_is_the_network_of_this_package_where_timm_is_missing(monkeypatch):
    monkeypatch.setattr(
        "orthotrain.lab.experiments.lowrank.image_config.find_spec", lambda name: None
    )
    config = replace(CONFIG, model=FoundResNet(width=8, stem="imagenet"))
    network = network_of(config, variant_of("dense"), **SHAPE)
    assert network == FoundResNet(width=8, stem="imagenet", source="own")
    assert type(build_network(network, **SHAPE)).__module__ == "orthotrain.models.resnet"


@pytest.mark.bad_input
def test_a_missing_timm_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r"orthotrain\[timm\].*--model\.source own"):
        build_network(FoundViT(width=8, source="timm"), **SHAPE)


@pytest.mark.bad_input
def test_a_timm_that_does_not_import_says_why(monkeypatch, tmp_path):
    Path(tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ConfigError, match=r"operator nms does not exist.*torchvision"):
        build_network(FoundResNet(width=8, source="timm"), **SHAPE)


def test_the_search_tries_each_rate_with_every_network():
    names = [part.variant for part in SEARCH.parts]
    assert sorted(names) == sorted(v.name for v in image_variants(CONFIG))
    assert len({part.space["optim.lr"] for part in SEARCH.parts}) == 1
    assert SEARCH.trials == len(SEARCH.parts[0].space["optim.lr"].values)
    with pytest.raises(ConfigError, match="belong to the final comparison"):
        SEARCH.config(replace(CONFIG, seeds=(100,)))
