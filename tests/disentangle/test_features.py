"""Feature spaces: what their features are, files of networks, and a classifier that learns."""

import warnings

import pytest
import torch
from torch import nn

from orthotrain.disentangle import (
    FeatureSpace,
    classifier_features,
    file_features,
    pixel_features,
    pixel_pca,
    random_features,
    signed_images,
)
from orthotrain.errors import ConfigError, DataError, NonFiniteError, ShapeError
from reference.matrices import generator


def images(n=6, c=3, h=8, w=8, seed=0, dtype=torch.float32):
    return torch.rand(n, c, h, w, generator=generator(seed), dtype=dtype) * 2 - 1


# --- a space --------------------------------------------------------------------------------------


def test_a_space_is_evaluated_without_gradient_in_evaluation_mode():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    space = FeatureSpace("mine", network)
    x = images()
    alone = space(x[:1])
    assert torch.equal(space(x)[:1], alone) or torch.allclose(space(x)[:1], alone, atol=1e-6)
    assert not space(x).requires_grad
    assert space(x).dtype == torch.float64
    assert network.training
    assert network[2].num_batches_tracked == 0


def test_features_are_flattened_behind_the_first_axis():
    assert FeatureSpace("maps", lambda x: x[:, :, :2, :3])(images()).shape == (6, 18)
    assert FeatureSpace("means", lambda x: x.mean(dim=(1, 2, 3)))(images()).shape == (6, 1)
    assert torch.equal(pixel_features()(images()), images().flatten(1).double())


# --- random features ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 32)], ids=str)
def test_random_features_take_any_image(channels, size):
    x = images(3, channels, *size)
    found = random_features(seed=0)(x)
    assert found.shape == (3, 112)
    assert torch.isfinite(found).all()
    # One image knows nothing of the others.
    torch.testing.assert_close(random_features(seed=0)(x[1:2])[0], found[1], rtol=0, atol=1e-6)


def test_random_features_come_from_the_seed_alone():
    before = torch.get_rng_state()
    a, again, other = (random_features(seed=s)(images()) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, again)
    assert not torch.allclose(a, other)
    assert random_features(seed=7).name == "random 7"
    exact = random_features(seed=0)(images().double())
    torch.testing.assert_close(a, exact, rtol=0, atol=1e-5)


def test_random_features_by_hand():
    """One layer: the mean of a leaky rectified convolution with stride two."""
    x = images(2, 1, 5, 5, dtype=torch.float64)
    weight = torch.randn(4, 1, 3, 3, generator=generator(3), dtype=torch.float64) * (2 / 9) ** 0.5
    expected = torch.zeros(2, 4, dtype=torch.float64)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            patch = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            value = (patch[:, None] * weight).sum(dim=(2, 3, 4))
            expected += torch.where(value > 0, value, 0.2 * value) / 9
    found = random_features(seed=3, widths=[4])(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# --- pixel PCA ------------------------------------------------------------------------------------


def test_pca_gives_uncorrelated_components_in_falling_order():
    x = images(60, 1, 4, 4, dtype=torch.float64)
    x = x * torch.linspace(1, 3, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    space = pixel_pca(x, components=5)
    assert space.name == "pca 5"
    found = space(x)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(5).double(), rtol=0, atol=1e-12)
    covariance = torch.cov(found.T)
    values = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T)).flip(0)
    torch.testing.assert_close(covariance, torch.diag(values[:5]), rtol=0, atol=1e-10)


def test_all_components_keep_distances():
    x = images(30, 1, 3, 3, dtype=torch.float64)
    found = pixel_pca(x, components=9)(x)
    torch.testing.assert_close(torch.pdist(found), torch.pdist(x.flatten(1)))


# --- a classifier ---------------------------------------------------------------------------------


