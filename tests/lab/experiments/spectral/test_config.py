import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from lab.run.tiny import assert_goes_on, assert_same_bits, tiny_data
from orthotrain.errors import ConfigError
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.classifier.config import RecordConfig, ResNetConfig, SgdConfig
from orthotrain.lab.experiments.spectral.build import build_on
from orthotrain.lab.experiments.spectral.config import (
    SpectralConfig,
    SpectralRun,
    spectral_variants,
)
from orthotrain.lab.experiments.spectral.measure import _weight_before
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import RunFolder, SeedFolder, read_json, read_metrics
from orthotrain.lab.run.restore import read_network
from orthotrain.lab.run.schedule import step_decay
from orthotrain.layers import DecorrelatedBatchNorm2d, OrthogonalConv2d

WHITENING = SpectralRun(
    recipe="tiny",
    scale="smoke",
    data=replace(SpectralRun(recipe="tiny").data, name="cifar10", batch_size=8),
    model=ResNetConfig(width=2, stem_channels=8, reduced_channels=3),
    optim=SgdConfig(epochs=3, lr=0.05, decay_at=(0.5,)),
    spectral=SpectralConfig(monitor_every_steps=2),
    record=RecordConfig(
        log_every_steps=1, eval_every_epochs=1, stability_every_epochs=1, checkpoint_every_epochs=1
    ),
    seeds=(0,),
    device="cpu",
)
POOLING = replace(
    WHITENING,
    spectral=replace(WHITENING.spectral, layer="pooling", ridge=0.0, relative_ridge=1e-5),
    model=replace(WHITENING.model, last_stride=1),
)
RUNS = {"whitening": WHITENING, "pooling": POOLING}
# 3 epochs of 4 batches.
TOTAL_STEPS = 12


def variant_of(config, name):
    return next(v for v in spectral_variants(config) if v.name == name)


def trainer_of(config, name, seed=0, data=None):
    return build_on(data or tiny_data(channels=3), config, variant_of(config, name), seed)


def train_here(folder, config, name, **options):
    return train(
        trainer_of(config, name),
        variant=variant_of(config, name), seed=0, folder=SeedFolder(folder), **options,
    )  # fmt: skip


every_variant = pytest.mark.parametrize(
    ("layer", "name"),
    [(layer, v.name) for layer, config in RUNS.items() for v in spectral_variants(config)],
)


def test_there_are_thirteen_treatments_a_baseline_and_four_controls():
    for layer, baseline, root in (("whitening", "bn", "zca"), ("pooling", "avg", "gcp")):
        names = [v.name for v in spectral_variants(RUNS[layer])]
        assert len(names) == len(set(names)) == 1 + 13 + 4
        assert names[:2] == [baseline, root]
        assert [n for n in names if n.endswith("fixed")] == [
            f"{root}-fixed", "nog-fixed", "olr-fixed", "nog-olr-fixed",
        ]  # fmt: skip


