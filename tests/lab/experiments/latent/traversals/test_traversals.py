"""Traversals of one method: what is taken, what is refused, and what is told."""

import dataclasses

import numpy as np
import pytest

from lab.experiments.latent.traversals.drawn import OWN, traversals
from orthotrain.errors import NonFiniteError, ShapeError

GOOD = traversals()


def test_sizes_follow_the_frames():
    assert (GOOD.dims, GOOD.steps, GOOD.samples) == (2, 4, 3)


def test_the_most_active_dimension_is_first_and_equals_keep_their_order():
    assert GOOD.order() == [0, 1]
    assert traversals(dims=4, activeness=np.array([0.1, 0.3, 0.1, 0.2])).order() == [1, 3, 0, 2]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"frames": GOOD.frames[0]}, ShapeError, r"got uint8 \(4, 3, 12, 8, 3\)"),
        ({"frames": GOOD.frames[:, :, :, :, :0]}, ShapeError, "none empty"),
        ({"frames": GOOD.frames.transpose(0, 1, 2, 5, 3, 4)}, ShapeError, "1 or 3 channels"),
        ({"frames": GOOD.frames.astype(np.float32)}, ShapeError, "got float32"),
        ({"base": GOOD.base[:2]}, ShapeError, "need base"),
        ({"base": GOOD.base.astype(np.int64)}, ShapeError, "a base of int64"),
        ({"base_values": OWN.T}, ShapeError, r"\(3, 2\), got \(2, 3\)"),
        ({"base_values": OWN * np.nan}, NonFiniteError, "base_values"),
        ({"values": GOOD.values[:3]}, ShapeError, r"need values: \(4,\), got \(3,\)"),
        ({"activeness": np.ones(1)}, ShapeError, "activeness"),
        ({"activeness": np.array([1.0, np.inf])}, NonFiniteError, "activeness"),
    ],
)
def test_what_does_not_fit_is_a_typed_error(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(GOOD, **changes)
