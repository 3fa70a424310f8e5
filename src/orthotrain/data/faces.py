"""Photographs of faces (Labeled Faces in the Wild) from one packed local file, no labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orthotrain.data.packed import PackedSource

# The last tenth of the file is the test part, the tenth before it the validation part.
HELD_OUT = 0.1


def by_position(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split mark ``(n,)`` of each image: 0 for the first eight tenths, then 1, then 2.

    Neighbours in the file are often one person, so a part is a stretch of it: at most one person
    is on both sides of a cut.
    """
    held = round(HELD_OUT * len(label))
    marks = np.zeros_like(label)
    marks[len(label) - 2 * held :] = 1
    marks[len(label) - held :] = 2
    return marks


#: 13,233 aligned faces of 64 x 64 pixels: 10,587 train, 1,323 validation, 1,323 test. News
#: pictures of real persons, for research only: identify nobody. Huang, Ramesh, Berg and
#: Learned-Miller (2007), Labeled Faces in the Wild, UMass TR 07-49; alignment: Huang, Mattar, Lee
#: and Learned-Miller (2012), Learning to Align from Scratch, NIPS.
FACES = PackedSource(
    name="faces",
    title="Faces (LFW)",
    file_name="lfw64_jpeg.npz",
    classes=0,
    side=64,
    square=True,
    validation=1,
    test=2,
    marks=by_position,
)