@pytest.mark.parametrize("recipe", ["cifar10-dbn", "texture-gcp"])
def test_a_long_run_has_what_its_claims_need_with_the_norm_free_and_held(recipe):
    experiment = find_recipe(recipe)
    config = experiment.at("cpu-long")
    without, root, *others = [variant.name for variant in experiment.chosen(config)]
    assert (without, root) in (("bn", "zca"), ("avg", "gcp"))
    free, held = ["nog", "olr", "nog-olr"], [f"{root}-fixed", "nog-fixed", "olr-fixed"]
    assert set(others) == {*free, "ow", "nog-ow-olr", *held, "nog-olr-fixed"}
    assert config.seeds == (0, 1, 2)
    # Every moment of the report has readings.
    images = 20_000 if recipe == "cifar10-dbn" else 640
    steps = config.optim.epochs * (images // config.data.batch_size)
    assert config.spectral.monitor_every_steps < 0.02 * steps


@every_variant
def test_every_variant_trains_and_records(tmp_path, layer, name):
    config = replace(RUNS[layer], optim=replace(RUNS[layer].optim, epochs=1))
    result = train_here(tmp_path, config, name)
    assert result["steps"] == 4
    assert math.isfinite(result["test_loss"])
    treatments = variant_of(config, name).treatments
    lines = read_metrics(SeedFolder(tmp_path).metrics)
    conditions = [line for line in lines if line["kind"] == "condition"]
    covariances = [line for line in conditions if line["what"] == "covariance"]
    assert {line["step"] for line in conditions} == {2, 4}
    assert all("epoch" in line for line in conditions)
    assert bool(covariances) == (name != "avg")
    methods = {line["method"] for line in lines if line["kind"] == "method"}
    expected = {"nog": "nearest_orthogonal_gradient", "olr": "optimal_learning_rate"}
    assert methods == {expected[t] for t in treatments if t in expected}
    assert ("root" in result["shares"]) == ("root" in treatments)
    assert set(expected[t] for t in treatments if t in expected) <= set(result["shares"])
    assert all(share > 0 for share in result["shares"].values())
    without = name == "avg" or (layer == "whitening" and "ow" in name.split("-"))
    assert (result["weight_norm"] is None) == without
    assert result["settings"]["treatments"] == list(treatments)


@pytest.mark.parametrize("name", ["zca", "ns", "ow", "nog-ow-olr", "nog-sn", "nog-fixed"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, name):
    assert_goes_on(partial(train_here, config=WHITENING, name=name), tmp_path, at=[5, 8])


@pytest.mark.parametrize("layer", RUNS)
def test_variants_of_one_seed_share_every_weight_they_have_in_common(layer):
    config = RUNS[layer]
    data = tiny_data(channels=3)
    names = [variant.name for variant in spectral_variants(config)]
    states = {name: trainer_of(config, name, data=data) for name in names}
    reference = states[names[0]].model.state_dict()
    different = {"stem.weight", "head.weight", "head.bias"}
    for name, state in states.items():
        weights = state.model.state_dict()
        for key in set(reference) & set(weights) - different:
            if not key.startswith("norm."):
                assert torch.equal(reference[key], weights[key]), (name, key)
        if layer == "whitening" and "ow" not in name.split("-"):
            assert torch.equal(reference["stem.weight"], weights["stem.weight"])


def test_the_controls_keep_the_norm_of_the_weight_and_the_others_do_not(tmp_path):
    start = trainer_of(WHITENING, "zca")
    norm = start.model.stem.weight.norm().item()
    ends = {
        name: train_here(tmp_path / name, WHITENING, name)["weight_norm"]
        for name in ("zca", "zca-fixed", "nog", "nog-fixed", "sn")
    }
    assert ends["zca-fixed"] == pytest.approx(norm, rel=1e-5)
    assert ends["nog-fixed"] == pytest.approx(norm, rel=1e-5)
    assert ends["nog"] > 1.05 * norm
    assert ends["sn"] != pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("name", ["nog-ow-olr", "ns", "bn"])
def test_a_checkpoint_alone_gives_the_network_back(tmp_path, name):
    train_here(tmp_path, WHITENING, name)
    state = load_checkpoint(SeedFolder(tmp_path).checkpoint)["training"]["model"]
    network = read_network(SeedFolder(tmp_path).checkpoint)
    assert_same_bits(dict(network.state_dict()), dict(state))


def test_run_json_names_the_page_the_baseline_and_the_treatments(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(WHITENING)
    experiment = find_recipe("cifar10-dbn")
    folder.describe(experiment, WHITENING, variants=experiment.chosen(WHITENING), environment={})
    described = read_json(folder.run)
    assert described["page"] == "orthotrain.lab.experiments.spectral.page:PAGE"
    assert described["baseline"] == "bn"
    by_name = {variant["name"]: variant for variant in described["variants"]}
    assert by_name["bn"]["treatments"] == []
    assert by_name["nog-ow-olr"]["treatments"] == ["root", "nog", "ow", "olr"]
    assert by_name["nog-ow-olr"]["title"] == "ZCA + NOG + OW + OLR"


def test_the_learning_rate_falls_at_the_published_epochs():
    rates = [
        step_decay(epoch, total_steps=350, decay_at=(100 / 350, 200 / 350, 300 / 350), factor=0.1)
        for epoch in (0, 99, 100, 199, 200, 299, 300, 349)
    ]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_classifier_has_a_learning_rate_of_its_own():
    config = replace(WHITENING, optim=replace(WHITENING.optim, head_lr_factor=20.0))
    state = trainer_of(config, "zca")
    by_parameter = {p: g["lr"] for g in state.optimizer.param_groups for p in g["params"]}
    assert len(by_parameter) == len(list(state.model.parameters()))
    assert by_parameter[state.model.head.weight] == pytest.approx(1.0)
    assert by_parameter[state.model.stem.weight] == pytest.approx(0.05)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"ridge": math.nan}, "ridge=nan"),
        ({"ns_iterations": 0}, "ns_iterations=0"),
        ({"monitor_every_steps": 0}, "monitor_every_steps=0"),
        ({"group_size": 0}, "group_size=0"),
        ({"olr_floor": 2.0}, "olr_floor=2.0"),
        ({"olr_floor": 1.0}, "olr_floor=1.0"),
        ({"penalty": -0.1}, "penalty=-0.1"),
        ({"penalty": 0.0}, "penalty=0.0 must be positive"),
        ({"layer": "pooling", "group_size": 4}, "covariance pooling has no groups"),
        ({"relative_ridge": 1e-5}, "whitening has a ridge alone"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SpectralConfig(**settings)


@pytest.mark.bad_input
def test_variants_of_the_other_layer_are_refused():
    with pytest.raises(ConfigError, match="'gcp' is not a variant; choose from bn, zca"):
        find_recipe("cifar10-dbn").chosen(replace(WHITENING, variants=("gcp",)))
    config = replace(WHITENING, spectral=replace(WHITENING.spectral, group_size=3))
    with pytest.raises(ConfigError, match=r"group_size|divisible"):
        trainer_of(config, "zca")


def test_the_weight_norm_is_that_of_the_map_or_nothing():
    for config, name, known in (
        (WHITENING, "zca", True),
        (WHITENING, "ow", False),
        (POOLING, "ow", True),
        (WHITENING, "bn", True),
        (POOLING, "avg", False),
    ):
        model = trainer_of(config, name).model
        norm = _weight_before(model, config.spectral)
        # The free parameter of a skew exponential is no map; its map has no norm but one.
        assert (norm is not None) == known, (config.spectral.layer, name)


@pytest.mark.parametrize(("kernel", "most"), [("cifar", 0.3), ("imagenet", 0.3)])
def test_an_orthogonal_stem_states_a_tolerance_that_says_something(kernel, most):
    config = replace(WHITENING, model=replace(WHITENING.model, stem=kernel))
    model = trainer_of(config, "ow").model
    assert model.stem.tolerance < most


def test_the_deeper_network_takes_whitening():
    config = replace(WHITENING, model=replace(WHITENING.model, depth=50))
    model = trainer_of(config, "nog-ow-olr").model
    assert isinstance(model.norm, DecorrelatedBatchNorm2d)
    assert isinstance(model.stem, OrthogonalConv2d)
