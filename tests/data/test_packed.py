"""What the loaders of packed files add to CIFAR-10: other splits, other sizes, a centre square."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.packed import write_packed
from orthotrain.data.clothing import CLOTHING, load_clothing
from orthotrain.data.textures import TEXTURES, every_third, load_textures
from orthotrain.errors import ConfigError, DataError


def one_image(path, source, image, **changes):
    """A packed file whose every image is the same PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    blob = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    labels = np.arange(90) % 10
    arrays = {
        "data": np.tile(blob, 90),
        "offsets": np.arange(91) * len(blob),
        "label": labels.astype(np.int8),
        "split": (np.arange(90) // 30).astype(np.int8),
    }
    np.savez(path / source.file_name, **{**arrays, **changes})
    return str(path)


def textures(folder, *, seed=0):
    return write_packed(
        folder / TEXTURES.file_name,
        train_per_class=12,
        marks=(0,),
        shape=(128, 140),
        seed=seed,
        split=None,
    )


def clothing(folder, **changes):
    return write_packed(
        folder / CLOTHING.file_name,
        train_per_class=3,
        test_per_class=2,
        marks=(0, 1, 2),
        shape=(160, 128),
        **changes,
    )


def test_every_third_of_a_class_is_marked():
    label = np.repeat([0, 1, 2], [6, 4, 1])
    assert every_third(label).tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1]
    order = np.random.default_rng(0).permutation(11)
    for value in range(3):
        marks = every_third(label[order])[label[order] == value]
        assert marks.tolist() == every_third(label)[label == value].tolist()


def test_textures_get_a_split_of_our_own(tmp_path):
    textures(tmp_path)
    data, again = (load_textures(data=str(tmp_path)) for _ in range(2))
    test = data.read_test()
    assert (len(data.train), len(data.validation), len(test)) == (60, 20, 40)
    assert torch.bincount(data.validation.labels).tolist() == [2] * 10
    assert torch.bincount(test.labels).tolist() == [4] * 10
    assert data.image_shape == (3, 128, 128)
    assert torch.equal(data.validation.images, again.validation.images)
    together = torch.cat([data.train.images, data.validation.images, test.images])
    assert len(together.flatten(1).unique(dim=0)) == 120


def test_garments_keep_the_split_of_the_file(tmp_path):
    clothing(tmp_path)
    data = load_clothing(data=str(tmp_path))
    test = data.read_test()
    assert (len(data.train), len(data.validation), len(test)) == (30, 20, 20)
    together = torch.cat([data.train.images, data.validation.images, test.images])
    assert len(together.flatten(1).unique(dim=0)) == 70
    means = [part.images.double().mean(dim=(2, 3)) for part in (data.train, data.validation, test)]
    centers = torch.stack([means[0][data.train.labels == c].mean(dim=0) for c in range(10)])
    for part, mean in zip((data.validation, test), means[1:], strict=True):
        assert torch.equal(torch.cdist(mean, centers).argmin(dim=1), part.labels)


@pytest.mark.parametrize("load", [load_textures, load_clothing])
def test_train_limit_is_stratified_and_leaves_the_validation_part(tmp_path, load):
    textures(tmp_path)
    clothing(tmp_path)
    whole, part = (load(data=str(tmp_path), train_limit=n) for n in (None, 20))
    assert torch.bincount(part.train.labels).tolist() == [2] * 10
    assert torch.equal(whole.validation.images, part.validation.images)


