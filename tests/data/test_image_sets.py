"""Sets of images without labels, through one interface, made one way in training and scoring."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from data.packed import write_folder, write_packed
from orthotrain.data import ImageSet, Sprites, image_set
from orthotrain.data.batches import BatchStream
from orthotrain.data.cifar10 import CIFAR10, load_cifar10
from orthotrain.data.clothing import CLOTHING, load_clothing
from orthotrain.data.faces import FACES, by_position
from orthotrain.data.image_folder import load_image_folder
from orthotrain.data.image_sets import PACKED
from orthotrain.data.packed import find_packed
from orthotrain.data.textures import TEXTURES, load_textures
from orthotrain.errors import ConfigError, DataError, ShapeError

PARTS = ("train", "validation", "test")


def write(folder, source):
    """A small packed file of the source's format."""
    long_side = source.side if source.square else source.side + 12
    changes = {"split": None} if source.marks else {}
    changes |= {} if source.classes else {"label": None}
    write_packed(
        folder / source.file_name,
        train_per_class=12 if source.marks else 10,
        test_per_class=2,
        marks=(0,) if source.marks else (0, 1, 2),
        shape=(source.side, long_side),
        **changes,
    )
    return str(folder)


def everything(images):
    return images[torch.arange(len(images))]


def flat(root, count=20):
    """Images in one folder, whose red is their number in the order of their names."""
    root.mkdir()
    for k in range(count):
        Image.new("RGB", (10, 8), (k, 0, 0)).save(root / f"{k:02d}.png")
    return root


def reds(images):
    return everything(images)[:, 0, 0, 0].tolist()


# --- the interface ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PACKED, "image-folder", "sprites"])
def test_every_set_gives_batches_of_bytes(tmp_path, name):
    if name in PACKED:
        write(tmp_path, PACKED[name])
    elif name == "image-folder":
        write_folder(tmp_path)
    for part in PARTS:
        images = image_set(name, data=str(tmp_path), image_size=16, part=part)
        assert isinstance(images, ImageSet)
        assert (images.name, images.part) == (name, part)
        assert images.image_shape == (3, 16, 16)
        index = torch.tensor([2, 0, 2])
        batch = images[index]
        assert (batch.shape, batch.dtype) == ((3, 3, 16, 16), torch.uint8)
        assert batch.is_contiguous()
        assert torch.equal(batch, torch.cat([images[index[k : k + 1]] for k in range(3)]))
        assert torch.equal(batch, images[:3][index])
        assert torch.equal(batch[:1], images[index[:1] - len(images)])
        assert images[torch.empty(0, dtype=torch.int64)].shape == (0, 3, 16, 16)
        if name != "sprites":
            # These are decoded first; sprites are drawn where they go, which meta cannot.
            assert images.to(torch.device("meta"))[index].device.type == "meta"
        assert torch.equal(images.to(torch.device("cpu"))[index], batch)


@pytest.mark.parametrize("name", ["faces", "image-folder", "sprites"])
def test_a_stream_of_batches_goes_on_where_it_stood(tmp_path, name):
    write(tmp_path, FACES)
    data = tmp_path
    if name == "image-folder":
        data = write_folder(tmp_path / "folder")
    images = image_set(name, data=str(data), image_size=16)
    split = images.split()
    assert split.labels.tolist() == [0] * len(images)
    one, other = (BatchStream(split, batch_size=4, seed=seed, flip=True) for seed in (0, 1))
    one.next_batch()
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        batch = one.next_batch()[0]
        assert torch.equal(batch, other.next_batch()[0])
        assert -1 <= batch.min() < batch.max() <= 1


def test_global_random_state_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    flat(tmp_path / "set")
    for images in (
        image_set("sprites"),
        image_set("image-folder", data=str(tmp_path), image_size=8),
    ):
        everything(images.images[:2])
    assert torch.equal(torch.get_rng_state(), before)


