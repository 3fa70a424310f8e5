"""Sprites (re-rendered): the published grid, the geometry, and what lies between the classes."""

import math
import pickle
import re
from pathlib import Path

import pytest
import torch

import orthotrain.data
from orthotrain.data import Sprites
from orthotrain.data._correlated import correlated_uniforms
from orthotrain.errors import ConfigError, ShapeError
from reference.matrices import generator
from reference.sprites import heart_area, sprite

PUBLISHED = (3, 6, 40, 32, 32)


def some(sprites, n, *, seed=0):
    return torch.randint(len(sprites), (n,), generator=generator(seed))


def one(sprites, **values):
    """One image, from values where given and the middle of the range otherwise."""
    middle = {"shape": 0.0, "scale": 1.0, "orientation": 0.0, "x": 0.5, "y": 0.5}
    row = [(middle | values)[name] for name in sprites.factor_names]
    return sprites.render_values(torch.tensor([row], dtype=torch.float64))[0]


# --- the grid ---------------------------------------------------------------------------------


def test_the_grid_is_the_published_one():
    sprites = Sprites()
    assert sprites.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert sprites.factor_sizes == PUBLISHED
    assert len(sprites) == 737_280
    index = some(sprites, 500)
    shape, scale, orientation, x, y = sprites.factors_of(index).unbind(1)
    assert torch.equal(((((shape * 6 + scale) * 40 + orientation) * 32 + x) * 32 + y), index)
    assert torch.equal(sprites.index_of(sprites.factors_of(index)), index)
    assert sprites.factors_of(torch.tensor([0, -1])).tolist() == [[0] * 5, [2, 5, 39, 31, 31]]


def test_values_are_the_published_ones():
    values = Sprites().factor_values
    assert values["shape"].tolist() == [0, 1, 2]
    assert values["scale"].tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert values["orientation"].tolist() == pytest.approx(
        [2 * math.pi * k / 39 for k in range(40)]
    )
    for axis in "xy":
        assert values[axis].tolist() == pytest.approx([k / 31 for k in range(32)])
    row = Sprites().values(torch.tensor([[2, 1, 39, 31, 3]]))
    assert row[0].tolist() == pytest.approx([2, 0.6, 2 * math.pi, 1, 3 / 31])
    assert row.dtype == torch.float64


def test_one_image_a_slice_and_a_batch_are_the_same_images():
    sprites = Sprites(24)
    index = some(sprites, 70)
    images, factors = sprites[index]
    assert (images.shape, images.dtype) == ((70, 1, 24, 24), torch.float32)
    assert (factors.shape, factors.dtype) == ((70, 5), torch.int64)
    assert torch.equal(sprites.render(factors), images)
    for k in (0, 33, 69):
        for i in (int(index[k]), index[k], int(index[k]) - len(sprites)):
            image, row = sprites[i]
            assert torch.equal(image, images[k])
            assert torch.equal(row, factors[k])
    start = int(index[0])
    sliced = sprites[start : start + 3]
    assert torch.equal(sliced[0], sprites[torch.arange(start, start + 3)][0])
    assert sliced[1][:, 4].tolist() == [(start + k) % 32 for k in range(3)]
    assert sprites[torch.empty(0, dtype=torch.int64)][0].shape == (0, 1, 24, 24)


def test_a_loop_over_the_grid_ends():
    sprites = Sprites(16, held={"x": 0, "y": 0, "orientation": 0})
    assert [row.tolist() for _, row in sprites] == [[a, b] for a in range(3) for b in range(6)]


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    sprites = Sprites(16)
    sprites.sample(3, generator=generator(0))
    sprites.sample_factors(3, generator=generator(0), correlation=("x", "y", 0.5))
    _ = sprites[5]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_in_another_process_draws_the_same():
    sprites = Sprites(16, color=True, held={"scale": 3})
    copy = pickle.loads(pickle.dumps(sprites))
    index = some(sprites, 9)
    assert torch.equal(copy[index][0], sprites[index][0])
    assert "color 6, shape 3, orientation 40, x 32, y 32" in repr(copy)