@pytest.mark.parametrize("size", [(128, 200), (201, 128), (128, 128)])
def test_the_centre_is_cut_out(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    folder = one_image(tmp_path, CLOTHING, Image.fromarray(pixels))
    left, top = (size[0] - 128) // 2, (size[1] - 128) // 2
    expected = torch.from_numpy(pixels[top : top + 128, left : left + 128]).permute(2, 0, 1)
    assert torch.equal(load_clothing(data=folder).train.images[3], expected)


def test_a_smaller_size_averages_what_it_drops(tmp_path):
    # Stripes one pixel wide: without smoothing, every other pixel decides alone.
    pixels = np.zeros((128, 160, 3), dtype=np.uint8)
    pixels[:, ::2] = 255
    folder = one_image(tmp_path, CLOTHING, Image.fromarray(pixels))
    images = load_clothing(data=folder, image_size=32).train.images
    assert images.shape == (30, 3, 32, 32)
    assert (images.float() - 127.5).abs().max() < 10
    # The shorter side, not the longer one, gets the size: the middle 128 columns are what is left.
    pixels = np.zeros((128, 160, 3), dtype=np.uint8)
    pixels[:, 16:144] = 200
    one_image(tmp_path, CLOTHING, Image.fromarray(pixels))
    inner = load_clothing(data=folder, image_size=32).train.images[:, :, :, 1:-1]
    assert (inner == 200).all()


def test_files_do_not_share_a_cache(tmp_path):
    textures(tmp_path)
    clothing(tmp_path)
    first = load_textures(data=str(tmp_path)).train.images
    load_clothing(data=str(tmp_path))
    assert torch.equal(first, load_textures(data=str(tmp_path)).train.images)
    textures(tmp_path, seed=1)
    assert not torch.equal(first, load_textures(data=str(tmp_path)).train.images)
    smaller = load_textures(data=str(tmp_path), image_size=64)
    assert smaller.image_shape == smaller.read_test().images.shape[1:] == (3, 64, 64)


def test_gray_images_have_three_equal_channels(tmp_path):
    folder = one_image(tmp_path, CLOTHING, Image.new("L", (128, 128), 77))
    assert (load_clothing(data=folder).train.images == 77).all()


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [0, 129])
def test_a_size_that_is_not_stored_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match=f"image_size={size} must lie between 1 and 128"):
        load_textures(data=str(tmp_path), image_size=size)


@pytest.mark.bad_input
@pytest.mark.parametrize("load", [load_textures, load_clothing])
def test_a_missing_file_is_named(tmp_path, load):
    with pytest.raises(DataError, match=r"128_jpeg\.npz \(from --data\.dir\) does not exist"):
        load(data=str(tmp_path))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"label": np.full(90, 10, dtype=np.int8)}, "labels 10 to 10 for 10 classes"),
        ({"label": np.full(90, -1, dtype=np.int8)}, "labels -1 to -1"),
        ({"split": np.zeros(90, dtype=np.int8)}, "no image has split mark 1"),
        ({"offsets": np.arange(91)[::-1].copy()}, "offsets do not end"),
        ({"label": np.zeros(3, dtype=np.int8)}, "3 labels"),
    ],
)
def test_inconsistent_arrays_are_damaged(tmp_path, changes, found):
    folder = one_image(tmp_path, CLOTHING, Image.new("RGB", (128, 128)), **changes)
    with pytest.raises(DataError, match=found):
        load_clothing(data=folder)


@pytest.mark.bad_input
def test_an_array_in_place_of_an_archive_is_damaged(tmp_path):
    with (tmp_path / CLOTHING.file_name).open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="is damaged"):
        load_clothing(data=str(tmp_path))


@pytest.mark.bad_input
def test_offsets_that_go_back_are_damaged(tmp_path):
    folder = one_image(tmp_path, CLOTHING, Image.new("RGB", (128, 128)))
    with np.load(tmp_path / CLOTHING.file_name) as packed:
        offsets = packed["offsets"].copy()
    offsets[40] = 0
    one_image(tmp_path, CLOTHING, Image.new("RGB", (128, 128)), offsets=offsets)
    with pytest.raises(DataError, match="an offset is smaller"):
        load_clothing(data=folder)


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [(127, 200), (129, 129)])
def test_an_image_of_another_size_is_named(tmp_path, size):
    folder = one_image(tmp_path, CLOTHING, Image.new("RGB", size))
    with pytest.raises(DataError, match=rf"image 0 has size \({size[0]}, {size[1]}\)"):
        load_clothing(data=folder)


def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path):
    folder = one_image(tmp_path, CLOTHING, Image.new("I;16", (128, 128), 3000))
    assert (load_clothing(data=folder).train.images == 3000 // 256).all()
