"""What every spectral layer promises: one table, one suite.

A new layer is enrolled by one row of ``LAYERS``.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from orthotrain.errors import OrthotrainError
from orthotrain.layers import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    EigenSubspace,
    GlobalCovariancePool,
    OrthogonalConv2d,
    orthogonal_weight,
)
from reference.matrices import generator


@dataclass(frozen=True)
class Layer:
    """A row: how to make a layer, and the shape of a batch it takes.

    ``empty_batch`` is what a batch without samples gets in training: an empty result, or a typed
    error. ``half_error`` is the largest error of an entry of size one in bfloat16 under autocast.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    empty_batch: str = "result"  # or "error"
    half_error: float = 0.1
    pickles: bool = True

    def __str__(self) -> str:
        return self.name

    def layer(self, dtype: torch.dtype = torch.float64, *, seed: int = 0) -> nn.Module:
        layer = self.make().to(dtype)
        random = generator(seed)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64))
        return layer

    def x(self, dtype: torch.dtype = torch.float64, *, seed: int = 1) -> Tensor:
        return torch.randn(self.shape, generator=generator(seed), dtype=torch.float64).to(dtype)


LAYERS = (
    Layer("orthogonal-conv", lambda: OrthogonalConv2d(4, 4, 3), (3, 4, 6, 5)),
    Layer("orthogonal-conv-transposed",
          lambda: OrthogonalConv2d(4, 6, 3, stride=2, groups=2, transposed=True), (3, 4, 3, 2)),
    Layer("orthogonal-conv-skew", lambda: OrthogonalConv2d(2, 5, 3, bias=False, method="skew"),
          (3, 2, 6, 5)),
    Layer("orthogonal-conv-skew-strided", lambda: OrthogonalConv2d(3, 4, (3, 1), stride=2),
          (2, 3, 4, 6)),
    Layer("orthogonal-weight-linear", lambda: orthogonal_weight(nn.Linear(7, 4)), (5, 7),
          pickles=False),
    Layer("orthogonal-weight-conv", lambda: orthogonal_weight(nn.Conv2d(3, 5, 3, padding=1)),
          (2, 3, 6, 5), pickles=False),
    Layer("orthogonal-weight-groups", lambda: orthogonal_weight(nn.Conv2d(4, 6, 1, groups=2)),
          (2, 4, 6, 5), pickles=False),
    Layer("whitening-1d", lambda: DecorrelatedBatchNorm1d(6, group_size=2), (9, 6),
          empty_batch="error"),
    Layer("whitening-2d", lambda: DecorrelatedBatchNorm2d(6, groups=2), (4, 6, 5, 3),
          empty_batch="error"),
    Layer("whitening-2d-few-places", lambda: DecorrelatedBatchNorm2d(8, momentum=None),
          (7, 8, 2, 1), empty_batch="error"),
    Layer("whitening-3d", lambda: DecorrelatedBatchNorm3d(4), (3, 4, 2, 3, 2),
          empty_batch="error"),
    Layer("whitening-plain", lambda: DecorrelatedBatchNorm2d(6, affine=False), (4, 6, 5, 3),
          empty_batch="error"),
    Layer("covariance-pool", lambda: GlobalCovariancePool(4), (3, 4, 5, 3)),
    Layer("covariance-pool-few-places", lambda: GlobalCovariancePool(8), (3, 8, 2, 2)),
    Layer("covariance-pool-reduced",
          lambda: GlobalCovariancePool(6, reduced_channels=3, shrinkage=0.1), (4, 6, 4, 3)),
    Layer("eigen-subspace", lambda: EigenSubspace(3, out_shape=(2, 4, 5)), (5, 3)),
    Layer("eigen-subspace-vectors", lambda: EigenSubspace(4, out_shape=(4,)), (5, 4)),
)  # fmt: skip

every_layer = pytest.mark.parametrize("row", LAYERS, ids=str)


def buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.named_buffers()}


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0, equal_nan=True)


def train_a_little(layer: nn.Module, row: Layer, *, seed: int = 3) -> list[Tensor]:
    """Two steps of SGD in training; the outputs."""
    layer.train()
    dtype = next((p.dtype for p in layer.parameters()), torch.float64)
    parameters = list(layer.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1) if parameters else None
    outputs = []
    for step in range(2):
        y = layer(row.x(dtype, seed=seed + step))
        outputs.append(y.detach().clone())
        if optimizer is not None:
            optimizer.zero_grad()
            (y * y.detach().cos()).sum().backward()
            optimizer.step()
    return outputs


@every_layer
def test_state_dict_carries_everything(row: Layer):
    layer = row.layer()
    train_a_little(layer, row)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = row.layer(seed=9)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(layer, other)
    assert torch.equal(layer.eval()(row.x()), other.eval()(row.x()))
    for one, two in zip(train_a_little(layer, row), train_a_little(other, row), strict=True):
        assert torch.equal(one, two)
    assert_same_state(layer, other)


@every_layer
def test_deep_copy_is_independent(row: Layer):
    layer = row.layer()
    train_a_little(layer, row)
    before = copy.deepcopy(layer.state_dict())
    other = copy.deepcopy(layer)
    assert_same_state(layer, other)
    outputs = train_a_little(other, row)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name
    for one, two in zip(train_a_little(layer, row), outputs, strict=True):
        assert torch.equal(one, two)


