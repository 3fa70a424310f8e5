"""Adversarial losses: by hand, their slopes, and what they have in common."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from orthotrain.lab.experiments.latent.losses import discriminator_loss, generator_loss
from reference.matrices import generator

KINDS = ("hinge", "non_saturating", "wasserstein")
REAL = torch.tensor([2.0, 0.5, -3.0], dtype=torch.float64)
FAKE = torch.tensor([-2.0, 0.25], dtype=torch.float64)


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hinge", (0 + 0.5 + 4) / 3 + (0 + 1.25) / 2),
        ("non_saturating",
         (softplus(-2) + softplus(-0.5) + softplus(3)) / 3 + (softplus(-2) + softplus(0.25)) / 2),
        ("wasserstein", (-2 + 0.25) / 2 - (2 + 0.5 - 3) / 3),
    ],
)  # fmt: skip
def test_discriminator_by_hand(kind, expected):
    assert discriminator_loss(REAL, FAKE, kind=kind).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hinge", (2 - 0.25) / 2),
        ("non_saturating", (softplus(2) + softplus(-0.25)) / 2),
        ("wasserstein", (2 - 0.25) / 2),
    ],
)
def test_generator_by_hand(kind, expected):
    assert generator_loss(FAKE, kind=kind).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_pulls_its_own_way(kind):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    discriminator_loss(real, fake, kind=kind).backward()
    assert (real.grad <= 0).all()
    assert (real.grad < 0).any()
    assert (fake.grad >= 0).all()
    assert (fake.grad > 0).any()
    fake.grad = None
    generator_loss(fake, kind=kind).backward()
    assert (fake.grad < 0).all()


def test_hinge_leaves_logits_beyond_the_margin_alone():
    real = torch.tensor([1.5, 0.9], requires_grad=True)
    fake = torch.tensor([-1.5, -0.9], requires_grad=True)
    discriminator_loss(real, fake, kind="hinge").backward()
    assert real.grad.tolist() == [0, -0.5]
    assert fake.grad.tolist() == [0, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind):
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    assert gradcheck(lambda r, f: discriminator_loss(r, f, kind=kind), (real, fake))
    assert gradcheck(lambda f: generator_loss(f, kind=kind), (fake,))


@pytest.mark.parametrize("kind", KINDS)
def test_any_shape_and_large_logits(kind):
    x = 1e4 * torch.randn(3, 2, 5, generator=generator(0))
    whole = discriminator_loss(x, x + 1, kind=kind)
    assert whole == discriminator_loss(x.flatten(), (x + 1).flatten(), kind=kind)
    assert whole.shape == ()
    assert whole.isfinite()
    assert generator_loss(x, kind=kind).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind, dtype):
    x, y = (torch.randn(40, generator=generator(seed)).to(dtype) for seed in (0, 1))
    for one, two in [
        (
            discriminator_loss(x, y, kind=kind),
            discriminator_loss(x.double(), y.double(), kind=kind),
        ),
        (generator_loss(x, kind=kind), generator_loss(x.double(), kind=kind)),
    ]:
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-6)
