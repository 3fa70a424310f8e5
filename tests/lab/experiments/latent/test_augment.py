"""DiffAugment: its formula pixel by pixel, its ranges, alike for two batches, differentiable."""

import dataclasses

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from orthotrain.errors import ShapeError
from orthotrain.lab.experiments.latent.augment import draw_augmentation
from reference import adversarial as reference
from reference.matrices import generator


def images_of(n=6, channels=3, height=16, width=8, *, seed=0):
    return torch.randn(n, channels, height, width, generator=generator(seed), dtype=torch.float64)


def draw(n=6, channels=3, height=16, width=8, *, seed=0):
    return draw_augmentation((n, channels, height, width), generator=generator(seed))


def moved_and_cut(augmentation, i, image):
    image = reference.moved(image, *augmentation.shift[i].tolist())
    hole = (*augmentation.hole[i].tolist(), *augmentation.hole_size[i].tolist())
    return reference.cut(image, *hole)


def twin(augmentation, images):
    """Image by image with plain numbers."""
    made = []
    for i, image in enumerate(images):
        out = reference.colour(
            image,
            brightness=float(augmentation.brightness[i]),
            saturation=float(augmentation.saturation[i]),
            contrast=float(augmentation.contrast[i]),
        )
        made.append(moved_and_cut(augmentation, i, out))
    return torch.stack(made)


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_the_twin(channels):
    images = images_of(channels=channels)
    augmentation = draw(channels=channels)
    kept = images.clone()
    made = augmentation(images)
    torch.testing.assert_close(made, twin(augmentation, images), rtol=0, atol=1e-12)
    assert torch.equal(images, kept)
    assert (made - images).abs().max() > 0.1


def test_colour_comes_first_and_sees_the_whole_image():
    images = images_of() + 5
    augmentation = draw(seed=3)
    made = augmentation(images)
    assert (made == 0).any()
    plain = dataclasses.replace(
        augmentation,
        shift=torch.zeros_like(augmentation.shift),
        hole_size=torch.zeros_like(augmentation.hole_size),
    )
    expected = [moved_and_cut(augmentation, i, image) for i, image in enumerate(plain(images))]
    torch.testing.assert_close(made, torch.stack(expected), rtol=0, atol=1e-12)


def test_real_and_fake_are_changed_alike():
    augmentation = draw()
    real, fake = images_of(), images_of(seed=1)
    # Affine in the image: the same map and the same offset for both.
    offset = augmentation(torch.zeros_like(real))
    together = augmentation(real) + augmentation(fake)
    torch.testing.assert_close(together, augmentation(real + fake) + offset, rtol=0, atol=1e-12)
    assert torch.equal(augmentation(real), augmentation(real))
    lost = [(augmentation(x + 5) == 0) for x in (real, fake)]
    assert torch.equal(*lost)
    assert lost[0].any()


def test_images_do_not_meet():
    augmentation, images = draw(), images_of()
    other = images.clone()
    other[2] *= 100
    same = [i for i in range(6) if i != 2]
    assert torch.equal(augmentation(other)[same], augmentation(images)[same])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_and_memory_format(dtype):
    images = images_of().to(dtype)
    augmentation = draw()
    made = augmentation(images)
    assert made.dtype == dtype
    exact = augmentation(images.double())
    eps = torch.finfo(dtype).eps
    # Some ten roundings of numbers up to seven in size.
    assert (made.double() - exact).abs().max() < 70 * eps
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(augmentation(last), made, rtol=0, atol=70 * eps)


# --- derivatives ----------------------------------------------------------------------------------


def test_derivatives_by_the_image():
    augmentation = draw(2, 3, 8, 4)
    images = images_of(2, 3, 8, 4).requires_grad_()
    assert gradcheck(augmentation, (images,))
    assert gradgradcheck(lambda x: augmentation(x).pow(3), (images,), fast_mode=True)


def test_gradient_is_zero_where_a_pixel_is_lost_and_one_elsewhere():
    one = torch.ones(6)
    augmentation = dataclasses.replace(
        draw(seed=1), brightness=0 * one, saturation=one, contrast=one
    )
    images = images_of().requires_grad_()
    augmentation(images).sum().backward()
    for i in range(6):
        ones = torch.ones(3, 16, 8)
        hole = (*augmentation.hole[i].tolist(), *augmentation.hole_size[i].tolist())
        down, right = augmentation.shift[i].tolist()
        expected = reference.moved(reference.cut(ones, *hole), -down, -right)
        assert torch.equal(images.grad[i].float(), expected)
        assert 0 < expected.mean() < 1


# --- what is drawn --------------------------------------------------------------------------------

# Counts and shares are held within five standard deviations.


def assert_uniform(values, low, high):
    """Within the range, to its ends, and even."""
    values = values.double()
    assert values.min() >= low
    assert values.max() < high
    counts = torch.histc((values - low) / (high - low), bins=10, min=0, max=1)
    expected = len(values) / 10
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_ranges_of_the_colours():
    augmentation = draw(4000)
    assert_uniform(augmentation.brightness, -0.5, 0.5)
    assert_uniform(augmentation.saturation, 0, 2)
    assert_uniform(augmentation.contrast, 0.5, 1.5)


@pytest.mark.parametrize("sides", [(16, 8), (12, 20), (7, 9), (64, 3)], ids=str)
def test_ranges_of_the_places(sides):
    augmentation = draw(6000, 1, *sides)
    for axis, side in enumerate(sides):
        reach = (side + 4) // 8
        size = (side + 1) // 2
        assert augmentation.hole_size[:, axis].eq(size).all()
        low = -(size // 2)
        for values, first, count in [
            (augmentation.shift[:, axis], -reach, 2 * reach + 1),
            (augmentation.hole[:, axis], low, side + 1 - size % 2),
        ]:
            seen, counts = values.unique(return_counts=True)
            assert seen.tolist() == list(range(first, first + count))
            expected = 6000 / count
            assert (counts - expected).abs().max() < 5 * expected**0.5
        # As far out at one end as at the other.
        last = low + side - size % 2
        assert last + size - side == -low


def test_every_part_is_drawn_by_itself():
    a = draw(4000)
    columns = [a.brightness, a.saturation, a.contrast, *a.shift.unbind(1), *a.hole.unbind(1)]
    correlation = torch.corrcoef(torch.stack([c.double() for c in columns]))
    off = correlation - torch.eye(7, dtype=torch.float64)
    assert off.abs().max() < 5 / 4000**0.5


def test_the_generator_alone_decides():
    before = torch.get_rng_state()
    random = generator(0)
    one, other = (draw_augmentation((40, 3, 16, 8), generator=random) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw(40).hole, one.hole)
    assert not torch.equal(one.brightness, other.brightness)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(5, 3, 16, 8), (6, 3, 16, 9), (6, 3, 8, 8), (3, 16, 8)], ids=str)
def test_images_it_was_not_drawn_for_are_refused(shape):
    with pytest.raises(ShapeError, match=r"was drawn for \(6, c, 16, 8\)"):
        draw()(torch.zeros(shape))
