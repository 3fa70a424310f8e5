"""Slope penalties: known answers, the slow twin, double backward, and when they are applied."""

import copy

import pytest
import torch
from torch.autograd import gradcheck

from orthotrain.lab.experiments.latent.augment import draw_augmentation
from orthotrain.lab.experiments.latent.penalties import gradient_penalty, lazy_weight, r1_penalty
from orthotrain.models import EigenDiscriminator, SimpleDiscriminator
from reference.adversarial import mean, slope_norms
from reference.matrices import generator


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def linear(w):
    return lambda x: (x * w).flatten(1).sum(dim=1) + 3


def r1(critic, real, _fake):
    return r1_penalty(critic, real)


def gp(critic, real, fake, seed=0):
    return gradient_penalty(critic, real, fake, generator=generator(seed))


both = pytest.mark.parametrize("penalty", [r1, gp])


def smooth(x):
    """Another slope at each image; differentiable any number of times."""
    return (x.flatten(1) ** 2 * torch.linspace(0.1, 1, x[0].numel(), dtype=x.dtype)).sum(1).sin()


# --- known answers --------------------------------------------------------------------------------


def test_of_a_linear_critic():
    w, real, fake = normal(3, 4, 4), normal(5, 3, 4, 4, seed=1), normal(5, 3, 4, 4, seed=2)
    norm = w.norm().item()
    assert r1_penalty(linear(w), real).item() == pytest.approx(norm**2, rel=1e-12)
    assert gp(linear(w), real, fake).item() == pytest.approx((norm - 1) ** 2, rel=1e-12)
    assert gp(linear(w / norm), real, fake).item() == pytest.approx(0, abs=1e-24)


def test_slope_by_the_weight_of_a_linear_critic():
    w, real = normal(3, 4, 4).requires_grad_(), normal(5, 3, 4, 4, seed=1)
    (slope,) = torch.autograd.grad(r1_penalty(linear(w), real), w)
    torch.testing.assert_close(slope, 2 * w.detach(), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(gp(linear(w), real, real), w)
    norm = w.detach().norm()
    torch.testing.assert_close(slope, 2 * (norm - 1) * w.detach() / norm, rtol=0, atol=1e-12)


def test_r1_looks_at_the_real_images_and_averages_over_them():
    real = normal(3, 1, 2, 2)
    expected = mean([norm**2 for norm in slope_norms(smooth, real, 1e-5)])
    assert r1_penalty(smooth, real).item() == pytest.approx(expected, rel=1e-7)
    # Of x^2 the slope is 2 x.
    squares = (2 * real).square().flatten(1).sum(1).mean()
    assert r1_penalty(lambda x: (x**2).flatten(1).sum(1), real).item() == pytest.approx(squares)


def test_gradient_penalty_looks_between_with_one_number_a_pair():
    real, fake = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1)
    t = torch.rand(4, generator=generator(7)).double()
    points = torch.stack([t[i] * real[i] + (1 - t[i]) * fake[i] for i in range(4)])
    expected = mean([(norm - 1) ** 2 for norm in slope_norms(smooth, points, 1e-5)])
    assert gp(smooth, real, fake, seed=7).item() == pytest.approx(expected, rel=1e-7)
    assert gp(smooth, real, fake, seed=7) == gp(smooth, real, fake, seed=7)
    assert gp(smooth, real, fake, seed=7) != gp(smooth, real, fake, seed=8)


def test_a_flat_critic_gives_one_and_no_nan():
    w = torch.zeros(3, 4, 4, dtype=torch.float64, requires_grad=True)
    real = normal(5, 3, 4, 4)
    penalty = gp(linear(w), real, real)
    penalty.backward()
    assert penalty == 1
    assert torch.equal(w.grad, torch.zeros_like(w))
    assert r1_penalty(linear(w), real) == 0


