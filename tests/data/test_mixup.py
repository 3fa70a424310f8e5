import math

import pytest
import torch
from torch.nn import functional as F

from orthotrain.data.batches import BatchStream
from orthotrain.data.mixup import mixup, mixup_share
from orthotrain.data.splits import Split
from orthotrain.errors import ConfigError, ShapeError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def stream(seed=3, **changes):
    """Images of 12 sizes of gray, whose class is their place over four."""
    gray = torch.arange(12.0)
    split = Split(gray[:, None, None, None].expand(12, 2, 4, 4).clone(), torch.arange(12) // 4)
    settings = {"batch_size": 6, "mixup": 0.5, "classes": 3, "flip": True}
    return BatchStream(split, seed=seed, **{**settings, **changes})


def test_blends_of_images_have_the_blend_of_their_labels():
    images = torch.rand(3, 1, 2, 2, generator=generator())
    first, second = torch.tensor([0, 2]), torch.tensor([1, 2])
    mixed, chances = mixup(images, torch.tensor([0, 1, 3]), first, second, share=0.3, classes=4)
    torch.testing.assert_close(mixed[0], 0.3 * images[0] + 0.7 * images[1])
    torch.testing.assert_close(chances[0], torch.tensor([0.3, 0.7, 0.0, 0.0]))
    torch.testing.assert_close(mixed[1], images[2])
    torch.testing.assert_close(chances[1], torch.tensor([0.0, 0.0, 0.0, 1.0]))


def test_the_loss_of_a_blend_is_the_blend_of_the_losses():
    scores = torch.randn(1, 4, generator=generator())
    labels = torch.tensor([1, 3])
    _, chances = mixup(
        torch.zeros(2, 1, 1, 1), labels, labels[:1] * 0, labels[:1], share=0.25, classes=4
    )
    apart = [F.cross_entropy(scores, one[None], label_smoothing=0.1) for one in labels]
    both = F.cross_entropy(scores, chances, label_smoothing=0.1)
    torch.testing.assert_close(both, 0.25 * apart[0] + 0.75 * apart[1])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    random = generator()
    shares = torch.tensor([mixup_share(alpha, generator=random) for _ in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    # Five standard errors; the fourth central moment is below 1 / 16.
    assert abs(float(shares.mean()) - 0.5) < 5 * math.sqrt(variance / 4000)
    assert abs(float(shares.var()) - variance) < 5 * math.sqrt(1 / 16 / 4000)
    assert 0 <= float(shares.min()) <= float(shares.max()) <= 1


def test_a_batch_is_blended_by_one_share_and_goes_on_after_a_resume():
    batches = stream()
    images, chances = batches.next_batch()
    assert images.shape == (6, 2, 4, 4)
    torch.testing.assert_close(chances.sum(1), torch.ones(6))
    shares = {round(float(value), 6) for value in chances.flatten()} - {0.0, 1.0}
    assert len(shares) <= 2  # one share and what is left
    other = stream(seed=9)
    other.load_state_dict(batches.state_dict())
    for _ in range(3):
        for one, again in zip(batches.next_batch(), other.next_batch(), strict=True):
            assert torch.equal(one, again)


def test_parts_of_a_batch_are_those_of_the_whole():
    whole, first, second = stream(crop_padding=1), stream(crop_padding=1), stream(crop_padding=1)
    first.restrict_to(slice(0, 2))
    second.restrict_to(slice(2, 6))
    for _ in range(4):
        parts = [one.next_batch() for one in (first, second)]
        for all_of_it, pieces in zip(whole.next_batch(), zip(*parts, strict=True), strict=True):
            assert torch.equal(all_of_it, torch.cat(pieces))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"mixup=1.5.*need mixup in"):
        stream(mixup=1.5)
    with pytest.raises(ConfigError, match="classes=None"):
        stream(classes=None)
    with pytest.raises(ConfigError, match=r"alpha=0 .*in \(0, 1\]"):
        mixup_share(0, generator=generator())
    places = torch.tensor([0])
    with pytest.raises(ShapeError, match="2 labels of 1 images"):
        mixup(torch.zeros(1, 1, 1, 1), torch.tensor([0, 1]), places, places, share=0.5, classes=2)
