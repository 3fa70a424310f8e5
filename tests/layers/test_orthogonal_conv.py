"""The skew exponential: its Jacobian, against its stated tolerance and the dense twin."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import OrthogonalConv2d, orthogonal_conv
from orthotrain.linalg import conv_skew_part, conv_spectral_bound
from reference import convolution as twins
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps

# in, out, kernel, stride: fewer, as many and more channels than go in, counted after the stride.
SHAPES = (
    (2, 4, 3, 1), (3, 3, 3, 1), (4, 2, 3, 1),
    (2, 3, 1, 1), (3, 3, 1, 1), (3, 2, 1, 1),
    (1, 2, 5, 1), (2, 2, 5, 1), (2, 1, 5, 1),
    (1, 6, 3, 2), (1, 4, 3, 2), (2, 3, 3, 2),
    (1, 5, 1, 2), (1, 4, 5, 2), (1, 2, 3, 3),
    (2, 3, (1, 3), 1), (1, 1, 3, 1), (1, 1, 1, 1),
)  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def make(shape, *, dtype: torch.dtype = torch.float64, seed: int = 0, **settings):
    inputs, outputs, kernel, stride = shape
    settings = {"stride": stride, "method": "skew", "dtype": dtype} | settings
    return OrthogonalConv2d(inputs, outputs, kernel, generator=generator(seed), **settings)


def size_of(shape) -> tuple[int, int, int]:
    stride = shape[3]
    return (shape[0], 4 * stride, 3 * stride)


@torch.no_grad()
def jacobian(layer: OrthogonalConv2d, size: tuple[int, int, int]) -> Tensor:
    """The dense matrix of the layer without its bias: one input pixel a column, in one batch."""
    pixels = torch.eye(math.prod(size), dtype=layer.weight.dtype)
    columns = copy.deepcopy(layer)(pixels.view(-1, *size))
    if layer.bias is not None:
        columns = columns - layer.bias.view(-1, 1, 1)
    return columns.flatten(1).T.double()


def deviation(matrix: Tensor) -> float:
    """How far the singular values are from one; those of the short side count."""
    return float((torch.linalg.svdvals(matrix) - 1).abs().max())


# --- orthogonality ----------------------------------------------------------------------------


@every_shape
@every_mode
def test_jacobian_is_orthogonal_to_the_stated_tolerance(shape, training):
    layer = make(shape).train(training)
    matrix = jacobian(layer, size_of(shape))
    inputs, outputs, _, stride = shape
    assert matrix.shape == (outputs * 12, inputs * 12 * stride**2)
    assert layer.tolerance == pytest.approx(2.895e-4 if training else 1.413e-9, rel=1e-3)
    assert deviation(matrix) <= layer.tolerance
    one = matrix.T @ matrix if outputs >= inputs * stride**2 else matrix @ matrix.T
    defect = one - torch.eye(len(one), dtype=torch.float64)
    assert torch.linalg.matrix_norm(defect, 2) <= 2.001 * layer.tolerance


@pytest.mark.parametrize("shape", [(3, 5, 3, 1), (2, 4, 5, 1), (6, 3, 1, 1)], ids=str)
def test_rounding_in_float32(shape):
    layer = make(shape, dtype=torch.float32).eval()
    assert deviation(jacobian(layer, size_of(shape))) <= 1e-6


@every_shape
def test_agrees_with_the_exponential_of_the_dense_operator(shape):
    layer = make(shape)
    x = random(2, *size_of(shape))
    expected = twins.orthogonal_convolution(
        layer.weight.detach(), x, out_channels=shape[1], stride=shape[3], max_norm=0.7
    ) + layer.bias.detach().view(-1, 1, 1)
    # Fifty rounds at this size measure the norm to one part in a hundred.
    layer.train()
    error = (layer(x) - expected).norm() / expected.norm()
    assert error <= 0.01
    for _ in range(4):
        layer._passes = 0
        layer(x)
    layer.eval()
    assert (layer(x) - expected).norm() / expected.norm() <= 1e-3


@torch.no_grad()
def test_the_angle_is_reached_where_the_kernel_is_a_matrix():
    # In the plane of a 1x1 kernel the bound is the norm itself, so the tolerance is nearly met.
    layer = make((2, 2, 1, 1), bias=False).train()
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1)
    a, b = layer(x).flatten().tolist()
    assert abs(math.atan2(b, a)) == pytest.approx(0.7, abs=1e-3)
    assert math.hypot(a, b) == pytest.approx(1.0, abs=layer.tolerance)
    layer.max_norm = 1.5
    a, b = layer(x).flatten().tolist()
    assert 0.1 * layer.tolerance <= abs(math.hypot(a, b) - 1) <= layer.tolerance


@pytest.mark.parametrize("seed", range(3))
def test_a_kernel_whose_taps_agree_stays_within_the_tolerance(seed):
    # The worst case of the bound, and the reason for its factor sqrt(kh kw).
    layer = make((1, 1, 3, 1), bias=False).eval()
    ramp = torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(ramp + 0.01 * random(3, 3, seed=seed))
    matrix = jacobian(layer, (1, 9, 9))
    assert deviation(matrix) <= layer.tolerance
    # The bound is near the norm here, so without its factor this would not have held.
    bound = conv_spectral_bound(conv_skew_part(layer.weight.detach()), rounds=500).bound
    dense = twins.dense_operator(conv_skew_part(layer.weight.detach()), 20, 20)
    assert torch.linalg.matrix_norm(dense, 2) >= 0.75 * bound


@pytest.mark.parametrize("kernel", [1, 3])
def test_published_scale_is_a_setting(kernel):
    layer = make((4, 4, kernel, 1), max_norm=0.7 * kernel).eval()
    assert layer.tolerance == pytest.approx((1.1 * 0.7 * kernel) ** 11 / math.factorial(11))
    assert deviation(jacobian(layer, (4, 4, 3))) <= layer.tolerance
    skew = conv_skew_part(layer.weight.detach())
    least = min(twins.four_norms(skew))
    x = random(1, 4, 5, 5)
    power = total = x
    for i in range(1, 11):
        power = F.conv2d(power, skew * 0.7 / least, padding=kernel // 2) / i
        total = total + power
    total = total + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), total, rtol=0, atol=1e-2)


@pytest.mark.parametrize("lr", [0.1, 3.0])
def test_training_stays_orthogonal_at_every_step(lr):
    shape = (2, 4, 3, 1)
    layer = make(shape)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    target = random(8, 4, 4, 3, seed=7)
    x = random(8, 2, 4, 3)
    losses, start = [], layer.weight.detach().clone()
    for _ in range(12):
        loss = F.mse_loss(layer(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert deviation(jacobian(layer, (2, 4, 3))) <= layer.tolerance
        assert deviation(jacobian(copy.deepcopy(layer).eval(), (2, 4, 3))) <= 1.5e-9
    assert losses[-1] < losses[0]
    assert (layer.weight - start).norm() > 1e-3 * start.norm()


def test_a_weight_set_by_hand_is_measured_in_evaluation():
    layer = make((3, 4, 3, 1)).train()
    for _ in range(3):
        layer(random(1, 3, 4, 4))
    with torch.no_grad():
        layer.weight.copy_(1e3 * random(*layer.weight.shape, seed=5))
    layer.eval()
    assert deviation(jacobian(layer, (3, 4, 3))) <= layer.tolerance


# --- what the weight means --------------------------------------------------------------------


@every_mode
def test_scale_and_symmetric_part_of_the_weight_do_not_matter(training):
    layer = make((3, 3, 3, 1)).train(training)
    x = random(2, 3, 5, 4)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.mul_(2.0**-70)
    assert torch.equal(other(x), copy.deepcopy(layer)(x))
    other = copy.deepcopy(layer)
    extra = random(3, 3, 3, 3, seed=8)
    with torch.no_grad():
        other.weight.add_(extra + extra.transpose(0, 1).flip(2, 3))
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=1e-12)


def test_no_skew_part_is_the_identity():
    x = random(2, 3, 4, 4)
    one_tap = make((1, 1, 1, 1), bias=False)
    assert torch.equal(one_tap(x[:, :1]), x[:, :1])
    layer = make((3, 4, 3, 1), bias=False)
    nn.init.zeros_(layer.weight)
    y = layer(x.requires_grad_())
    assert torch.equal(y, F.pad(x, (0, 0, 0, 0, 0, 1)))
    y.pow(2).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_initial_weight():
    layer = OrthogonalConv2d(3, 64, 3, method="skew", generator=generator(0))
    assert float(layer.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.02)
    assert float(layer.bias.detach().abs().max()) <= 27**-0.5
    again = OrthogonalConv2d(3, 64, 3, method="skew", generator=generator(0))
    assert torch.equal(again.weight, layer.weight)
    state = torch.get_rng_state()
    OrthogonalConv2d(3, 4, 3, generator=generator(0))
    assert torch.equal(torch.get_rng_state(), state)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 2, 3, 1), (3, 1, 1, 1), (1, 2, 1, 2)], ids=str)
def test_gradients(shape):
    layer = make(shape).eval()
    with torch.no_grad():
        left = conv_spectral_bound(conv_skew_part(layer.weight), rounds=3000, skew=True).left
        layer.left_flat.copy_(left[0])
        layer.left_rows.copy_(left[1])

    def forward(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    x = random(2, *(2 * shape[3] if d else n for d, n in enumerate(size_of(shape))))
    inputs = (x, layer.weight.detach().clone(), layer.bias.detach().clone())
    assert gradcheck(forward, tuple(t.requires_grad_() for t in inputs), atol=1e-6)


def test_gradient_is_orthogonal_to_the_weight():
    # The layer does not depend on the scale of its weight, and the gradient knows.
    layer = make((3, 5, 3, 1)).eval()
    layer(random(2, 3, 4, 4)).pow(3).sum().backward()
    weight, gradient = layer.weight.detach(), layer.weight.grad
    cosine = (weight * gradient).sum() / (weight.norm() * gradient.norm())
    assert abs(float(cosine)) <= 1e-10
    assert torch.equal(conv_skew_part(gradient), gradient)


def test_vectors_in_use_are_not_written_to():
    layer = make((2, 3, 3, 1)).train()
    x = random(2, 2, 4, 4)
    first = layer(x)
    layer(x)
    first.sum().backward()
    alone = make((2, 3, 3, 1)).train()
    alone(x).sum().backward()
    assert torch.equal(layer.weight.grad, alone.weight.grad)


# --- the power iteration and its state --------------------------------------------------------


def test_rounds_of_the_power_iteration(monkeypatch):
    asked = []

    def counted(kernel, **settings):
        if settings.get("rounds", 50) > 0:
            asked.append(settings["rounds"])
        return conv_spectral_bound(kernel, **settings)

    monkeypatch.setattr(orthogonal_conv, "conv_spectral_bound", counted)
    layer = make((1, 2, 1, 1))
    x = random(1, 1, 1, 1)
    assert asked == []
    for _ in range(401):
        layer(x)
    assert [i for i, rounds in enumerate(asked) if rounds != 1] == [0, 200, 400]
    assert {asked[i] for i in (0, 200, 400)} == {50}
    assert int(layer.passes) == 401
    asked.clear()
    layer.eval()
    layer(x)
    layer(x)
    assert asked == [50]
    with torch.no_grad():
        layer.weight.mul_(2)
    layer(x)
    layer(x)
    assert asked == [50, 50]
    assert int(layer.passes) == 401


@pytest.mark.parametrize("passes", [3, 199])
def test_resume_is_bit_for_bit(passes):
    layer = make((2, 3, 3, 1), dtype=torch.float32)
    x = random(1, 2, 4, 4, dtype=torch.float32)
    for _ in range(passes):
        layer(x)
    other = make((2, 3, 3, 1), dtype=torch.float32, seed=9)
    other(x)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    for _ in range(3):
        assert torch.equal(layer(x), other(x))
        with torch.no_grad():
            layer.weight.add_(0.05)
            other.weight.add_(0.05)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_diverged_weight_does_not_spoil_the_buffers():
    layer = make((2, 3, 3, 1))
    x = random(1, 2, 4, 4)
    layer(x)
    good = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = math.nan
    assert torch.isnan(layer(x)).any()
    with torch.no_grad():
        layer.weight.copy_(good["weight"])
    assert torch.isfinite(layer(x)).all()
    assert torch.isnan(layer(torch.full_like(x, math.nan))).all()


def test_reset_starts_anew():
    layer = make((2, 3, 3, 1), seed=4)
    fresh = copy.deepcopy(layer.state_dict())
    for _ in range(3):
        layer(random(1, 2, 4, 4))
    assert not torch.equal(layer.left_rows, fresh["left_rows"])
    layer.reset_parameters(generator=generator(4))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    assert layer._passes == 0


def test_an_image_without_a_batch():
    layer = make((1, 3, 3, 2)).eval()
    x = random(1, 4, 6)
    assert torch.equal(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    layer = make((2, 4, 3, 1), dtype=torch.float32)
    low = copy.deepcopy(layer).to(dtype)
    x = random(2, 2, 4, 4, dtype=dtype)
    for mode in (True, False):
        y = low.train(mode)(x)
        assert y.dtype == dtype
        expected = layer.train(mode)(x.float())
        assert (y.float() - expected).abs().max() <= 8 * torch.finfo(dtype).eps


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_settings_that_cannot_work():
    for kernel in (2, 4, (3, 2)):
        with pytest.raises(ConfigError, match=r"odd kernel sizes.*take"):
            OrthogonalConv2d(3, 4, kernel, method="skew")
    for sizes in ((0, 4, 3), (3, 0, 3), (3, 4, -1)):
        with pytest.raises(ConfigError, match="at least 1"):
            OrthogonalConv2d(*sizes)
    with pytest.raises(ConfigError, match="stride 0"):
        OrthogonalConv2d(3, 4, 3, stride=0)
    for norm in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="max_norm"):
            OrthogonalConv2d(3, 4, 3, max_norm=norm)


@pytest.mark.bad_input
def test_inputs_of_another_shape():
    layer = OrthogonalConv2d(3, 4, 3, stride=2, method="skew")
    for shape in ((1, 2, 4, 4), (3, 4), (1, 1, 3, 4, 4)):
        with pytest.raises(ShapeError, match=r"\(batch, 3, h, w\)"):
            layer(torch.zeros(shape))
    for shape in ((1, 3, 5, 4), (3, 4, 7)):
        with pytest.raises(ShapeError, match=r"stride 2 divides.*pad or crop"):
            layer(torch.zeros(shape))
    assert int(layer.passes) == 0
