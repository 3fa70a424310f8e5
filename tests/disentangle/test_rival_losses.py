"""The rivals as losses: Hessian penalty, OroJaR and VP loss, against their exact derivatives."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from disentangle.generators import disjoint, linear
from orthotrain.disentangle import VariationClassifier, hessian_penalty, orojar, vp_loss
from orthotrain.errors import ConfigError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import generator, orthonormal
from reference.spd_root import spd

both = pytest.mark.parametrize("penalty", [hessian_penalty, orojar])


def latents(n=4, d=3, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def signs(n, d, k, seed):
    """The directions that a penalty draws from a generator of this seed."""
    return (2 * torch.randint(2, (k, n, d), generator=generator(seed)) - 1).double()


def cubic(z):
    """Second differences of a cubic are exact. Two outputs a row."""
    x, y, w = z.unbind(1)
    return torch.stack([x * y + 2 * y * w**2 + x**3, x * y * w - 3 * y**2], dim=1)


# --- Hessian penalty ------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [2, 3, 5])
def test_hessian_penalty_agrees_with_the_exact_hessian(directions):
    z = latents()
    found = hessian_penalty(cubic, z, generator=generator(5), directions=directions)
    expected = twins.hessian_penalty(cubic, z, signs(4, 3, directions, 5))
    assert expected > 1
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("step", [0.1, 0.5])
def test_of_a_diagonal_hessian_it_is_zero(step):
    z = latents(8, 4)
    # The last has a fourth derivative, too; its difference does not vary with the sign of a step.
    for function in (lambda z: z**2, lambda z: z**3 @ torch.ones(4, 2).double(), torch.exp):
        found = hessian_penalty(function, z, generator=generator(0), step=step, directions=4)
        assert float(found) < 1e-20 / step**4


def test_error_of_the_difference_falls_with_the_square_of_the_step():
    def function(z):
        return torch.sin(z[:, :1] * z[:, 1:2])

    z = latents(1, 2) + 0.5
    exact = twins.hessian_penalty(function, z, signs(1, 2, 6, 1))
    found = [
        hessian_penalty(function, z, generator=generator(1), step=step, directions=6)
        for step in (0.1, 0.05)
    ]
    errors = [abs(float(value) - exact) for value in found]
    assert exact > 0.1
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_mean_over_signs_is_twice_the_squares_off_the_diagonal():
    h = spd([3.0, 2.0, 0.5], seed=1)
    off = 2 * float((h - torch.diag(h.diagonal())).square().sum())
    every = [float(v @ h @ v) for v in twins.every_sign(3)]
    assert twins.variance(every, unbiased=False) == pytest.approx(off)
    random, origin = generator(2), torch.zeros(1, 3).double()
    values = torch.stack(
        [
            hessian_penalty(lambda z: ((z @ h) * z).sum(dim=1) / 2, origin, generator=random)
            for _ in range(1000)
        ]
    )
    assert abs(float(values.mean()) - off) < 4 * float(values.std()) / 1000**0.5


# --- OroJaR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [2, 3, 5])
def test_orojar_agrees_with_the_exact_jacobian(directions):
    z = latents()
    found = orojar(cubic, z, generator=generator(5), directions=directions, step=1e-6)
    expected = twins.orojar(cubic, z, signs(4, 3, directions, 5))
    assert expected > 1
    assert float(found) == pytest.approx(expected, rel=1e-3)
    linear_map = linear(3, (1, 2, 5)).requires_grad_(False)
    found = orojar(linear_map, z, generator=generator(5), directions=directions)
    expected = twins.orojar(linear_map, z, signs(4, 3, directions, 5))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_of_orthogonal_columns_it_is_zero():
    a = orthonormal(7, 3, seed=1) * torch.tensor([1.0, 5.0, 0.2])
    found = orojar(lambda z: z @ a.mT, latents(8), generator=generator(0), directions=4)
    assert float(found) < 1e-24


def test_mean_over_signs_is_twice_the_squares_of_inner_products():
    a = torch.randn(5, 3, generator=generator(3), dtype=torch.float64)
    gram = a.mT @ a
    off = 2 * float((gram - torch.diag(gram.diagonal())).square().sum())
    every = [float((a @ v).square().sum()) for v in twins.every_sign(3)]
    assert twins.variance(every, unbiased=False) == pytest.approx(off)
    random = generator(2)
    values = torch.stack(
        [
            orojar(lambda z: z @ a.mT, torch.zeros(1, 3).double(), generator=random)
            for _ in range(1000)
        ]
    )
    assert abs(float(values.mean()) - off) < 4 * float(values.std()) / 1000**0.5


# --- both -----------------------------------------------------------------------------------------


@both
def test_largest_row_and_output_count(penalty):
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def rows(z):
        return z.prod(dim=1)[:, None] * weight if penalty is hessian_penalty else cubic(z)

    z = latents(5)
    whole = penalty(rows, z, generator=generator(7))
    twin = twins.hessian_penalty if penalty is hessian_penalty else twins.orojar
    alone = [twin(rows, z[i : i + 1], signs(5, 3, 2, 7)[:, i : i + 1]) for i in range(5)]
    assert float(whole) == pytest.approx(max(alone), rel=0.2)


@both
def test_several_activations_are_summed(penalty):
    z = latents()
    parts = [cubic, lambda z: 2 * cubic(z)[:, None]]
    alone = [float(penalty(part, z, generator=generator(1))) for part in parts]
    together = penalty(lambda z: [part(z) for part in parts], z, generator=generator(1))
    assert float(together) == pytest.approx(sum(alone))
    as_tuple = penalty(lambda z: tuple(part(z) for part in parts), z, generator=generator(1))
    assert float(as_tuple) == float(together)


@both
def test_base_saves_a_call_and_changes_nothing(penalty):
    z, calls = latents(), []

    def counted(z):
        calls.append(len(z))
        return cubic(z)

    expected = penalty(counted, z, generator=generator(1))
    full = len(calls)
    found = penalty(counted, z, generator=generator(1), base=cubic(z))
    assert len(calls) == 2 * full - 1
    assert float(found) == float(expected)
    assert full == (5 if penalty is hessian_penalty else 3)


@both
def test_derivative_in_the_generators_parameters(penalty):
    z = latents(3)

    def loss(w):
        return penalty(lambda z: torch.tanh(z @ w).square() @ w.mT, z, generator=generator(4))

    w = torch.randn(3, 4, generator=generator(1), dtype=torch.float64).requires_grad_()
    assert gradcheck(loss, w)


@both
def test_descent_separates_coordinates(penalty):
    """Some steps of it lower what it stands for by half."""
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(2), dtype=torch.float64))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    random = generator(0)
    twin = twins.hessian_penalty if penalty is hessian_penalty else twins.orojar
    fixed = (latents(4, seed=9), torch.stack(twins.every_sign(3))[:, None].expand(-1, 4, -1))
    before = twin(model, *fixed)
    for _ in range(100):
        loss = penalty(model, latents(16), generator=random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert twin(model, *fixed) < before / 2


@both
def test_only_the_generator_is_drawn_from(penalty):
    z = latents()
    before = torch.get_rng_state()
    first, again, other = (penalty(cubic, z, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (
        penalty(lambda z: z.float() ** 3, z.float(), generator=generator(0)).dtype == torch.float32
    )


# --- VP loss --------------------------------------------------------------------------------------


def silent(factors, channels=1):
    network = VariationClassifier(factors, channels=channels, width=2, generator=generator(0))
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    return network


def test_a_classifier_that_only_guesses_costs_the_logarithm():
    z = latents(16, 4).float()
    for factors in (2, 4):
        loss = vp_loss(
            disjoint, z, classifier=silent(factors), generator=generator(0), factors=factors
        )
        assert loss.item() == pytest.approx(math.log(factors))


def test_a_classifier_that_sees_what_moved_costs_nothing():
    """Energy in each quarter of the image, sharpened."""
    moved = []

    def energy(difference):
        moved.append(difference)
        quarters = nn.functional.avg_pool2d(difference.square(), 6).flatten(1)
        return 1e6 * quarters

    z = latents(200, 4).float()
    loss = vp_loss(disjoint, z, classifier=energy, generator=generator(0))
    assert float(loss) < 1e-3
    changed = (nn.functional.avg_pool2d(moved[0].square(), 6).flatten(1) > 0).long()
    assert (changed.sum(dim=1) == 1).all()
    # Each of four coordinates about 50 times, within four standard errors.
    assert (changed.sum(dim=0) - 50).abs().max() < 4 * (200 * 0.25 * 0.75) ** 0.5


def test_factors_are_moved_and_the_rest_is_kept():
    seen = []

    def watched(z):
        seen.append(z)
        return disjoint(z[:, :4])

    z = latents(64, 6).float()
    vp_loss(watched, z, classifier=silent(3), generator=generator(0), factors=3)
    first, second = seen
    assert torch.equal(first, z)
    assert ((first != second).sum(dim=1) == 1).all()
    assert torch.equal(first[:, 3:], second[:, 3:])


def test_loss_reaches_generator_and_classifier():
    model = linear(3, (1, 6, 6))
    classifier = VariationClassifier(3, channels=1, width=2, generator=generator(0)).double()
    vp_loss(model, latents(), classifier=classifier, generator=generator(0)).backward()
    for p in (*model.parameters(), *classifier.parameters()):
        assert p.grad is not None
        assert p.grad.abs().sum() > 0
    head = torch.randn(16, 3, generator=generator(1), dtype=torch.float64)
    loss = partial(vp_loss, z=latents(), classifier=lambda x: x.flatten(1) @ head)
    w = model.weight.detach()[:, :16].clone().requires_grad_()
    assert gradcheck(
        lambda w: loss(lambda z: (z @ w).reshape(-1, 1, 4, 4), generator=generator(2)), w
    )


# --- what bad input gets --------------------------------------------------------------------------


@both
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directions": 1}, "directions"),
        ({"directions": 2.0}, "directions"),
        ({"step": 0.0}, "step"),
        ({"step": math.nan}, "step"),
    ],
    ids=str,
)
def test_wrong_settings(penalty, settings, message):
    with pytest.raises(ConfigError, match=f"{penalty.__name__} needs .*{message}"):
        penalty(cubic, latents(), generator=generator(0), **settings)


@both
@pytest.mark.bad_input
@pytest.mark.parametrize(
    "function",
    [lambda z: z[:-1], lambda z: z.sum(), lambda z: [], lambda z: [z, "no"], lambda z: z[:, :0]],
    ids=["short", "scalar", "none", "text", "empty"],
)
def test_wrong_outputs(penalty, function):
    with pytest.raises(ShapeError, match=f"{penalty.__name__} needs outputs"):
        penalty(function, latents(), generator=generator(0))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "loss",
    [hessian_penalty, orojar, partial(vp_loss, classifier=silent(3))],
    ids=["hessian", "orojar", "vp"],
)
def test_wrong_latents(loss):
    for shape in ((3,), (0, 3), (2, 3, 1)):
        with pytest.raises(ShapeError, match="needs latents z of shape"):
            loss(cubic, torch.zeros(shape), generator=generator(0))
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        loss(cubic, torch.zeros(2, 3, dtype=torch.int64), generator=generator(0))


@pytest.mark.bad_input
def test_wrong_input_of_the_vp_loss():
    z = latents().float()
    for factors in (1, 4, True):
        with pytest.raises(ConfigError, match=r"factors between 2 and 3|got True"):
            vp_loss(disjoint, z, classifier=silent(3), generator=generator(0), factors=factors)
    with pytest.raises(ShapeError, match=r"logits of shape \(4, 3\), got \(4, 2\)"):
        vp_loss(disjoint, z, classifier=silent(2), generator=generator(0))
