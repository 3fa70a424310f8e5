"""Moments of the largest blob: rectangles with known answers, and a flood fill as slow twin."""

import math

import pytest
import torch

from orthotrain.data import Sprites, moments
from orthotrain.data.moments import largest_blob, sprite_moments
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from reference import sprites as reference
from reference.matrices import generator


def image(*lines):
    return torch.tensor([[float(c == "#") for c in line] for line in lines])[None, None]


def test_a_rectangle_has_the_moments_of_its_area():
    canvas = torch.zeros(1, 1, 20, 40)
    canvas[..., 4:10, 10:22] = 0.9
    found = sprite_moments(canvas)
    assert found.area.item() == pytest.approx(6 * 12 / 800)
    assert found.x.item() == pytest.approx(16 / 40)
    assert found.y.item() == pytest.approx(7 / 20)
    # Both sides are .3 of the canvas; the variance of a uniform number is a twelfth.
    assert found.major.item() == pytest.approx(0.3**2 / 12)
    assert found.minor.item() == pytest.approx(0.3**2 / 12)
    assert found.stacked().shape == (1, 5)
    assert found.stacked()[0].tolist() == [
        getattr(found, name).item() for name in ("area", "x", "y", "major", "minor")
    ]


def test_a_diagonal_is_longest_along_itself():
    found = sprite_moments(torch.eye(6)[None, None])
    # Steps of sqrt(2) pixels: variance 2 (36 - 1) / 12 along, and that of a pixel both ways.
    assert found.major.item() == pytest.approx((2 * 35 / 12 + 1 / 12) / 36)
    assert found.minor.item() == pytest.approx(1 / 12 / 36)
    assert sprite_moments(torch.eye(6).flip(1)[None, None]).major.item() == found.major.item()


def test_only_the_largest_blob_counts():
    found = sprite_moments(
        image(
            "##....#.",
            "##....#.",
            "......#.",
            "#.....#.",
            ".#....#.",
        )
    )
    assert found.area.item() == pytest.approx(5 / 40)
    assert found.x.item() == pytest.approx(6.5 / 8)
    assert found.minor.item() == pytest.approx(1 / 12 / 64)


def test_what_is_faint_or_apart_moves_nothing():
    clean = Sprites(64).sample(50, generator=generator(0))[0]
    noise = 0.45 * torch.rand(clean.shape, generator=generator(1))
    noise[..., :2, :2] = noise[..., -2:, :2] = 1
    noisy = torch.where(clean == 0, noise, clean)
    before, after = (sprite_moments(images).stacked() for images in (clean, noisy))
    assert torch.equal(before, after)
    # Without the cut: noise of more weight than the sprite, and of variance 1/12, not below .01.
    column = (noisy / noisy.sum(dim=(2, 3), keepdim=True)).sum(dim=2)[:, 0].double()
    place = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    raw = column @ place**2 - (column @ place) ** 2
    assert (raw / before[:, 3]).min() > 5


# A pixel belongs to the blob where half of it is covered, so a side is off by at most one pixel.
PIXEL = 1 / 64


def test_moments_tell_the_factors_of_a_sprite():
    sprites = Sprites(64, supersample=4)
    values = sprites.sample(300, generator=generator(3))[1]
    found = sprite_moments(sprites.render_values(values))
    shape, scale, _, x, y = values.unbind(1)
    for kind, area, deviations in (
        (0, 0.09, (0.3 / 12**0.5, 0.3 / 12**0.5)),
        (1, math.pi * 0.2 * 0.1125, (0.2 / 2, 0.1125 / 2)),
        (2, reference.heart_area(), ()),
    ):
        of = shape == kind
        assert (found.area[of].sqrt() - scale[of] * area**0.5).abs().max() < PIXEL
        for moment, deviation in zip((found.major, found.minor), deviations, strict=False):
            error = moment[of].sqrt() - scale[of] * deviation
            assert error.abs().max() < PIXEL / 12**0.5
            assert (found.x[of] - (0.25 + 0.5 * x[of])).abs().max() < PIXEL / 2
            assert (found.y[of] - (0.25 + 0.5 * y[of])).abs().max() < PIXEL / 2


def test_turning_changes_no_moment_by_more_than_the_pixels_do():
    sprites = Sprites(64, held={"shape": 1, "scale": 5, "x": 16, "y": 16})
    found = sprite_moments(sprites[:][0])
    for moment, side in ((found.area, 1), (found.major, 12**-0.5), (found.minor, 12**-0.5)):
        assert moment.sqrt().max() - moment.sqrt().min() < PIXEL * side


@pytest.mark.parametrize("density", [0.2, 0.45, 0.7])
@pytest.mark.parametrize("shape", [(9, 13), (1, 17), (12, 1)])
def test_the_blob_is_that_of_a_flood_fill(shape, density):
    masks = torch.rand(40, *shape, generator=generator(0)) < density
    before = masks.clone()
    found = largest_blob(masks)
    assert torch.equal(masks, before)
    for mask, blob in zip(masks, found, strict=True):
        assert blob.tolist() == reference.largest_blob(mask.numpy()).tolist()


def test_a_long_winding_blob_is_found_whole():
    mask = torch.zeros(1, 33, 33, dtype=torch.bool)
    mask[:, ::2] = True
    mask[:, 1::4, -1] = True
    mask[:, 3::4, 0] = True
    other = torch.zeros_like(mask)
    other[:, 10:20, 10:20] = True
    assert torch.equal(largest_blob(mask), mask)
    assert torch.equal(largest_blob(torch.cat([other, mask])), torch.cat([other, mask]))


def test_images_are_independent_of_their_neighbours():
    images = Sprites(16).sample(moments._CHUNK + 5, generator=generator(0))[0]
    together = sprite_moments(images).stacked()
    apart = torch.cat([sprite_moments(one[None]).stacked() for one in images])
    assert torch.equal(together, apart)


def test_an_empty_image_and_no_image():
    found = sprite_moments(torch.full((2, 3, 8, 8), 0.5))
    assert found.stacked().tolist() == [[0, 0.5, 0.5, 0, 0]] * 2
    assert sprite_moments(torch.zeros(0, 1, 8, 8)).stacked().shape == (0, 5)


def test_any_channel_can_show_the_blob():
    gray, values = Sprites(16).sample(20, generator=generator(0))
    hue = torch.rand(20, 1, generator=generator(1), dtype=torch.float64)
    color = Sprites(16, color=True).render_values(torch.cat([hue, values], dim=1))
    # The brightest channel of a color is one but for rounding.
    assert torch.equal(
        sprite_moments(color, threshold=0.6).stacked(),
        sprite_moments(gray, threshold=0.6).stacked(),
    )


def test_the_threshold_is_a_setting():
    canvas = torch.linspace(0, 1, 11).expand(1, 1, 4, 11)
    for threshold, columns in ((0.55, 5), (0.85, 2), (-1.0, 11)):
        found = sprite_moments(canvas, threshold=threshold)
        assert found.area.item() == pytest.approx(columns / 11)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(4, 8, 8), ShapeError, r"got shape \(4, 8, 8\)"),
        (torch.zeros(4, 0, 8, 8), ShapeError, "need"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ConfigError, "by x / 255"),
        (torch.full((1, 1, 2, 2), math.nan), NonFiniteError, "4 NaN"),
    ],
)
def test_what_is_no_image_is_refused(images, error, message):
    with pytest.raises(error, match=message):
        sprite_moments(images)