# --- packed files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "load"),
    [(CIFAR10, load_cifar10), (CLOTHING, load_clothing), (TEXTURES, load_textures)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_lazy_parts_are_those_decoded_at_once(tmp_path, source, load):
    folder = write(tmp_path, source)
    whole = load(data=folder)
    for part, split in zip(PARTS, (whole.train, whole.validation, whole.read_test()), strict=True):
        assert torch.equal(everything(image_set(source.name, data=folder, part=part)), split.images)


def test_a_smaller_size_is_the_same_in_both_ways(tmp_path):
    folder = write(tmp_path, CLOTHING)
    lazy = image_set("clothing", data=folder, image_size=64, part="validation")
    assert torch.equal(
        everything(lazy), load_clothing(data=folder, image_size=64).validation.images
    )


def test_faces_are_cut_by_position(tmp_path):
    assert by_position(np.zeros(20, dtype=np.int64)).tolist() == [0] * 16 + [1] * 2 + [2] * 2
    assert np.bincount(by_position(np.zeros(13_233, dtype=np.int64))).tolist() == [
        10_587,
        1323,
        1323,
    ]
    images = [Image.new("L", (64, 64), k) for k in range(50)]
    blobs = []
    for one in images:
        buffer = io.BytesIO()
        one.save(buffer, format="PNG")
        blobs.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    offsets = np.cumsum([0, *map(len, blobs)])
    np.savez(tmp_path / FACES.file_name, data=np.concatenate(blobs), offsets=offsets)
    parts = [reds(image_set("faces", data=str(tmp_path), part=part)) for part in PARTS]
    assert parts == [list(range(40)), list(range(40, 45)), list(range(45, 50))]


def test_a_packed_file_is_found_through_the_environment_and_read_anew(tmp_path, monkeypatch):
    write(tmp_path, FACES)
    monkeypatch.setenv("ORTHOTRAIN_DATA", str(tmp_path))
    before = everything(image_set("faces"))
    assert torch.equal(
        before, everything(image_set("faces", data=str(find_packed(FACES, data=None))))
    )
    write_packed(
        tmp_path / FACES.file_name, train_per_class=12, marks=(0,), shape=(64, 64), seed=5,
        label=None, split=None,
    )  # fmt: skip
    after = everything(image_set("faces"))
    assert before.shape == after.shape
    assert not torch.equal(before, after)


@pytest.mark.bad_input
def test_a_corrupt_image_is_named_with_its_file_where_it_is_asked_for(tmp_path):
    path = tmp_path / FACES.file_name
    write(tmp_path, FACES)
    with np.load(path) as packed:
        data, offsets = packed["data"].copy(), packed["offsets"]
    data[offsets[5] : offsets[5] + 4] = 0
    np.savez(path, data=data, offsets=offsets)
    images = image_set("faces", data=str(tmp_path))
    assert len(images[:5]) == 5
    with pytest.raises(DataError, match=r"lfw64_jpeg\.npz is damaged .*\(image 5 does not decode"):
        images[torch.tensor([0, 5])]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"data": np.zeros(3, dtype=np.uint8), "offsets": np.array([], dtype=np.int64)}, "arrays"),
        ({"data": np.zeros(3, dtype=np.uint8), "offsets": np.array([0])}, "offsets do not end"),
        ({"data": np.zeros(3, dtype=np.uint8)}, "KeyError"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, arrays, found):
    np.savez(tmp_path / FACES.file_name, **arrays)
    with pytest.raises(DataError, match=rf"lfw64_jpeg\.npz is damaged[\s\S]*{found}"):
        image_set("faces", data=str(tmp_path))


@pytest.mark.bad_input
def test_what_a_damaged_file_should_hold_is_what_its_set_needs(tmp_path):
    for source, columns in ((FACES, "data, offsets"), (TEXTURES, "data, offsets, label"),
                            (CIFAR10, "data, offsets, label, split")):  # fmt: skip
        np.savez(tmp_path / source.file_name, images=np.zeros(3))
        with pytest.raises(DataError, match=f"need the packed arrays {columns}; copy"):
            image_set(source.name, data=str(tmp_path))


@pytest.mark.bad_input
def test_faces_of_another_size_are_refused(tmp_path):
    write_packed(tmp_path / FACES.file_name, marks=(0,), shape=(64, 70), label=None, split=None)
    with pytest.raises(DataError, match=r"image 0 has size \(70, 64\)"):
        image_set("faces", data=str(tmp_path))[:1]


# --- folders ----------------------------------------------------------------------------------


def test_a_plain_folder_is_cut_into_parts_that_do_not_overlap(tmp_path):
    folder = flat(tmp_path / "set")
    parts = [image_set("image-folder", data=str(folder), image_size=8, part=p) for p in PARTS]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert {part.title for part in parts} == {"set"}
    shown = [reds(part) for part in parts]
    assert sorted(red for part in shown for red in part) == list(range(20))
    assert shown == [sorted(part) for part in shown]
    # At random, so not a stretch; and the same whenever it is asked for.
    assert shown[0] != list(range(16))
    again = image_set("image-folder", data=str(folder), image_size=8)
    assert reds(again) == shown[0]


