import pytest
import torch

from orthotrain.data.batches import BatchStream, augment, resized_crop, to_float
from orthotrain.data.splits import Split
from orthotrain.errors import ConfigError, ShapeError, StateError


def numbered(n=10, size=4):
    """Images whose every pixel is the image's number, labelled with it."""
    labels = torch.arange(n)
    return Split(labels.float()[:, None, None, None].expand(n, 1, size, size).clone(), labels)


def stream(**changes):
    settings = {"batch_size": 3, "seed": 1, "crop_padding": 1, "flip": True}
    return BatchStream(numbered(), **{**settings, **changes})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_pass_shows_each_image_at_most_once_and_passes_differ():
    batches = stream()
    passes = [
        torch.cat([batches.next_batch()[1] for _ in range(batches.batches_per_epoch)])
        for _ in range(4)
    ]
    for labels in passes:
        assert len(labels.unique()) == len(labels) == 9
    assert len({tuple(labels.tolist()) for labels in passes}) == 4
    # The image that is left out of a pass is not always the same one.
    assert len({tuple(sorted(labels.tolist())) for labels in passes}) > 1


def test_images_keep_their_labels():
    images, labels = stream(crop_padding=0).next_batch()
    assert torch.equal(images.amax(dim=(1, 2, 3)), labels.float())


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])
def test_a_restored_stream_goes_on_with_the_same_batches(steps):
    original = stream()
    for _ in range(steps):
        original.next_batch()
    restored = stream(seed=99)
    restored.load_state_dict(original.state_dict())
    for _ in range(8):
        for one, other in zip(original.next_batch(), restored.next_batch(), strict=True):
            assert torch.equal(one, other)


def test_the_state_is_a_copy():
    batches = stream()
    batches.next_batch()
    state = batches.state_dict()
    before = {key: torch.as_tensor(value).clone() for key, value in state.items()}
    for _ in range(5):
        batches.next_batch()
    assert all(torch.equal(torch.as_tensor(state[key]), before[key]) for key in before)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    stream().next_batch()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.bad_input
def test_a_state_of_other_data_is_refused():
    other = BatchStream(numbered(12), batch_size=3, seed=0)
    other.next_batch()
    with pytest.raises(StateError, match="orders 12 images, the data holds 10"):
        stream().load_state_dict(other.state_dict())


@pytest.mark.bad_input
@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ConfigError, match="does not fit 10 images"):
        stream(batch_size=batch_size)


def test_crops_are_windows_of_the_padded_image_each_image_with_its_own():
    images = torch.arange(1.0, 1 + 50 * 2 * 16).reshape(50, 2, 4, 4)
    original = images.clone()
    cropped = augment(images, crop_padding=2, flip=False, generator=generator())
    assert torch.equal(images, original)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for image, source in zip(cropped, padded, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(image, source[:, y : y + 4, x : x + 4])
        ]
        assert found
        places.add(found[0])
    assert len(places) > 10
    assert {y for y, _ in places} == {x for _, x in places} == set(range(5))


def test_flip_mirrors_about_half_of_the_images_whole():
    images = torch.rand(200, 3, 4, 4, generator=generator())
    flipped = augment(images, crop_padding=0, flip=True, generator=generator())
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    same = (flipped == images).all(dim=(1, 2, 3))
    assert torch.equal(mirrored, ~same)
    assert 60 < mirrored.sum() < 140


def ramps(batch, height, width, dtype=torch.float64):
    """Two channels that state the row and the column of each pixel's centre, from 0 to 1."""
    rows = (torch.arange(height, dtype=dtype) + 0.5) / height
    columns = (torch.arange(width, dtype=dtype) + 0.5) / width
    image = torch.stack(torch.broadcast_tensors(rows[:, None], columns[None, :]))
    return image.expand(batch, -1, -1, -1)


