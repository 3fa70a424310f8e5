"""OrthogonalConv2d by a product of small kernels: Jacobians, gradients, choice of a method."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import OrthogonalConv2d
from reference import convolution as twins
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps

# in, out, kernel, stride, groups: fewer, as many and more channels than go in; even and odd
# numbers of them, even and rectangular kernels, kernels as large as the stride and larger.
SHAPES = (
    (2, 4, 3, 1, 1), (3, 3, 5, 1, 1), (4, 2, 3, 1, 1), (3, 2, 1, 1, 1), (2, 3, 2, 1, 1),
    (1, 2, 3, 1, 1), (2, 2, (4, 3), 1, 1), (2, 3, 3, 2, 1), (2, 9, 4, 2, 1), (1, 13, 3, 2, 1),
    (1, 5, 2, 2, 1), (2, 3, (2, 5), 2, 1), (4, 6, 3, 1, 2), (3, 27, 4, 2, 3),
)  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def make(shape, *, seed: int = 0, **settings) -> OrthogonalConv2d:
    inputs, outputs, kernel, stride, groups = shape
    settings = {"method": "kernel", "dtype": torch.float64} | settings
    if settings.get("transposed"):
        inputs, outputs = outputs, inputs
    layer = OrthogonalConv2d(
        inputs, outputs, kernel, stride=stride, groups=groups, generator=generator(seed), **settings
    )
    # Where the optimizer may have led: no longer orthonormal.
    with torch.no_grad():
        for i, name in enumerate(("weight", "subspaces", "entry")):
            if (p := getattr(layer, name)) is not None:
                p.copy_(random(*p.shape, seed=seed + i + 7))
    return layer


@torch.no_grad()
def jacobian(layer: nn.Module, size: tuple[int, int, int]) -> Tensor:
    """The dense matrix of the layer without its bias: one input pixel a column, in one batch."""
    pixels = torch.eye(math.prod(size), dtype=layer.weight.dtype)
    columns = layer(pixels.view(-1, *size))
    if layer.bias is not None:
        columns = columns - layer.bias.view(-1, 1, 1)
    return columns.flatten(1).T.double()


def deviation(matrix: Tensor) -> float:
    """How far the singular values are from one; those of the short side count."""
    return float((torch.linalg.svdvals(matrix) - 1).abs().max())


def deviation_of(kernel: Tensor, side: int) -> float:
    """The same of a kernel at stride 1, one frequency at a time."""
    taps = torch.fft.fft2(kernel.detach().double(), s=(side, side)).permute(2, 3, 0, 1)
    return float((torch.linalg.svdvals(taps) - 1).abs().max())


def kernel_of(layer: OrthogonalConv2d, channels: int, side: int) -> Tensor:
    """The kernel, read from what the layer makes of single pixels."""
    x = torch.eye(channels, dtype=layer.weight.dtype)[:, :, None, None]
    x = F.pad(x, (side // 2, side // 2, side // 2, side // 2))
    return layer(x).transpose(0, 1).flip(2, 3)


# --- orthogonality ----------------------------------------------------------------------------


@every_shape
def test_orthogonal_to_rounding_and_the_product_of_the_published_blocks(shape):
    layer, backward = make(shape), make(shape, transposed=True)
    inputs, outputs, kernel, stride, groups = shape
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    subspaces = [[]] * groups if layer.subspaces is None else layer.subspaces.detach().unbind(1)
    entries = [None] * groups if layer.entry is None else layer.entry.detach()
    blocks = [
        twins.circular_operator(
            twins.block_kernel(w, list(q), e, kernel), 2 * stride, 4 * stride, stride=stride
        )
        for w, q, e in zip(layer.weight.detach().chunk(groups), subspaces, entries, strict=True)
    ]
    expected = torch.block_diag(*blocks)
    found = jacobian(layer, (inputs, 2 * stride, 4 * stride))
    assert found.shape == (outputs * 8, inputs * 8 * stride**2)
    assert layer.tolerance == backward.tolerance == 0
    assert deviation(found) <= 64 * EPS
    torch.testing.assert_close(found, expected, rtol=0, atol=64 * EPS)
    back = jacobian(backward, (outputs, 2, 4))
    torch.testing.assert_close(back, expected.T, rtol=0, atol=64 * EPS)


@pytest.mark.parametrize("shape", [(64, 64, 3), (32, 96, 5), (96, 33, 4)], ids=str)
def test_rounding_in_float32(shape):
    layer = OrthogonalConv2d(*shape, bias=False, generator=generator(0))
    assert deviation_of(kernel_of(layer, shape[0], 8), 8) <= 2e-6


def test_weights_far_from_orthonormal_are_as_exact():
    layer = make((6, 6, 3, 1, 1), dtype=torch.float32, bias=False)
    with torch.no_grad():
        for p in layer.parameters():
            # The last columns agree to one part in ten thousand, at another scale.
            p[..., -1] = p[..., 0] + 1e-4 * p[..., -1]
            p.mul_(1e4)
    assert deviation(jacobian(layer, (6, 4, 4))) <= 4e-6
    nn.init.zeros_(layer.weight)
    assert deviation(jacobian(layer, (6, 4, 4))) <= 4e-6


@pytest.mark.parametrize("lr", [0.1, 3.0])
def test_training_stays_orthogonal_at_every_step(lr):
    layer = make((3, 4, 3, 1, 1))
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    x, target = random(8, 3, 4, 4), random(8, 4, 4, 4, seed=7)
    losses, start = [], [p.detach().clone() for p in layer.parameters()]
    for _ in range(12):
        loss = F.mse_loss(layer(x), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert deviation(jacobian(layer, (3, 4, 4))) <= 64 * EPS
    assert losses[-1] < losses[0]
    for before, after in zip(start, layer.parameters(), strict=True):
        assert (after - before).norm() > 1e-3 * before.norm()


# --- what the parameters mean -----------------------------------------------------------------


def test_scale_does_not_matter():
    layer = make((1, 9, 3, 2, 1))
    x = random(2, 1, 4, 4)
    expected = layer(x)
    with torch.no_grad():
        for name in ("weight", "subspaces", "entry"):
            getattr(layer, name).mul_(2.0**-20)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=64 * EPS)


def test_initial_weights_are_orthonormal_and_drawn_from_the_generator():
    layer = OrthogonalConv2d(2, 13, 3, stride=2, generator=generator(0))
    for matrix in (layer.weight.detach().flatten(1), *layer.subspaces[:, 0], layer.entry[0]):
        one = matrix.mT @ matrix
        torch.testing.assert_close(one, torch.eye(len(one)), rtol=0, atol=1e-6)
    state = torch.get_rng_state()
    again = OrthogonalConv2d(2, 13, 3, stride=2, generator=generator(0))
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(layer.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_kernel_of_odd_channels_stays_centred():
    # Equal ranges of all projectors cancel to the kernel with its middle tap alone.
    layer = make((3, 3, 5, 1, 1), bias=False)
    with torch.no_grad():
        layer.subspaces.copy_(layer.subspaces[:1].expand_as(layer.subspaces).clone())
        layer.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    x = random(1, 3, 6, 6)
    torch.testing.assert_close(layer(x), x)


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "transposed"),
    [((2, 3, 2, 1, 1), False), ((3, 2, 3, 1, 1), True), ((1, 9, 3, 2, 1), False)],
)
def test_gradients(shape, transposed):
    layer = make(shape, transposed=transposed)
    names = [name for name, _ in layer.named_parameters()]

    def forward(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    side = 2 if transposed else 2 * shape[3]
    x = random(1, layer.in_channels, side, side).requires_grad_()
    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert gradcheck(forward, inputs, atol=1e-6, fast_mode=True)
    assert gradgradcheck(forward, inputs, atol=1e-6, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_transforms_of_torch_func():
    layer = make((2, 3, 3, 1, 1))
    x = random(4, 2, 4, 4)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x), rtol=0, atol=1e-12)
    tangent = random(4, 2, 4, 4, seed=3)
    _, pushed = torch.func.jvp(layer, (x,), (tangent,))
    expected = layer(tangent) - layer.bias.detach().view(-1, 1, 1)
    torch.testing.assert_close(pushed, expected, rtol=0, atol=1e-12)


# --- which method, and what it refuses --------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "settings", "method"),
    [
        ((3, 16, 3), {}, "kernel"),
        ((3, 16, 2), {"stride": 2}, "kernel"),
        ((4, 8, 3), {"groups": 2, "transposed": True}, "kernel"),
        ((1, 1, 1), {}, "kernel"),
        ((1, 1, 3), {}, "skew"),
        ((3, 16, 1), {"stride": 2}, "skew"),
        ((3, 16, 3), {"max_norm": 0.7}, "skew"),
        ((3, 16, 3), {"padding_mode": "zeros"}, "skew"),
        ((3, 16, 3), {"padding_mode": "circular"}, "kernel"),
        ((3, 16, 3), {"method": "skew"}, "skew"),
    ],
)
def test_which_method_is_taken(sizes, settings, method):
    layer = OrthogonalConv2d(*sizes, **settings)
    assert layer.method == method
    assert f"method='{method}'" in repr(layer)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("sizes", "settings", "message"),
    [
        ((3, 4, 3), {"method": "kernel", "max_norm": 1.0}, "'kernel' has no max_norm"),
        ((3, 4, 3), {"method": "kernel", "padding_mode": "zeros"}, "needs circular padding"),
        ((3, 4, 3), {"method": "kernel", "stride": 4}, r"got \(3, 3\) with stride 4"),
        ((4, 4, 3), {"method": "kernel", "groups": 4}, "at least two channels in each group"),
        ((3, 4, 3), {"method": "skew", "padding_mode": "circular"}, "'skew' pads with zeros"),
        ((4, 4, 3), {"method": "skew", "groups": 2}, "neither groups nor a transpose"),
        ((3, 4, 3), {"method": "skew", "transposed": True}, "take method 'kernel'"),
        ((4, 6, 3), {"groups": 4}, "channels that its groups divide"),
        ((4, 4, 3), {"groups": 2, "max_norm": 0.7}, "neither groups nor a transpose"),
        ((4, 4, 3), {"groups": 0}, "at least 1"),
    ],
)
def test_settings_that_a_method_does_not_have(sizes, settings, message):
    with pytest.raises(ConfigError, match=message):
        OrthogonalConv2d(*sizes, **settings)


@pytest.mark.bad_input
def test_pictures_that_do_not_fit():
    layer = OrthogonalConv2d(3, 4, 7)
    with pytest.raises(ShapeError, match=r"at least 3 pixels on each side.*smaller kernel"):
        layer(torch.zeros(1, 3, 4, 2))
    assert layer(torch.zeros(1, 3, 4, 3)).shape == (1, 4, 4, 3)
    with pytest.raises(ShapeError, match="stride 2 divides"):
        OrthogonalConv2d(3, 4, 3, stride=2)(torch.zeros(1, 3, 4, 5))
    up = OrthogonalConv2d(3, 4, 3, stride=2, transposed=True)
    assert up(torch.zeros(1, 3, 4, 5)).shape == (1, 4, 8, 10)


# --- state dicts ------------------------------------------------------------------------------


def test_a_layer_that_chooses_takes_the_method_of_an_older_state_dict():
    older = OrthogonalConv2d(3, 5, 3, method="skew", generator=generator(0)).train()
    x = random(2, 3, 6, 6, dtype=torch.float32)
    older(x)
    assert list(older.state_dict()) == ["weight", "bias", "left_flat", "left_rows", "passes"]
    layer = OrthogonalConv2d(3, 5, 3)
    weight = layer.weight
    layer.load_state_dict(copy.deepcopy(older.state_dict()))
    assert (layer.method, layer.tolerance) == ("skew", older.tolerance)
    assert layer.weight is weight
    for _ in range(2):
        assert torch.equal(layer(x), older(x))
    assert torch.equal(layer.eval()(x), older.eval()(x))
    kernel = OrthogonalConv2d(3, 5, 3, method="kernel", generator=generator(1))
    layer.load_state_dict(kernel.state_dict())
    assert layer.method == "kernel"
    assert torch.equal(layer(x), kernel(x))
    assert list(layer.state_dict()) == list(kernel.state_dict())


def test_a_layer_of_a_named_method_refuses_the_state_dict_of_the_other():
    skew, kernel = (OrthogonalConv2d(3, 5, 3, method=method) for method in ("skew", "kernel"))
    for one, other in ((skew, kernel), (kernel, skew)):
        before = copy.deepcopy(one.state_dict())
        with pytest.raises(RuntimeError, match=f"a state dict of method '{other.method}'"):
            one.load_state_dict(other.state_dict())
        for name, value in one.state_dict().items():
            assert torch.equal(value, before[name])
