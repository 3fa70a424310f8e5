"""Low-rank attention against torch's own, in every setting and inside torch's larger layers."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import LowRankLinear, LowRankMultiheadAttention, _contraction
from orthotrain.layers._factors import factorize_, low_rank_class_of
from reference.matrices import generator

WIDTH, HEADS, BATCH, QUERIES, KEYS = 8, 2, 3, 4, 5


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def filled(module: nn.Module) -> nn.Module:
    """Float64 with values of its own, so that no bias and no norm is a plain zero or one."""
    module = module.double()
    random = generator(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=p.dtype) / p.shape[-1] ** 0.5)
    return module


def low_rank(dense: nn.Module, *, shared: bool = False) -> nn.Module:
    """A copy with every weight that can be held in factors held so, at full rank."""
    model = copy.deepcopy(dense)
    for module in list(model.modules()):
        low_rank_class = low_rank_class_of(module)
        for name in low_rank_class.weights_of(module) if low_rank_class else ():
            if module._parameters.get(name) is not None:
                layouts = low_rank_class.layouts(module, name)
                layout = layouts[-1] if shared else layouts[0]
                factorize_(module, name, low_rank_class, rank=None, layout=layout)
    return model


def attention(**settings) -> tuple[nn.MultiheadAttention, LowRankMultiheadAttention]:
    dense = filled(nn.MultiheadAttention(WIDTH, HEADS, **settings))
    layer = low_rank(dense)
    assert type(layer) is LowRankMultiheadAttention
    assert type(layer.out_proj) is LowRankLinear
    return dense, layer


def cross_inputs(*, batch_first: bool, kdim: int = WIDTH, vdim: int = WIDTH) -> tuple[Tensor, ...]:
    shapes = ((BATCH, QUERIES, WIDTH), (BATCH, KEYS, kdim), (BATCH, KEYS, vdim))
    inputs = (randn(*shape, seed=i) for i, shape in enumerate(shapes))
    return tuple(x if batch_first else x.transpose(0, 1).contiguous() for x in inputs)


def same(got: Tensor | None, wanted: Tensor | None) -> None:
    assert (got is None) == (wanted is None)
    if got is not None:
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def some_hidden(*shape: int) -> Tensor:
    """A boolean mask that hides about a third, never a whole row."""
    mask = torch.rand(shape, generator=generator(8)) < 0.35
    mask[..., 0] = False
    return mask


def as_float(mask: Tensor) -> Tensor:
    """Hidden entries at minus infinity, the others shifted: the mask is added, not only tested."""
    shifts = randn(*mask.shape, seed=9)
    return shifts.masked_fill(mask, -torch.inf)


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": some_hidden(BATCH, KEYS)},
    "padding-float": {"key_padding_mask": as_float(some_hidden(BATCH, KEYS))},
    "2d": {"attn_mask": some_hidden(QUERIES, KEYS)},
    "2d-float": {"attn_mask": as_float(some_hidden(QUERIES, KEYS))},
    "3d": {"attn_mask": some_hidden(BATCH * HEADS, QUERIES, KEYS)},
    "3d-float": {"attn_mask": as_float(some_hidden(BATCH * HEADS, QUERIES, KEYS))},
    "both": {
        "attn_mask": some_hidden(BATCH * HEADS, QUERIES, KEYS),
        "key_padding_mask": some_hidden(BATCH, KEYS),
    },
    "both-float": {
        "attn_mask": as_float(some_hidden(QUERIES, KEYS)),
        "key_padding_mask": as_float(some_hidden(BATCH, KEYS)),
    },
}
SETTINGS = {
    "plain": {},
    "batch-first": {"batch_first": True},
    "no-bias": {"bias": False, "batch_first": True},
    "extra-tokens": {"add_bias_kv": True, "add_zero_attn": True},
    "zero-token": {"add_zero_attn": True, "batch_first": True},
    "separate": {"kdim": 6, "vdim": 10},
    "separate-extra": {"kdim": 6, "vdim": 10, "add_bias_kv": True, "batch_first": True},
}

every_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
every_mask = pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())


@every_setting
@every_mask
@pytest.mark.parametrize("weights", ["none", "averaged", "per head"])
def test_outputs_and_gradients_are_those_of_torch(setting, masks, weights):
    dense, layer = attention(**setting)
    sizes = {name: setting[name] for name in ("kdim", "vdim") if name in setting}
    inputs = cross_inputs(batch_first=dense.batch_first, **sizes)
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    asked = {"need_weights": weights != "none", "average_attn_weights": weights == "averaged"}
    y, attended = layer(*ours, **masks, **asked)
    y_dense, attended_dense = dense(*theirs, **masks, **asked)
    same(y, y_dense)
    same(attended, attended_dense)
    cotangent = randn(*y.shape, seed=11)
    y.backward(cotangent)
    y_dense.backward(cotangent)
    for got, wanted in zip(ours, theirs, strict=True):
        same(got.grad, wanted.grad)
    for name in ("in_proj_bias", "bias_k", "bias_v"):
        if getattr(dense, name) is not None:
            same(getattr(layer, name).grad, getattr(dense, name).grad)


@every_setting
@pytest.mark.parametrize("weights", [False, True])
def test_without_a_batch(setting, weights):
    dense, layer = attention(**setting)
    sizes = {name: setting[name] for name in ("kdim", "vdim") if name in setting}
    inputs = tuple(x[0] for x in cross_inputs(batch_first=True, **sizes))
    masks = {
        "key_padding_mask": some_hidden(KEYS),
        "attn_mask": some_hidden(HEADS, QUERIES, KEYS),
        "need_weights": weights,
    }
    for got, wanted in zip(layer(*inputs, **masks), dense(*inputs, **masks), strict=True):
        same(got, wanted)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_is_causal(batch_first, weights, padded):
    dense, layer = attention(batch_first=batch_first)
    x = cross_inputs(batch_first=batch_first)[0]
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    asked = {
        "attn_mask": causal,
        "is_causal": True,
        "need_weights": weights,
        "key_padding_mask": as_float(some_hidden(BATCH, QUERIES)) if padded else None,
    }
    for got, wanted in zip(layer(x, x, x, **asked), dense(x, x, x, **asked), strict=True):
        same(got, wanted)


def test_is_causal_reaches_the_kernel(monkeypatch):
    _, layer = attention()
    given = []

    def kernel(q, k, v, mask, dropout, is_causal):
        given.append((mask is None, is_causal))
        return v

    x = randn(QUERIES, BATCH, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    layer(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)
    layer(x, x, x, attn_mask=causal, need_weights=False)
    assert given == [(True, True), (False, False)]


def test_is_causal_with_extra_tokens_leaves_them_open():
    # The kernel would hide the appended keys from every query; the mask says what is meant.
    _, layer = attention(add_bias_kv=True)
    x = randn(QUERIES, BATCH, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    hinted = layer(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)[0]
    same(hinted, layer(x, x, x, attn_mask=causal, need_weights=True)[0])


@every_setting
@pytest.mark.parametrize("weights", [False, True])
def test_dropout_draws_as_torch_does(setting, weights):
    dense, layer = attention(dropout=0.4, **setting)
    sizes = {name: setting[name] for name in ("kdim", "vdim") if name in setting}
    inputs = cross_inputs(batch_first=dense.batch_first, **sizes)
    state = torch.get_rng_state()
    wanted = dense(*inputs, need_weights=weights)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    got = layer(*inputs, need_weights=weights)
    for ours, theirs in zip(got, wanted, strict=True):
        same(ours, theirs)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(got[0], layer(*inputs, need_weights=weights)[0])
    layer.eval()
    same(layer(*inputs)[0], dense.eval()(*inputs)[0])


def test_a_row_that_sees_nothing_is_as_in_torch():
    dense, layer = attention(batch_first=True)
    inputs = cross_inputs(batch_first=True)
    padding = torch.ones(BATCH, KEYS, dtype=torch.bool)
    for weights in (False, True):
        asked = {"key_padding_mask": padding, "need_weights": weights}
        got, wanted = layer(*inputs, **asked)[0], dense(*inputs, **asked)[0]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12, equal_nan=True)


def test_float16_scores_do_not_overflow():
    dense, layer = (m.half() for m in attention(batch_first=True))
    x = 150 * torch.ones(1, 2, WIDTH, dtype=torch.float16)
    with torch.no_grad():
        for m in (dense, layer):
            m.in_proj_bias.zero_()
        dense.in_proj_weight.copy_(torch.eye(WIDTH).repeat(3, 1))
    layer = low_rank(dense)
    got, wanted = layer(x, x, x)[0], dense(x, x, x)[0]  # 150^2 * 4 = 90000 before scaling
    assert wanted.isfinite().all()
    torch.testing.assert_close(got, wanted, rtol=2**-8, atol=0.5)


def test_one_basis_is_applied_once_in_self_attention(monkeypatch):
    for batch_first in (False, True):
        layer = low_rank(
            filled(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)), shared=True
        )
        calls = []
        apply = _contraction.low_rank_linear

        def counted(x, *args, apply=apply, calls=calls):
            calls.append(x)
            return apply(x, *args)

        monkeypatch.setattr("orthotrain.layers.low_rank_attention.low_rank_linear", counted)
        x = randn(BATCH, QUERIES, WIDTH)
        layer(x, x, x)
        assert len(calls) == 1
        assert calls[0] is x  # nor is the input copied into another layout


def test_resetting_draws_inside_the_basis():
    _, layer = attention(add_bias_kv=True)
    before = layer.in_proj_core.detach().clone()
    state = torch.get_rng_state()
    layer._reset_parameters()
    torch.set_rng_state(state)
    fresh = nn.init.xavier_uniform_(torch.empty(3 * WIDTH, WIDTH, dtype=torch.float64))
    assert not torch.equal(layer.in_proj_core, before)
    same(layer.in_proj_weight, fresh)  # at full rank the basis holds all of it
    assert not layer.in_proj_bias.any()
    assert not layer.out_proj.bias.any()


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "masks",
    [
        {"attn_mask": torch.zeros(QUERIES, KEYS + 1)},
        {"attn_mask": torch.zeros(QUERIES, KEYS - 1)},
        {"attn_mask": torch.zeros(QUERIES + 1, KEYS)},
        {"attn_mask": torch.zeros(BATCH, QUERIES, KEYS)},
        {"attn_mask": torch.zeros(BATCH, HEADS, QUERIES, KEYS)},
        {"key_padding_mask": torch.zeros(BATCH, KEYS - 1)},
        {"key_padding_mask": torch.zeros(BATCH, KEYS + 1)},
        {"key_padding_mask": torch.zeros(KEYS, BATCH)},
        {"key_padding_mask": torch.zeros(KEYS)},
    ],
    ids=lambda masks: str([tuple(m.shape) for m in masks.values()]),
)
@pytest.mark.parametrize("extra", [False, True], ids=["", "extra-tokens"])
def test_a_mask_of_another_shape_is_refused_where_torch_refuses_it(masks, extra):
    dense, layer = attention(add_bias_kv=extra)
    inputs = cross_inputs(batch_first=False)
    with pytest.raises((RuntimeError, AssertionError)):
        dense(*inputs, **masks)
    with pytest.raises(ShapeError, match=r"needs shape .* got"):
        layer(*inputs, **masks)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_an_integer_mask_is_refused(name):
    dense, layer = attention()
    shape = (QUERIES, KEYS) if name == "attn_mask" else (BATCH, KEYS)
    mask = {name: torch.zeros(shape, dtype=torch.uint8)}
    with pytest.raises(AssertionError):
        dense(*cross_inputs(batch_first=False), **mask)
    with pytest.raises(ConfigError, match=rf"{name} boolean.*convert it with .bool"):
        layer(*cross_inputs(batch_first=False), **mask)


@pytest.mark.bad_input
def test_is_causal_without_a_mask_is_refused_as_in_torch():
    dense, layer = attention()
    x = randn(QUERIES, BATCH, WIDTH)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        dense(x, x, x, is_causal=True)
    with pytest.raises(ConfigError, match="generate_square_subsequent_mask"):
        layer(x, x, x, is_causal=True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 3, 8), (5, 3, 8), (6, 3, 8)), "the same length"),
        (((4, 3, 8), (5, 2, 8), (5, 2, 8)), "the same batch size"),
        (((4, 1, 8), (5, 2, 8), (5, 2, 8)), "the same batch size"),
        (((4, 3, 8), (5, 8), (5, 8)), "all 3-D"),
        (((8,), (8,), (8,)), "all 3-D"),
        (((4, 3, 7), (5, 3, 8), (5, 3, 8)), r"shape \(..., 8\), got \(4, 3, 7\)"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused_as_in_torch(shapes, message):
    dense, layer = attention()
    inputs = [randn(*shape) for shape in shapes]
    with pytest.raises((RuntimeError, AssertionError, ValueError, IndexError)):
        dense(*inputs)
    with pytest.raises(ShapeError, match=message):
        layer(*inputs)


# --- inside torch's transformer layers ----------------------------------------------------------


def encoder_layer(**settings) -> nn.TransformerEncoderLayer:
    return filled(nn.TransformerEncoderLayer(WIDTH, HEADS, 12, **({"dropout": 0.0} | settings)))


CAUSAL = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
ENCODER_MASKS = {
    "none": {},
    "padding": {"src_key_padding_mask": some_hidden(BATCH, QUERIES)},
    "2d": {"src_mask": some_hidden(QUERIES, QUERIES)},
    "3d": {"src_mask": some_hidden(BATCH * HEADS, QUERIES, QUERIES)},
    "causal": {"src_mask": CAUSAL, "is_causal": True},
}


@pytest.mark.parametrize("masks", ENCODER_MASKS.values(), ids=ENCODER_MASKS.keys())
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch-first"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["", "norm-first"])
def test_encoder_layer_in_training_and_evaluation(masks, batch_first, norm_first):
    dense = encoder_layer(batch_first=batch_first, norm_first=norm_first)
    layer = low_rank(dense)
    x = cross_inputs(batch_first=batch_first)[0]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, y_dense = layer(ours, **masks), dense(theirs, **masks)
    same(y, y_dense)
    y.square().sum().backward()
    y_dense.square().sum().backward()
    same(ours.grad, theirs.grad)
    layer.eval()
    dense.eval()
    slow = layer(x, **masks)  # gradients on: torch's slow path
    same(slow.detach(), y.detach())
    with torch.no_grad():  # batch first: torch's fast path, which reads weights by name
        same(layer(x, **masks), dense(x, **masks))
        if "src_key_padding_mask" not in masks:  # the fast path leaves padded rows at will
            same(layer(x, **masks), slow.detach())


def test_encoder_layer_takes_the_fast_path(monkeypatch):
    layer = low_rank(encoder_layer(batch_first=True)).eval()
    taken = []
    fast = torch._transformer_encoder_layer_fwd

    def spy(*args):
        taken.append(True)
        return fast(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", spy)
    # A run of another test that ended while it watched attention may not be collected yet.
    gc.collect()
    with torch.no_grad():
        layer(randn(BATCH, QUERIES, WIDTH))
    assert taken


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("grad", [False, True])
def test_encoder_stack_with_padding_also_as_nested_tensors(grad):
    stack = filled(nn.TransformerEncoder(encoder_layer(batch_first=True), 2)).eval()
    layer = low_rank(stack)
    padding = torch.arange(QUERIES) >= torch.tensor([[4], [2], [3]])
    x = randn(BATCH, QUERIES, WIDTH)
    with torch.set_grad_enabled(grad):
        got = layer(x, src_key_padding_mask=padding)
        wanted = stack(x, src_key_padding_mask=padding)
    same(got.detach()[~padding], wanted.detach()[~padding])


@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch-first"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["", "norm-first"])
def test_decoder_layer(batch_first, norm_first):
    dense = filled(
        nn.TransformerDecoderLayer(
            WIDTH, HEADS, 12, dropout=0.0, batch_first=batch_first, norm_first=norm_first
        )
    )
    layer = low_rank(dense)
    x, memory, _ = cross_inputs(batch_first=batch_first)
    masks = {
        "tgt_mask": CAUSAL,
        "tgt_is_causal": True,
        "memory_mask": some_hidden(QUERIES, KEYS),
        "memory_key_padding_mask": some_hidden(BATCH, KEYS),
    }
    ours, theirs = memory.clone().requires_grad_(), memory.clone().requires_grad_()
    y, y_dense = layer(x, ours, **masks), dense(x, theirs, **masks)
    same(y, y_dense)
    y.square().sum().backward()
    y_dense.square().sum().backward()
    same(ours.grad, theirs.grad)
    with torch.no_grad():
        same(layer.eval()(x, memory, **masks), dense.eval()(x, memory, **masks))


def test_dropout_inside_an_encoder_layer_is_drawn_as_in_torch():
    dense = encoder_layer(batch_first=True, dropout=0.3)
    layer = low_rank(dense)
    x = randn(BATCH, QUERIES, WIDTH)
    state = torch.get_rng_state()
    wanted = dense(x)
    torch.set_rng_state(state)
    same(layer(x), wanted)