def test_resized_crops_are_parts_of_the_image_each_with_its_own_size_and_place():
    images = ramps(4000, 24, 24)
    parts = resized_crop(images, min_area=0.25, generator=generator())
    # Along a ramp, interpolation is exact: the middle rows and columns tell the part's edges.
    step = parts[:, :, 12, 12] - parts[:, :, 11, 11]
    tall, wide = (24 * step).T
    centre = (parts[:, :, 12, 12] + parts[:, :, 11, 11]) / 2
    for side, middle in ((tall, centre[:, 0]), (wide, centre[:, 1])):
        assert side.max() < 1 + 1e-4
        assert (middle - side / 2).min() > -1e-4
        assert (middle + side / 2).max() < 1 + 1e-4
        # The place is uniform over what is free.
        free = side < 0.8
        place = ((middle - side / 2) / (1 - side))[free]
        assert place.mean().item() == pytest.approx(1 / 2, abs=0.03)
        assert place.std().item() == pytest.approx(1 / 12**0.5, abs=0.02)
    free = (tall < 0.8) & (wide < 0.8)
    both = ((centre - step * 12) / (1 - step * 24))[free]
    assert torch.corrcoef(both.T)[0, 1].abs() < 0.06
    whole = (tall < 1 - 1e-4) & (wide < 1 - 1e-4)
    area, ratio = (tall * wide)[whole], (wide / tall)[whole]
    assert 0.25 - 1e-4 < area.min() < 0.26
    assert 0.75 - 1e-4 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < 4 / 3 + 1e-4
    small = area < 0.55
    assert area[small].mean().item() == pytest.approx(0.4, abs=0.01)
    # Inside, all pixels lie on the straight line between the edges, in both directions apart.
    lines = torch.diff(parts[whole][:, :, 4:-4, 4:-4], dim=2), torch.diff(parts, dim=3)
    assert torch.allclose(lines[0][:, 1], torch.zeros(()).double(), atol=1e-6)
    assert torch.allclose(lines[1][:, 0], torch.zeros(()).double(), atol=1e-6)


def test_resized_crops_of_bytes_are_rounded_and_of_their_type():
    images = torch.randint(0, 256, (9, 3, 12, 20), dtype=torch.uint8, generator=generator(3))
    before = images.clone()
    parts = resized_crop(images, min_area=0.3, generator=generator())
    floats = resized_crop(images.float(), min_area=0.3, generator=generator())
    assert parts.dtype == torch.uint8
    assert parts.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(parts.float(), floats.round())
    constant = torch.full((5, 3, 8, 8), 255, dtype=torch.uint8)
    assert torch.equal(resized_crop(constant, min_area=0.1, generator=generator()), constant)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_restored_stream_goes_on_with_the_same_resized_crops(steps):
    split = Split(ramps(10, 6, 6, torch.float32), torch.arange(10))
    original, restored = (
        BatchStream(split, batch_size=3, seed=seed, crop_area=0.4, flip=True) for seed in (0, 99)
    )
    for _ in range(steps):
        original.next_batch()
    restored.load_state_dict(original.state_dict())
    seen = []
    for _ in range(5):
        for one, other in zip(original.next_batch(), restored.next_batch(), strict=True):
            assert torch.equal(one, other)
            seen += list(one) if one.ndim == 4 else []
    # All images are the same, so what differs is the crop: no two are alike.
    assert len(torch.stack(seen).flatten(1).unique(dim=0)) == 15


def test_only_the_training_stream_crops_by_area():
    whole, cropped = (
        BatchStream(
            Split(ramps(10, 8, 8, torch.float32), torch.arange(10)),
            batch_size=10,
            seed=0,
            crop_area=area,
        ).next_batch()[0]
        for area in (None, 0.3)
    )
    assert torch.equal(whole, ramps(10, 8, 8, torch.float32))
    assert all(not torch.equal(one, other) for one, other in zip(whole, cropped, strict=True))


@pytest.mark.bad_input
@pytest.mark.parametrize("area", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_area_is_refused(area):
    with pytest.raises(ConfigError, match=r"must lie in \(0, 1\]"):
        stream(crop_padding=0, crop_area=area)


@pytest.mark.bad_input
def test_two_kinds_of_crop_are_refused():
    with pytest.raises(ConfigError, match="need one kind of crop"):
        stream(crop_padding=1, crop_area=0.5)


@pytest.mark.bad_input
def test_augment_needs_a_batch():
    with pytest.raises(ShapeError, match="need"):
        resized_crop(torch.zeros(1, 4, 4), min_area=0.5, generator=generator())
    with pytest.raises(ShapeError, match="need"):
        augment(torch.zeros(1, 4, 4), crop_padding=1, flip=True, generator=generator())


def test_bytes_become_floats_between_minus_one_and_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert torch.allclose(to_float(images).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    floats = torch.rand(1, 1, 2, 2, generator=generator())
    assert to_float(floats) is floats