# --- the geometry -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "samples"), [(16, 1), (16, 4), (33, 3), (64, 2)])
def test_images_agree_with_the_slow_twin(size, samples):
    sprites = Sprites(size, supersample=samples)
    images, values = sprites.sample(15, generator=generator(size))
    grid, factors = sprites[some(sprites, 15, seed=size)]
    images = torch.cat([images, grid])
    values = torch.cat([values, sprites.values(factors)])
    assert set(values[:, 0].tolist()) == {0, 1, 2}
    for image, row in zip(images, values.tolist(), strict=True):
        expected = torch.from_numpy(sprite(size, samples, int(row[0]), *row[1:]))
        # The twin's heart is a polygon; no sample here is near enough to its edge to differ.
        assert torch.equal(image[0], expected.float())


@pytest.mark.parametrize("shape", [0, 1, 2])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_a_shape_has_its_area_wherever_it_lies(shape, scale):
    full = (0.3**2, math.pi * 0.2 * 0.1125, heart_area())[shape]
    values = torch.rand(40, 5, generator=generator(1), dtype=torch.float64)
    values[:, 0], values[:, 1] = shape, scale
    area = Sprites(64, supersample=8).render_values(values).mean(dim=(1, 2, 3))
    # 512 samples a side: an edge is off by a random part of one, along some 100 of them.
    assert (area / (full * scale**2) - 1).abs().max() < 5e-3


def test_positions_are_centres_from_a_quarter_to_three_quarters():
    sprites = Sprites(64, supersample=4)
    centre = (torch.arange(64) + 0.5) / 64
    for shape in (0.0, 1.0):
        for x, y in ((0.0, 0.0), (1.0, 0.25), (0.4, 1.0)):
            image = one(sprites, shape=shape, orientation=0.7, x=x, y=y)[0]
            share = image / image.sum()
            assert (share.sum(0) @ centre).item() == pytest.approx(0.25 + x / 2, abs=1e-3)
            assert (share.sum(1) @ centre).item() == pytest.approx(0.25 + y / 2, abs=1e-3)


def test_the_heart_points_down_and_turns_from_there_to_the_right():
    sprites = Sprites(64)
    # The tip is further from the centre than the top of the lobes, and narrow.
    for angle, side in ((0.0, "down"), (math.pi / 2, "right"), (math.pi, "up")):
        image = one(sprites, shape=2.0, orientation=angle)[0]
        rows, columns = image.sum(1).nonzero().flatten(), image.sum(0).nonzero().flatten()
        ends = {
            "down": image[rows[-1]].sum(),
            "up": image[rows[0]].sum(),
            "right": image[:, columns[-1]].sum(),
            "left": image[:, columns[0]].sum(),
        }
        assert min(ends, key=lambda name: ends[name]) == side


def test_the_ellipse_lies_until_it_is_turned():
    wide, tall = (one(Sprites(64), shape=1.0, orientation=a)[0] for a in (0.0, math.pi / 2))
    assert [(image.sum(0) > 0).sum().item() for image in (wide, tall)] == [26, 14]
    # Not a mirror image of the other turn.
    tilted = one(Sprites(64), shape=1.0, orientation=math.pi / 4)[0]
    assert tilted[:32, 32:].sum() > 2 * tilted[:32, :32].sum()


@pytest.mark.parametrize("size", [16, 37, 64])
def test_no_sprite_touches_the_border(size):
    corners = torch.tensor(
        [[s, 1.0, 0.79, x, y] for s in (0, 1, 2) for x in (0, 1) for y in (0, 1)]
    )
    images = Sprites(size).render_values(corners)
    assert images[..., 0, :].sum() == images[..., -1, :].sum() == 0
    assert images[..., :, 0].sum() == images[..., :, -1].sum() == 0
    assert (images.sum(dim=(1, 2, 3)) > 0).all()


