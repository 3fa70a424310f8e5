"""Whitening part by part is the formula written out; a compiled evaluation is one graph."""

import pytest
import torch
from torch import nn

from layers.test_decorrelated_batch_norm import batch, every_case, pair
from orthotrain.errors import NonFiniteError
from orthotrain.layers import DecorrelatedBatchNorm2d, GlobalCovariancePool, _whitening


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(_whitening, "_PART_ON_CPU", 24)


def trained(layer, x, g, monkeypatch=None):
    """Output, gradients and statistics of one training step; written out on request."""
    if monkeypatch is not None:
        monkeypatch.setattr(_whitening, "exporting", lambda: True)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(g)
    gradients = [p.grad for p in layer.parameters()]
    return [y.detach(), x.grad, *gradients, *layer.buffers()]


@every_case
@pytest.mark.parametrize("mean", [0.0, 1e3], ids=["near", "far"])
def test_parts_agree_with_the_formula_written_out(
    kind, shape, size, last, mean, in_parts, monkeypatch
):
    x, g = batch(shape, last=last, mean=mean), batch(shape, seed=9)
    found = trained(pair(kind, shape[1], size)[0], x, g)
    expected = trained(pair(kind, shape[1], size)[0], x, g, monkeypatch)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
@pytest.mark.parametrize("mean", [1.0, 300.0], ids=["near", "far"])
def test_float32_in_parts_keeps_its_digits(last, mean, in_parts):
    """Against float64; where centring came after the products this would be off by the mean."""
    x, g = (batch((6, 48, 4, 4), seed=s, last=last, mean=mean).float() for s in (0, 1))
    layers = [DecorrelatedBatchNorm2d(48, groups=1, ridge=1e-1, dtype=t) for t in
              (torch.float32, torch.float64)]  # fmt: skip
    found, expected = trained(layers[0], x, g), trained(layers[1], x.double(), g.double())
    rounding = float(x.abs().max()) * torch.finfo(torch.float32).eps
    for one, two in zip(found, expected, strict=True):
        budget = 64 * rounding * max(1.0, float(two.abs().max()))
        torch.testing.assert_close(one.double(), two.double(), rtol=0, atol=budget)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_the_layer_after_it_may_write_into_the_output(last):
    x = batch((4, 6, 3, 5), last=last).float()
    net = nn.Sequential(DecorrelatedBatchNorm2d(6), nn.ReLU(inplace=True))
    net(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [DecorrelatedBatchNorm2d(6, groups=2), GlobalCovariancePool(6)],
    ids=["whitening", "pooling"],
)
def test_a_compiled_evaluation_is_one_graph(layer):
    torch.compiler.reset()
    layer(batch((4, 6, 3, 5)).float())
    layer.eval()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, also_x = (batch((4, 6, 3, 5), seed=2).float().requires_grad_() for _ in "ab")
    y, also_y = layer(x), compiled(also_x)
    torch.testing.assert_close(also_y, y)
    for result in (y, also_y):
        result.square().sum().backward()
    torch.testing.assert_close(also_x.grad, x.grad)
    if isinstance(layer, GlobalCovariancePool):  # which takes the root of what it is given
        with pytest.raises(NonFiniteError, match=r"GlobalCovariancePool\(6\) cannot take"):
            compiled(torch.full((4, 6, 3, 5), torch.inf))
    else:  # whose root follows its statistics
        layer.running_covariance.mul_(4)
        torch.testing.assert_close(compiled(x), layer(x))
