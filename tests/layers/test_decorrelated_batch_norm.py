"""Whitening: against a float64 twin, against torch's batch norm, and what bad input gets."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from orthotrain.errors import (
    ConfigError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from orthotrain.layers import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
)
from reference.matrices import from_spectrum, generator, log_spectrum
from reference.whitening import Whitening, covariance, samples_of

PLAIN, LAST = torch.contiguous_format, torch.channels_last
# Shape, group size, and whether the memory holds sample after sample.
CASES = [
    pytest.param(DecorrelatedBatchNorm1d, (20, 6), 3, False, id="1d-flat"),
    pytest.param(DecorrelatedBatchNorm1d, (20, 6), 6, False, id="1d-flat-one-group"),
    pytest.param(DecorrelatedBatchNorm1d, (5, 6, 7), 2, False, id="1d-places"),
    pytest.param(DecorrelatedBatchNorm1d, (5, 6, 7), 6, True, id="1d-places-last"),
    pytest.param(DecorrelatedBatchNorm2d, (4, 6, 3, 5), 3, False, id="2d"),
    pytest.param(DecorrelatedBatchNorm2d, (4, 6, 3, 5), 6, False, id="2d-one-group"),
    pytest.param(DecorrelatedBatchNorm2d, (4, 6, 3, 5), 3, True, id="2d-last"),
    pytest.param(DecorrelatedBatchNorm2d, (4, 6, 3, 5), 1, True, id="2d-last-single"),
    pytest.param(DecorrelatedBatchNorm2d, (11, 6, 2, 1), 3, False, id="2d-few-places"),
    pytest.param(DecorrelatedBatchNorm3d, (3, 4, 2, 3, 2), 2, False, id="3d"),
    pytest.param(DecorrelatedBatchNorm3d, (3, 4, 2, 3, 2), 4, True, id="3d-last"),
]
every_case = pytest.mark.parametrize(("kind", "shape", "size", "last"), CASES)


def batch(shape, *, seed=0, last=False, dtype=torch.float64, mean=1.0):
    """Correlated channels with means of their own."""
    channels = shape[1]
    random = generator(seed)
    rows = torch.randn(shape[0], *shape[2:], channels, generator=random, dtype=torch.float64)
    mixing = torch.randn(channels, channels, generator=random, dtype=torch.float64)
    offset = mean * torch.randn(channels, generator=random, dtype=torch.float64)
    x = (rows @ mixing + offset).movedim(-1, 1).to(dtype)
    return x if last else x.contiguous()


def pair(kind, channels, size, *, momentum=0.1, ridge=1e-2):
    """A layer and its twin with the same random weight and bias."""
    layer = kind(channels, group_size=size, ridge=ridge, momentum=momentum, dtype=torch.float64)
    twin = Whitening(channels, size, ridge, momentum)
    twin.weight = torch.randn(channels, generator=generator(5), dtype=torch.float64)
    twin.bias = torch.randn(channels, generator=generator(6), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(twin.weight)
        layer.bias.copy_(twin.bias)
    return layer, twin


def batch_norm_of(kind):
    return {
        DecorrelatedBatchNorm1d: nn.BatchNorm1d,
        DecorrelatedBatchNorm2d: nn.BatchNorm2d,
        DecorrelatedBatchNorm3d: nn.BatchNorm3d,
    }[kind]


# --- the formula ----------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("momentum", [0.1, 0.7, None], ids=str)
def test_agrees_with_the_twin(kind, shape, size, last, momentum):
    layer, twin = pair(kind, shape[1], size, momentum=momentum)
    for step in range(3):
        x = batch(shape, seed=step, last=last)
        torch.testing.assert_close(layer(x), twin.train(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(layer.running_mean, twin.running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        layer.running_covariance, twin.running_covariance, rtol=0, atol=1e-12
    )
    x = batch(shape, seed=7, last=last)
    torch.testing.assert_close(layer.eval()(x), twin.evaluate(x), rtol=0, atol=1e-11)
    assert int(layer.num_batches_tracked) == 3


def test_a_ridge_leaves_small_directions_small():
    layer = DecorrelatedBatchNorm1d(6, ridge=0.1, affine=False)
    x = from_spectrum(log_spectrum(6, 1e3), 50, 6)
    variances = torch.linalg.eigvalsh(covariance(x)[1])
    whitened = torch.linalg.eigvalsh(covariance(layer(x))[1])
    torch.testing.assert_close(whitened, variances / (variances + 0.1), rtol=0, atol=1e-12)


def test_scale_is_removed_where_the_ridge_scales_with_it():
    x = batch((30, 6))
    small, large = (DecorrelatedBatchNorm1d(6, ridge=r) for r in (1e-3, 1e-3 * 64))
    torch.testing.assert_close(large(8 * x), small(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "groups"),
    [({}, 1), ({"groups": 3}, 3), ({"group_size": 2}, 3), ({"group_size": 6}, 1)],
    ids=str,
)
def test_groups_or_group_size(settings, groups):
    layer = DecorrelatedBatchNorm2d(6, **settings)
    assert (layer.groups, layer.group_size) == (groups, 6 // groups)
    assert layer.running_covariance.shape == (groups, 6 // groups, 6 // groups)


@every_case
def test_covariance_is_what_enters_the_root(kind, shape, size, last):
    layer = kind(shape[1], group_size=size, ridge=0.3, dtype=torch.float64)
    before = copy.deepcopy(layer.state_dict())
    x = batch(shape, last=last).requires_grad_()
    p = layer.covariance(x)
    for g, start in enumerate(range(0, shape[1], size)):
        expected = covariance(samples_of(x)[:, start : start + size])[1]
        torch.testing.assert_close(p[g], expected, rtol=0, atol=1e-12)
    assert torch.equal(p, p.mT)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert gradcheck(layer.covariance, (x,), fast_mode=True)


# --- torch's batch norm is the case of one channel a group ----------------------------------------


@every_case
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": None},
        {"momentum": 1.0, "affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
    ],
    ids=str,
)
def test_one_channel_a_group_is_batch_norm(kind, shape, size, last, settings):
    del size
    affine, tracked = (settings.get(name, True) for name in ("affine", "track_running_stats"))
    norm = batch_norm_of(kind)(shape[1], eps=1e-3, dtype=torch.float64, **settings)
    layer = kind(shape[1], group_size=1, dtype=torch.float64, **settings)
    if affine:
        with torch.no_grad():
            for one, two in zip(norm.parameters(), layer.parameters(), strict=True):
                one.copy_(torch.randn(shape[1], generator=generator(4), dtype=torch.float64))
                two.copy_(one)
    optimizers = [torch.optim.SGD([*m.parameters()], lr=0.1) for m in (norm, layer) if affine]
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    for step in range(4):
        training = step != 2
        norm.train(training), layer.train(training)
        x, also_x = (batch(shape, seed=step, last=last, mean=9.0).requires_grad_() for _ in "ab")
        weights = batch(shape, seed=20 + step)
        one, two = norm(x), layer(also_x)
        close(two, one)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (one * weights).sum().backward()
        (two * weights).sum().backward()
        close(also_x.grad, x.grad)
        for theirs, ours in zip(norm.parameters(), layer.parameters(), strict=True):
            close(ours.grad, theirs.grad)
        for optimizer in optimizers:
            optimizer.step()
        if tracked:
            close(layer.running_mean, norm.running_mean)
            close(layer.running_covariance.flatten(), norm.running_var)
            assert torch.equal(layer.num_batches_tracked, norm.num_batches_tracked)


def test_a_large_mean_costs_its_own_rounding_as_in_batch_norm():
    """Second moments that are not centred would lose everything here: 1e4 ** 2 in float32."""
    x = batch((16, 4, 8, 8), mean=1e4).float()
    rounding = float(x.abs().max()) * torch.finfo(torch.float32).eps
    norm, single = nn.BatchNorm2d(4, eps=1e-3), DecorrelatedBatchNorm2d(4, group_size=1)
    exact = DecorrelatedBatchNorm2d(4, group_size=1)(x.double())
    for layer in (norm, single):
        assert (layer(x).double() - exact).abs().max() < rounding
    whole = DecorrelatedBatchNorm2d(4, dtype=torch.float64)
    expected = whole.covariance(x.double())
    torch.testing.assert_close(whole.covariance(x).double(), expected, rtol=1e-5, atol=1e-5)


# --- derivatives ----------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivative(kind, shape, size, last, training):
    layer, _ = pair(kind, shape[1], size)
    layer(batch(shape, seed=3))
    layer.train(training)

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (batch(shape, last=last).requires_grad_(), layer.weight, layer.bias)
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


def test_derivative_entry_by_entry():
    layer, _ = pair(DecorrelatedBatchNorm2d, 4, 4)
    assert gradcheck(layer, (batch((3, 4, 2, 2)).requires_grad_(),))


def test_derivative_where_eigenvalues_repeat():
    """Eight channels of two inputs: six directions without variance, as behind every wide stem."""
    weight = torch.randn(8, 2, generator=generator(0), dtype=torch.float64).requires_grad_()
    x = torch.randn(40, 2, generator=generator(1), dtype=torch.float64)
    target = torch.randn(40, 8, generator=generator(2), dtype=torch.float64)
    layer = DecorrelatedBatchNorm1d(8, ridge=1e-2)

    def loss(w):
        return (layer(x @ w.mT) * target).sum()

    assert gradcheck(loss, (weight,))
    loss(weight).backward()
    assert torch.isfinite(weight.grad).all()
    # And in float32, where the six are a little off zero and off each other.
    single = weight.detach().float().requires_grad_()
    (layer(x.float() @ single.mT) * target.float()).sum().backward()
    torch.testing.assert_close(single.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)


def test_gradient_is_orthogonal_to_what_whitening_removes():
    """Without a ridge ``y`` is the polar factor of the centred input, ``x = y h``.

    So neither a constant nor a symmetric change of ``h`` can change it.
    """
    layer = DecorrelatedBatchNorm1d(4, ridge=0.0)
    x = batch((30, 4)).requires_grad_()
    y = layer(x)
    (y * batch((30, 4), seed=8)).sum().backward()
    assert x.grad.abs().max() > 0.1
    assert x.grad.sum(0).abs().max() < 1e-11
    along = y.detach().mT @ x.grad
    assert (along + along.mT).abs().max() < 1e-11


def test_keeps_one_activation_for_backward():
    layer = DecorrelatedBatchNorm2d(8, groups=2)
    for x in (batch((16, 8, 12, 12)).float(), batch((16, 8, 12, 12), last=True).float()):
        kept = {}

        def note(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            layer(x.requires_grad_())
        assert sum(kept.values()) < 1.1 * x.untyped_storage().nbytes()


# --- running statistics ---------------------------------------------------------------------------


def test_resume_is_the_same_bit_for_bit():
    def fresh():
        torch_layers = nn.Conv2d(3, 8, 3), DecorrelatedBatchNorm2d(8, groups=2), nn.ReLU()
        model = nn.Sequential(*torch_layers)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(model, optimizer, seed):
        optimizer.zero_grad()
        model(batch((4, 3, 8, 8), seed=seed, dtype=torch.float32)).square().sum().backward()
        optimizer.step()

    model, optimizer = fresh()
    for seed in range(3):
        step(model, optimizer, seed)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other, its_optimizer = fresh()
    other.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    for seed in range(3, 5):
        step(model, optimizer, seed)
        step(other, its_optimizer, seed)
    for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_evaluation_whitens_what_it_has_seen():
    layer = DecorrelatedBatchNorm1d(6, momentum=None, ridge=1e-6)
    samples = batch((4096, 6))
    for part in samples.split(128):
        layer(part)
    p = covariance(layer.eval()(samples))[1]
    torch.testing.assert_close(p, torch.eye(6, dtype=p.dtype), rtol=0, atol=0.01)


def test_without_running_statistics_evaluation_uses_its_batch():
    layer = DecorrelatedBatchNorm2d(6, track_running_stats=False)
    assert dict(layer.named_buffers()) == {}
    x = batch((4, 6, 3, 3))
    assert torch.equal(layer.eval()(x), layer.train()(x))


def test_evaluation_before_training_takes_zero_mean_and_unit_covariance():
    x = batch((4, 6, 3, 3))
    y = DecorrelatedBatchNorm2d(6, ridge=0.0, dtype=torch.float64).eval()(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)


def test_reset():
    layer, _ = pair(DecorrelatedBatchNorm2d, 6, 3)
    layer(batch((4, 6, 3, 3)))
    layer.reset_running_stats()
    assert torch.equal(layer.running_covariance, torch.eye(3, dtype=torch.float64).repeat(2, 1, 1))
    assert not layer.running_mean.any()
    assert not layer.num_batches_tracked
    assert not torch.equal(layer.weight, torch.ones(6, dtype=torch.float64))
    layer.reset_parameters()
    assert torch.equal(layer.weight, torch.ones(6, dtype=torch.float64))
    assert not layer.bias.any()


def test_affine_false_holds_no_parameters():
    layer = DecorrelatedBatchNorm2d(6, affine=False)
    assert (layer.weight, layer.bias) == (None, None)
    assert list(layer.state_dict()) == ["running_mean", "running_covariance", "num_batches_tracked"]
    torch.testing.assert_close(
        layer(batch((4, 6, 3, 3))), DecorrelatedBatchNorm2d(6)(batch((4, 6, 3, 3)))
    )


# --- dtype, device, memory ------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_memory_format_is_kept(kind, shape, size, last, training):
    layer = kind(shape[1], group_size=size).train(training)
    x = batch(shape, last=last)
    assert layer(x).stride() == x.stride()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_input_dtype_is_kept_and_statistics_are_in_float32_at_least(dtype, training):
    layer = DecorrelatedBatchNorm2d(6, groups=2)
    layer(batch((8, 6, 4, 4), dtype=torch.float32))
    exact = copy.deepcopy(layer).double()
    x = batch((8, 6, 4, 4), dtype=dtype).requires_grad_()
    y = layer.train(training)(x)
    assert y.dtype == dtype
    expected = exact.train(training)(x.detach().double())
    # One rounding to the dtype of an output, entries below 4; and float32 in between.
    budget = 4 * torch.finfo(dtype).eps + (0 if dtype == torch.float64 else 1e-5)
    if dtype == torch.float64:
        budget = 1e-6  # the running statistics are float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=budget)
    y.sum().backward()
    assert x.grad.dtype == dtype
    assert layer.covariance(x).dtype == torch.promote_types(dtype, torch.float32)
    assert layer.running_covariance.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_changes_nothing(training):
    layer = DecorrelatedBatchNorm2d(6).train(training)
    x = batch((8, 6, 4, 4), dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = layer(x)
        assert layer.covariance(x).dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_have_the_dtype_and_device_asked_for(dtype, device):
    layer = DecorrelatedBatchNorm2d(6, dtype=dtype, device=device)
    for name, value in layer.state_dict().items():
        assert value.device.type == device
        assert value.dtype == (torch.int64 if name == "num_batches_tracked" else dtype)


def test_repr_shows_the_settings_that_were_chosen():
    chosen = {"groups": 2, "momentum": None, "method": "mpa", "gradient": "lyapunov"}
    text = repr(DecorrelatedBatchNorm2d(6, ridge=1e-2, synchronize=True, **chosen))
    for name, value in (chosen | {"ridge": 0.01, "synchronize": True}).items():
        assert f"{name}={value!r}" in text
    assert "method" not in repr(DecorrelatedBatchNorm2d(6))


@pytest.mark.parametrize(
    "settings",
    [{"method": "newton_schulz", "iterations": 30}, {"method": "polar_express", "iterations": 20}],
    ids=str,
)
def test_settings_of_the_root_reach_it(settings):
    x = batch((40, 4))
    layer = DecorrelatedBatchNorm1d(4, ridge=0.5, **settings)
    torch.testing.assert_close(
        layer(x), DecorrelatedBatchNorm1d(4, ridge=0.5)(x), rtol=0, atol=1e-6
    )


def test_shared_statistics_of_one_process_are_its_own():
    x = batch((4, 6, 3, 3))
    shared = DecorrelatedBatchNorm2d(6, synchronize=True)
    assert torch.equal(shared(x), DecorrelatedBatchNorm2d(6)(x))


# --- what bad input gets --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_non_finite_input_names_the_layer_and_leaves_the_statistics(bad):
    layer = DecorrelatedBatchNorm2d(6, groups=2)
    layer(batch((4, 6, 3, 3)))
    before = copy.deepcopy(layer.state_dict())
    x = batch((4, 6, 3, 3))
    x[1, 2, 0, 0] = bad
    with pytest.raises(
        NonFiniteError, match=r"DecorrelatedBatchNorm2d\(6\) cannot take .* needs .* got .*"
    ):
        layer(x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_evaluation_passes_non_finite_input_on_as_batch_norm_does():
    x = batch((4, 6, 3, 3))
    x[1, 2, 0, 0] = math.nan
    y = DecorrelatedBatchNorm2d(6, groups=2).eval()(x)
    # Of that place and the channels of its group.
    assert y.isnan().sum() == 3
    assert y[1, :3, 0, 0].isnan().all()


def test_one_value_per_channel_in_training():
    x = batch((1, 6))
    for layer in (DecorrelatedBatchNorm1d(6), DecorrelatedBatchNorm1d(6, group_size=1)):
        with pytest.raises(ShapeError, match="more than one value per channel") as caught:
            layer(x)
        assert "(1, 6)" in str(caught.value)
        assert int(layer.num_batches_tracked) == 0
    assert DecorrelatedBatchNorm1d(6).eval()(x).shape == (1, 6)
    assert DecorrelatedBatchNorm2d(6)(batch((1, 6, 2, 1))).shape == (1, 6, 2, 1)
    with pytest.raises(ShapeError, match="more than one value per channel"):
        DecorrelatedBatchNorm1d(6, track_running_stats=False).eval()(x)


@pytest.mark.parametrize("shape", [(0, 6, 3, 3), (2, 6, 0, 3)], ids=str)
def test_empty_batch(shape):
    for layer in (DecorrelatedBatchNorm2d(6), DecorrelatedBatchNorm2d(6, groups=3)):
        with pytest.raises(ShapeError, match="more than one value per channel"):
            layer(torch.zeros(shape))
        assert int(layer.num_batches_tracked) == 0
        assert layer.eval()(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("samples", [2, 5, 6])
def test_fewer_samples_than_channels_need_a_ridge(samples):
    x = batch((samples, 6))
    layer = DecorrelatedBatchNorm1d(6, ridge=0.0)
    with pytest.raises(ShapeError, match=f"ridge is 0, got {samples} samples of 6 channels"):
        layer(x)
    assert torch.isfinite(DecorrelatedBatchNorm1d(6)(x)).all()
    assert torch.isfinite(layer(batch((7, 6)))).all()
    # Groups of one need two samples only, as in batch norm.
    assert torch.isfinite(DecorrelatedBatchNorm1d(6, ridge=0.0, group_size=1)(x)).all()


def test_a_direction_without_variance_needs_a_ridge():
    x = batch((40, 6))
    x[:, 3] = x[:, 1] - 2 * x[:, 2]
    layer = DecorrelatedBatchNorm1d(6, ridge=0.0)
    with pytest.raises(NotPositiveDefiniteError, match=r"DecorrelatedBatchNorm1d\(6\).*ridge"):
        layer(x)
    constant = torch.ones(40, 6, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match="ridge"):
        layer(constant)
    assert not DecorrelatedBatchNorm1d(6)(constant).any()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (DecorrelatedBatchNorm1d, (6,)),
        (DecorrelatedBatchNorm1d, (4, 6, 2, 2)),
        (DecorrelatedBatchNorm1d, (4, 5)),
        (DecorrelatedBatchNorm2d, (4, 6, 2)),
        (DecorrelatedBatchNorm2d, (4, 2, 2, 6)),
        (DecorrelatedBatchNorm3d, (4, 6, 2, 2)),
    ],
)
def test_wrong_shape(kind, shape):
    for layer in (kind(6), kind(6).eval()):
        for call in (layer, layer.covariance):
            with pytest.raises(ShapeError) as caught:
                call(torch.zeros(shape))
            assert f"{kind.__name__}(6) needs x of shape (n, c" in str(caught.value)
            assert f"got {shape}" in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(ConfigError, match=str(dtype)):
        DecorrelatedBatchNorm1d(6)(torch.zeros(4, 6, dtype=dtype))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 4}, r"groups=4; choose a divisor of 6"),
        ({"group_size": 4}, r"group_size=4; choose a divisor of 6"),
        ({"group_size": 7}, r"group_size=7"),
        ({"groups": 0}, "groups=0"),
        ({"group_size": -2}, "group_size=-2"),
        ({"groups": 2, "group_size": 3}, "both"),
        ({"ridge": -1e-3}, "ridge"),
        ({"ridge": math.nan}, "ridge"),
        ({"ridge": math.inf}, "ridge"),
        ({"ridge": "a"}, "ridge to be a number, got 'a'"),
        ({"ridge": None}, "ridge to be a number, got None"),
        ({"momentum": 1.5}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": "a"}, "momentum to be a number or None, got 'a'"),
        ({"method": "bogus"}, "method to be one of auto, eigh, .*got 'bogus'"),
        ({"gradient": "bogus"}, "gradient to be one of exact, lyapunov, .*got 'bogus'"),
        ({"gradient": "newton_schulz"}, "method='newton_schulz' for gradient"),
        ({"iterations": 3}, "iterations=3 with method='auto'"),
        ({"iterations": 1.5, "method": "newton_schulz"}, "iterations to be a whole number"),
    ],
    ids=str,
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        DecorrelatedBatchNorm2d(6, **settings)
    assert str(caught.value).startswith("DecorrelatedBatchNorm2d")


@pytest.mark.bad_input
def test_no_channels():
    with pytest.raises(ConfigError, match="at least one channel"):
        DecorrelatedBatchNorm2d(0)