def two_textures(n=120, seed=0, channels=1):
    """Bright rows against bright columns, noise on both."""
    random = generator(seed)
    labels = torch.arange(n) % 2
    x = 0.3 * torch.randn(n, channels, 8, 8, generator=random)
    x[labels == 0, :, ::2] += 0.6
    x[labels == 1, :, :, ::2] += 0.6
    return x.clamp(-1, 1), labels


@pytest.mark.parametrize("channels", [1, 3])
def test_classifier_learns_and_its_features_tell_the_classes_apart(channels):
    x, labels = two_textures(channels=channels)
    before = torch.get_rng_state()
    space = classifier_features(x, labels, seed=0, epochs=8, width=4, batch_size=16, lr=1e-2)
    assert torch.equal(torch.get_rng_state(), before)
    assert space.name == "classifier"
    assert space.accuracy == 1.0
    other, other_labels = two_textures(60, seed=1, channels=channels)
    features = space(other)
    assert features.shape == (60, 16)
    means = [features[other_labels == k].mean(dim=0) for k in (0, 1)]
    nearest = torch.cdist(features, torch.stack(means)).argmin(dim=1)
    assert (nearest == other_labels).all()


def test_classifier_without_anything_to_learn_says_so():
    x = images(200, 1)
    labels = torch.randint(2, (200,), generator=generator(1))
    space = classifier_features(x, labels, seed=0, epochs=3, width=2)
    # 40 held-out images, chance a half.
    assert abs(space.accuracy - 0.5) < 4 * (0.25 / 40) ** 0.5


def test_classifier_is_seeded():
    x, labels = two_textures(40)
    settings = {"epochs": 2, "width": 2, "batch_size": 7}
    a, again, other = (classifier_features(x, labels, seed=s, **settings)(x) for s in (0, 0, 1))
    assert torch.equal(a, again)
    assert not torch.allclose(a, other)


# --- a file ---------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Means of each channel, whatever it is given."""

    def forward(self, x):
        return x.to(torch.float32).mean(dim=(2, 3))


def saved(path, network, *, script):
    if script:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(network), path)
    else:
        torch.save(network, path)
    return path


def test_torchscript_file(tmp_path):
    path = saved(tmp_path / "net.pt", Recorder(), script=True)
    space = file_features(path, name="mine")
    assert space.name == "mine"
    torch.testing.assert_close(space(images()), images().mean(dim=(2, 3)).double())
    # Grey images are three equal channels.
    grey = space(images(c=1))
    assert grey.shape == (6, 3)
    torch.testing.assert_close(grey, images(c=1).mean(dim=(2, 3)).double().expand(-1, 3))


@pytest.mark.parametrize(
    ("input_range", "expected"),
    [("signed", [-1, 0, 1]), ("unit", [0, 0.5, 1]), ("bytes", [0, 128, 255])],
)
def test_networks_get_the_range_they_expect(tmp_path, input_range, expected):
    path = saved(tmp_path / "net.pt", Recorder(), script=True)
    x = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    found = file_features(path, name="mine", input_range=input_range)(x)[:, 0]
    assert found.tolist() == pytest.approx(expected)


