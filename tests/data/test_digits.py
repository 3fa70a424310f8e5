import sys

import pytest
import torch

from orthotrain.data.digits import load_digits
from orthotrain.errors import MissingPackageError


def test_three_fixed_parts_of_all_images():
    data, again = load_digits(), load_digits()
    test = data.read_test()
    assert (len(data.train), len(data.validation), len(test)) == (1079, 359, 359)
    assert data.image_shape == (1, 8, 8)
    assert data.train.images.dtype == torch.float32
    for part, same in (
        (data.train, again.train),
        (data.validation, again.validation),
        (test, again.read_test()),
    ):
        assert torch.equal(part.images, same.images)
        assert torch.equal(part.labels, same.labels)


def test_no_image_is_in_two_parts():
    data = load_digits()
    parts = (data.train, data.validation, data.read_test())
    images = torch.cat([part.images for part in parts])
    # The source itself holds no image twice, so any repetition would come from the split.
    assert len(images.flatten(1).unique(dim=0)) == len(images) == 1797


def test_normalized_by_the_training_part():
    train = load_digits().train.images
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.bad_input
def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingPackageError, match=r'scikit-learn .*"orthotrain\[lab\]"'):
        load_digits()
