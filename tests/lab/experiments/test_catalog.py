import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.packed import write_folder, write_packed
from data.series import HOURS, written
from orthotrain.disentangle import Evaluation
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe, recipe_config, recipe_names
from orthotrain.lab.experiments.language import recipes as language_recipes
from orthotrain.lab.experiments.latent import images
from orthotrain.lab.experiments.lowrank import recipes
from orthotrain.lab.named import named
from orthotrain.lab.run.experiment import Experiment
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder

# The plainest and the fullest way to train of each recipe; all ways are trained elsewhere.
TRAINED = {
    "digits-minivit": ("dense", "oialr-paper", "oialr-tuned"),
    "cifar10-minivit": ("dense", "oialr-paper", "oialr-tuned"),
    "cifar10-minivit-rivals": ("galore-like",),
    "cifar10-resnet": ("half-50",),
    "imagenet-vit-b16": ("oialr-paper",),
    "imagenet-resnetrs101": ("dense",),
    "cifar10-dbn": ("bn", "nog-ow-olr"),
    "texture-gcp": ("avg", "nog-olr"),
    "clothing-gcp": ("gcp",),
    "digits-settling": ("constant",),
}
GENERATORS = {
    "latent-linear": ("baseline", "nog-retraction", "olr-sgd"),
    "sprites-eigengan": ("nog-olr",),
    "sprites-simplegan": ("baseline",),
    "faces-eigengan": ("baseline",),
    "faces-simplegan": ("nog-olr",),
}
TEXTS = {
    "stdlib-gpt": ("dense", "half-30", "oialr-paper", "frozen-50-plain"),
    "stdlib-gpt-rivals": ("relora-like",),
}
SERIES = {
    "ettm2-autoformer": ("dense", "ETTm2.csv", 15),
    "etth2-autoformer": ("oialr-4", "ETTh2.csv.gz", 60),
}
# Packed files as small as each reader takes them.
PACKED = {
    "cifar10": ("cifar10_jpeg.npz", {"train_per_class": 10}),
    "textures": (
        "dtd10_128_jpeg.npz",
        {"train_per_class": 12, "marks": (0,), "shape": (128, 128), "split": None},
    ),
    "clothing": (
        "clothing128_jpeg.npz",
        {"train_per_class": 4, "marks": (0, 1, 2), "shape": (128, 128)},
    ),
    "faces": (
        "lfw64_jpeg.npz",
        {"train_per_class": 15, "marks": (0,), "shape": (64, 64), "split": None, "label": None},
    ),
}


def test_every_recipe_is_trained_here():
    assert {*TRAINED, *GENERATORS, *TEXTS, *SERIES} == set(recipe_names())


def trained(name, variant, config, folder):
    experiment = find_recipe(name)
    chosen = next(v for v in experiment.variants(config) if v.name == variant)
    trainer = named(experiment.build)(config, chosen, 0)
    return train(trainer, variant=chosen, seed=0, folder=SeedFolder(folder))


def with_packed_data(config, folder):
    if config.data.name == "image-folder":
        images = write_folder(folder / "images", per_class=10)
        return replace(config, data=replace(config.data, dir=str(images)))
    if config.data.name not in PACKED:
        return config
    file, settings = PACKED[config.data.name]
    packed = write_packed(folder / file, **settings)
    return replace(config, data=replace(config.data, dir=str(packed)))


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in GENERATORS for variant in GENERATORS[name]]
)
def test_every_recipe_of_generators_trains_two_steps(name, variant, tmp_path, monkeypatch):
    config = with_packed_data(recipe_config(name, "smoke"), tmp_path)
    config = replace(config, optim=replace(config.optim, steps=2))
    # The scores themselves are tested where they are made.
    scores = ({}, Evaluation((), (), (), {}))
    monkeypatch.setattr(images, "image_scores", lambda *a, **k: scores)
    result = trained(name, variant, config, tmp_path / "run")
    assert result["steps"] == 2
    assert all(math.isfinite(score) for score in result["scores"].values())


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in TEXTS for variant in TEXTS[name]]
)
def test_every_recipe_of_texts_trains_some_steps(name, variant, tmp_path):
    config = recipe_config(name, "smoke")
    config = replace(config, optim=replace(config.optim, steps=4))
    result = trained(name, variant, config, tmp_path / "run")
    assert result["steps"] == 4
    assert math.isfinite(result["test_bits"])


