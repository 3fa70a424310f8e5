"""Autoformer against its definition, term by term in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models import Autoformer
from orthotrain.models.auto_correlation import AutoCorrelation, decompose, delay_scores, mix_delays


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores_by_definition(queries: Tensor, keys: Tensor) -> Tensor:
    """Sums over time, one delay after the other."""
    time = queries.shape[2]
    return torch.stack(
        [
            sum(
                (queries[:, :, (s + t) % time] * keys[:, :, s]).mean(dim=(1, 2))
                for s in range(time)
            )
            for t in range(time)
        ],
        dim=1,
    )


def mixed_by_definition(values: Tensor, scores: Tensor, count: int) -> Tensor:
    """Rolled copies of each sample's values, added up."""
    out = torch.zeros_like(values)
    for sample in range(len(values)):
        best, delays = scores[sample].topk(count)
        for weight, delay in zip(best.softmax(0), delays.tolist(), strict=True):
            out[sample] += weight * values[sample].roll(-delay, dims=1)
    return out


@pytest.mark.parametrize("time", [1, 7, 12])
def test_delay_scores_are_sums_over_time(time: int) -> None:
    q, k = normal(2, 3, time, 4), normal(2, 3, time, 4, seed=1)
    torch.testing.assert_close(delay_scores(q, k), scores_by_definition(q, k))


def test_delays_are_mixed_as_rolled_copies() -> None:
    values, scores = normal(3, 2, 9, 4), normal(3, 9, seed=1)
    mixed = mix_delays(values, scores, count=4)
    torch.testing.assert_close(mixed, mixed_by_definition(values, scores, 4))


def test_mixing_has_its_derivative() -> None:
    values, scores = normal(2, 1, 5, 2).requires_grad_(), normal(2, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, s: mix_delays(v, s, count=2), (values, scores))


def test_a_trend_is_the_mean_of_the_window_and_the_ends_are_repeated() -> None:
    x = normal(2, 10, 3)
    seasonal, trend = decompose(x, window=5)
    torch.testing.assert_close(seasonal + trend, x)
    padded = torch.cat((x[:, :1], x[:, :1], x, x[:, -1:], x[:, -1:]), dim=1)
    for t in range(10):
        torch.testing.assert_close(trend[:, t], padded[:, t : t + 5].mean(dim=1))


@pytest.mark.parametrize("other", [5, 8, 11])
def test_a_source_of_another_length_is_cut_or_followed_by_zeros(other: int) -> None:
    layer = AutoCorrelation(4, heads=2, factor=1.0).double()
    x, y = normal(2, 8, 4), normal(2, other, 4, seed=1)

    def of_length(t: Tensor) -> Tensor:
        return torch.cat((t, torch.zeros(2, max(0, 8 - other), 4).double()), dim=1)[:, :8]

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (2, 2)).transpose(1, 2)

    q, k, v = (
        heads(layer.query(x)),
        heads(of_length(layer.key(y))),
        heads(of_length(layer.value(y))),
    )
    mixed = mixed_by_definition(v, scores_by_definition(q, k), 2)
    torch.testing.assert_close(layer(x, y), layer.out(mixed.transpose(1, 2).flatten(2)))


def small(**sizes: object) -> Autoformer:
    own = {"series": 3, "calendar": 4, "read": 16, "known": 8, "ahead": 6, "width": 8, "heads": 2,
           "window": 5, "dropout": 0.0, "generator": torch.Generator().manual_seed(0)}  # fmt: skip
    return Autoformer(**{**own, **sizes})


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = small().double()
    past, dates = normal(4, 16, 3), normal(4, 22, 4, seed=1)
    together = model(past, dates)
    assert together.shape == (4, 6, 3)
    for i in range(4):
        torch.testing.assert_close(model(past[i : i + 1], dates[i : i + 1])[0], together[i])


def test_a_level_is_handed_on() -> None:
    # A constant series is all trend, and without weights in its heads nothing is added to it.
    model = small().double()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.decoder[0].trend.weight.zero_()
    level = normal(2, 1, 3).expand(2, 16, 3)
    torch.testing.assert_close(model(level, normal(2, 22, 4, seed=1)), level[:, :6])


def test_weights_come_from_the_generator() -> None:
    first, second = small(), small(generator=torch.Generator().manual_seed(0))
    other = small(generator=torch.Generator().manual_seed(1))
    for name, weight in first.named_parameters():
        assert torch.equal(weight, second.get_parameter(name)), name
        same = torch.equal(weight, other.get_parameter(name))
        assert same == ("norm" in name), name


def test_weights_begin_as_published() -> None:
    model = small(width=64, series=8)
    entry, trend = model.encoder_embed.values.weight, model.decoder[0].trend.weight
    assert entry.std().item() == pytest.approx((2 / (3 * 8)) ** 0.5, rel=0.1)
    bound = (3 * 64) ** -0.5
    assert 0.95 * bound < trend.abs().max() <= bound


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"window": 4}, "window=4 must be odd"),
        ({"known": 17}, "known=17 must be at most read=16"),
        ({"heads": 3}, "heads"),
        ({"ahead": 0}, "ahead"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**sizes)


def test_other_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"need \(batch, 16, 3\) and \(batch, 22, 4\)"):
        small()(torch.zeros(2, 15, 3), torch.zeros(2, 22, 4))