@every_layer
def test_a_pickled_layer_goes_on(row: Layer):
    if not row.pickles:
        pytest.skip("torch does not pickle parametrized modules")
    layer = row.layer()
    train_a_little(layer, row)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    for one, two in zip(train_a_little(layer, row), train_a_little(other, row), strict=True):
        assert torch.equal(one, two)


@every_layer
def test_repr_names_the_class_and_changes_nothing(row: Layer):
    layer = row.layer()
    before = copy.deepcopy(layer.state_dict())
    assert type(layer).__name__ in repr(layer)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@every_layer
def test_evaluation_depends_on_no_history_and_leaves_none(row: Layer):
    layer = row.layer()
    train_a_little(layer, row)
    layer.eval()
    kept = buffers(layer)
    first = layer(row.x())
    layer(row.x(seed=5))
    assert torch.equal(layer(row.x()), first)
    for name, value in layer.named_buffers():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0, equal_nan=True)


@every_layer
def test_samples_do_not_meet_in_evaluation(row: Layer):
    layer = row.layer()
    train_a_little(layer, row)
    layer.eval()
    x = row.x()
    whole = layer(x)
    for i in range(len(x)):
        torch.testing.assert_close(layer(x[i : i + 1]), whole[i : i + 1], rtol=0, atol=1e-12)


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_touches_nothing_but_buffers(row: Layer, training: bool):
    layer = row.layer()
    train_a_little(layer, row)
    layer.train(training)
    x = row.x()
    kept = x.clone()
    parameters = {name: (p, p.detach().clone()) for name, p in layer.named_parameters()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, (p, _) in
                 parameters.items()}  # fmt: skip
    random = torch.get_rng_state()
    layer(x)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random)
    for name, p in layer.named_parameters():
        same, value = parameters[name]
        assert p is same
        assert torch.equal(p, value)
        assert p.requires_grad
        if gradients[name] is not None:
            assert torch.equal(p.grad, gradients[name])


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_reach_the_input_and_every_parameter(row: Layer, training: bool):
    layer = row.layer().train(training)
    x = row.x().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y) ** 2).sum().backward()
    for name, tensor in (("input", x), *layer.named_parameters()):
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all(), name
        assert tensor.grad.abs().max() > 0, name


@every_layer
def test_two_forward_passes_before_a_backward(row: Layer):
    layer = row.layer().train()
    one, two = (layer(row.x(seed=seed).requires_grad_()) for seed in (1, 2))
    (one.sum() + two.pow(2).sum()).backward()


@every_layer
def test_float32_agrees_with_float64(row: Layer):
    exact = row.layer()
    single = copy.deepcopy(exact).float()
    for mode in (True, False):
        y = single.train(mode)(row.x(torch.float32))
        assert y.dtype == torch.float32
        expected = exact.train(mode)(row.x(torch.float32).double())
        assert expected.dtype == torch.float64
        scale = float(expected.detach().abs().max())
        # Some hundred roundings, and the parameters' own.
        assert (y.double() - expected).abs().max() <= 500 * 2**-23 * scale


@every_layer
def test_autocast_stays_close(row: Layer):
    layer = row.layer(torch.float32)
    train_a_little(layer, row)
    for mode in (True, False):
        layer.train(mode)
        other = copy.deepcopy(layer)
        expected = layer(row.x(torch.float32))
        x = row.x(torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = other(x)
        y.float().sum().backward()
        scale = float(expected.detach().abs().max())
        assert (y.float() - expected).abs().max() <= row.half_error * scale
        assert torch.isfinite(x.grad).all()
        for name, value in layer.named_buffers():
            if value.is_floating_point():
                close = dict(other.named_buffers())[name]
                assert close.dtype == value.dtype
                torch.testing.assert_close(close, value, rtol=0.05, atol=0.02)


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_memory_format_changes_nothing(row: Layer, training: bool):
    if len(row.shape) != 4:
        pytest.skip("not an image")
    one = row.layer().train(training)
    two = copy.deepcopy(one)
    x = row.x()
    last = x.clone(memory_format=torch.channels_last)
    torch.testing.assert_close(two(last), one(x), rtol=0, atol=1e-12)
    two = copy.deepcopy(one)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(two(strided), copy.deepcopy(one)(x), rtol=0, atol=1e-12)


@every_layer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_empty_batch(row: Layer, training: bool):
    layer = row.layer().train(training)
    if training and row.empty_batch == "error":
        with pytest.raises(OrthotrainError):
            layer(row.x()[:0])
        return
    y = layer(row.x()[:0].requires_grad_())
    assert y.shape == (0, *layer.eval()(row.x()).shape[1:])
    y.sum().backward()


@every_layer
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiled_layer_agrees(row: Layer, training: bool):
    layer = row.layer(torch.float32)
    train_a_little(layer, row)
    layer.train(training)
    plain = copy.deepcopy(layer)
    torch.compiler.reset()
    # What is captured is ours; the code made of it is not, and takes a minute a layer.
    compiled = torch.compile(layer, backend="aot_eager")
    for seed in (1, 2):
        x, y = (row.x(torch.float32, seed=seed).requires_grad_() for _ in range(2))
        one, two = compiled(x), plain(y)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        one.pow(2).sum().backward()
        two.pow(2).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)
    for name, value in layer.named_buffers():
        torch.testing.assert_close(value, dict(plain.named_buffers())[name], rtol=1e-4, atol=1e-5)
