"""Traversals of one method: what is taken, what is refused, and what is told."""

import dataclasses

import numpy as np
import pytest

from lab.experiments.latent.traversals.drawn import OWN, traversals
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.lab.experiments.latent.traversals import Traversals, image_frames

GOOD = traversals()


def test_sizes_and_names_follow_the_frames():
    assert (GOOD.dims, GOOD.steps, GOOD.samples) == (2, 4, 3)
    assert GOOD.names() == ["z[0]", "z[1]"]
    assert traversals(labels=["a", "b"]).names() == ["a", "b"]


def test_the_most_active_dimension_is_first_and_equals_keep_their_order():
    assert GOOD.order() == [0, 1]
    assert traversals(dims=4, activeness=[0.1, 0.3, 0.1, 0.2]).order() == [1, 3, 0, 2]
    assert traversals(dims=3, activeness=np.zeros(3)).order() == [0, 1, 2]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": " "}, ConfigError, "empty"),
        ({"frames": GOOD.frames[0]}, ShapeError, r"got \(4, 3, 12, 8, 3\)"),
        ({"frames": GOOD.frames[:, :, :, :, :0]}, ShapeError, "none empty"),
        ({"frames": GOOD.frames.transpose(0, 1, 2, 5, 3, 4)}, ShapeError, "channels last"),
        ({"frames": np.zeros((2, 4, 3, 12, 8, 4), np.uint8)}, ShapeError, "alpha"),
        ({"frames": GOOD.frames.astype(np.float32)}, ConfigError, "got float32"),
        ({"frames": GOOD.frames.tolist()}, ConfigError, "got list"),
        ({"base": GOOD.base[:2]}, ShapeError, "base like one frame"),
        ({"base": GOOD.base.astype(np.int64)}, ConfigError, "base as a numpy array of uint8"),
        ({"base": None}, ConfigError, "have base_values but no base"),
        ({"base_values": None}, ConfigError, "have base but no base_values"),
        ({"base_values": OWN.T}, ShapeError, r"\(3, 2\), got \(2, 3\)"),
        ({"base_values": OWN * np.nan}, NonFiniteError, "base_values"),
        ({"labels": ["a"]}, ShapeError, "a label for each dimension: 2, got 1"),
        ({"labels": "ab"}, ConfigError, "a list of texts"),
        ({"labels": [0, 1]}, ConfigError, "a list of texts"),
        ({"activeness": [1.0]}, ShapeError, "activeness"),
        ({"activeness": [1.0, np.inf]}, NonFiniteError, "activeness"),
        ({"activeness": [1.0, -0.5]}, ConfigError, "got -0.5"),
    ],
)
def test_what_does_not_fit_is_a_typed_error(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(GOOD, **changes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_image_frames_round_clip_and_move_channels(dtype):
    levels = np.arange(256, dtype=np.float64)
    images = np.stack([levels, levels[::-1]]).reshape(1, 2, 16, 16)
    frames = image_frames((images / 127.5 - 1).astype(dtype))
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, np.moveaxis(images, 1, -1))
    outside = image_frames(np.array([[[-9.0, 0.49, 1.0, 7.0]]]), low=0.0, high=1.0)
    assert outside[..., 0].tolist() == [[0, 125, 255, 255]]


def test_half_precision_is_rounded_once():
    halves = np.linspace(-1, 1, 4096).astype(np.float16).reshape(1, 64, 64)
    np.testing.assert_array_equal(image_frames(halves), image_frames(halves.astype(np.float64)))


def test_image_frames_are_what_traversals_take():
    images = np.zeros((2, 4, 3, 1, 12, 8), np.float32)
    drawn = Traversals("gray", image_frames(images))
    assert drawn.frames.shape == (2, 4, 3, 12, 8, 1)
    assert (drawn.frames == 128).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "settings", "error", "message"),
    [
        (np.zeros((8, 8)), {}, ShapeError, r"got \(8, 8\)"),
        (np.zeros((3, 8, 8), np.int64), {}, ConfigError, "int64"),
        ([[[0.0]]], {}, ConfigError, "list"),
        (np.full((1, 2, 2), np.nan), {}, NonFiniteError, "NaN"),
        (np.zeros((1, 2, 2)), {"low": 1.0, "high": 1.0}, ConfigError, "low < high"),
    ],
)
def test_image_frames_refuse_what_is_no_image(images, settings, error, message):
    with pytest.raises(error, match=message):
        image_frames(images, **settings)
