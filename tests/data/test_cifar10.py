import numpy as np
import pytest
import torch

from data.packed import write_packed
from orthotrain.data.cifar10 import FILE_NAME, load_cifar10
from orthotrain.errors import DataError


def test_parts_come_from_their_marks(tmp_path):
    write_packed(tmp_path / FILE_NAME)
    data = load_cifar10(data=str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.read_test())) == (180, 20, 40)
    assert data.image_shape == (3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    assert torch.bincount(data.validation.labels).tolist() == [2] * 10


def test_images_and_labels_belong_together(tmp_path):
    write_packed(tmp_path / FILE_NAME)
    data = load_cifar10(data=str(tmp_path))
    means = data.train.images.float().mean(dim=(2, 3))
    centers = torch.stack([means[data.train.labels == c].mean(dim=0) for c in range(10)])
    test = data.read_test()
    nearest = torch.cdist(test.images.float().mean(dim=(2, 3)), centers).argmin(dim=1)
    assert torch.equal(nearest, test.labels)


def test_found_through_the_environment_and_as_a_file(tmp_path, monkeypatch):
    path = write_packed(tmp_path / FILE_NAME)
    monkeypatch.setenv("ORTHOTRAIN_DATA", str(tmp_path))
    assert torch.equal(load_cifar10().train.images, load_cifar10(data=str(path)).train.images)


def test_train_limit_is_stratified_and_leaves_the_validation_part(tmp_path):
    write_packed(tmp_path / FILE_NAME)
    whole, part = (load_cifar10(data=str(tmp_path), train_limit=n) for n in (None, 60))
    assert torch.bincount(part.train.labels).tolist() == [6] * 10
    assert torch.equal(whole.validation.images, part.validation.images)


def test_a_replaced_file_is_read_anew(tmp_path):
    path = write_packed(tmp_path / FILE_NAME)
    before = load_cifar10(data=str(path)).train.images
    write_packed(path, seed=1)
    assert not torch.equal(before, load_cifar10(data=str(path)).train.images)


@pytest.mark.bad_input
def test_no_folder_given_says_how_to_give_one():
    with pytest.raises(DataError, match=r"--data\.dir DIR or set ORTHOTRAIN_DATA"):
        load_cifar10()


@pytest.mark.bad_input
def test_missing_file_is_named_with_where_it_was_asked_for(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"cifar10_jpeg\.npz \(from --data\.dir\) does not exist"):
        load_cifar10(data=str(tmp_path))
    monkeypatch.setenv("ORTHOTRAIN_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone \(from ORTHOTRAIN_DATA\) does not exist"):
        load_cifar10()


@pytest.mark.bad_input
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_file_is_damaged(tmp_path, keep):
    path = write_packed(tmp_path / FILE_NAME)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(DataError, match="is damaged or of another format"):
        load_cifar10(data=str(path))


@pytest.mark.bad_input
def test_an_image_that_does_not_decode_is_named(tmp_path):
    path = write_packed(tmp_path / FILE_NAME)
    with np.load(path) as packed:
        data = packed["data"].copy()
        start = packed["offsets"][5]
    data[start : start + 4] = 0
    write_packed(path, data=data)
    with pytest.raises(DataError, match="image 5 does not decode"):
        load_cifar10(data=str(path))