# --- settings ---------------------------------------------------------------------------------


def test_binary_is_the_rule_of_pixel_centres():
    index = some(Sprites(), 40)
    binary, plain, smooth = (
        Sprites(20, **settings)[index][0]
        for settings in ({"binary": True}, {"supersample": 1}, {"supersample": 4})
    )
    assert set(binary.unique().tolist()) == {0, 1}
    assert torch.equal(binary, plain)
    assert torch.equal(smooth * 16, (smooth * 16).round())
    assert len(smooth.unique()) > 10
    assert ((binary - smooth).abs() <= 15 / 16).all()


def test_the_doubled_orientation_is_one_image_and_can_be_left_out():
    settings = {"held": {"x": 13, "y": 20}}
    doubled, single = Sprites(64, **settings), Sprites(64, doubled_orientation=False, **settings)
    assert (doubled.factor_sizes, single.factor_sizes) == ((3, 6, 40), (3, 6, 39))
    images = doubled[:][0].unflatten(0, doubled.factor_sizes)
    assert torch.equal(images[:, :, 0], images[:, :, 39])
    kept = single[:][0]
    assert torch.equal(kept, images[:, :, :39].flatten(0, 2))
    assert len(kept.flatten(1).unique(dim=0)) == len(kept) == 702


def test_held_factors_are_no_factors():
    sprites = Sprites(16, held={"orientation": 7})
    assert sprites.factor_names == ("shape", "scale", "x", "y")
    assert sprites.factor_sizes == (3, 6, 32, 32)
    index = some(sprites, 50)
    images, factors = sprites[index]
    whole = torch.cat([factors[:, :2], torch.full((50, 1), 7), factors[:, 2:]], dim=1)
    assert torch.equal(images, Sprites(16).render(whole))
    assert sprites.sample(4, generator=generator(0))[1].shape == (4, 4)


def test_color_is_a_factor_and_the_shape_is_the_brightest_channel():
    sprites = Sprites(16, color=True)
    assert sprites.factor_names[0] == "color"
    assert sprites.factor_sizes == (6, *PUBLISHED)
    assert sprites.image_shape == (3, 16, 16)
    named = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)]
    gray = Sprites(16).render(torch.tensor([[2, 5, 9, 3, 4]]))
    for k, color in enumerate(named):
        image = sprites.render(torch.tensor([[k, 2, 5, 9, 3, 4]]))
        assert torch.equal(image, gray * torch.tensor(color)[None, :, None, None])
    images, values = sprites.sample(60, generator=generator(0))
    shown = Sprites(16).render_values(values[:, 1:])
    assert torch.allclose(images.amax(dim=1, keepdim=True), shown)
    half = one(Sprites(16, color=True), color=1 / 12)
    assert torch.allclose(half[1], half[0] / 2)
    assert half[2].sum() == 0


# --- drawn from the ranges, and correlated ----------------------------------------------------


def test_samples_fill_the_ranges_and_are_drawn_again_from_their_values():
    sprites = Sprites(16, color=True)
    images, values = sprites.sample(3000, generator=generator(0))
    again, same = sprites.sample(3000, generator=generator(0))
    assert torch.equal(images, again)
    assert torch.equal(values, same)
    assert torch.equal(sprites.render_values(values), images)
    bounds = {"color": (0, 1), "scale": (0.5, 1), "orientation": (0, 2 * math.pi)}
    for name, column in zip(sprites.factor_names, values.unbind(1), strict=True):
        if name == "shape":
            assert torch.bincount(column.long()).tolist() == pytest.approx([1000] * 3, abs=100)
            assert torch.equal(column, column.round())
            continue
        low, high = bounds.get(name, (0, 1))
        place = (column - low) / (high - low)
        assert 0 <= place.min() < 0.01
        assert 0.99 < place.max() <= 1
        assert place.mean().item() == pytest.approx(0.5, abs=0.025)
        assert len(column.unique()) == 3000


