"""What every low-rank layer promises, held against the dense layer it is made of.

A new layer is enrolled by one row of ``FROZEN``; it is tested with frozen and with trained bases.
"""

import copy
import pickle
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from orthotrain.layers import _contraction, _pair_contraction
from orthotrain.layers._factor_names import factor_names, pair_name
from orthotrain.layers._factors import (
    LowRankModule,
    factorize_,
    follow_state_dict,
    hold_dense_,
    low_rank_class_of,
    parameter_name,
    weight_parameter,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.lowrank.two_layers import _two_layers
from reference.matrices import generator

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class StandInConv1D(nn.Module):
    """As Transformers writes it: a linear layer with its weight transposed."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.size()[:-1], self.nf)


StandInConv1D.__module__, StandInConv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"


@pytest.fixture(autouse=True)
def _transformers_is_importable(monkeypatch):
    """Pickle looks classes up by name."""
    module = types.ModuleType("transformers.pytorch_utils")
    module.Conv1D = StandInConv1D
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", module)


@dataclass(frozen=True)
class Layer:
    """A row: a dense layer, the weights to factor, the rank to cut to, and what it takes.

    ``inputs`` are shapes of the arguments with the batch in ``batch_dim``; attention with one
    input attends to itself. ``blocks`` chooses a layout other than the default.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    rank: int = 3
    weights: tuple[str, ...] = ("weight",)
    blocks: int | None = None
    batch_dim: int = 0
    bases: str = "frozen"

    def __str__(self) -> str:
        return self.name if self.bases == "frozen" else f"{self.name}-{self.bases}"

    def dense(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        layer = self.make().to(dtype)
        random = generator(seed)
        with torch.no_grad():
            for p in layer.parameters():
                values = torch.randn(p.shape, generator=random, dtype=torch.float64)
                p.copy_(values / max(1, p[0].numel()) ** 0.5)
        return layer

    def low_rank(self, dense: nn.Module, rank: int | None) -> LowRankModule:
        """A copy of a dense layer with its weights in factors."""
        layer = copy.deepcopy(dense)
        low_rank_class = low_rank_class_of(layer)
        for weight in self.weights:
            layouts = low_rank_class.layouts(layer, weight)
            layout = next(each for each in layouts if self.blocks in (None, each.blocks))
            options = {"layout": layout, "bases": self.bases}
            factorize_(layer, weight, low_rank_class, rank=rank, **options)
        return layer

    def full_rank(self, module: nn.Module) -> int:
        low_rank_class = low_rank_class_of(module)
        return min(low_rank_class.layout(module, weight).full_rank for weight in self.weights)

    def x(
        self, dtype: torch.dtype = torch.float64, *, batch: int | None = None, seed: int = 1
    ) -> tuple[Tensor, ...]:
        random = generator(seed)
        shapes = [list(shape) for shape in self.inputs]
        if batch is not None:
            for shape in shapes:
                shape[self.batch_dim] = batch
        return tuple(
            torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
            for shape in shapes
        )


def output(layer: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    if isinstance(layer, nn.MultiheadAttention):
        return layer(*(x * 3 if len(x) == 1 else x))[0]
    return layer(*x)


def attention(**settings) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(8, 2, **({"batch_first": True} | settings))


PACKED = ("in_proj_weight",)
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
CROSS = ((3, 4, 8), (3, 5, 6), (3, 5, 10))

FROZEN = (
    Layer("linear-few-rows", lambda: nn.Linear(10, 7), ((3, 10),)),
    Layer("linear-many-rows", lambda: nn.Linear(6, 9), ((2, 3, 5, 6),)),
    Layer("linear-no-bias", lambda: nn.Linear(6, 9, bias=False), ((4, 6),)),
    Layer("transposed-linear", lambda: StandInConv1D(9, 6), ((4, 3, 6),)),
    Layer("conv1d-replicate", lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="replicate"),
          ((3, 4, 9),)),
    Layer("conv1d-same-even", lambda: nn.Conv1d(4, 6, 4, padding="same"), ((3, 4, 9),)),
    Layer("conv1d-valid-dilated",
          lambda: nn.Conv1d(4, 6, 3, dilation=2, padding="valid", bias=False), ((3, 4, 9),)),
    Layer("conv2d-many-positions", lambda: nn.Conv2d(2, 6, 3, padding=1), ((2, 2, 6, 7),)),
    Layer("conv2d-few-positions", lambda: nn.Conv2d(3, 20, 3, stride=(2, 3)), ((2, 3, 5, 6),)),
    Layer("conv2d-same-even", lambda: nn.Conv2d(3, 5, (4, 2), padding="same"), ((2, 3, 5, 6),)),
    Layer("conv2d-same-reflect",
          lambda: nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect", dilation=(1, 2)),
          ((2, 3, 5, 6),)),
    Layer("conv2d-groups", lambda: nn.Conv2d(6, 10, 3, padding=(1, 0), groups=2, dilation=2),
          ((2, 6, 5, 6),)),
    Layer("conv2d-groups",
          lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3, padding_mode="circular"),
          ((2, 6, 5, 6),), rank=2),
    Layer("conv2d-pointwise", lambda: nn.Conv2d(6, 5, 1), ((2, 6, 3, 4),)),
    Layer("conv3d", lambda: nn.Conv3d(2, 5, (2, 1, 3), padding=1, stride=2), ((2, 2, 3, 4, 5),)),
    Layer("conv3d-groups-same", lambda: nn.Conv3d(4, 6, 2, padding="same", groups=2),
          ((1, 4, 3, 2, 3),)),
    Layer("transposed1d-dilated",
          lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, dilation=2, bias=False),
          ((3, 4, 5),)),
    Layer("transposed2d-groups",
          lambda: nn.ConvTranspose2d(6, 9, (3, 2), stride=2, groups=3, output_padding=1),
          ((2, 6, 3, 4),), rank=2),
    Layer("transposed3d", lambda: nn.ConvTranspose3d(2, 5, 2, padding=1), ((2, 2, 3, 2, 3),)),
    Layer("attention", attention(), ((3, 4, 8),), weights=PACKED),
    Layer("attention-shared-basis", attention(), ((3, 4, 8),), weights=PACKED, blocks=1),
    Layer("attention-shared-basis-cross", attention(), ((3, 4, 8), (3, 5, 8), (3, 5, 8)),
          weights=PACKED, blocks=1),
    Layer("attention-sequence-first", attention(batch_first=False), ((4, 3, 8),),
          weights=PACKED, batch_dim=1),
    Layer("attention-separate", attention(kdim=6, vdim=10), CROSS, weights=SEPARATE),
    Layer("attention-one-separate", attention(kdim=6, vdim=10, bias=False), CROSS,
          weights=("k_proj_weight",)),
    Layer("attention-extra-tokens", attention(add_bias_kv=True, add_zero_attn=True),
          ((3, 4, 8),), weights=PACKED),
)  # fmt: skip
LAYERS = (*FROZEN, *(replace(row, bases="trained") for row in FROZEN))

