"""What tools that record a network get: free batches, one fixed whitening matrix, leaves of fx."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import orthotrain
from orthotrain.errors import StateError
from orthotrain.layers import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    EigenSubspace,
    GlobalCovariancePool,
    LowRankMultiheadAttention,
    OrthogonalConv2d,
)
from orthotrain.models import (
    EigenDiscriminator,
    EigenGenerator,
    SimpleDiscriminator,
    SimpleGenerator,
)

BATCHES = (2, 3, 8, 17)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low(net: nn.Module, bases: str) -> nn.Module:
    return orthotrain.compress(net, energy=0.6, only_if_cheaper=False, bases=bases).eval()


def whitened(net: nn.Sequential, *shape: int) -> nn.Module:
    """After batches whose channels differ in scale and depend on each other."""
    for seed in range(4):
        net(randn(*shape, seed=seed) * 3 + 1)
    return net.eval()


def networks() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    conv = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2))
    images = randn(8, 4, 9, 9)
    flat = nn.Sequential(nn.Linear(12, 6), DecorrelatedBatchNorm1d(6))
    maps = nn.Sequential(nn.Conv2d(4, 8, 3), DecorrelatedBatchNorm2d(8, group_size=4), nn.ReLU())
    pool = nn.Sequential(nn.Conv2d(4, 6, 3), GlobalCovariancePool(6, reduced_channels=5))
    bare = nn.Sequential(nn.Conv2d(4, 8, 3), GlobalCovariancePool(8))
    return {
        "linear frozen": (low(copy.deepcopy(linear), "frozen"), randn(8, 12)),
        "linear trained": (low(copy.deepcopy(linear), "trained"), randn(8, 12)),
        "tokens": (low(copy.deepcopy(linear), "frozen"), randn(8, 5, 12)),
        "conv frozen": (low(copy.deepcopy(conv), "frozen"), images),
        "conv trained": (low(copy.deepcopy(conv), "trained"), images),
        "whitening 1-D": (whitened(flat, 32, 12), randn(8, 12)),
        "whitening 2-D": (whitened(maps, 8, 4, 9, 9), images),
        "covariance pool": (pool.eval(), images),
        "covariance pool of fewer places": (bare.eval(), randn(8, 4, 4, 4)),
        "subspace": (EigenSubspace(3, out_shape=(2, 5)).eval(), randn(8, 3)),
    }


NETWORKS = networks()
each = pytest.mark.parametrize("name", NETWORKS)


def assert_as_eager(recorded, net: nn.Module, x: torch.Tensor) -> None:
    for batch in BATCHES:
        given = randn(batch, *x.shape[1:], seed=batch)
        # Recorded roots are products alone: right to some 1e-6 of a root of order one.
        torch.testing.assert_close(recorded(given), net(given), rtol=1e-4, atol=2e-5)


@each
def test_export_keeps_the_batch_free(name):
    net, x = NETWORKS[name]
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert_as_eager(program.module(), net, x)


@each
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_keeps_the_batch_free(name):
    net, x = NETWORKS[name]
    assert_as_eager(torch.jit.trace(net, x, check_trace=False), net, x)


@each
def test_onnx_keeps_the_batch_free(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, x = NETWORKS[name]
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (x,), path, dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()

    def run(given: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {argument.name: given.numpy()})[0])

    assert_as_eager(run, net, x)


@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_low_rank_layers_are_leaves_of_fx(bases):
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 8), nn.ReLU())
    net = low(net, bases)
    graph = torch.fx.symbolic_trace(net)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == ["0", "1", "2", "3"]
    x = randn(3, 4, 4, 4)
    assert torch.equal(graph(x), net(x))


def test_low_rank_attention_is_a_leaf_of_fx():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.attention(x, x, x, need_weights=False)[0]

    block = low(Block(), "frozen")
    assert isinstance(block.attention, LowRankMultiheadAttention)
    graph = torch.fx.symbolic_trace(block)
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["attention"]
    x = randn(2, 5, 8)
    torch.testing.assert_close(graph(x), block(x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DecorrelatedBatchNorm1d(6), (8, 6)),
        (DecorrelatedBatchNorm2d(6), (2, 6, 4, 4)),
        (GlobalCovariancePool(6), (2, 6, 4, 4)),
        (EigenSubspace(6, out_shape=(2, 3)), (2, 6)),
        (OrthogonalConv2d(6, 4, 3), (2, 6, 4, 4)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_other_layers_are_leaves_of_fx(layer, shape):
    net = nn.Sequential(layer, nn.ReLU()).eval()
    graph = torch.fx.symbolic_trace(net)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert torch.equal(graph(randn(*shape)), net(randn(*shape)))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (EigenGenerator(16, noise_dim=0, num_basis=2, base_channels=4), (4,)),
        (EigenDiscriminator(16, base_channels=4), (3, 16, 16)),
        (SimpleGenerator(16, latent_dim=4), (4,)),
        (SimpleDiscriminator(16), (3, 16, 16)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_generators_keep_the_batch_free(model, shape):
    model.eval()
    program = export(model, randn(2, *shape)).module()
    torch.testing.assert_close(program(randn(5, *shape)), model(randn(5, *shape)))


def export(net: nn.Module, x: torch.Tensor):
    return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.mark.parametrize("how", ["loaded in evaluation", "moved to float64", "copied"])
def test_the_fixed_matrix_follows_the_statistics(how):
    net, x = copy.deepcopy(NETWORKS["whitening 2-D"][0]), NETWORKS["whitening 2-D"][1]
    match how:
        case "loaded in evaluation":
            other = {
                k: v * 2 if k.endswith("covariance") else v for k, v in net.state_dict().items()
            }
            net.load_state_dict(other)
        case "moved to float64":
            net, x = net.double(), x.double()
        case "copied":
            net = copy.deepcopy(net).eval()
    torch.testing.assert_close(export(net, x).module()(x), net(x), rtol=1e-5, atol=1e-6)


def test_statistics_changed_since_are_not_exported_in_silence():
    net, x = copy.deepcopy(NETWORKS["whitening 2-D"][0]).eval(), NETWORKS["whitening 2-D"][1]
    net[1].running_covariance.mul_(3)
    with pytest.raises(StateError, match=r"call eval\(\) on the model"):
        export(net, x)
    net.eval()
    torch.testing.assert_close(export(net, x).module()(x), net(x))


def test_what_is_remembered_is_neither_state_nor_buffer():
    layer = DecorrelatedBatchNorm2d(4)
    before = [name for name, _ in layer.named_buffers()], list(layer.state_dict())
    layer.eval()(randn(2, 4, 3, 3))
    assert ([name for name, _ in layer.named_buffers()], list(layer.state_dict())) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_pool_in_a_network_of_half_precision_gives_what_the_next_layer_takes(dtype):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), GlobalCovariancePool(6), nn.Linear(21, 2)).to(dtype)
    assert net(randn(2, 3, 7, 7).to(dtype)).dtype == dtype
    exact = net[1](randn(2, 6, 5, 5).double())
    torch.testing.assert_close(
        net[1](randn(2, 6, 5, 5).to(dtype)).double(), exact, rtol=0.02, atol=0.02
    )
