"""What every metric that calls a generator must keep: one table, one suite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from disentangle.generators import Normed, constant, disjoint, linear
from orthotrain.disentangle import (
    ClassifierBudget,
    activeness,
    path_length,
    pixel_features,
    random_features,
    rotated,
    traversals,
    variation_predictability,
)
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError

TINY = ClassifierBudget(pairs=48, epochs=1, width=2, train_fraction=0.5, validation_fraction=0.2)
# Enough for accuracies between chance and all, so that a change of the pairs shows in them.
TELLING = ClassifierBudget(
    pairs=90, epochs=4, batch_size=8, width=4, train_fraction=0.4, validation_fraction=0.2
)


@dataclass(frozen=True)
class Metric:
    """``call(generate, latent_dim, **settings)``, and its result as numbers to be compared."""

    name: str
    call: Callable[..., Any]
    numbers: Callable[[Any], torch.Tensor]
    telling: dict[str, Any] = field(default_factory=dict)  # where numbers are to be compared

    def __str__(self) -> str:
        return self.name


METRICS = (
    Metric("activeness", functools.partial(activeness, samples=40), lambda x: x),
    Metric("traversals", traversals, lambda x: x),
    Metric(
        "variation_predictability",
        functools.partial(variation_predictability, budget=TINY),
        lambda x: torch.tensor(x.accuracies),
        {"budget": TELLING},
    ),
    Metric(
        "path_length",
        functools.partial(path_length, space=pixel_features(), samples=100),
        lambda x: torch.tensor([x.mean, x.spread]),
    ),
)

every_metric = pytest.mark.parametrize("metric", METRICS, ids=str)


@every_metric
def test_same_seed_same_numbers_another_seed_others(metric: Metric):
    model = Normed()
    first, again, other = (
        metric.numbers(metric.call(model, 3, seed=seed, **metric.telling)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_metric
def test_random_state_is_not_touched(metric: Metric):
    before = torch.get_rng_state()
    metric.call(disjoint, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# Training would make much of the rounding that a batch size decides: VP has a test of its own.
@pytest.mark.parametrize("metric", [m for m in METRICS if not m.telling], ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(metric: Metric, batch_size: int):
    model = linear()
    expected = metric.numbers(metric.call(model, 3, seed=0, value_range="any"))
    found = metric.numbers(metric.call(model, 3, seed=0, value_range="any", batch_size=batch_size))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@every_metric
def test_batches_are_no_larger_than_asked_and_carry_no_gradient(metric: Metric):
    sizes = []

    def watched(z):
        sizes.append(len(z))
        assert not torch.is_grad_enabled()
        return disjoint(z)

    metric.call(watched, 3, seed=0, batch_size=5)
    assert max(sizes) == 5


@pytest.mark.parametrize("metric", [METRICS[0], METRICS[3]], ids=str)
def test_every_row_of_a_batch_meets_the_same_nuisance(metric: Metric):
    """A noise input that is fixed by place in the batch."""
    random = torch.Generator().manual_seed(5)
    nuisance = 10 * torch.randn(64, 1, 4, 4, generator=random, dtype=torch.float64)
    model = linear().requires_grad_(False)

    def noisy(z):
        return model(z.double()) + nuisance[: len(z)]

    clean = metric.numbers(metric.call(lambda z: model(z.double()), 3, seed=0, value_range="any"))
    found = metric.numbers(metric.call(noisy, 3, seed=0, value_range="any"))
    torch.testing.assert_close(found, clean, rtol=1e-9, atol=1e-9)


@every_metric
def test_modes_of_a_module_are_restored(metric: Metric):
    model = Normed()
    model.drop.eval()
    modes = [part.training for part in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    metric.call(model, 3, seed=0)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    expected = metric.numbers(metric.call(model, 3, seed=0))

    @functools.wraps(model)
    def wrapped(z):
        return model(z)

    for other in (model.forward, wrapped, rotated(model, torch.eye(3))):
        found = metric.numbers(metric.call(other, 3, seed=0))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert [part.training for part in model.modules()] == modes


@every_metric
def test_a_callable_object_is_no_wrapper_for_what_it_names_alike(metric: Metric):
    class Sampler:
        def generate(self, z):
            return disjoint(z)

        def __call__(self, z):
            return self.generate(z)

    expected = metric.numbers(metric.call(disjoint, 3, seed=0))
    for callable_ in (Sampler(), Sampler().generate):
        assert torch.equal(metric.numbers(metric.call(callable_, 3, seed=0)), expected)


@every_metric
def test_modes_are_restored_after_an_error(metric: Metric):
    class Broken(nn.Module):
        def forward(self, z):
            assert not self.training
            raise ZeroDivisionError

    model = Broken()
    with pytest.raises(ZeroDivisionError):
        metric.call(model, 3, seed=0)
    assert model.training


@every_metric
def test_modules_get_their_own_dtype_and_callables_float32(metric: Metric):
    seen = []

    def plain(z):
        seen.append((z.dtype, z.device.type))
        return disjoint(z)

    metric.call(plain, 3, seed=0)
    assert set(seen) == {(torch.float32, "cpu")}
    model = linear(dtype=torch.float64)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    seen.clear()
    metric.call(model, 3, seed=0, value_range="any")
    assert set(seen) == {torch.float64}


@every_metric
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(metric: Metric, channels: int):
    result = metric.call(lambda z: disjoint(z).expand(-1, channels, -1, -1), 3, seed=0)
    assert torch.isfinite(metric.numbers(result)).all()


@every_metric
def test_unit_images_count_as_the_signed_ones_they_stand_for(metric: Metric):
    def coarse(z):
        # Multiples of 1/64, so that scaling them is exact.
        return (disjoint(z) * 64).round() / 64

    as_signed = metric.numbers(metric.call(coarse, 3, seed=0, **metric.telling))
    as_unit = metric.numbers(
        metric.call(lambda z: (coarse(z) + 1) / 2, 3, seed=0, value_range="unit", **metric.telling)
    )
    torch.testing.assert_close(as_unit, as_signed, rtol=0, atol=0)


# --- what bad input gets --------------------------------------------------------------------------


@every_metric
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda z: disjoint(z)[:, 0], ShapeError, r"\(n, c, h, w\).*got \(\d+, 12, 12\)"),
        (lambda z: disjoint(z).flatten(1), ShapeError, "view its output as images"),
        (lambda z: disjoint(z)[:-1], ShapeError, "with n = "),
        (lambda z: disjoint(z)[:, :0], ShapeError, "from generate"),
        (lambda z: disjoint(z) * torch.nan, NonFiniteError, "finite images"),
        (lambda z: disjoint(z) / 0, NonFiniteError, "finite images"),
        (lambda z: [disjoint(z)], ConfigError, "got list"),
        (lambda z: (disjoint(z) * 127).byte(), ConfigError, r"torch\.uint8.*127\.5"),
        (lambda z: disjoint(z) * 3, ConfigError, r"\[-1, 1\].*'signed'.*got values from"),
    ],
    ids=["no_channel", "flat", "short", "empty", "nan", "inf", "list", "bytes", "range"],
)
def test_what_is_no_image_is_named(metric: Metric, wrong, error, message: str):
    with pytest.raises(error, match=message) as caught:
        metric.call(wrong, 3, seed=0)
    assert str(caught.value).startswith(metric.name)


@every_metric
@pytest.mark.bad_input
def test_range_is_held_at_both_ends(metric: Metric):
    with pytest.raises(ConfigError, match=r"\[0, 1\].*'unit'"):
        metric.call(disjoint, 3, seed=0, value_range="unit")
    metric.call(lambda z: 3 * disjoint(z), 3, seed=0, value_range="any")


@every_metric
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 0.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 0, "batch_size": 0}, "batch_size"),
        ({"seed": 0, "value_range": "tanh"}, "signed, unit, any"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(metric: Metric, settings, message: str):
    with pytest.raises(ConfigError, match=f"{metric.name} needs .*{message}.* got "):
        metric.call(disjoint, 3, **settings)


@every_metric
@pytest.mark.bad_input
@pytest.mark.parametrize("latent_dim", [0, -1, 2.0])
def test_wrong_latent_dim_is_named(metric: Metric, latent_dim):
    with pytest.raises(ConfigError, match="latent_dim"):
        metric.call(constant, latent_dim, seed=0)


@every_metric
@pytest.mark.bad_input
def test_something_that_cannot_be_called(metric: Metric):
    with pytest.raises(ConfigError, match="needs generate to be a function, got a tensor"):
        metric.call(torch.zeros(3), 3, seed=0)


@pytest.mark.parametrize("space", [pixel_features(), random_features(seed=0)], ids=lambda s: s.name)
def test_a_constant_generator_moves_nothing(space):
    assert activeness(constant, 4, seed=0).tolist() == [0.0] * 4
    assert path_length(constant, 4, seed=0, space=space).mean == 0.0
    rows = traversals(constant, 4, seed=0)
    assert torch.equal(rows, torch.full_like(rows, 0.25))
