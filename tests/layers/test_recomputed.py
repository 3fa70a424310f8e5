"""Norms keep nothing of a low-rank convolution that is a 1x1 product away: same gradients."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

from orthotrain.errors import StateError
from orthotrain.layers import LowRankConv1d, LowRankConv2d, LowRankConv3d
from orthotrain.layers import _recomputed as recomputed

BASES = ("frozen", "trained")


@pytest.fixture(autouse=True)
def _layers_as_small_as_these(monkeypatch):
    monkeypatch.setattr(recomputed, "_LEAST_RATIO", 1)


CLASSES = {1: LowRankConv1d, 2: LowRankConv2d, 3: LowRankConv3d}
DENSE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Net(nn.Module):
    """Two low-rank convolutions, with a norm and a residual sum between them."""

    def __init__(self, bases, dims=2, *, between=None, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (
            CLASSES[dims].from_conv(
                DENSE[dims](8, 8, 3, padding=1, **settings), rank=2, bases=bases
            )
            for _ in range(2)
        )
        self.norm = NORM[dims](8)
        self.between = between
        self.double()

    def forward(self, x):
        y = self.first(x)
        self.output = weakref.ref(y)
        if self.between is not None:
            y = self.between(y)
        x = torch.relu(self.norm(y) + x)
        del y
        return self.second(x)


def image(dims=2, size=5):
    generator = torch.Generator().manual_seed(1)
    shape = (2, 8, *[size] * dims)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradients(net, x, call=None, dtype=None):
    net, x = copy.deepcopy(net), x.detach().clone(memory_format=torch.preserve_format)
    x.requires_grad_()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        y = (call or (lambda net, x: net(x)))(net, x)
    kept = hasattr(net, "output") and net.output() is not None
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    return kept, [x.grad, *(p.grad for p in net.parameters())]


def both(net, x, monkeypatch, **how):
    """Whether the output is not kept any more, gradients, and those with everything kept."""
    kept, found = gradients(net, x, **how)
    with monkeypatch.context() as patch:
        patch.setattr(recomputed, "_LEAST_RATIO", 1 << 30)
        before, expected = gradients(net, x, **how)
    return before and not kept, found, expected


def same_bits(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize(
    ("dims", "settings"),
    [(1, {"groups": 2}), (2, {}), (2, {"bias": False}), (2, {"padding_mode": "circular"}), (3, {})],
    ids=str,
)
@pytest.mark.parametrize("last", [False, True], ids=["", "channels last"])
def test_the_output_goes_and_gradients_stay(dims, settings, last, bases, monkeypatch):
    net, x = Net(bases, dims, **settings), image(dims)
    if last and dims == 1:
        pytest.skip("no such format")
    if last:
        x = x.detach().to(memory_format=[0, 0, torch.channels_last, torch.channels_last_3d][dims])
    gone, found, expected = both(net, x, monkeypatch)
    assert gone
    assert same_bits(found, expected)


def test_group_norm_is_a_norm_too_and_layer_norm_is_left(monkeypatch):
    net = Net("trained")
    net.norm = nn.GroupNorm(2, 8, dtype=torch.float64)
    gone, found, expected = both(net, image(), monkeypatch)
    assert gone
    assert same_bits(found, expected)
    net.norm = nn.LayerNorm(5, dtype=torch.float64)
    gone, found, expected = both(net, image(), monkeypatch)
    assert not gone
    assert same_bits(found, expected)


@pytest.mark.parametrize("bases", BASES)
def test_under_autocast(bases, monkeypatch):
    net = Net(bases).float()
    gone, found, expected = both(net, image().float(), monkeypatch, dtype=torch.bfloat16)
    assert gone
    assert same_bits(found, expected)


@pytest.mark.parametrize("bases", BASES)
def test_inside_checkpoints_and_hooks_nothing_changes(bases, monkeypatch):
    def checkpointed(net, x):
        return checkpoint(net, x, use_reentrant=False)

    def hooked(net, x):
        with saved_tensors_hooks(lambda t: t, unread):
            return net(x)

    def half_hooked(net, x):
        with saved_tensors_hooks(lambda t: t, unread):
            y = net.first(x)
        return net.second(net.norm(y))

    def unread(t):
        assert torch._C._current_graph_task_id() != -1, "read outside of a backward pass"
        return t

    for call in (checkpointed, hooked, half_hooked):
        net, passes = Net(bases), []
        net.first.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        _, found, expected = both(net, image(), monkeypatch, call=call)
        assert same_bits(found, expected)
        assert len(passes) == 2 * (1 + (call is checkpointed))


@pytest.mark.parametrize("bases", BASES)
def test_an_output_that_is_written_to_or_replaced_is_kept(bases, monkeypatch):
    @torch.no_grad()
    def written(y):
        y.mul_(2)
        return y

    for between in (written, lambda y: y * 2, lambda y: y.relu_()):
        _, found, expected = both(Net(bases, between=between), image(), monkeypatch)
        assert same_bits(found, expected)


@pytest.mark.parametrize("bases", BASES)
def test_second_derivatives(bases):
    net, x = Net(bases), image(size=3)
    names = [name for name, _ in net.named_parameters()]

    def call(x, *values):
        with torch.enable_grad():
            return functional_call(net, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, *values), fast_mode=True)
    net.eval()  # a transform lets no norm count its batches
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    loss = lambda values: functional_call(net, values, (x.detach(),)).square().sum()  # noqa: E731
    transformed = grad(loss)(parameters)
    net(x.detach()).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(transformed[name], parameter.grad)


@pytest.mark.parametrize(
    ("m", "n", "k", "worth"),
    [(64, 576, 28, True), (64, 256, 96, True), (64, 255, 28, False), (512, 4608, 97, False)],
)
def test_where_it_is_cheap(m, n, k, worth, monkeypatch):
    monkeypatch.setattr(recomputed, "_LEAST_RATIO", 4)
    assert recomputed.worth_it(m, n, k) == worth


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
@pytest.mark.parametrize("bases", BASES)
def test_a_compiler_decides_by_itself(bases):
    net, x = Net(bases), image()
    layers = nn.Sequential(net.first, net.norm, nn.ReLU(), net.second)
    expected = torch.autograd.grad(layers(x).square().sum(), list(layers.parameters()))
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x).square().sum(), list(layers.parameters()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bases", BASES)
def test_a_graph_that_is_kept_goes_back_twice(bases):
    net, x = Net(bases), image()
    loss = net(x).square().sum()
    once = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    assert same_bits(once, torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("bases", BASES)
def test_a_graph_that_is_gone_is_left_alone(bases):
    net, x = Net(bases), image()
    y = torch.relu(net.norm(net.first(x)))
    y.sum().backward()
    net.second(y)


def test_a_bias_written_to_before_backward_is_told():
    net = Net("trained")
    loss = net(image()).square().sum()
    with torch.no_grad():
        net.first.bias.add_(1)
    with pytest.raises(StateError, match="step the optimizer after backward"):
        loss.backward()