def test_sampled_classes_are_uniform():
    factors = Sprites(16).sample_factors(24_000, generator=generator(2))
    for size, column in zip(PUBLISHED, factors.unbind(1), strict=True):
        count = torch.bincount(column, minlength=size)
        assert len(count) == size
        # Five standard deviations of a binomial count.
        assert (count - 24_000 / size).abs().max() < 5 * (24_000 / size) ** 0.5


@pytest.mark.parametrize("r", [-1.0, -0.6, 0.0, 0.3, 0.9, 1.0])
def test_correlated_factors_have_the_stated_coefficient_and_stay_uniform(r):
    n, sprites = 4000, Sprites(16, held={"shape": 0})
    _, values = sprites.sample(n, generator=generator(3), correlation=("y", "scale", r))
    found = torch.corrcoef(values.T)
    pair = [sprites.factor_names.index(name) for name in ("scale", "y")]
    # The standard deviation of the estimate is about (1 - r^2) / sqrt(n).
    assert found[*pair].item() == pytest.approx(r, abs=1e-9 + 5 * (1 - r**2) / n**0.5)
    found[*pair] = found[*pair[::-1]] = 0
    assert (found - torch.eye(4)).abs().max() < 5 / n**0.5
    low = torch.tensor([0.5, 0, 0, 0])
    span = torch.tensor([0.5, 2 * math.pi, 1, 1])
    for column in ((values - low) / span).unbind(1):
        expected = (torch.arange(n) + 0.5) / n
        # Kolmogorov's bound; 1.95 / sqrt(n) is passed by chance once in a thousand.
        assert (column.sort().values - expected).abs().max() < 1.95 / n**0.5


@pytest.mark.parametrize("r", [-0.8, 0.6])
def test_the_coefficient_is_that_of_the_uniform_numbers_not_of_normal_ones(r):
    n = 10**6
    pairs = correlated_uniforms(n, r=r, generator=generator(0))
    # With r as the parameter of the copula it would be .014 or more from r.
    found = torch.corrcoef(pairs.T)[0, 1].item()
    assert found == pytest.approx(r, abs=5 * (1 - r**2) / n**0.5)


@pytest.mark.parametrize("r", [-1.0, 0.3, 0.9])
def test_cutting_into_classes_weakens_a_correlation_as_documented(r):
    n, settings = 50_000, {"generator": generator(0)}
    for one, other, kept in (("scale", "x", 0.98), ("orientation", "y", 0.999)):
        factors = Sprites(16).sample_factors(n, correlation=(one, other, r), **settings)
        names = Sprites(16).factor_names
        pair = factors[:, [names.index(one), names.index(other)]]
        # Documented for scale: .975 r to .986 r.
        found = torch.corrcoef(pair.double().T)[0, 1].item()
        assert found == pytest.approx(kept * r, abs=0.006 * abs(r) + 5 * (1 - r**2) / n**0.5)


def test_none_can_be_drawn():
    images, values = Sprites(16).sample(0, generator=generator(0))
    assert (images.shape, values.shape) == ((0, 1, 16, 16), (0, 5))
    assert Sprites(16).sample_factors(0, generator=generator(0)).shape == (0, 5)


