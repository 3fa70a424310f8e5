import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data.packed import write_folder
from orthotrain.data import image_folder
from orthotrain.data.batches import BatchStream
from orthotrain.data.image_folder import lazy_folder, load_image_folder
from orthotrain.data.lazy import ImageFiles, LazyImages
from orthotrain.errors import ConfigError, DataError


def load(folder, *, image_size=8, validation_fraction=0.2, **settings):
    return load_image_folder(
        str(folder), image_size=image_size, validation_fraction=validation_fraction, **settings
    )


def colors(split):
    """(class, part, number) that the color of each image states."""
    red, green, blue = split.images[:].double().mean(dim=(2, 3)).round().long().unbind(1)
    return list(zip((red // 40).tolist(), (green // 100).tolist(), blue.tolist(), strict=True))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("held", ["val", "test"])
def test_one_held_out_folder_is_the_test_part(tmp_path, held, lazy):
    data = load(write_folder(tmp_path / "set", parts=("train", held)), lazy=lazy)
    test = data.read_test()
    assert (data.name, data.classes, data.image_shape) == ("set", 3, (3, 8, 8))
    assert (len(data.train), len(data.validation), len(test)) == (24, 6, 30)
    assert torch.bincount(data.validation.labels).tolist() == [2] * 3
    for part, name in ((data.train, 0), (data.validation, 0), (test, 1)):
        assert [c for c, _, _ in colors(part)] == part.labels.tolist()
        assert {p for _, p, _ in colors(part)} == {name}
    everything = colors(data.train) + colors(data.validation)
    assert sorted(everything) == [(c, 0, k) for c in range(3) for k in range(10)]


@pytest.mark.parametrize("lazy", [False, True])
def test_with_both_the_parts_are_as_named(tmp_path, lazy):
    data = load(write_folder(tmp_path, parts=("train", "val", "test")), lazy=lazy)
    assert (len(data.train), len(data.validation)) == (30, 30)
    assert {p for _, p, _ in colors(data.validation)} == {1}
    assert {p for _, p, _ in colors(data.read_test())} == {2}


def test_a_test_folder_without_classes_counts_as_absent(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "test" / "unlabelled.png")
    assert {p for _, p, _ in colors(load(tmp_path).read_test())} == {1}


def test_found_through_the_environment(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setenv("ORTHOTRAIN_DATA", str(tmp_path))
    found = load_image_folder(image_size=8).train.images
    assert torch.equal(found, load(tmp_path, validation_fraction=0.1).train.images)


def test_lazy_images_are_those_decoded_at_once(tmp_path):
    write_folder(tmp_path)
    rng = np.random.default_rng(0)
    for file in tmp_path.rglob("*.png"):
        size = tuple(rng.integers(9, 30, 2))
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    whole, lazy = (load(tmp_path, lazy=lazy) for lazy in (False, True))
    assert isinstance(lazy.train.images, LazyImages)
    assert lazy.train.images.shape == whole.train.images.shape
    for index in (torch.tensor([5, 0, 5]), torch.tensor([], dtype=torch.int64), slice(3, 9)):
        assert torch.equal(lazy.train.images[index], whole.train.images[index])
    streams = [
        BatchStream(data.train, batch_size=5, seed=0, crop_area=0.5, flip=True)
        for data in (whole, lazy)
    ]
    for _ in range(6):
        for one, other in zip(*(stream.next_batch() for stream in streams), strict=True):
            assert torch.equal(one, other)


def test_the_number_of_threads_changes_nothing(tmp_path):
    files = sorted(write_folder(tmp_path).rglob("*.png"))
    images = LazyImages(ImageFiles(files, title="set"), size=8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = images[:]
        torch.set_num_threads(4)
        assert torch.equal(images[:], one)
    finally:
        torch.set_num_threads(before)


def test_lazy_images_follow_their_device(tmp_path):
    write_folder(tmp_path)
    images = load(tmp_path, lazy=True, device=torch.device("meta")).train.images
    assert images.device.type == images[:].device.type == "meta"


def test_what_would_not_fit_stays_on_disk_and_says_so(tmp_path, monkeypatch, caplog):
    write_folder(tmp_path)
    monkeypatch.setattr(image_folder, "MAX_DECODED_BYTES", 30 * 3 * 8 * 8)
    with caplog.at_level(logging.INFO, logger="orthotrain"):
        assert isinstance(load(tmp_path).train.images, torch.Tensor)
        assert not caplog.records
        assert isinstance(load(tmp_path, image_size=9).train.images, LazyImages)
    assert "stay on disk" in caplog.text
    assert isinstance(load(tmp_path, image_size=9, lazy=False).train.images, torch.Tensor)


def test_train_limit_is_stratified_and_leaves_the_validation_part(tmp_path):
    write_folder(tmp_path)
    whole, part = (load(tmp_path, train_limit=n) for n in (None, 9))
    assert torch.bincount(part.train.labels).tolist() == [3] * 3
    assert torch.equal(whole.validation.images, part.validation.images)


def test_a_replaced_image_is_read_anew(tmp_path):
    write_folder(tmp_path)
    before = load(tmp_path).train.images
    for file in (tmp_path / "train").rglob("*.png"):
        Image.new("RGB", (64, 64), (1, 2, 3)).save(file)
    assert not torch.equal(before, load(tmp_path).train.images)


def test_other_files_and_hidden_folders_are_left_out(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    shutil.copy(tmp_path / "train" / "cat" / "000.png", tmp_path / "train" / "cat" / "UP.JPEG")
    data = load(tmp_path)
    assert (data.classes, len(data.train) + len(data.validation)) == (3, 31)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    write_folder(tmp_path)
    file = tmp_path / "val" / "cat" / "000.png"
    suffix = ".jpg" if mode == "CMYK" else ".png"
    file.unlink()
    Image.new("RGB", (16, 16), (90, 90, 90)).convert(mode).save(file.with_suffix(suffix))
    # A palette of 216 colors can only dither.
    means = load(tmp_path).read_test().images[0].float().mean(dim=(1, 2))
    assert (means - 90).abs().max() < 2


@pytest.mark.bad_input
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_a_damaged_file_is_named(tmp_path, content, lazy):
    write_folder(tmp_path)
    file = tmp_path / "train" / "dog" / "004.png"
    file.write_bytes(file.read_bytes()[:40] if content is None else content)

    def decode():
        data = load(tmp_path, lazy=lazy)
        return data.train.images[:], data.validation.images[:]

    with pytest.raises(DataError, match=r"dog/004\.png does not decode"):
        decode()


@pytest.mark.bad_input
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_that_is_not_everywhere_is_named(tmp_path, part):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / part / "eel")
    with pytest.raises(DataError, match=r"val lacks the classes .*'eel'|of train and has \['eel'"):
        load(tmp_path)


@pytest.mark.bad_input
@pytest.mark.bad_input
def test_one_class_is_refused(tmp_path):
    write_folder(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match=r"train holds one class, cat; .*at least two"):
        load(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    write_folder(tmp_path)
    for file in (tmp_path / "val" / "dog").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"val/dog holds no image"):
        load(tmp_path)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "has no folder train"),
        (("val",), "has no folder train"),
        (("train",), "has neither val nor test"),
    ],
)
def test_a_missing_part_is_named(tmp_path, parts, message):
    write_folder(tmp_path, parts=parts)
    with pytest.raises(DataError, match=rf"\(from --data\.dir\) {message}"):
        load(tmp_path)


@pytest.mark.bad_input
def test_a_training_part_without_classes_is_refused(tmp_path):
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train holds no class"):
        load(tmp_path)


@pytest.mark.bad_input
def test_no_folder_given_says_how_to_give_one():
    with pytest.raises(DataError, match=r"--data\.dir DIR or set ORTHOTRAIN_DATA"):
        load_image_folder()


@pytest.mark.bad_input
@pytest.mark.parametrize("lazy", [None, False, True])
def test_no_size_is_refused(tmp_path, lazy):
    write_folder(tmp_path)
    with pytest.raises(ConfigError, match="image_size=0 must be at least 1"):
        load(tmp_path, image_size=0, lazy=lazy)


@pytest.mark.bad_input
def test_a_class_too_small_to_hold_out_from_is_refused(tmp_path):
    write_folder(tmp_path, per_class=2)
    with pytest.raises(DataError, match="class 0 has 2 samples"):
        load(tmp_path)


def test_the_twins_that_macos_leaves_beside_images_are_left_out_by_both_readers(tmp_path):
    for part in ("train", "val"):
        for name in "ab":
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(12):
                Image.new("RGB", (8, 8), (i * 9, 0, 0)).save(folder / f"{i}.png")
                (folder / f"._{i}.png").write_bytes(b"\0\5\x16\7")
    whole = load_image_folder(str(tmp_path), image_size=8)
    assert len(whole.train.labels) + len(whole.validation.labels) == 24
    assert len(lazy_folder(str(tmp_path), image_size=8, part="test")[1]) == 24
