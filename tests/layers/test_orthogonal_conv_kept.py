"""What OrthogonalConv2d keeps in evaluation: made once, and never of weights that have changed."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from torch import Tensor, nn

from orthotrain.layers import OrthogonalConv2d, _block_kernel, _kept, orthogonal_conv
from reference.matrices import generator

METHODS = ("kernel", "skew")
every_method = pytest.mark.parametrize("method", METHODS)


def make(method: str, *, seed: int = 0, **settings) -> OrthogonalConv2d:
    # Two factors of the kernel, so that a change of either Parameter is tried.
    layer = OrthogonalConv2d(3, 4, 3, method=method, generator=generator(seed), **settings)
    return layer.eval()


def picture(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 5, 5, generator=generator(5)).to(dtype)


@torch.no_grad()
def fresh(layer: OrthogonalConv2d, x: Tensor) -> Tensor:
    """The output of a layer of equal state of which nothing is kept."""
    other = OrthogonalConv2d(3, 4, 3, method=layer.method, dtype=layer.weight.dtype)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    return other.eval()(x)


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """Names of what was made, one per making."""
    names: list[str] = []

    def note(name, function):
        def call(*args, **kwargs):
            names.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(_block_kernel, "block_kernel", note("kernel", _block_kernel.block_kernel))
    monkeypatch.setattr(orthogonal_conv, "_iterated", note("skew", orthogonal_conv._iterated))
    return names


@every_method
def test_made_once_while_the_weights_stay(method, made):
    layer, x = make(method), picture()
    with torch.no_grad():
        first = layer(x)
        for _ in range(3):
            assert torch.equal(layer(x), first)
        layer.eval()
        layer(x[:1])
    with torch.inference_mode():
        layer(x)
    assert made == [method]
    for p in layer.parameters():
        p.requires_grad_(False)
    y = layer(x.requires_grad_())
    y.sum().backward()
    assert made == [method]


@every_method
def test_inference_mode_first_and_gradients_later(method):
    layer, x = make(method), picture()
    with torch.inference_mode():
        layer(x)
    for p in layer.parameters():
        p.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert torch.isfinite(x.grad).all()


def sgd(layer: nn.Module) -> nn.Module:
    return _step(layer, torch.optim.SGD(layer.parameters(), lr=0.1))


def adam(layer: nn.Module) -> nn.Module:
    return _step(layer, torch.optim.Adam(layer.parameters(), lr=0.1, foreach=True))


def fused(layer: nn.Module) -> nn.Module:
    return _step(layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True))


def _step(layer: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    with torch.enable_grad():
        layer(picture()).pow(3).sum().backward()
    optimizer.step()
    return layer


def loaded(layer: nn.Module) -> nn.Module:
    layer.load_state_dict(make(layer.method, seed=1).state_dict())
    return layer


def assigned(layer: nn.Module) -> nn.Module:
    layer.load_state_dict(make(layer.method, seed=1).state_dict(), assign=True)
    return layer


def one_number(layer: nn.Module) -> nn.Module:
    layer.weight[1, 0, 0, 0] += 0.5
    return layer


def last_parameter(layer: nn.Module) -> nn.Module:
    *_, last = (p for name, p in layer.named_parameters() if name != "bias")
    last[-1, -1, -1, -1] += 0.5
    return layer


def in_inference_mode(layer: nn.Module) -> nn.Module:
    with torch.inference_mode():
        layer.weight.mul_(torch.linspace(-1, 2, layer.weight.numel()).view_as(layer.weight))
    return layer


def through_data(layer: nn.Module) -> nn.Module:
    layer.weight.data.mul_(torch.linspace(-1, 2, layer.weight.numel()).view_as(layer.weight))
    return layer


def other_data(layer: nn.Module) -> nn.Module:
    layer.weight.data = layer.weight.data.flip(0)
    return layer


def other_parameter(layer: nn.Module) -> nn.Module:
    layer.weight = nn.Parameter(layer.weight.detach().flip(0).clone())
    return layer


def drawn_anew(layer: nn.Module) -> nn.Module:
    layer.reset_parameters(generator=generator(3))
    return layer


def half_and_back(layer: nn.Module) -> nn.Module:
    return layer.bfloat16().float()


def double(layer: nn.Module) -> nn.Module:
    return layer.double()


def copied(layer: nn.Module) -> nn.Module:
    return one_number(copy.deepcopy(layer))


def pickled(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return one_number(torch.load(file, weights_only=False))


CHANGES = (
    sgd, adam, fused, loaded, assigned, one_number, last_parameter, in_inference_mode,
    through_data, other_data, other_parameter, drawn_anew, half_and_back, double, copied, pickled,
)  # fmt: skip


@every_method
@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
@torch.no_grad()
def test_never_of_weights_that_have_changed(method, change):
    layer, x = make(method), picture()
    before = layer(x)
    other = change(layer)
    x = x.to(other.weight.dtype)
    after = other(x)
    assert torch.equal(after, fresh(other, x))
    assert change is double or not torch.allclose(after, before.to(after), rtol=0, atol=1e-4)
    if other is not layer:
        assert torch.equal(layer(x), before)


@every_method
@torch.no_grad()
def test_every_number_counts_where_torch_counts(method, made):
    layer = OrthogonalConv2d(8, 8, 3, method=method).eval()
    x = torch.randn(1, 8, 4, 4, generator=generator(1))
    layer(x)
    _, *_, last = layer._made_of() * 2
    last.view(-1)[1] += 0.5
    layer(x)
    assert made == [method] * 2


def test_the_start_of_the_power_iteration_counts_as_a_weight():
    layer, x = make("skew"), picture()
    with torch.no_grad():
        layer(x)
        layer.left_flat.copy_(torch.eye(4)[0])
        assert torch.equal(layer(x), fresh(layer, x))


@every_method
def test_two_layers_of_one_weight_keep_their_own(method):
    one = make(method)
    two = copy.deepcopy(one)
    two.weight = one.weight
    x = picture()
    with torch.no_grad():
        if method == "skew":
            two.max_norm = 1.4
        else:
            two.subspaces[-1, 0, 0, 0] += 0.5
        outputs = [layer(x) for layer in (one, two, one, two)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.allclose(outputs[0], outputs[1])


def test_what_is_kept_of_a_layer_goes_with_it():
    layer = make("kernel")
    with torch.no_grad():
        layer(picture())
    address = layer.weight.untyped_storage()._cdata
    assert any(address in key for key in _kept._ENTRIES)
    del layer
    gc.collect()
    with torch.no_grad():
        another = make("kernel")
        another(picture())
    assert all(not ref.expired() for entry in _kept._ENTRIES.values() for ref in entry.storages)


@pytest.mark.slow
@every_method
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
def test_evaluation_is_one_graph_and_never_stale(method, gradients, monkeypatch):
    kept, made = (_block_kernel._KERNELS if method == "kernel" else orthogonal_conv._VECTORS), []
    make_anew = kept._make
    # Called inside the node of the graph, where nothing is traced.
    monkeypatch.setattr(kept, "_make", lambda *a: made.append(method) or make_anew(*a))
    layer, x = make(method), picture()
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True)
    with torch.set_grad_enabled(gradients):
        for _ in range(2):
            made.clear()
            outputs = [compiled(x).detach() for _ in range(3)]
            if not (gradients and method == "skew"):  # which a graph then iterates at each call
                assert len(made) == (0 if gradients else 1)
            expected = fresh(layer, x)
            for y in outputs:
                torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
            with torch.no_grad():
                layer.weight[1, 0, 0, 0] += 0.5