def test_an_augmented_critic_is_penalised_at_the_image_itself():
    real = normal(2, 3, 8, 8)
    augmentation = draw_augmentation(real.shape, generator=generator(0))
    w = normal(3, 8, 8, seed=1)
    penalty = r1_penalty(lambda x: linear(w)(augmentation(x)), real)

    def critic_of(i):
        """What the i-th image meets, for one image."""
        return lambda x: linear(w)(augmentation(torch.cat([x, x])))[i : i + 1]

    norms = [slope_norms(critic_of(i), real[i : i + 1], 1e-3)[0] for i in range(2)]
    assert penalty.item() == pytest.approx(mean([norm**2 for norm in norms]), rel=1e-8)
    assert penalty.item() != pytest.approx(w.square().sum().item(), rel=0.01)


# --- derivatives ----------------------------------------------------------------------------------


@both
def test_derivative_by_the_parameters(penalty):
    real, fake = normal(3, 2, 3), normal(3, 2, 3, seed=1)

    def run(w):
        return penalty(lambda x: (x.flatten(1) @ w).tanh().sum(1), real, fake)

    assert gradcheck(run, (normal(6, 2, seed=3).requires_grad_(),))


@pytest.mark.parametrize(
    "discriminator",
    [
        EigenDiscriminator(8, base_channels=2, channels=1, generator=generator(0)),
        SimpleDiscriminator(16, channels=1, generator=generator(0)),
    ],
    ids=["eigen", "simple"],
)
@both
def test_double_backward_through_the_discriminators(penalty, discriminator):
    model = copy.deepcopy(discriminator).double()
    real, fake = (normal(2, *model.image_shape, seed=seed) for seed in (0, 1))
    first, _ = next(model.named_parameters())

    def run(w):
        def critic(x):
            return torch.func.functional_call(model, {first: w}, (x,))

        return penalty(critic, real, fake)

    # Leaky ReLU has corners, and a smaller step is less likely to meet one.
    assert gradcheck(run, (model.get_parameter(first),), fast_mode=True, eps=1e-7, atol=1e-6)
    penalty(model, real, fake).backward()
    for name, p in model.named_parameters():
        if name.endswith("weight"):
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().max() > 0, name


@both
def test_graph_and_flags_around_it_are_left_alone(penalty):
    w = normal(3, 4, 4).requires_grad_()
    made = normal(5, 3, 4, 4, seed=1).requires_grad_()
    real, fake = made * 2, made * 3
    kept = real.detach().clone()
    expected = penalty(linear(w), real, fake)
    expected.backward()
    assert w.grad is not None
    assert made.grad is None
    assert real.requires_grad
    assert torch.equal(real, kept)
    with torch.no_grad():
        value = penalty(linear(w), real, fake)
        assert not torch.is_grad_enabled()
    assert not value.requires_grad
    assert value == expected


def test_global_random_state_stays():
    before = torch.get_rng_state()
    gp(smooth, normal(2, 1, 2, 2), normal(2, 1, 2, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_is_summed_in_float32():
    w = torch.full((3, 64, 64), 8.0)
    real = torch.zeros(2, 3, 64, 64, dtype=torch.float16)
    penalty = r1_penalty(linear(w.half()), real)
    assert penalty.dtype == torch.float32
    # Beyond float16, which ends at 65504.
    assert penalty == 3 * 64 * 64 * 64


@both
def test_under_autocast_it_is_close_and_trains(penalty):
    model = EigenDiscriminator(8, base_channels=4, generator=generator(0))
    real, fake = (normal(4, 3, 8, 8, seed=seed).float() for seed in (0, 1))
    expected = penalty(model, real, fake).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = penalty(model, real, fake)
    value.backward()
    assert value.dtype == torch.float32
    # Measured over five seeds: .9 % at most.
    assert value.item() == pytest.approx(expected, rel=0.03)
    trained = [p for name, p in model.named_parameters() if name.endswith("weight")]
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in trained)


# --- when -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3, 16])
def test_lazy_weights_are_due_at_first_and_sum_to_the_same(every):
    weights = [lazy_weight(step, every=every, weight=10.0) for step in range(5 * every)]
    assert sum(weights) == 10.0 * len(weights)
    due = [step for step, weight in enumerate(weights) if weight]
    assert due == list(range(0, 5 * every, every))
    assert {weights[step] for step in due} == {10.0 * every}


def test_no_weight_is_never_due():
    assert not any(lazy_weight(step, every=2, weight=0.0) for step in range(4))
