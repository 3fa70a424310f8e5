import pytest
import torch

from orthotrain.data.splits import Split, limited, stratified_split
from orthotrain.errors import DataError, ShapeError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def labels_of(counts):
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=generator(9))]


def test_parts_cover_everything_once_with_the_class_mix_of_the_whole():
    labels = labels_of([100, 50, 10])
    parts = stratified_split(labels, fractions=(0.2, 0.1), generator=generator())
    together = torch.cat(parts)
    assert torch.equal(together.sort().values, torch.arange(160))
    counts = [torch.bincount(labels[part], minlength=3).tolist() for part in parts]
    assert counts == [[70, 35, 7], [20, 10, 2], [10, 5, 1]]


def test_the_generator_decides_alone():
    labels = labels_of([30, 30])
    split = [
        stratified_split(labels, fractions=(0.5,), generator=generator(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(split[0][1], split[1][1])
    assert not torch.equal(split[0][1], split[2][1])


@pytest.mark.bad_input
@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.0,), (1.0,), (-0.1,)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(DataError, match="must each lie in"):
        stratified_split(labels_of([10]), fractions=fractions, generator=generator())


@pytest.mark.bad_input
def test_a_class_too_small_for_a_part_is_named():
    with pytest.raises(DataError, match="class 1 has 2 samples"):
        stratified_split(labels_of([50, 2]), fractions=(0.2,), generator=generator())


def test_limited_keeps_the_class_mix_and_order():
    labels = labels_of([100, 50])
    index = torch.arange(150)[::2]
    kept = limited(index, labels=labels, limit=30, generator=generator())
    assert abs(len(kept) - 30) <= 1
    assert set(kept.tolist()) <= set(index.tolist())
    share = (labels[kept] == 0).float().mean()
    assert share == pytest.approx((labels[index] == 0).float().mean().item(), abs=0.05)
    assert limited(index, labels=labels, limit=None, generator=generator()) is index


@pytest.mark.bad_input
def test_a_limit_that_loses_a_class_is_named():
    labels = labels_of([100, 10])
    with pytest.raises(DataError, match=r"train_limit=5 leaves no sample of some of 2 classes"):
        limited(torch.arange(110), labels=labels, limit=5, generator=generator())


@pytest.mark.bad_input
def test_split_refuses_labels_of_another_length():
    with pytest.raises(ShapeError, match="need"):
        Split(torch.zeros(3, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