def test_images_are_resized(tmp_path):
    path = saved(tmp_path / "net.pt", nn.Flatten(), script=True)
    assert file_features(path, name="mine", size=5)(images()).shape == (6, 75)
    found = file_features(path, name="mine", size=4)(images())
    halves = nn.functional.interpolate(images(), size=(4, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(found, halves.flatten(1).double())


def test_saved_module_and_how_it_is_called(tmp_path):
    path = saved(tmp_path / "net.pt", nn.Flatten(), script=False)
    with pytest.raises(ConfigError, match="allow_pickle=True"):
        file_features(path, name="mine")
    space = file_features(path, name="mine", allow_pickle=True, call=lambda net, x: net(x)[:, :2])
    assert space(images()).shape == (6, 2)


@pytest.mark.bad_input
def test_files_that_hold_no_network(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        file_features(tmp_path / "none.pt", name="mine")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(DataError, match="holds dict"):
        file_features(tmp_path / "weights.pt", name="mine", allow_pickle=True)
    (tmp_path / "broken.pt").write_bytes(b"not a network")
    with pytest.raises(DataError, match="does not load"):
        file_features(tmp_path / "broken.pt", name="mine", allow_pickle=True)
    with pytest.raises(ConfigError, match="input_range"):
        file_features(tmp_path / "broken.pt", name="mine", input_range="0..255")
    with pytest.raises(ConfigError, match="size"):
        file_features(tmp_path / "broken.pt", name="mine", size=0)


# --- images ---------------------------------------------------------------------------------------


def test_every_kind_of_image_becomes_signed():
    expected = images(dtype=torch.float64)
    assert torch.equal(signed_images(expected), expected)
    torch.testing.assert_close(
        signed_images((expected + 1) / 2, value_range="unit"), expected, rtol=0, atol=1e-15
    )
    as_bytes = ((expected + 1) * 127.5).round().byte()
    torch.testing.assert_close(
        signed_images(as_bytes).double(), expected, rtol=0, atol=0.5 / 127.5 + 1e-6
    )
    assert signed_images(torch.tensor([0, 255]).byte().reshape(2, 1, 1, 1)).flatten().tolist() == [
        -1,
        1,
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ShapeError, "n, c, h, w"),
        (torch.zeros(0, 3, 8, 8), ShapeError, "n, c, h, w"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), ConfigError, r"torch\.int64"),
        (torch.full((2, 1, 8, 8), 255.0), ConfigError, "255"),
        (torch.full((2, 1, 8, 8), torch.nan), NonFiniteError, "finite images"),
    ],
    ids=["flat", "empty", "int", "range", "nan"],
)
def test_wrong_images(x, error, message):
    with pytest.raises(error, match=message):
        signed_images(x)


@pytest.mark.bad_input
def test_wrong_settings():
    with pytest.raises(ConfigError, match="width"):
        random_features(seed=0, widths=[0])
    with pytest.raises(ConfigError, match="width"):
        random_features(seed=0, widths=[])
    with pytest.raises(ConfigError, match="seed"):
        random_features(seed=0.5)
    with pytest.raises(ConfigError, match="at most 5 components"):
        pixel_pca(images(6), components=6)
    with pytest.raises(ConfigError, match="components"):
        pixel_pca(images(6), components=0)
    with pytest.raises(ShapeError, match="pixel_pca"):
        pixel_pca(images(6).flatten(1))
    with pytest.raises(ConfigError, match="signed, unit, any"):
        signed_images(images(), value_range="bytes")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(19).long()}, ShapeError, "a label for each"),
        ({"labels": torch.zeros(20, 1).long()}, ShapeError, "a label for each"),
        ({"labels": torch.zeros(20)}, ConfigError, "whole-number labels"),
        ({"labels": torch.zeros(20).long()}, ConfigError, "two classes"),
        ({"labels": torch.arange(20) - 1}, ConfigError, "from 0"),
        ({"images": torch.zeros(9, 1, 8, 8), "labels": torch.arange(9)}, ShapeError, "at least 10"),
        ({"images": torch.zeros(20, 8, 8)}, ShapeError, "n, c, h, w"),
        ({"images": torch.full((20, 1, 8, 8), torch.nan)}, NonFiniteError, "finite"),
        ({"epochs": 0}, ConfigError, "epochs"),
        ({"width": 0}, ConfigError, "width"),
        ({"batch_size": 1}, ConfigError, "batch_size"),
        ({"lr": -1.0}, ConfigError, "lr"),
    ],
    ids=str,
)
def test_wrong_input_of_the_classifier(change, error, message):
    settings = {"images": images(20, 1), "labels": torch.arange(20) % 2, "seed": 0} | change
    with pytest.raises(error, match=message):
        classifier_features(settings.pop("images"), settings.pop("labels"), **settings)