@pytest.mark.parametrize("name", SERIES)
def test_every_recipe_of_series_trains_some_steps(name, tmp_path):
    variant, file, minutes = SERIES[name]
    path = written(tmp_path, rows=HOURS * 60 // minutes, name=file, minutes=minutes)
    config = recipe_config(name, "smoke")
    config = replace(
        config,
        data=replace(config.data, dir=str(path), every=1000),
        optim=replace(config.optim, steps=4),
    )
    result = trained(name, variant, config, tmp_path / "run")
    assert result["steps"] == 4
    assert math.isfinite(result["test_mse"])


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in TRAINED for variant in TRAINED[name]]
)
def test_every_recipe_trains_two_steps(name, variant, tmp_path):
    config = with_packed_data(recipe_config(name, "smoke"), tmp_path)
    limit = config.data.train_limit if config.data.name == "digits" else None
    trainer = named(find_recipe(name).build)
    data = replace(config.data, train_limit=limit)
    config = replace(config, data=data, optim=replace(config.optim, epochs=1))
    first = find_recipe(name).variants(config)[0]
    images = len(trainer(config, first, 0).data.train)
    config = replace(config, data=replace(data, batch_size=images // 2))
    result = trained(name, variant, config, tmp_path / "run")
    assert result["steps"] == 2
    assert math.isfinite(result["test_loss"])


@pytest.mark.parametrize(("name", "variant"), [("cifar10-dbn", "nog"), ("texture-gcp", "olr")])
def test_a_folder_of_images_takes_the_place_of_the_data(name, variant, tmp_path):
    config = recipe_config(name, "smoke")
    folder = write_folder(tmp_path / "images", per_class=20)
    config = replace(
        config,
        data=replace(
            config.data, name="image-folder", dir=str(folder), image_size=32, batch_size=8,
            train_limit=None, crop_padding=0, crop_area=0.5,
        ),
        optim=replace(config.optim, epochs=1),
    )  # fmt: skip
    result = trained(name, variant, config, tmp_path / "run")
    assert math.isfinite(result["test_loss"])
    assert result["steps"] > 0


@pytest.mark.parametrize("name", recipe_names())
def test_scales_say_which_they_are_and_search_other_seeds(name):
    recipe = find_recipe(name)
    for scale in recipe.config:
        config = recipe_config(name, scale)
        assert (config.recipe, config.scale) == (name, scale)
        assert not recipe.search or not set(config.seeds) & set(named(recipe.search).seeds)
        assert recipe.chosen(config)


def test_the_full_whitening_recipe_has_the_published_settings():
    config = recipe_config("cifar10-dbn", "full")
    model, optim, data = config.model, config.optim, config.data
    assert (model.depth, model.width, model.stem_channels, model.stem) == (18, 64, 64, "cifar")
    assert (optim.epochs, optim.lr, optim.momentum, optim.weight_decay) == (350, 0.1, 0.9, 5e-4)
    assert [round(350 * share) for share in optim.decay_at] == [100, 200, 300]
    assert (data.batch_size, data.crop_padding, data.flip) == (128, 4, True)
    assert (config.spectral.layer, config.spectral.ridge) == ("whitening", 1e-2)
    assert len(find_recipe("cifar10-dbn").chosen(config)) == 1 + 13 + 4


def test_the_full_pooling_recipe_has_the_published_settings():
    for name in ("texture-gcp", "clothing-gcp"):
        config = recipe_config(name, "full")
        model, optim = config.model, config.optim
        assert (model.depth, model.reduced_channels, model.last_stride) == (50, 256, 1)
        assert (optim.epochs, optim.weight_decay, optim.head_lr_factor) == (200, 1e-4, 20.0)
        assert [round(200 * share) for share in optim.decay_at] == [50, 100]
        assert config.data.batch_size == 10


def test_the_full_cifar_recipe_has_the_published_settings():
    config = recipe_config("cifar10-minivit", "full")
    model, optim = config.model, config.optim
    assert (model.patch_size, model.depth, model.heads, model.width) == (8, 6, 6, 768)
    assert (config.data.batch_size, optim.epochs, optim.lr, optim.min_lr) == (1024, 300, 3e-4, 1e-5)
    assert (optim.weight_decay, optim.clip_norm) == (0.01, 5.0)
    assert config.paper.delay_fraction * optim.epochs == pytest.approx(50)
    assert config.paper.every_fraction * optim.epochs == pytest.approx(10)
    assert optim.warmup_fraction * optim.epochs == pytest.approx(10)
    assert (config.paper.rank, config.paper.layer_fraction) == ("rank_rtol=0.15", 0.1)
    assert not config.paper.only_if_cheaper


def test_the_full_recipes_of_generators_have_the_published_settings():
    eigen, simple = (recipe_config(f"faces-{kind}", "full") for kind in ("eigengan", "simplegan"))
    assert (eigen.optim.lr, eigen.optim.betas, eigen.data.batch_size) == (1e-4, (0.5, 0.99), 64)
    assert (eigen.optim.loss, eigen.optim.r1, eigen.optim.r1_every) == ("hinge", 10.0, 16)
    assert (eigen.model.noise_dim, eigen.model.latent_dim) == (512, 6)
    assert (eigen.optim.augment, eigen.optim.ema_half_life) == (True, 10_000)
    assert (simple.optim.lr, simple.optim.betas, simple.data.batch_size) == (
        2e-4,
        (0.5, 0.999),
        128,
    )
    assert (simple.optim.loss, simple.optim.gradient_penalty) == ("wasserstein", 10.0)
    assert simple.latent.orojar == 1e-6
    sprites = recipe_config("sprites-simplegan", "full")
    assert (sprites.latent.hessian, sprites.latent.orojar, sprites.latent.vp) == (1e-3, 1e-11, 0.1)
    assert (sprites.optim.loss, sprites.model.latent_dim) == ("non_saturating", 6)
    # Without noise, so that the factors cannot go there.
    assert recipe_config("sprites-eigengan", "full").model.noise_dim == 0


def test_the_full_recipes_of_series_have_the_published_settings():
    minutes, hours = (recipe_config(f"{name}-autoformer", "full") for name in ("ettm2", "etth2"))
    sizes = (minutes.model.width, minutes.model.heads, minutes.model.read, minutes.model.known)
    assert sizes == (512, 8, 96, 48)
    assert (minutes.data.batch_size, minutes.optim.lr, minutes.data.every) == (32, 1e-4, 1)
    assert (minutes.model.factor, hours.model.factor) == (1.0, 3.0)
    # Ten epochs of the windows of twelve months.
    for config, per_day in ((minutes, 96), (hours, 24)):
        windows = 12 * 30 * per_day - 96 - 96 + 1
        assert config.optim.steps == pytest.approx(10 * windows / 32, rel=1e-3)


def test_unknown_recipes_scales_and_variants_are_refused():
    with pytest.raises(ConfigError, match="did you mean digits-minivit"):
        find_recipe("digit-minivit")
    with pytest.raises(ConfigError, match="did you mean ettm2-autoformer"):
        find_recipe("etm2-autoformer")
    with pytest.raises(ConfigError, match="no scale 'huge'; choose from smoke"):
        recipe_config("digits-minivit", "huge")
    with pytest.raises(ConfigError, match=r"did you mean cpu\? choose from smoke"):
        recipe_config("digits-minivit", "cpus")
    ettm2 = find_recipe("ettm2-autoformer")
    config = replace(ettm2.at("cpu"), variants=("oialr2",))
    with pytest.raises(ConfigError, match=r"did you mean oialr-2\? choose from dense"):
        ettm2.chosen(config)


def test_tuned_settings_say_where_they_come_from():
    files = [
        file
        for package in (language_recipes, recipes)
        for file in Path(package.__file__).parent.glob("*_tuned.json")
    ]
    assert len(files) == 3
    for path in files:
        assert "orthotrain tune" in json.loads(path.read_text())["source"]


OWN = """
from orthotrain.lab.run.config import RunConfig, Variant
from orthotrain.lab.run.experiment import Experiment

EXPERIMENT = Experiment(
    "own", "Own", {"cpu": RunConfig()}, lambda config: [Variant("a", "A", "")], "x:build", "x:PAGE"
)
NUMBER = 3
"""


def test_an_experiment_of_a_file_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "own_experiment.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    name = "own_experiment:EXPERIMENT"
    assert find_recipe(name).title == "Own"
    # What a resumed run reads in its folder finds the experiment again.
    assert recipe_config(name, "cpu").recipe == name
    with pytest.raises(ConfigError, match="is a int; need an Experiment"):
        find_recipe("own_experiment:NUMBER")
    with pytest.raises(ConfigError, match="'own_experiment:NO' cannot be loaded"):
        find_recipe("own_experiment:NO")


def test_experiments_of_other_packages_are_found_by_their_entry_points(tmp_path, monkeypatch):
    (tmp_path / "other_package.py").write_text(OWN)
    described = tmp_path / "other_package-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n"
    )
    (described / "entry_points.txt").write_text(
        "[orthotrain.experiments]\nother = other_package:EXPERIMENT\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "other" in recipe_names()
    assert "other_package" not in sys.modules
    assert isinstance(find_recipe("other"), Experiment)