@pytest.mark.parametrize(
    ("made", "sizes", "marks"),
    [
        (("train", "val", "test"), (30, 30, 30), (0, 1, 2)),
        (("train", "val"), (27, 3, 30), (0, 0, 1)),
        (("train", "test"), (27, 3, 30), (0, 0, 1)),
        (("train",), (24, 3, 3), (0, 0, 0)),
        # Without train, these are folders like any others.
        (("val", "test"), (48, 6, 6), None),
    ],
)
def test_a_folder_with_parts_keeps_them(tmp_path, made, sizes, marks):
    write_folder(tmp_path, parts=made)
    parts = [image_set("image-folder", data=str(tmp_path), image_size=8, part=p) for p in PARTS]
    assert tuple(len(part) for part in parts) == sizes
    pixels = [everything(part)[:, :, 0, 0] for part in parts]
    if marks:
        assert [{value // 100 for value in one[:, 1].tolist()} for one in pixels] == [
            {mark} for mark in marks
        ]
    assert len(torch.cat(pixels).unique(dim=0)) == sum(sizes)


def test_folders_of_any_depth_are_read_and_hidden_and_other_files_are_not(tmp_path):
    folder = flat(tmp_path / "set", 10)
    (folder / "a" / "b").mkdir(parents=True)
    Image.new("RGB", (9, 9), (90, 0, 0)).save(folder / "a" / "b" / "DEEP.JPEG", quality=100)
    (folder / ".cache").mkdir()
    Image.new("RGB", (9, 9)).save(folder / ".cache" / "thumbnail.png")
    Image.new("RGB", (9, 9)).save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    parts = [image_set("image-folder", data=str(folder), image_size=8, part=p) for p in PARTS]
    shown = sorted(red for part in parts for red in reds(part))
    assert shown[:10] == list(range(10))
    assert shown[10:] == [pytest.approx(90, abs=2)]


def test_a_folder_is_cropped_like_one_with_classes(tmp_path):
    write_folder(tmp_path, parts=("train", "val", "test"))
    rng = np.random.default_rng(0)
    for file in tmp_path.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (*rng.integers(9, 30, 2), 3), dtype=np.uint8)).save(
            file
        )
    labelled = load_image_folder(str(tmp_path), image_size=12).validation.images
    plain = image_set("image-folder", data=str(tmp_path), image_size=12, part="validation")
    assert torch.equal(everything(plain), labelled)


def test_images_of_every_kind_become_rgb(tmp_path):
    folder = flat(tmp_path / "set", 6)
    for name, mode, value in (("gray", "L", 60), ("clear", "RGBA", (0, 0, 0, 0)),
                              ("deep", "I;16", 0x50AA), ("palette", "P", 0)):  # fmt: skip
        Image.new(mode, (9, 9), value).save(folder / f"z-{name}.png")
    parts = [image_set("image-folder", data=str(folder), image_size=8, part=p) for p in PARTS]
    shown = sorted(red for part in parts for red in reds(part))
    assert shown == sorted([*range(6), 60, 255, 0x50, 0])


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_corrupt_file_is_named_where_it_is_asked_for(tmp_path, content):
    folder = flat(tmp_path / "set")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:40] if content is None else content)
    images = image_set("image-folder", data=str(folder), image_size=8)
    with pytest.raises(DataError, match=r"set/\d\d\.png does not decode .*take it out"):
        images[torch.tensor([3])]


@pytest.mark.bad_input
def test_folders_without_enough_images_are_named(tmp_path):
    settings = {"image_size": 8}
    with pytest.raises(DataError, match=r"gone \(from --data\.dir\) is no folder"):
        image_set("image-folder", data=str(tmp_path / "gone"), **settings)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    for folder in (tmp_path / "empty", tmp_path / "empty" / "train"):
        with pytest.raises(DataError, match=r"empty/train holds no image; need files that end in"):
            image_set("image-folder", data=str(folder), **settings)
    few = flat(tmp_path / "few", 5)
    with pytest.raises(DataError, match="few: 5 images are too few to hold a tenth of them out"):
        image_set("image-folder", data=str(few), **settings)
    Image.new("RGB", (8, 8)).save(few / "more.png")
    assert len(image_set("image-folder", data=str(few), **settings)) == 4
    with pytest.raises(DataError, match=r"--data\.dir DIR or set ORTHOTRAIN_DATA"):
        image_set("image-folder", **settings)


