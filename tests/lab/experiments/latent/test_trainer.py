"""One adversarial training: what it writes, and that a kill changes nothing."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from data.packed import write_folder
from lab.experiments.latent.tiny import (
    EIGEN,
    LINEAR,
    SIMPLE,
    STEPS,
    build,
    variant_of,
)
from lab.run.tiny import assert_goes_on, assert_same_bits
from orthotrain.disentangle import Evaluation
from orthotrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingPackageError,
    NonFiniteError,
)
from orthotrain.lab.experiments.latent import image_data, images, linear, trainer
from orthotrain.lab.experiments.latent.build import (
    build_methods,
    gram_deviation,
    latent_layers,
    latent_weights,
)
from orthotrain.lab.experiments.latent.state import averaged
from orthotrain.lab.experiments.latent.step import adversarial_step
from orthotrain.lab.run.checkpoint import load_checkpoint
from orthotrain.lab.run.loop import train
from orthotrain.lab.run.record import SeedFolder, read_json, read_metrics
from orthotrain.lab.run.restore import read_network, read_weights

KINDS = {"linear": LINEAR, "eigen": EIGEN, "simple": SIMPLE}


@pytest.fixture(autouse=True)
def cheap_scores(monkeypatch):
    """One number that depends on every weight, in place of minutes of scores."""

    def score(model, real, *, sprites, budget, seed, directions=None):
        total = sum(float(p.double().abs().sum()) for p in model.parameters())
        return {"vp": total}, Evaluation((), (), (), {"real": len(real)})

    monkeypatch.setattr(images, "image_scores", score)


def train_here(path, *, name="baseline", config=LINEAR, seed=0, **options):
    variant = variant_of(name)
    return train(
        build(config)(config, variant, seed),
        variant=variant,
        seed=seed,
        folder=SeedFolder(path),
        **options,
    )


def state_of(name="baseline", config=LINEAR, seed=0):
    return build(config)(config, variant_of(name), seed).state


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("linear", "baseline"),
        ("linear", "nog-olr"),
        ("linear", "retraction-sgd"),
        ("eigen", "baseline"),
        ("eigen", "nog-update"),
        ("eigen", "vp"),
        ("simple", "baseline"),
        ("simple", "orojar"),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(kind, name, tmp_path):
    train_in = partial(train_here, name=name, config=KINDS[kind])
    assert_goes_on(train_in, tmp_path, at=[STEPS - 1], saved=[6])


@pytest.mark.bad_input
def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path):
    train_here(tmp_path, name="baseline", config=KINDS["linear"])
    saved = load_checkpoint(SeedFolder(tmp_path).checkpoint)["training"]
    state = state_of(name="baseline-sgd", config=KINDS["linear"])
    before = state.generator.subspace.u.clone()
    with pytest.raises(CheckpointError, match="2 optimizers does not fit a training with 3"):
        state.load_state_dict(saved)
    assert torch.equal(state.generator.subspace.u, before)


def test_a_run_leaves_its_record_and_samples_that_can_be_opened(tmp_path):
    from PIL import Image

    result = train_here(tmp_path, name="nog", config=EIGEN)
    assert read_json(SeedFolder(tmp_path).result)["variant"] == "nog"
    lines = read_metrics(SeedFolder(tmp_path).metrics)
    assert [line["step"] for line in lines if line["kind"] == "step"] == [*range(1, STEPS + 1)]
    # Two blocks, each with a deviation at every second step.
    latent = [line for line in lines if line["kind"] == "latent"]
    assert [line["step"] for line in latent] == [2, 2, 4, 4, 6, 6, 8, 8]
    assert {line["layer"] for line in latent} == {"blocks.0.subspace", "blocks.1.subspace"}
    assert {line["what"] for line in lines if line["kind"] == "condition"} == {
        "weight", "gradient", "update",
    }  # fmt: skip
    assert any(line["kind"] == "method" for line in lines)
    assert set(result["shares"]) == {"nearest_orthogonal_gradient", "condition_monitor"}
    grids = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert grids == ["step-000004.png", "step-000008.png"]
    with Image.open(tmp_path / "samples" / grids[-1]) as grid:
        assert (grid.size, grid.mode) == ((128, 128), "L")


def test_traversals_move_one_coordinate_and_share_their_latents(tmp_path):
    found = {}
    for name in ("baseline", "nog"):
        train_here(tmp_path / name, name=name, config=EIGEN)
        found[name] = np.load(tmp_path / name / "traversals.npz")
    one, other = found["baseline"], found["nog"]
    assert one["frames"].shape == (4, 13, 4, 16, 16, 1)
    assert (one["base_values"] == other["base_values"]).all()
    assert (one["frames"] != other["frames"]).any()
    state = state_of(config=EIGEN)
    state.load_state_dict(load_checkpoint(SeedFolder(tmp_path / "baseline").checkpoint)["training"])
    z = torch.from_numpy(one["base_values"]).clone()
    z[:, 2] = float(one["values"][11])
    images = averaged(state)(z)
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    assert (torch.from_numpy(one["frames"][2, 11]).int() - pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_averaged_generator_comes_back_from_a_checkpoint(config, tmp_path):
    train_here(tmp_path, config=config)
    checkpoint = SeedFolder(tmp_path).checkpoint
    model = read_network(checkpoint)
    state = state_of(config=config)
    state.load_state_dict(load_checkpoint(checkpoint)["training"])
    latents = state.generator.latents(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(*latents), averaged(state)(*latents))
    assert not model.training
    assert set(read_weights(checkpoint)) == set(model.state_dict())


def test_vectors_leave_no_samples(tmp_path):
    train_here(tmp_path)
    assert not (tmp_path / "samples").exists()


def test_variants_share_start_and_data_and_seeds_share_nothing():
    one, other, third = state_of("baseline"), state_of("nog"), state_of("baseline", seed=1)
    assert_same_bits(one.generator.state_dict(), other.generator.state_dict())
    assert torch.equal(one.random.get_state(), other.random.get_state())
    assert not torch.equal(one.generator.subspace.u, third.generator.subspace.u)
    assert not torch.equal(one.random.get_state(), third.random.get_state())


@pytest.mark.parametrize("name", ["nog", "ol", "hessian", "orojar", "vp"])
def test_every_variant_sees_the_same_data_at_every_step(name):
    one, other = state_of("baseline", EIGEN), state_of(name, EIGEN)
    for _ in range(2):
        adversarial_step(one, EIGEN)
        adversarial_step(other, EIGEN)
    assert torch.equal(one.random.get_state(), other.random.get_state())


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_global_random_state_is_left_as_it_was(config):
    before = torch.random.get_rng_state()
    state = state_of("vp" if config is not LINEAR else "nog", config)
    adversarial_step(state, config)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_step_moves_both_players_and_the_average(config):
    state = state_of(config=config)
    players = {"g": state.generator, "d": state.discriminator}
    before = {
        name: {key: p.detach().clone() for key, p in model.named_parameters()}
        for name, model in players.items()
    }
    # The critic of the linear generator starts at zero, and its generator moves one step later.
    for _ in range(2):
        adversarial_step(state, config)
    for name, model in players.items():
        still = {k for k, p in model.named_parameters() if torch.equal(before[name][k], p)}
        # Real and generated logits pull a bias in opposite directions, at the start by as much.
        assert all(key.endswith("bias") for key in still), still
    assert all(p.requires_grad for p in state.discriminator.parameters())
    averaged = torch.cat([p.flatten() for p in state.average.module.parameters()])
    current = torch.cat([p.detach().flatten() for p in state.generator.parameters()])
    start = torch.cat([p.flatten() for p in before["g"].values()])
    assert (averaged - current).abs().max() < (current - start).abs().max()


@pytest.mark.parametrize(
    ("weight_of", "function"),
    [("r1", "r1_penalty"), ("gradient_penalty", "gradient_penalty")],
)
def test_a_lazy_penalty_acts_in_its_steps_only_and_counts_for_those_between(
    weight_of, function, monkeypatch
):
    from orthotrain.lab.experiments.latent import step as module

    def loss_of(weight, penalty):
        """Backward sees the discriminator's loss first, then the generator's."""
        seen = []
        real = torch.autograd.backward
        optim = {"r1": 0.0, weight_of: weight, f"{weight_of}_every": 2}
        config = replace(LINEAR, optim=replace(LINEAR.optim, **optim))
        with monkeypatch.context() as patch:
            patch.setattr(
                module, function, lambda critic, x, *_, **__: critic(x).sum() * 0 + penalty
            )
            patch.setattr(
                torch.autograd, "backward", lambda x: seen.append(float(x.detach())) or real(x)
            )
            state = state_of()
            for _ in range(4):
                adversarial_step(state, config)
        return seen[::2]

    added = [a - b for a, b in zip(loss_of(0.1, 3.0), loss_of(0.1, 0.0), strict=True)]
    assert added == pytest.approx([2 * 0.1 * 3.0, 0, 2 * 0.1 * 3.0, 0], abs=1e-6)


def test_real_and_generated_images_of_a_step_are_augmented_alike(monkeypatch):
    from orthotrain.lab.experiments.latent import step as module

    drawn = []
    real = module.draw_augmentation
    monkeypatch.setattr(
        module, "draw_augmentation", lambda *a, **k: drawn.append(1) or real(*a, **k)
    )
    adversarial_step(state_of(config=EIGEN), EIGEN)
    # One for the discriminator's step, real and generated, and one for the generator's.
    assert len(drawn) == 2


def test_every_image_that_the_discriminator_judges_is_augmented(monkeypatch):
    from orthotrain.lab.experiments.latent import step as module

    def marked(*a, **k):
        return lambda images: images * 0 + 7.0

    monkeypatch.setattr(module, "draw_augmentation", marked)
    state = state_of(config=EIGEN)
    seen = []
    state.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    adversarial_step(state, replace(EIGEN, optim=replace(EIGEN.optim, r1=1.0, r1_every=1)))
    # Real and generated, real again for its slope, generated for the generator.
    assert len(seen) == 4
    assert all(bool((images == 7.0).all()) for images in seen)


def test_the_learning_rate_falls_to_zero_after_the_constant_part():
    config = replace(LINEAR, optim=replace(LINEAR.optim, steps=8, constant_fraction=0.5))
    state = state_of(config=config)
    rates = []
    for _ in range(8):
        rates.append(state.optimizers[0].param_groups[0]["lr"] / config.optim.lr)
        adversarial_step(state, config)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", []),
        ("nog-olr", ["nearest_orthogonal_gradient", "optimal_learning_rate"]),
        ("ol", ["orthogonal_penalty"]),
        ("nog-retraction", ["nearest_orthogonal_gradient", "retraction"]),
        ("hessian", []),
        ("baseline-sgd", []),
    ],
)
def test_a_variant_attaches_what_it_says(name, expected):
    methods = build_methods(variant_of(name), EIGEN)
    assert [method.name for method in methods] == [*expected, "condition_monitor"]


def test_controls_change_the_optimizer_and_the_rate():
    rates = {
        name: state_of(name).optimizers[0].param_groups[0]["lr"]
        for name in ("baseline", "nog-lr3", "baseline-sgd")
    }
    lr = LINEAR.optim.lr
    assert rates == {
        "baseline": lr, "nog-lr3": pytest.approx(3 * lr), "baseline-sgd": LINEAR.latent.sgd_lr,
    }  # fmt: skip
    assert isinstance(state_of("baseline-sgd").optimizers[0], torch.optim.SGD)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_sgd_steps_the_latent_weight_and_adam_the_rest(config):
    state = state_of("baseline-sgd", config)
    before = {name: p.detach().clone() for name, p in state.generator.named_parameters()}
    adversarial_step(state, config)
    latent = [id(getattr(layer, name)) for layer, name in latent_layers(state.generator)]
    for name, p in state.generator.named_parameters():
        moved = p.detach() - before[name]
        if id(p) in latent:
            assert p.grad is not None
            torch.testing.assert_close(moved, -config.latent.sgd_lr * p.grad)
        else:
            # The first step of Adam has the size of its rate, wherever there is a gradient.
            at = p.grad.abs() > 1e-5
            torch.testing.assert_close(
                moved[at].abs(), torch.full_like(moved[at], config.optim.lr), rtol=2e-3, atol=0
            )


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_retraction_leaves_orthonormal_rows_and_deviation_tells_them(config):
    state = state_of("retraction", config)
    plain = state_of("baseline", config)
    for _ in range(3):
        adversarial_step(state, config)
        adversarial_step(plain, config)
    held = [gram_deviation(weight) for _, weight in latent_weights(state.generator)]
    free = [gram_deviation(weight) for _, weight in latent_weights(plain.generator)]
    assert max(held) < 1e-4 < min(free)


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    real = trainer.adversarial_step

    def broken(state, config):
        losses = real(state, config)
        return (
            losses if state.step < 5 else {**losses, "discriminator_loss": torch.tensor(math.nan)}
        )

    monkeypatch.setattr(trainer, "adversarial_step", broken)
    message = "discriminator loss in .* is nan at step 5, .*; its last checkpoint is kept"
    with pytest.raises(NonFiniteError, match=message):
        train_here(tmp_path)
    assert not SeedFolder(tmp_path).result.exists()
    assert load_checkpoint(SeedFolder(tmp_path).checkpoint)["training"]["step"] == 3


@pytest.mark.bad_input
def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    """Losses are those from before an update, and are not looked at in every step."""
    config = replace(
        EIGEN,
        optim=replace(EIGEN.optim, lr=1e25),
        record=replace(EIGEN.record, log_every_steps=STEPS, checkpoint_every_steps=1),
    )
    with pytest.raises(NonFiniteError, match=r"of the generator in .* is not finite at step"):
        train_here(tmp_path, config=config)
    checkpoint = SeedFolder(tmp_path).checkpoint
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint)["training"]
        for player in ("generator", "discriminator"):
            assert all(bool(w.isfinite().all()) for w in saved[player].values())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("module", "message"),
    [("PIL.Image", "samples: .*Pillow is needed"), ("sklearn", "factors: scikit-learn is needed")],
)
def test_a_missing_package_is_told_before_the_first_step(module, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(image_data, "find_spec", lambda name: None if name == module else name)
    with pytest.raises(MissingPackageError, match=message):
        train_here(tmp_path / "run", config=EIGEN)
    assert not (tmp_path / "run").exists()
    train_here(tmp_path / "linear", config=LINEAR)


@pytest.mark.bad_input
def test_too_few_images_for_scores_are_told_before_the_first_step(tmp_path):
    folder = write_folder(tmp_path / "images", per_class=4)
    data = replace(EIGEN.data, name="image-folder", dir=str(folder))
    with pytest.raises(DataError, match=r"image-folder in .* has \d+ images in its test part"):
        train_here(tmp_path / "run", config=replace(EIGEN, data=data))
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
def test_generator_and_data_must_fit():
    with pytest.raises(ConfigError, match="the linear generator makes vectors"):
        replace(LINEAR, data=EIGEN.data)
    with pytest.raises(ConfigError, match="power of two"):
        state_of(config=replace(EIGEN, data=replace(EIGEN.data, image_size=24)))


@pytest.mark.parametrize("config", [EIGEN, SIMPLE], ids=["eigen", "simple"])
def test_the_network_runs_in_bfloat16_where_asked_and_penalties_do_not(config):
    half = replace(config, precision="bfloat16", optim=replace(config.optim, r1=1.0))
    state = state_of(config=half)
    seen = []
    first = next(m for m in state.discriminator.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    losses = adversarial_step(state, half)
    # Real and generated, then the penalties' own passes, then the generator's step.
    assert seen[:2] == [torch.bfloat16] * 2
    assert seen[-1] == torch.bfloat16
    assert set(seen[2:-1]) == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    plain = adversarial_step(state_of(config=config), config)
    torch.testing.assert_close(losses, plain, rtol=0.05, atol=0.05)
    assert all(p.dtype == torch.float32 for p in state.generator.parameters())


def test_only_the_baseline_goes_on_with_the_projector(tmp_path):
    scores = {
        name: train_here(tmp_path / name, name=name, config=EIGEN)["scores"]
        for name in ("baseline", "ol", "baseline-sgd")
    }
    assert set(scores["baseline"]) == {"vp", "vp_householder"}
    assert scores["baseline"]["vp"] != scores["baseline"]["vp_householder"]
    assert set(scores["ol"]) == set(scores["baseline-sgd"]) == {"vp"}


def test_the_linear_generator_goes_on_with_the_projector_along_its_directions(
    tmp_path, monkeypatch
):
    module = linear
    seen = []
    real = module.linear_scores

    def scored(model, source, *, seed, directions=None):
        found = real(model, source, seed=seed, directions=directions)
        seen.append((model, directions, found))
        return found

    monkeypatch.setattr(module, "linear_scores", scored)
    scores = train_here(tmp_path, name="baseline", config=LINEAR)["scores"]
    (_, axes, plain), (model, directions, projected) = seen
    assert axes is None
    assert scores["alignment_householder"] == projected["alignment"] != plain["alignment"]
    assert scores["frechet_householder"] == projected["frechet"]
    assert scores["alignment"] == plain["alignment"]
    gram = directions @ model.subspace.u.double() @ model.subspace.u.double().mT @ directions.mT
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-4)
