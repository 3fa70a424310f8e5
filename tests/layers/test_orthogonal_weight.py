"""orthogonal_weight: orthonormal at every step, from the weight that was there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.utils import parametrizations, parametrize

from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.layers import LowRankLinear, orthogonal_weight
from orthotrain.methods.select import select_parameters
from reference import linalg as twins
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps

LAYERS = {
    "linear-tall": lambda: nn.Linear(4, 7),
    "linear-wide": lambda: nn.Linear(7, 4, bias=False),
    "linear-square": lambda: nn.Linear(5, 5),
    "linear-row": lambda: nn.Linear(5, 1),
    "conv-1x1": lambda: nn.Conv2d(6, 4, 1),
    "conv-3x3": lambda: nn.Conv2d(3, 5, 3, padding=1),
    "conv-tall": lambda: nn.Conv2d(1, 12, 3),
    "conv1d": lambda: nn.Conv1d(3, 4, 3),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "conv-groups": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv-depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(3, 5, 2),
    "transposed-groups": lambda: nn.ConvTranspose2d(6, 4, 2, groups=2),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    layer = LAYERS[name]().to(dtype)
    random = generator(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64))
    return layer


def matrices(layer: nn.Module, weight: Tensor) -> list[Tensor]:
    """Outputs by all the rest, one matrix a group, in float64."""
    weight = weight.detach().double()
    parts = weight.chunk(getattr(layer, "groups", 1))
    if isinstance(layer, nn.ConvTranspose2d):
        parts = tuple(part.transpose(0, 1) for part in parts)
    return [part.flatten(1) for part in parts]


def defect(layer: nn.Module) -> float:
    """Largest entry of ``q q^T - 1`` on the short side, over the groups."""
    gaps = []
    for q in matrices(layer, layer.weight):
        short = q @ q.T if q.shape[0] <= q.shape[1] else q.T @ q
        gaps.append((short - torch.eye(len(short), dtype=torch.float64)).abs().max())
    return float(max(gaps))


def original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations["weight"].original


def steps(layer: nn.Module, optimizer: torch.optim.Optimizer, *, count: int, check: bool) -> None:
    pull = torch.randn(layer.weight.shape, generator=generator(5), dtype=torch.float64)
    for _ in range(count):
        optimizer.zero_grad()
        (layer.weight.double() - pull).pow(2).sum().backward()
        optimizer.step()
        if check:
            assert defect(layer) <= 64 * torch.finfo(layer.weight.dtype).eps


@every_layer
def test_starts_as_the_polar_factor_of_the_weight(name: str):
    layer = make(name)
    before = [twins.polar_factor(m) for m in matrices(layer, layer.weight)]
    assert orthogonal_weight(layer) is layer
    for q, expected in zip(matrices(layer, layer.weight), before, strict=True):
        torch.testing.assert_close(q, expected, rtol=0, atol=500 * EPS)
    assert defect(layer) <= 64 * EPS


@every_layer
def test_an_orthonormal_weight_is_kept(name: str):
    layer = orthogonal_weight(make(name))
    weight = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    orthogonal_weight(layer)
    torch.testing.assert_close(layer.weight, weight, rtol=0, atol=32 * EPS)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=5e-4),
        lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_training_keeps_it_orthonormal(name, dtype, optimizer):
    layer = orthogonal_weight(make(name, dtype))
    start = layer.weight.detach().clone()
    # Weight decay included: with torch's own parametrization it makes the weight zero.
    steps(layer, optimizer(layer.parameters()), count=5, check=True)
    assert (layer.weight - start).norm() > 0.05 * start.norm() or layer.weight[0].numel() == 1


def test_training_comes_close_to_what_it_is_pulled_to():
    layer = orthogonal_weight(make("conv-3x3"))
    target = torch.randn(layer.weight.shape, generator=generator(5), dtype=torch.float64)
    best = twins.polar_factor(target.flatten(1)).view_as(target)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    steps(layer, optimizer, count=300, check=False)
    distance = (layer.weight - target).norm()
    assert distance <= 1.02 * (best - target).norm()


def test_what_torch_does_without_us():
    # The two faults this exists for; when torch mends them, the docs must be mended, too.
    conv = parametrizations.orthogonal(nn.Conv2d(16, 32, 3))
    rows = conv.weight.detach().flatten(1)
    assert (rows @ rows.T - torch.eye(32)).pow(2).sum() > 100
    linear = parametrizations.orthogonal(nn.Linear(4, 6))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, weight_decay=5e-4)
    linear.weight.sum().backward()
    optimizer.step()
    assert linear.weight.detach().abs().max() == 0


@every_layer
def test_the_parameter_stays_itself(name: str):
    layer = make(name, torch.float32)
    weight = layer.weight
    shape, state = weight.shape, torch.get_rng_state()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    orthogonal_weight(layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert original(layer) is weight
    assert layer.weight.shape == weight.shape == shape
    assert layer.weight.dtype == weight.dtype == torch.float32
    before = layer.weight.detach().clone()
    steps(layer, optimizer, count=1, check=True)
    assert not torch.equal(layer.weight, before) or layer.weight.numel() == 1


@every_layer
def test_removal_leaves_a_plain_layer(name: str):
    layer = make(name)
    kind, weight = type(layer), layer.weight
    orthogonal_weight(layer)
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.3), count=2, check=False)
    value = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is kind
    assert layer.weight is weight
    assert torch.equal(layer.weight, value)
    assert "weight" in dict(layer.named_parameters())


@every_layer
def test_assigning_a_weight_takes_its_polar_factor(name: str):
    layer = orthogonal_weight(make(name))
    fresh = torch.randn(layer.weight.shape, generator=generator(6), dtype=torch.float64)
    layer.weight = fresh
    for q, m in zip(matrices(layer, layer.weight), matrices(layer, fresh), strict=True):
        torch.testing.assert_close(q, twins.polar_factor(m), rtol=0, atol=500 * EPS)


@pytest.mark.parametrize("name", ["linear-tall", "linear-wide", "conv-groups", "transposed-groups"])
def test_gradients(name: str):
    layer = orthogonal_weight(make(name))
    with torch.no_grad():
        original(layer).add_(0.3 * torch.randn(original(layer).shape, generator=generator(3)))

    def weight(values):
        names = {"parametrizations.weight.original": values}
        with torch.nn.utils.stateless._reparametrize_module(layer, names):
            return layer.weight.clone()

    assert gradcheck(weight, original(layer).detach().clone().requires_grad_())


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)], ids=str)
def test_a_rank_deficient_weight_is_completed(shape, rank):
    layer = nn.Linear(shape[1], shape[0]).double()
    u = torch.randn(shape[0], rank, generator=generator(1), dtype=torch.float64)
    v = torch.randn(rank, shape[1], generator=generator(2), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(u @ v)
    part = twins.polar_factor(u @ v) if rank else torch.zeros(shape, dtype=torch.float64)
    orthogonal_weight(layer)
    assert defect(layer) <= 64 * EPS
    # What there was stays: the given directions are still mapped to each other.
    found = layer.weight.detach()
    torch.testing.assert_close(found @ part.T @ part, part @ part.T @ part, rtol=0, atol=1e-12)
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.3), count=2, check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("late", [False, True], ids=["made-so", "cast-later"])
def test_half_precision(dtype, late):
    layer = make("conv-3x3", torch.float32 if late else dtype)
    orthogonal_weight(layer).to(dtype)
    assert layer.weight.dtype == dtype
    assert defect(layer) <= 4 * torch.finfo(dtype).eps
    steps(layer, torch.optim.SGD(layer.parameters(), lr=0.1), count=2, check=True)


def test_autocast_does_not_reach_the_reflections():
    layer = orthogonal_weight(make("linear-wide", torch.float32))
    plain = layer.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, plain)


def test_another_parameter_by_its_name():
    layer = nn.Bilinear(3, 4, 5).double()
    orthogonal_weight(layer)
    assert defect(layer) <= 64 * EPS
    attention = nn.MultiheadAttention(4, 2)
    orthogonal_weight(attention, "in_proj_weight")
    q = attention.in_proj_weight
    assert (q.T @ q - torch.eye(4)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "pattern", ["conv1", "conv1.*.original", "*parametrizations.weight.original"]
)
def test_methods_find_it_by_name(pattern):
    model = nn.Sequential()
    model.add_module("conv1", orthogonal_weight(nn.Conv2d(3, 4, 3)))
    model.add_module("conv2", nn.Conv2d(4, 4, 3))
    ((name, parameter),) = select_parameters(model, pattern)
    assert name == "conv1.parametrizations.weight.original"
    assert parameter is original(model.conv1)


@pytest.mark.bad_input
def test_what_cannot_be_made_orthonormal():
    with pytest.raises(ConfigError, match=r"'weight'.*Sequential"):
        orthogonal_weight(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ConfigError, match=r"'kernel'.*weight"):
        orthogonal_weight(nn.Linear(3, 3), "kernel")
    with pytest.raises(ConfigError, match="bias"):
        orthogonal_weight(nn.Linear(3, 3, bias=False), "bias")
    with pytest.raises(ConfigError, match="low-rank"):
        orthogonal_weight(LowRankLinear(4, 4, rank=2))
    with pytest.raises(ShapeError, match="vector"):
        orthogonal_weight(nn.BatchNorm2d(3))
    empty = nn.Linear(2, 2)
    empty.weight = nn.Parameter(torch.zeros(0, 2))
    with pytest.raises(ShapeError, match="none of them zero"):
        orthogonal_weight(empty)
    with pytest.raises(ConfigError, match="already"):
        orthogonal_weight(orthogonal_weight(nn.Linear(3, 3)))
    with pytest.raises(ConfigError, match="already"):
        orthogonal_weight(parametrizations.spectral_norm(nn.Linear(3, 3)))
    with pytest.raises(ConfigError, match="complex"):
        orthogonal_weight(nn.Linear(3, 3, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="run it once"):
        orthogonal_weight(nn.LazyLinear(3))
    layer = nn.Linear(3, 3)
    nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(NonFiniteError):
        orthogonal_weight(layer)
    # A layer that was refused is as it was.
    assert type(layer) is nn.Linear
    assert not parametrize.is_parametrized(layer)