def test_correlated_images_show_correlated_values():
    sprites = Sprites(32, held={"shape": 1, "orientation": 0})
    images, values = sprites.sample(400, generator=generator(0), correlation=("x", "y", 0.95))
    free = sprites.sample(400, generator=generator(0))[1]
    assert torch.equal(sprites.render_values(values), images)
    assert torch.corrcoef(values[:, 1:].T)[0, 1] > 0.93
    # Only the two columns are drawn anew.
    assert torch.equal(values[:, 0], free[:, 0])
    assert torch.corrcoef(free[:, 1:].T)[0, 1].abs() < 0.25


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 15}, "size=15 must be a whole number from 16 to 64"),
        ({"size": 65}, "size=65"),
        ({"size": 32.0}, "size to be a whole number, got 32.0"),
        ({"supersample": 0}, "supersample=0"),
        ({"supersample": 9}, "supersample=9"),
        ({"held": {"hue": 0}}, "'hue' is no factor here; need one of shape, scale"),
        ({"held": {"color": 0}}, "'color' is no factor here"),
        ({"held": {"scale": 6}}, r"held\['scale'\]=6 must be a whole number from 0 to 5"),
        ({"held": {"orientation": 39}, "doubled_orientation": False}, "from 0 to 38"),
        ({"held": dict.fromkeys(("shape", "scale", "orientation", "x", "y"), 0)}, "every factor"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sprites(**settings)


@pytest.mark.bad_input
@pytest.mark.parametrize("index", [737_280, -737_281, torch.tensor([3, 737_280])])
def test_an_index_outside_the_grid_is_an_index_error(index):
    with pytest.raises(IndexError, match=r"index -?73728\d is outside of 737280 images"):
        Sprites()[index]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "index", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2), torch.zeros(2) > 0]
)
def test_indices_of_another_kind_are_refused(index):
    with pytest.raises(ShapeError, match=r"need \(k,\) of int64"):
        Sprites()[index]


@pytest.mark.bad_input
@pytest.mark.parametrize("ask", ["index_of", "values", "render"])
@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int64), ShapeError, r"need \(n, 5\), in the order shape"),
        (torch.zeros(5, dtype=torch.int64), ShapeError, r"got factors \(5,\)"),
        (torch.zeros(2, 5), ShapeError, "need int64 classes"),
        (torch.tensor([[0, 6, 0, 0, 0]]), ConfigError, "a class of scale outside 0 to 5"),
        (torch.tensor([[0, 0, 0, 0, -1]]), ConfigError, "a class of y outside 0 to 31"),
    ],
)
def test_classes_that_do_not_exist_are_refused(ask, factors, error, message):
    with pytest.raises(error, match=message):
        getattr(Sprites(), ask)(factors)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1, 0, 0, 0], r"shape=0\.5, need 0, 1 or 2"),
        ([3, 1, 0, 0, 0], "shape=3, need 0, 1 or 2"),
        ([0, 1.01, 0, 0, 0], r"scale=1\.01, need 0\.5 to 1"),
        ([0, 1, 0, -0.1, 0], r"x=-0\.1, need 0 to 1"),
        ([0, 1, math.nan, 0, 0], "NaN or infinite"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Sprites().render_values(torch.tensor([values]))
    with pytest.raises(ShapeError, match=r"need \(n, 5\)"):
        Sprites().render_values(torch.tensor(values))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        (("x", "x", 0.5), "two different factors"),
        (("x", "y", 1.1), r"coefficient in \[-1, 1\]"),
        (("x", "y", math.nan), r"coefficient in \[-1, 1\]"),
        (("x", "hue", 0.5), "'hue' is no factor here"),
    ],
)
def test_an_impossible_correlation_is_refused(correlation, message):
    with pytest.raises(ConfigError, match=message):
        Sprites(16).sample(2, generator=generator(0), correlation=correlation)


@pytest.mark.bad_input
def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match="n=-1 must not be negative"):
        Sprites(16).sample_factors(-1, generator=generator(0))


def test_the_data_are_never_called_by_the_name_of_the_published_file():
    assert Sprites.title == "sprites (re-rendered)"
    folder = Path(orthotrain.data.__file__).parent
    named = [
        line
        for file in folder.glob("*.py")
        for line in file.read_text().splitlines()
        if re.search("dsprites", line, flags=re.IGNORECASE)
    ]
    # The reference to where the grid was published.
    assert [line.split()[0] for line in named] == ["Matthey,"]