# --- sprites ----------------------------------------------------------------------------------


def test_sprites_are_a_set_of_bytes_under_their_own_name():
    sprites = Sprites(16, held={"orientation": 0})
    parts = [image_set(sprites, part=part) for part in PARTS]
    assert [len(part) for part in parts] == [14_746, 1843, 1843]
    assert {part.title for part in parts} == {"sprites (re-rendered)"}
    index = torch.cat([part.images._index for part in parts])
    assert torch.equal(index.sort().values, torch.arange(len(sprites)))
    some = torch.tensor([7, 0, 99])
    drawn = sprites[parts[1].images._index[some]][0]
    assert torch.equal(parts[1][some].float(), (255 * drawn).round().expand(-1, 3, -1, -1))
    gray = image_set(sprites, part="validation", channels=1)
    assert torch.equal(gray[some], parts[1][some][:, :1])


def test_sprites_by_name_have_the_size_asked_for():
    assert image_set("sprites").image_shape == (3, 64, 64)
    assert image_set("sprites", image_size=16, channels=1).image_shape == (1, 16, 16)
    color = image_set(Sprites(16, color=True, held={"x": 3, "y": 9}), image_size=16)
    batch = color[:40]
    assert not torch.equal(batch[:, 0], batch[:, 1])


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("celeba", {}, "source to be one of faces, clothing.*got 'celeba'"),
        ("faces", {"part": "all"}, "part to be one of train, validation, test, got 'all'"),
        ("faces", {"image_size": 65}, "image_size=65 must lie between 1 and 64"),
        ("cifar10", {"image_size": 0}, "image_size=0 must lie between 1 and 32"),
        ("faces", {"channels": 1}, "the images of faces have 3"),
        ("image-folder", {}, "give image_size"),
        ("image-folder", {"image_size": 0}, "image_size=0 must be at least 1"),
        (Sprites(16), {"image_size": 32}, "image_size=32 does not fit Sprites"),
        (
            Sprites(16, color=True, held={"x": 0, "y": 0}),
            {"channels": 1},
            "got channels=1, its images have 3",
        ),
        (Sprites(16, held={"x": 0, "y": 0}), {"channels": 2}, "channels to be one of 1, 3, got 2"),
        ("sprites", {"image_size": 128}, "size=128 must be a whole number from 16 to 64"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, source, settings, message):
    flat(tmp_path / "set")
    with pytest.raises(ConfigError, match=message):
        image_set(source, data=str(tmp_path / "set"), **settings)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["image-folder", "sprites"])
def test_masks_and_indices_outside_are_refused(tmp_path, name):
    images = image_set(name, data=str(flat(tmp_path / "set")), image_size=16)
    for index in (torch.ones(16, dtype=torch.bool), torch.zeros(2), torch.tensor(3)):
        with pytest.raises(ShapeError, match=r"need \(k,\) of int64"):
            images[index]
    for number in (len(images), -len(images) - 1):
        with pytest.raises(IndexError):
            images[torch.tensor([0, number])]


# --- real files -------------------------------------------------------------------------------


def need_real(source, monkeypatch):
    monkeypatch.undo()
    try:
        find_packed(source, data=None)
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.data
@pytest.mark.parametrize(
    ("source", "counts"),
    [
        (FACES, (10_587, 1323, 1323)),
        (CLOTHING, (3068, 341, 372)),
        (CIFAR10, (45_000, 5000, 10_000)),
        (TEXTURES, (640, 160, 400)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_real_sets_have_their_documented_counts(monkeypatch, source, counts):
    need_real(source, monkeypatch)
    for part, count in zip(PARTS, counts, strict=True):
        images = image_set(source.name, part=part)
        assert len(images) == count
        assert images.image_shape == (3, source.side, source.side)
        assert images[torch.tensor([0, count - 1])].float().std() > 10


@pytest.mark.data
def test_real_faces_have_their_documented_mean(monkeypatch):
    need_real(FACES, monkeypatch)
    sums, seen = torch.zeros(3, dtype=torch.float64), 0
    for part in PARTS:
        images = image_set("faces", part=part)
        for index in torch.arange(len(images)).split(500):
            sums += images[index].double().mean(dim=(2, 3)).sum(0) / 255
        seen += len(images)
    assert seen == 13_233
    assert (sums / seen).tolist() == pytest.approx([0.5335, 0.4233, 0.3527], abs=1e-4)