# The dense layer says so once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

every_layer = pytest.mark.parametrize("row", LAYERS, ids=str)
CONVOLUTIONS = [row for row in LAYERS if row.name.startswith("conv")]
ATTENTION = [row for row in LAYERS if row.name.startswith("attention")]
# A weight in one factorization, so that its factors are those of `layer.factors()`.
SINGLE = [row for row in LAYERS if not row.name.startswith("attention")]
# Those whose forward was written to keep little for backward.
SPARING = [row for row in SINGLE if not row.name.startswith("transposed") or "linear" in row.name]


@pytest.fixture(params=["factored", "materialized"])
def form(request, monkeypatch):
    """Both contractions, whatever the counts say of sizes as small as these."""
    monkeypatch.setattr(_contraction, "cheapest_form", lambda *_, **__: request.param)
    monkeypatch.setattr(_pair_contraction, "cheapest_pair_form", lambda *_, **__: request.param)
    return request.param


@pytest.fixture
def factored(monkeypatch):
    monkeypatch.setattr(_contraction, "cheapest_form", lambda *_, **__: "factored")
    monkeypatch.setattr(_pair_contraction, "cheapest_pair_form", lambda *_, **__: "factored")


def close(a: Tensor, b: Tensor, *, budget: float) -> None:
    """Equal shape and dtype, and no entry further off than ``budget`` of the largest one."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    scale = max(1.0, b.detach().abs().max().item() if b.numel() else 0.0)
    torch.testing.assert_close(a, b, rtol=0, atol=budget * scale)


def truncated(row: Layer, dense: nn.Module, rank: int) -> nn.Module:
    """The dense layer with each weight at its best approximation of a rank, block by block."""
    layer = copy.deepcopy(dense)
    low_rank_class = low_rank_class_of(layer)
    for weight in row.weights:
        layouts = low_rank_class.layouts(layer, weight)
        layout = next(each for each in layouts if row.blocks in (None, each.blocks))
        value = getattr(layer, weight)
        blocks = layout.matrices(value.detach())
        cut = []
        for block in blocks:
            u, s, vh = torch.linalg.svd(block, full_matrices=False)
            cut.append(u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank])
        with torch.no_grad():
            value.copy_(layout.tensor(torch.stack(cut)))
    return layer


def trained(row: Layer) -> tuple[LowRankModule, nn.Module]:
    """A low-rank layer as training leaves it, its core neither diagonal nor symmetric, a pair not
    balanced, and the dense layer with the same weight."""
    dense = row.dense()
    layer = row.low_rank(dense, row.rank)
    random = generator(4)
    for weight in row.weights:
        held = weight_parameter(layer, weight)
        with torch.no_grad():
            held.add_(torch.randn(held.shape, generator=random, dtype=held.dtype) / 4)
            value = getattr(dense, weight)
            left, right = layer.two_factors(weight)
            value.copy_(layer.layout(layer, weight).tensor(left @ right))
    return layer, dense


# --- values -----------------------------------------------------------------------------------


@every_layer
def test_full_rank_keeps_the_function(row, form):
    dense = row.dense()
    layer = row.low_rank(dense, None)
    close(output(layer, row.x()), output(dense, row.x()), budget=1e-12)


# Largest error over rows, contractions and 5 seeds, in eps of the dtype: 2.7 in float32, 1.6 in
# half precision, which rounds u, core and vh once each; 17 in float64, all of it from the SVD.
@every_layer
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_full_rank_keeps_the_function_to_rounding_in_every_dtype(row, dtype):
    dense = row.dense(dtype)
    layer = row.low_rank(dense, None)
    x = row.x(dtype)
    y = output(layer, x)
    y.sum().backward()
    close(y, output(dense, x), budget=8 * torch.finfo(dtype).eps)
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {dtype}


@every_layer
def test_a_cut_is_the_dense_layer_with_the_best_weight_of_that_rank(row, form):
    dense = row.dense()
    layer, expected = row.low_rank(dense, row.rank), truncated(row, dense, row.rank)
    close(output(layer, row.x()), output(expected, row.x()), budget=1e-12)
    for weight in row.weights:
        close(getattr(layer, weight), getattr(expected, weight).detach(), budget=1e-12)


@every_layer
def test_values_and_gradients_are_those_of_the_dense_layer(row, form):
    layer, dense = trained(row)
    x, x_dense = row.x(), row.x()
    y, y_dense = output(layer, x), output(dense, x_dense)
    close(y, y_dense, budget=1e-12)
    cotangent = torch.randn(y.shape, generator=generator(5), dtype=y.dtype)
    y.backward(cotangent)
    y_dense.backward(cotangent)
    for got, wanted in zip(x, x_dense, strict=True):
        close(got.grad, wanted.grad, budget=1e-12)
    for weight in row.weights:
        held = weight_parameter(layer, weight)
        close(held.grad, gradient_held(layer, dense, weight), budget=1e-12)
    same = dict(dense.named_parameters())
    for name, parameter in layer.named_parameters():
        if name in same and same[name].grad is not None:
            close(parameter.grad, same[name].grad, budget=1e-12)


def gradient_held(
    layer: LowRankModule, dense: nn.Module, weight: str, gradient: Tensor | None = None
) -> Tensor:
    """What the gradient of the core or the pair must be, from that of a dense weight.

    ``u^T g vh^T`` of a core, ``[(g right^T)^T, left^T g]`` of a pair.
    """
    gradient = getattr(dense, weight).grad if gradient is None else gradient
    matrix = layer.layout(layer, weight).matrix(gradient)
    if pair_name(weight) in layer._parameters:
        left, right = layer.pair_of(weight)
        return torch.cat((right @ matrix.mT, left.mT @ matrix), -1)
    u, _, vh = layer.factors(weight)
    return u.mT @ matrix @ vh.mT


@every_layer
def test_a_gradient_penalty_beside_the_loss_is_that_of_the_dense_layer(row, form):
    # The output is used twice here, by the loss and by its gradient, unlike in gradgradcheck.
    layer, dense = trained(row)
    totals = []
    x, x_dense = row.x(), row.x()
    for module, inputs in ((layer, x), (dense, x_dense)):
        weights = [
            weight_parameter(module, weight) if module is layer else getattr(module, weight)
            for weight in row.weights
        ]
        loss = output(module, inputs).pow(3).sum()
        gradients = torch.autograd.grad(loss, (*inputs, *weights), create_graph=True)
        cores = [
            g if module is layer else gradient_held(layer, dense, weight, g)
            for weight, g in zip(row.weights, gradients[len(inputs) :], strict=True)
        ]
        totals.append(loss + sum(g.square().sum() for g in (*gradients[: len(inputs)], *cores)))
    close(*totals, budget=1e-12)
    totals[0].backward()
    ours = {weight: weight_parameter(layer, weight).grad.clone() for weight in row.weights}
    layer.zero_grad()
    totals[1].backward()  # of a pair, the twin's penalty depends on the factors, too
    for got, wanted in zip(x, x_dense, strict=True):
        close(got.grad, wanted.grad, budget=1e-11)
    for weight in row.weights:
        beside = weight_parameter(layer, weight).grad
        wanted = gradient_held(layer, dense, weight)
        close(ours[weight], wanted if beside is None else wanted + beside, budget=1e-11)


def _as_function(layer: nn.Module, x: tuple[Tensor, ...]):
    """The layer as a function of its inputs and parameters, and the values of both."""
    parameters = dict(layer.named_parameters())

    def function(*values):
        held = dict(zip(parameters, values[len(x) :], strict=True))
        packed = values[: len(x)]
        if isinstance(layer, nn.MultiheadAttention):
            packed = packed * 3 if len(packed) == 1 else packed
            return functional_call(layer, held, packed)[0]
        return functional_call(layer, held, packed)

    return function, (*x, *(p.detach().requires_grad_() for p in parameters.values()))


@every_layer
def test_first_derivative(row, factored):
    function, values = _as_function(trained(row)[0], row.x(batch=2))
    assert gradcheck(function, values, fast_mode=True)


@every_layer
def test_second_derivative(row, factored):
    function, values = _as_function(trained(row)[0], row.x(batch=2))
    assert gradgradcheck(function, values, fast_mode=True)


@pytest.mark.slow
@every_layer
def test_derivatives_entry_by_entry(row, form):
    function, values = _as_function(trained(row)[0], row.x(batch=2))
    assert gradcheck(function, values)
    assert gradgradcheck(function, values)


@every_layer
def test_an_input_without_gradient_leaves_the_others(row, factored):
    layer = trained(row)[0]
    x = row.x()
    output(layer, x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    output(layer, tuple(t.detach() for t in x)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        close(parameter.grad, wanted[name], budget=1e-14)


@every_layer
@pytest.mark.parametrize("frozen", [("core", "pair"), "bias"], ids=["weight", "bias"])
def test_a_frozen_parameter_leaves_the_others(row, frozen, factored):
    layer = trained(row)[0]
    x, x_again = row.x(), row.x()
    output(layer, x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.endswith(frozen))
    output(layer, x_again).square().sum().backward()
    for t, again in zip(x, x_again, strict=True):
        close(again.grad, t.grad, budget=1e-14)
    for name, parameter in layer.named_parameters():
        if name.endswith(frozen):
            assert parameter.grad is None
        else:
            close(parameter.grad, wanted[name], budget=1e-14)


# --- what the layer is made of ------------------------------------------------------------------


@every_layer
def test_parameters_keep_their_identity_and_factors_are_frozen_buffers(row):
    dense = row.dense()
    before = {name: id(p) for name, p in dense.named_parameters()}
    low_rank_class = low_rank_class_of(dense)
    for weight in row.weights:
        factorize_(dense, weight, low_rank_class, rank=row.rank, bases=row.bases)
    after = {name: id(p) for name, p in dense.named_parameters()}
    names = {parameter_name(dense, weight): weight for weight in row.weights}
    assert {names.get(name, name): key for name, key in after.items()} == before
    assert [names.get(name, name) for name in after] == list(before)
    buffers = dict(dense.named_buffers())
    for weight in row.weights if row.bases == "frozen" else ():
        for name in factor_names(weight)[::2]:
            factor = buffers.pop(name)
            assert not factor.requires_grad
            assert factor.is_contiguous()
            assert name in dense.state_dict()
    assert not buffers


@every_layer
def test_factors_are_orthonormal_and_the_core_is_diagonal(row):
    layer = row.low_rank(row.dense(), row.rank)
    for weight in row.weights:
        u, core, vh = layer.factors(weight)
        eye = torch.eye(row.rank, dtype=u.dtype).expand(core.shape)
        close(u.mT @ u, eye, budget=1e-13)
        close(vh @ vh.mT, eye, budget=1e-13)
        rounding = 0.0 if row.bases == "frozen" else 1e-13  # computed when it is read
        close(core, torch.diag_embed(core.diagonal(dim1=-2, dim2=-1)), budget=rounding)
        if row.bases == "trained":
            left, right = layer.pair_of(weight)
            close(left.mT @ left, right @ right.mT, budget=1e-13)
            close(u @ core @ vh, left @ right, budget=1e-13)


@every_layer
def test_the_weight_is_readable_with_its_gradient(row):
    layer = trained(row)[0]
    for weight in row.weights:
        value = getattr(layer, weight)
        assert value.shape == getattr(row.make(), weight).shape
        value.sum().backward()
        assert weight_parameter(layer, weight).grad is not None


@every_layer
def test_repr_shows_the_rank(row):
    layer = row.low_rank(row.dense(), row.rank)
    assert type(layer).__name__ in repr(layer)
    if row in ATTENTION:
        assert all(f"{weight}: {row.rank}" in repr(layer) for weight in row.weights)
    else:
        assert f"rank={row.rank}" in repr(layer)
        assert "(, " not in repr(layer)


@every_layer
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_a_layer_of_its_own(row, copied):
    layer = row.low_rank(row.dense(), row.rank)
    twin = copied(layer)
    assert type(twin) is type(layer)
    close(output(twin, row.x()), output(layer, row.x()), budget=0.0)
    ours = {t.data_ptr() for t in layer.state_dict().values()}
    assert ours.isdisjoint(t.data_ptr() for t in twin.state_dict().values())
    for weight in row.weights:  # and it still knows what it was made of
        held, product = weight_parameter(twin, weight), twin.materialized(weight)
        hold_dense_(twin, weight)
        resize_parameter_(held, product.detach())
    assert type(twin) is type(row.make())
    close(output(twin, row.x()), output(layer, row.x()), budget=1e-12)


@every_layer
def test_training_and_evaluation_agree(row):
    layer = trained(row)[0].eval()
    assert not layer.training
    with torch.no_grad():
        evaluated = output(layer, row.x())
    layer.train()
    close(output(layer, row.x()).detach(), evaluated, budget=1e-12)


@every_layer
def test_random_state_outside_is_untouched(row):
    dense = row.dense()
    before = torch.get_rng_state()
    layer = row.low_rank(dense, row.rank)
    output(layer, row.x()).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@every_layer
def test_no_input_is_changed(row, factored):
    layer = row.low_rank(row.dense(), row.rank)
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    x = row.x()
    before = [t.detach().clone() for t in x]
    output(layer, x).sum().backward()
    assert all(torch.equal(t, kept) for t, kept in zip(x, before, strict=True))
    assert all(torch.equal(t, state[name]) for name, t in layer.state_dict().items())


# --- checkpoints ------------------------------------------------------------------------------


@every_layer
def test_loading_follows_rank_and_form(row):
    dense = row.dense()
    full, cut = row.low_rank(dense, None), row.low_rank(dense, row.rank)
    other = row.low_rank(row.dense(seed=7), 1)
    kept = {name: id(p) for name, p in other.named_parameters()}
    for source in (cut, full, cut):
        other.load_state_dict(source.state_dict())
        close(output(other, row.x()), output(source, row.x()), budget=0.0)
    assert {name: id(p) for name, p in other.named_parameters()} == kept
    other.load_state_dict(dense.state_dict())
    assert type(other) is type(dense)
    close(output(other, row.x()), output(dense, row.x()), budget=0.0)


@every_layer
def test_a_dense_layer_with_the_hook_follows_there_and_back(row):
    dense = row.dense()
    cut = row.low_rank(dense, row.rank)
    model = nn.Sequential(row.dense(seed=7))
    model[0].register_load_state_dict_pre_hook(follow_state_dict)
    parameters = [id(p) for p in model.parameters()]
    for source in (cut, dense, cut, cut, dense):
        result = model.load_state_dict(nn.Sequential(source).state_dict())
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert type(model[0]) is type(source)
        assert [id(p) for p in model.parameters()] == parameters
        close(output(model[0], row.x()), output(source, row.x()), budget=0.0)


@every_layer
def test_a_gradient_of_another_shape_does_not_stay(row):
    # It would count in clipping, and the optimizer would meet a shape that is gone.
    layer = row.dense()
    output(layer, row.x()).sum().backward()
    for weight in row.weights:
        factorize_(layer, weight, low_rank_class_of(layer), rank=row.rank, bases=row.bases)
        assert weight_parameter(layer, weight).grad is None
    output(layer, row.x()).sum().backward()
    layer.load_state_dict(row.low_rank(row.dense(), 1).state_dict())
    assert all(weight_parameter(layer, weight).grad is None for weight in row.weights)


@every_layer
def test_loading_the_same_rank_copies_into_the_tensors_that_are_there(row):
    layer = row.low_rank(row.dense(), row.rank)
    before = [t.data_ptr() for t in layer.state_dict().values()]
    layer.load_state_dict(row.low_rank(row.dense(seed=7), row.rank).state_dict())
    assert [t.data_ptr() for t in layer.state_dict().values()] == before


@every_layer
def test_a_checkpoint_that_contradicts_the_layer_changes_nothing(row):
    layer = row.low_rank(row.dense(), row.rank)
    weight = row.weights[0]
    u_name, core_name, vh_name = factor_names(weight)
    good = replace(row, bases="frozen").low_rank(row.dense(seed=7), 2).state_dict()
    pair = replace(row, bases="trained").low_rank(row.dense(seed=7), 2).state_dict()
    without_vh = {name: t for name, t in good.items() if name != vh_name}
    dense = row.dense(seed=7).state_dict()
    for bad in (
        {**good, u_name: good[u_name][..., :1, :]},
        {**good, core_name: good[core_name][..., :1, :]},
        {**dense, weight: dense[weight][:1]},
        {**pair, pair_name(weight): pair[pair_name(weight)][..., :1]},
        {**pair, pair_name(weight): pair[pair_name(weight)][..., :1, :, None]},
        without_vh,
    ):
        with pytest.raises(RuntimeError, match="load it into the model it was saved from"):
            layer.load_state_dict(bad)
        assert layer.rank_of(weight) == row.rank
        assert output(layer, row.x()).isfinite().all()


@every_layer
def test_names_tell_the_two_forms_apart(row):
    """Into either form from the other and back, whatever the shapes, and never into both."""
    dense = row.dense()
    layer = row.low_rank(row.dense(seed=7), 2)
    kept = {id(p) for p in layer.parameters()}
    sources = [
        replace(row, bases=bases).low_rank(dense, row.rank) for bases in ("frozen", "trained")
    ]
    for source in (*sources, *sources):
        layer.load_state_dict(source.state_dict())
        assert layer.state_dict().keys() == source.state_dict().keys()
        assert {id(p) for p in layer.parameters()} == kept
        close(output(layer, row.x()), output(source, row.x()), budget=0.0)
    both = {**sources[0].state_dict(), **sources[1].state_dict()}
    with pytest.raises(RuntimeError, match="two forms of one weight"):
        layer.load_state_dict(both)


@every_layer
def test_the_parts_of_one_gradient_are_written_into_one_tensor(row, factored):
    layer = trained(row)[0]
    output(layer, row.x()).sum().backward()
    for weight in row.weights:
        held = weight_parameter(layer, weight)
        assert held.grad.shape == held.shape
        assert held.grad.is_contiguous()


# --- under the tools of torch -------------------------------------------------------------------


# Largest error over rows, contractions and 5 seeds, in eps of bfloat16: 2.5, and 3.3 of gradients.
@every_layer
def test_autocast_gives_the_dtype_of_the_dense_layer(row, form):
    dense = row.dense(torch.float32)
    layer = row.low_rank(dense, None)
    x, x_dense = row.x(torch.float32), row.x(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, y_dense = output(layer, x), output(dense, x_dense)
    close(y, y_dense, budget=8 * 2**-7)
    y.float().sum().backward()
    y_dense.float().sum().backward()
    for got, wanted in zip(x, x_dense, strict=True):
        close(got.grad, wanted.grad, budget=10 * 2**-7)
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("row", SINGLE, ids=str)  # torch's attention refuses float64 there
def test_float64_is_left_alone_by_autocast(row, form):
    layer = row.low_rank(row.dense(), row.rank)
    with torch.autocast("cpu", torch.bfloat16):
        y = output(layer, row.x())
    close(y, output(layer, row.x()), budget=1e-14)


@every_layer
def test_activation_checkpointing_changes_nothing(row, factored):
    layer = trained(row)[0]
    x, x_again = row.x(), row.x()
    output(layer, x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    checkpoint(partial(output, layer), x_again, use_reentrant=False).square().sum().backward()
    for name, parameter in layer.named_parameters():
        close(parameter.grad, wanted[name], budget=0.0)
    for t, again in zip(x, x_again, strict=True):
        close(again.grad, t.grad, budget=0.0)


@every_layer
def test_functional_call_uses_the_given_core(row, factored):
    layer = row.low_rank(row.dense(), row.rank)
    function, values = _as_function(layer, row.x())
    other = row.low_rank(row.dense(), row.rank)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    doubled = (*values[: len(row.inputs)], *other.parameters())
    close(function(*doubled), output(other, row.x()), budget=1e-12)
    close(function(*values), output(layer, row.x()), budget=0.0)


@every_layer
def test_gradients_a_sample_by_vmap(row, form):
    layer = trained(row)[0]
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    x = tuple(t.detach() for t in row.x())

    def loss(values, *sample):
        if isinstance(layer, nn.MultiheadAttention):
            sample = sample * 3 if len(sample) == 1 else sample
            return functional_call(layer, values, sample)[0].square().sum()
        return functional_call(layer, values, sample).square().sum()

    batched = vmap(grad(loss), (None, *(row.batch_dim for _ in x)))(parameters, *x)
    for i in range(x[0].shape[row.batch_dim]):
        alone = grad(loss)(parameters, *(t.select(row.batch_dim, i) for t in x))
        for name, value in alone.items():
            close(batched[name][i], value, budget=1e-12)


# Of each class one layer, for which torch.compile generates C++; the others are traced alone.
GENERATED = {
    "linear-many-rows", "transposed-linear", "conv1d-same-even", "conv2d-groups",
    "conv3d-groups-same", "transposed2d-groups", "attention-shared-basis",
}  # fmt: skip


@pytest.mark.slow  # and needs a C++ compiler
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo
@every_layer
def test_compiled_agrees_also_after_the_rank_changed(row):
    torch._dynamo.reset()
    dense = row.dense()
    layer = row.low_rank(dense, None)
    backend = "inductor" if row.name.removesuffix("-trained") in GENERATED else "aot_eager"
    compiled = torch.compile(partial(output, layer), fullgraph=True, backend=backend)
    for rank in (None, row.rank):
        layer.load_state_dict(row.low_rank(dense, rank).state_dict())
        x, x_eager = row.x(), row.x()
        layer.zero_grad()
        y = compiled(x)
        y.square().sum().backward()
        got = {name: p.grad.clone() for name, p in layer.named_parameters()}
        layer.zero_grad()
        eager = output(layer, x_eager)
        eager.square().sum().backward()
        close(y, eager, budget=1e-12)
        for name, parameter in layer.named_parameters():
            close(got[name], parameter.grad, budget=1e-12)
        for t, wanted in zip(x, x_eager, strict=True):
            close(t.grad, wanted.grad, budget=1e-12)


@every_layer
def test_shapes_without_values_on_the_meta_device(row):
    dense = row.make()
    layer = row.low_rank(dense.to("meta"), row.rank)
    x = tuple(t.detach().to("meta", torch.float32) for t in row.x())
    assert output(layer, x).shape == output(row.dense(), row.x()).shape
    layer = layer.to_empty(device="cpu").double()
    source = row.low_rank(row.dense(), 2)
    layer.load_state_dict(source.state_dict())
    close(output(layer, row.x()), output(source, row.x()), budget=0.0)


# --- inputs -----------------------------------------------------------------------------------


@every_layer
def test_without_a_batch(row, factored):
    dense = row.dense()
    layer = row.low_rank(dense, None)
    x = tuple(t.select(row.batch_dim, 0) for t in row.x())
    close(output(layer, x), output(dense, x), budget=1e-12)


@every_layer
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(row, factored):
    dense = row.dense()
    layer = row.low_rank(dense, row.rank)
    x = row.x(batch=0)
    y = output(layer, x)
    assert y.shape == output(dense, x).shape
    y.sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


@every_layer
def test_input_in_any_strides(row, factored):
    layer = trained(row)[0]
    x = tuple(t.detach() for t in row.x())
    strided = tuple(t.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in x)
    assert not any(t.is_contiguous() for t in strided)
    plain = tuple(t.requires_grad_() for t in x)
    y, wanted = output(layer, strided), output(layer, plain)
    close(y, wanted, budget=1e-12)
    cotangent = torch.randn(y.mT.shape, generator=generator(5), dtype=y.dtype).mT
    y.backward(cotangent)
    wanted.backward(cotangent.contiguous())
    for t, other in zip(strided, plain, strict=True):
        close(t.grad, other.grad, budget=1e-12)


@every_layer
def test_output_lies_in_memory_as_the_dense_one(row, form):
    dense = row.dense()
    layer = row.low_rank(dense, row.rank)
    assert output(layer, row.x()).stride() == output(dense, row.x()).stride()


@pytest.mark.parametrize(
    "row", [row for row in CONVOLUTIONS if not row.name.startswith("conv1d")], ids=str
)
def test_channels_last_stays_so(row, form):
    # Largest error, in eps: 3.3, of gradients 3.1.
    last = torch.channels_last if len(row.inputs[0]) == 4 else torch.channels_last_3d
    dense = row.dense(torch.float32).to(memory_format=last)
    layer = row.low_rank(dense, None)
    x, x_dense = (
        t.detach().contiguous(memory_format=last).requires_grad_()
        for t in (*row.x(torch.float32), *row.x(torch.float32))
    )
    y, y_dense = layer(x), dense(x_dense)
    close(y, y_dense, budget=10 * 2**-23)
    assert y.is_contiguous(memory_format=last) == y_dense.is_contiguous(memory_format=last)
    y.square().sum().backward()
    y_dense.square().sum().backward()
    close(x.grad, x_dense.grad, budget=10 * 2**-23)
    kept = x_dense.grad.is_contiguous(memory_format=last)
    assert x.grad.is_contiguous(memory_format=last) == kept


# --- what is kept for backward ------------------------------------------------------------------


def frozen(rows: list[Layer]) -> list[Layer]:
    return [row for row in rows if row.bases == "frozen"]


@pytest.mark.parametrize("row", [row for row in SPARING if row not in frozen(SPARING)], ids=str)
def test_trained_bases_keep_what_two_plain_layers_keep(row, factored):
    layer = row.low_rank(row.dense(), row.rank)
    x = row.x()
    pair = _two_layers(layer, layer.rank)
    known = [*layer.parameters(), *pair.parameters(), *x]
    kept = kept_for_backward(lambda: output(layer, x), known)
    wanted = kept_for_backward(lambda: output(pair, x), known)
    if row in CONVOLUTIONS:  # groups copy the filters, padding="same" pads on both sides
        assert wanted <= kept <= 1.1 * wanted + layer.pair.numel()
    else:
        assert kept == wanted
    layer.requires_grad_(False)  # then nothing is kept but for the gradient of the input
    if row not in CONVOLUTIONS:
        assert kept_for_backward(lambda: output(layer, x), known) == 0


def kept_for_backward(function: Callable[[], object], known: list[Tensor]) -> int:
    """Numbers that autograd holds on to, beside tensors that exist anyway."""
    kept: dict[int, int] = {}
    anyway = {t.untyped_storage().data_ptr() for t in known}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in anyway:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.itemsize
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = function()
    assert alive is not None
    return sum(kept.values())


@pytest.mark.parametrize("row", frozen(SPARING), ids=str)
def test_only_the_narrow_activation_is_kept(row, factored):
    layer = row.low_rank(row.dense(), row.rank)
    x = row.x()
    factors = [*layer.parameters(), *layer.buffers()]
    y = output(layer, x)
    channels = y.shape[-1] if row not in CONVOLUTIONS else y.shape[1]
    groups = getattr(layer, "groups", 1)
    narrow = y.numel() // channels * row.rank * groups
    assert kept_for_backward(lambda: output(layer, x), factors) == narrow + _kept_by_padding(
        layer, x[0]
    )


def _kept_by_padding(layer: nn.Module, x: Tensor) -> int:
    """``F.pad`` keeps its input to reflect or to repeat it, under the dense layer too."""
    return x.numel() if getattr(layer, "padding_mode", "") in ("reflect", "replicate") else 0


@pytest.mark.parametrize("row", frozen(ATTENTION), ids=str)
def test_attention_projections_keep_the_narrow_activation(row, factored):
    layer = row.low_rank(row.dense(), row.rank)
    x = row.x()
    qkv = x * 3 if len(x) == 1 else x
    known = [*layer.parameters(), *layer.buffers()]
    shared = row.blocks == 1 and len(x) == 1
    if row.weights == ("k_proj_weight",):
        known += [x[0], x[2]]  # projected by the dense layer's weights
        narrow = qkv[1].shape[:-1].numel() * row.rank
    else:
        inputs = x if shared else qkv
        narrow = sum(t.shape[:-1].numel() * row.rank for t in inputs)
    assert kept_for_backward(lambda: layer._project(*qkv), known) == narrow
