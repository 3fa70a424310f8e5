"""Settings of a run of generators: which variants there are, and what is refused."""

from __future__ import annotations

import pytest

from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.latent.config import (
    AdversarialConfig,
    GeneratorConfig,
    LatentConfig,
    LatentDataConfig,
    LatentRecordConfig,
    LatentRun,
    latent_variants,
)


def test_every_treatment_alone_and_every_control_has_a_variant():
    variants = {variant.name: variant for variant in latent_variants(LatentRun())}
    assert len(variants) == len(latent_variants(LatentRun())) == 23
    assert variants["baseline"].treatments == ()
    for name in ("nog", "nog-update", "olr", "ol", "retraction", "hessian", "orojar", "vp"):
        assert variants[name].treatments == (name,)
        assert variants[name].optimizer == "adam"
    for name in ("nog-olr", "nog-retraction"):
        assert variants[name].treatments == tuple(name.split("-"))
    assert variants["nog-lr3"].lr_factor == 3.0
    assert variants["nog-lr0.33"].lr_factor == pytest.approx(1 / 3)
    for name in ("baseline", "nog", "olr", "ol"):
        assert variants[f"{name}-sgd"].optimizer == "sgd"
        assert variants[f"{name}-sgd"].treatments == variants[name].treatments


@pytest.mark.parametrize(("recipe", "size"), [("sprites-eigengan", 32), ("faces-eigengan", 64)])
def test_a_night_has_one_seed_of_four_variants(recipe, size):
    experiment = find_recipe(recipe)
    config = experiment.at("night")
    assert {v.name for v in experiment.chosen(config)} == {"baseline", "nog", "olr", "ol"}
    assert config.seeds == (0,)
    assert config.data.image_size == size
    assert config.data.color == (recipe == "sprites-eigengan")


def test_a_variant_says_what_it_is():
    olr = next(variant for variant in latent_variants(LatentRun()) if variant.name == "olr-sgd")
    described = olr.described()
    assert (described["name"], described["treatments"]) == ("olr-sgd", ["olr"])
    assert described["optimizer"].startswith("sgd")
    assert described["lr_factor"] == 1.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (LatentDataConfig, {"image_size": 4}, "data.image_size=4"),
        (LatentDataConfig, {"batch_size": 1}, "data.batch_size=1"),
        (GeneratorConfig, {"latent_dim": 0}, "model.latent_dim=0"),
        (GeneratorConfig, {"noise_dim": -1}, "model.noise_dim=-1"),
        (AdversarialConfig, {"steps": 0}, "optim.steps=0"),
        (AdversarialConfig, {"lr": float("nan")}, "optim.lr=nan"),
        (AdversarialConfig, {"discriminator_lr": 0.0}, "optim.discriminator_lr=0.0"),
        (AdversarialConfig, {"r1": -1.0}, "optim.r1=-1.0"),
        (AdversarialConfig, {"constant_fraction": 0.0}, "optim.constant_fraction=0.0"),
        (LatentConfig, {"penalty": 0.0}, "latent.penalty=0.0"),
        (LatentConfig, {"monitor_every_steps": 0}, "latent.monitor_every_steps=0"),
        (LatentRecordConfig, {"sample_every_steps": 0}, "record.sample_every_steps=0"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


@pytest.mark.bad_input
def test_data_and_generator_must_fit_and_variants_must_be_known():
    with pytest.raises(ConfigError, match="the linear generator makes vectors"):
        LatentRun(recipe="x", data=LatentDataConfig(name="sprites"))
    with pytest.raises(ConfigError, match="leave vp out"):
        LatentRun(recipe="x", variants=("baseline", "vp"))
    with pytest.raises(
        ConfigError, match="'nogg' is not a variant; did you mean nog\\? choose from baseline, "
    ):
        find_recipe("latent-linear").chosen(LatentRun(variants=("nogg",)))
